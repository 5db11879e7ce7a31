"""A file is refused for what it asks, charged step by step; the charges are the same everywhere."""

from __future__ import annotations

import json
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest

import weights_io
from tests.weights_io import floods
from tests.weights_io.counting import growth
from tests.weights_io.forge import (
    integer,
    proto,
    safetensors,
    state_dict,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_zip,
)
from tests.weights_io.refusal import assert_refused, charged, read_everything
from weights_io.budget import Budget
from weights_io.text import bounded_repr

MOST = 2.15  # 2 ** 1.1: a slope of at most 1.1
SIZE = 2000  # bytes, of the smallest of three files
# What asks too much at any size; the others are read while they are small.
REFUSED = {
    "integer keys": "more than 64 bits",
    "doubling magic": "not a legacy torch file",
    "doubling dtype": "none that weights come in",
    "nested dtype": "none that weights come in",
    "recalled shapes": "too many dimensions",
    "sets of one list": "sets of the pickle hold too much",
    "sets of one list of texts": "sets of the pickle hold too much",
    "recalled attributes": "too many attributes",
    "recalled bytes": "copies too many bytes",
    "inflated views": "too much memory",
    "five pickles": "bytes follow the last storage",
    "long names": "refused global",
    "json lists": "other fields",
    "empty members": "no weights",
    "modules that double": "unfold into too many, too long names",
}
# What is refused when it is larger.
TOO_MUCH = {"wide views": 200_000, "deflated zeros": 100_000}


def _read(data: bytes) -> None:
    with suppress(weights_io.ReportedError):
        read_everything(data)


@pytest.mark.few(5)
@pytest.mark.parametrize("case", floods.READING)
def test_what_a_file_takes_grows_no_faster_than_the_file(case: str) -> None:
    make = floods.READING[case]
    files = {SIZE * factor: make(SIZE * factor) for factor in (1, 2, 4)}
    assert growth(lambda size: _read(files[size]), SIZE) <= MOST


@pytest.mark.parametrize("case", floods.READING)
def test_a_small_file_that_asks_for_much_is_read_or_refused(case: str) -> None:
    data = floods.READING[case](SIZE)
    if case in REFUSED:
        assert_refused(data, REFUSED[case])
    else:
        read_everything(data)


@pytest.mark.parametrize("case", TOO_MUCH)
def test_arrays_that_ask_for_too_much_together_are_refused(case: str) -> None:
    data = floods.READING[case](TOO_MUCH[case])
    assert_refused(data, "too much memory", weights_io.LimitError)


@pytest.mark.parametrize(
    "field", ["opcodes", "comparisons", "containers", "texts_bytes", "tensors"]
)
def test_a_charge_above_any_limit_ends_the_reading(field: str) -> None:
    """What a sound file is charged is what its reading needs, to the unit."""
    items = b"".join(text(f"k{i}") + text("\u20ac" * 3) + b"s" for i in range(9))
    data = torch_zip(
        state_dict({"a": tensor(), "b": b"}" + items, "c": b"c__builtin__\nset\n]K\x01a\x85R"})
    )
    with charged() as budgets:
        read_everything(data)
    needed: dict[str, int] = {f: spent for budget in budgets for f, spent in budget.spent.items()}
    assert needed["containers"] == 3  # the state dict, b and c
    assert needed["tensors"] == 1
    assert needed["comparisons"] == 1
    weights_io.open_weights(BytesIO(data), weights_io.Limits(**{field: needed[field]})).close()
    with pytest.raises(weights_io.LimitError, match=rf"raise weights_io.Limits.{field}"):
        weights_io.open_weights(BytesIO(data), weights_io.Limits(**{field: needed[field] - 1}))


def test_arrays_are_counted_against_the_size_of_their_file() -> None:
    """A megabyte of names without values is no network; who raises a limit means it."""
    count = 4097
    one = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
    data = safetensors({f"{i}": one for i in range(count)})
    assert len(data) < 128 * count
    with pytest.raises(weights_io.LimitError, match=r"4097 ; wanted at most 4096 .*Limits.tensors"):
        weights_io.open_weights(BytesIO(data))
    raised = weights_io.Limits(tensors=weights_io.DEFAULT_LIMITS.tensors + 1)
    with weights_io.open_weights(BytesIO(data), raised) as archive:
        assert len(archive.root) == count  # type: ignore[arg-type]
    assert Budget(weights_io.DEFAULT_LIMITS, 128 * 5000).left("tensors") == 5000
    assert Budget(weights_io.Limits(opcodes=10**7), 100).left("opcodes") == 10**7


def test_the_pickles_of_one_file_share_its_opcodes() -> None:
    facts = {"little_endian": True, "n": [[]] * 400}
    data = torch_legacy(state_dict({}), (), (), system=facts)
    with charged() as budgets:
        read_everything(data)
    spent = sum(budget.spent["opcodes"] for budget in budgets)
    assert len(budgets) == 1
    with pytest.raises(weights_io.LimitError, match="too many opcodes"):
        weights_io.open_weights(BytesIO(data), weights_io.Limits(opcodes=spent - 1))


