"""What an object is charged is what it takes: never less, and not so much more that right files,
which hold very many, would be refused.

The memory is tracemalloc's, which knows nothing of our charges: what 4,000 further objects of a
kind add to the peak of a reading.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from io import BytesIO

import pytest

import weights_io
from tests.weights_io.forge import ORDERED, integer, proto, tensor, text, torch_zip
from tests.weights_io.refusal import charged

FEW, MANY = 1000, 5000  # objects
MOST = 2.5  # times what is taken


def _named(names: str) -> bytes:
    """A dict of names of several letters, as those that are no constants of Python's."""
    return b"}(" + b"".join(text(f"{name}_name") + b"N" for name in names) + b"u"


KINDS: dict[str, Callable[[int], bytes]] = {
    "None": lambda i: b"N",
    "small integers": lambda i: b"K\x05",
    "integers": lambda i: b"J" + (100_000 + i).to_bytes(4, "little"),
    "wide integers": lambda i: integer((1 << 200) + i),
    "numbers": lambda i: b"G@\x00" + i.to_bytes(6, "big"),
    "texts": lambda i: text(f"{i:06d}"),
    "bytes": lambda i: b"C\x06%06d" % i,
    "empty lists": lambda i: b"]",
    "lists of one": lambda i: b"]Na",
    "lists of two": lambda i: b"](NNe",
    "lists of five": lambda i: b"](NNNNNe",
    "lists of lists": lambda i: b"]]a",
    "remembered lists": lambda i: b"]\x94",
    "empty tuples": lambda i: b")",
    "tuples of one": lambda i: b"N\x85",
    "tuples of two": lambda i: b"NN\x86",
    "tuples of three": lambda i: b"NNN\x87",
    "tuples of nine": lambda i: b"(" + b"N" * 9 + b"t",
    "empty dicts": lambda i: b"}",
    "dicts of one": lambda i: _named("a"),
    "dicts of five": lambda i: _named("abcde"),
    "dicts of six": lambda i: _named("abcdef"),
    "dicts of a number": lambda i: b"}K\x01Ns",
    "dicts of an odd key": lambda i: b"}NNs",
    "dicts of a list": lambda i: b"}" + text("name") + b"]s",
    "ordered dicts": lambda i: ORDERED,
    "places counted up": lambda i: b"Nr" + i.to_bytes(4, "little"),
    "places left out": lambda i: b"Nr" + (2 * i + 7).to_bytes(4, "little"),
    "sets": lambda i: b"\x8f",
    "sets of one": lambda i: b"\x8f(" + text("name") + b"\x90",
    "frozen sets": lambda i: b"(" + text("name") + b"\x91",
    "namespaces": lambda i: b"cargparse\nNamespace\n)\x81}b",
    "records": lambda i: b"cfoo\nBar\n)\x81",
    "classes": lambda i: b"cfoo\nBar%d\n" % i,
    "tensors": lambda i: tensor(),
}
# What is made on the way and let go is charged, too, and of some objects only the most is known.
GENEROUS = {"dicts of six", "places left out", "tensors", "namespaces"}


def _reading(kind: str, objects: int) -> tuple[int, int]:
    """The peak of memory and the charge of a file of so many objects."""
    body = b"](" + b"".join(map(KINDS[kind], range(objects))) + b"e"
    data = BytesIO(torch_zip(proto(body, 4)))
    with charged() as budgets:
        tracemalloc.start()
        try:
            with weights_io.open_weights(data) as archive:
                _, peak = tracemalloc.get_traced_memory()
                assert len(archive.root) == objects  # type: ignore[arg-type]
        finally:
            tracemalloc.stop()
    spent = budgets[0].spent
    return peak - 2 * len(body), spent["total_bytes"] + spent["texts_bytes"]


@pytest.mark.few(4)
@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_charged_what_it_takes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weights_io.budget._FREE_OBJECTS", 0)  # all are weighed
    (few, charge_of_few), (many, charge_of_many) = _reading(kind, FEW), _reading(kind, MANY)
    taken, charge = many - few, charge_of_many - charge_of_few
    assert taken <= charge
    assert charge <= MOST * (1 + (kind in GENEROUS)) * taken