def test_a_large_file_may_have_more_opcodes_and_places_than_a_small_one() -> None:
    """A network of a thousand layers, pickled whole, has more than a state dict ever has."""
    small, large = (Budget(weights_io.DEFAULT_LIMITS, size) for size in (1 << 20, 1 << 27))
    assert (small.left("opcodes"), large.left("opcodes")) == (250_000, 2_000_000)
    small.admit_memo(150_000)
    large.admit_memo(1_000_000)
    for budget, places in ((small, 150_001), (large, 1_000_001)):
        with pytest.raises(weights_io.LimitError, match="remembers too many"):
            budget.admit_memo(places)
    dead = b"cmodels.yolo\nModel\n)\x81](" + b"N" * 260_000 + b"eb"
    data = proto(b"(" + tensor() + dead + b"t")
    assert_refused(torch_zip(data), "too many opcodes", weights_io.LimitError)
    large_file = torch_zip(data, {"0": bytes(16), "1": bytes(1 << 24)})
    weights_io.open_weights(BytesIO(large_file)).close()


@pytest.mark.parametrize("key", [(1 << 63) - 1, -(1 << 63), 140_234_567_890_123])
def test_integer_keys_of_64_bits_are_read(key: int) -> None:
    assert read_everything(proto(b"}" + integer(key) + b"Ns")) == {key: None}


@pytest.mark.parametrize("key", [1 << 63, -(1 << 63) - 1])
def test_wider_integer_keys_are_refused(key: int) -> None:
    assert_refused(proto(b"}" + integer(key) + b"Ns"), "more than 64 bits for a key")


def test_a_text_is_charged_as_wide_as_its_widest_letter() -> None:
    for letters, width in (("a" * 2000, 1), ("a" * 1999 + "\U0001f600", 4)):
        with charged() as budgets:
            read_everything(proto(b"]" + text(letters) + b"a"))
        assert [budget.spent["texts_bytes"] for budget in budgets] == [width * 2000]
    with pytest.raises(weights_io.LimitError, match="too much text"):
        weights_io.open_weights(
            BytesIO(floods.wide_texts(100_000)), weights_io.Limits(texts_bytes=100_000)
        )


@pytest.mark.parametrize("legacy", [False, True])
def test_storages_whose_names_differ_by_case_only_are_refused(legacy: bool) -> None:
    """Unpacked on a system that folds case, one would take the other's place."""
    views = {n: tensor(of=storage(key=n, legacy=legacy)) for n in ("a", "A")}
    if legacy:
        data = torch_legacy(state_dict(views), ("a", "A"), ((4, bytes(16)), (4, b"\1" * 16)))
    else:
        data = torch_zip(state_dict(views), {"a": bytes(16), "A": b"\1" * 16})
    assert_refused(data, "differ by case only")
    same = {n: tensor(of=storage(key="a")) for n in ("a", "A")}
    assert len(read_everything(torch_zip(state_dict(same), {"a": bytes(16)}))) == 2  # type: ignore[arg-type]


def test_json_is_charged_before_it_is_parsed() -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    data = safetensors(json.dumps({str(i): entry for i in range(5)}).encode())
    marks = data.count(b",") + data.count(b"[") + data.count(b"{")
    weights_io.open_weights(BytesIO(data), weights_io.Limits(nodes=marks)).close()
    with pytest.raises(weights_io.LimitError, match="too many values"):
        weights_io.open_weights(BytesIO(data), weights_io.Limits(nodes=marks - 1))


def test_twenty_thousand_tensors_in_safetensors_are_within_budget() -> None:
    entry = {"dtype": "F32", "shape": [1, 0, 3, 3], "data_offsets": [0, 0]}
    header = {f"s{i}": entry for i in range(20_000)}
    raw = json.dumps(header, separators=(",", ":")).encode()
    assert raw.count(b",") + raw.count(b"[") + raw.count(b"{") < weights_io.Limits().nodes


def test_arrays_may_ask_for_what_is_free_or_a_multiple_of_the_file() -> None:
    limits = weights_io.Limits(overlap_bytes=1000, expansion=4)
    for file_bytes, most in ((1, 1000), (1000, 4000)):
        budget = Budget(limits, file_bytes)
        budget.charge_reading(most, "a")
        assert budget.left("total_bytes") == 0
        with pytest.raises(weights_io.LimitError, match="too much memory, up to b"):
            budget.charge_reading(1, "b")


# What is shown of a value ---------------------------------------------------------------------


def _nested(levels: int, width: int) -> Any:
    value: Any = ()
    for _ in range(levels):
        value = (value,) * width
    return value


@pytest.mark.parametrize(("levels", "width"), [(60, 2), (5000, 1), (30, 30)])
def test_a_value_is_shown_at_a_cost_that_does_not_depend_on_it(levels: int, width: int) -> None:
    """Its `repr` would be of exponential length, or nested too deeply for Python."""
    value = _nested(levels, width)
    for shown in (value, [value], {"a": value}, weights_io.Inert("a.B", {"c": value})):
        assert len(weights_io.sanitize(shown)) <= 120
        assert "..." in bounded_repr(value)
    assert len(repr(weights_io.Inert("a.B", {"c": value}))) < 10_000


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ((), "()"),
        ((1,), "(1,)"),
        ((1001, "x"), "(1001, 'x')"),
        ([1, [2, [3, [4]]]], "[1, [2, [3, [...]]]]"),
        ({"a": None, 2: True}, "{'a': None, 2: True}"),
        (list(range(9)), "[0, 1, 2, 3, 4, 5, 6, 7, ...]"),
        (1 << 5000, "an integer of 5001 bits"),
        ([object()], "[<object>]"),
        (ValueError("told"), "told"),
        (b"ab", "b'ab'"),
    ],
)
def test_of_a_value_the_beginning_is_shown(value: object, shown: str) -> None:
    assert weights_io.sanitize(value) == shown
