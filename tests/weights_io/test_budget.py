"""A file is refused for what it asks, charged step by step; the charges are the same everywhere."""

from __future__ import annotations

import json
import pickle
import sys
from contextlib import suppress
from io import BytesIO
from typing import Any

import pytest

import weights_io
from tests.weights_io import dear_files, floods
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
    "five pickles": "bytes follow the last storage",
    "long names": "refused global",
    "json lists": "other fields",
    "empty members": "no weights",
    "modules that double": "unfold into too many, too long names",
}
# What is refused when it is larger.
TOO_MUCH = {"wide views": 900_000, "deflated zeros": 400_000, "inflated views": 100_000}


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


@pytest.mark.parametrize("field", ["work", "comparisons", "texts_bytes"])
def test_a_charge_above_any_limit_ends_the_reading(field: str) -> None:
    """What a sound file is charged is what its reading needs, to the unit."""
    items = b"".join(text(f"k{i}") + text("\u20ac" * 3) + b"s" for i in range(9))
    data = torch_zip(
        state_dict({"a": tensor(), "b": b"}" + items, "c": b"c__builtin__\nset\n]K\x01a\x85R"})
    )
    with charged() as budgets:
        read_everything(data)
    needed: dict[str, int] = {f: spent for budget in budgets for f, spent in budget.spent.items()}
    assert needed["comparisons"] == 1
    weights_io.open_weights(BytesIO(data), weights_io.Limits(**{field: needed[field]})).close()
    with pytest.raises(weights_io.LimitError, match=rf"raise weights_io.Limits.{field}"):
        weights_io.open_weights(BytesIO(data), weights_io.Limits(**{field: needed[field] - 1}))


def test_the_pickles_of_one_file_share_its_work() -> None:
    facts = {"little_endian": True, "n": [[]] * 400}
    data = torch_legacy(state_dict({}), (), (), system=facts)
    with charged() as budgets:
        read_everything(data)
    spent = sum(budget.spent["work"] for budget in budgets)
    assert len(budgets) == 1
    with pytest.raises(weights_io.LimitError, match="too many"):
        weights_io.open_weights(BytesIO(data), weights_io.Limits(work=spent - 1))


def test_a_larger_file_may_take_more_work_and_memory() -> None:
    """Only what is small and read again and again asks for more than its bytes allow."""
    small, large = (Budget(weights_io.DEFAULT_LIMITS, size) for size in (1000, 1 << 27))
    assert (small.left("work"), large.left("work")) == (2_000_000, 1 << 28)
    assert (small.left("nodes"), large.left("nodes")) == (250_000, 1 << 24)
    assert (small.left("total_bytes"), large.left("total_bytes")) == (72 << 20, 3 << 27)
    assert Budget(weights_io.Limits(work=1 << 41), 100).left("work") == 1 << 41
    dead = b"cmodels.yolo\nModel\n)\x81](" + b"(\x91" * 260_000 + b"eb"
    data = proto(b"(" + tensor() + dead + b"t", 4)
    with pytest.raises(weights_io.LimitError, match="too many opcodes"):
        weights_io.open_weights(BytesIO(torch_zip(data)))
    large_file = torch_zip(data, {"0": bytes(16), "1": bytes(1 << 24)})
    weights_io.open_weights(BytesIO(large_file)).close()


def test_memory_of_objects_is_of_the_same_budget_as_that_of_arrays() -> None:
    """A little is nobody's: every file has a few names and arrays."""
    budget = Budget(weights_io.Limits(overlap_bytes=1000), 1)
    budget.charge_objects(1 << 20, "a pickle")
    assert (budget.spent["total_bytes"], budget.room) == (0, 1000)
    budget.charge_objects(600, "a pickle")
    with pytest.raises(weights_io.LimitError, match="ask for too much memory, up to b"):
        budget.charge_reading(401, "b")
    numbers = proto(b"](" + (b"G" + bytes(8)) * 60_000 + b"e")  # of 48 bytes each
    enough, less = (weights_io.Limits(overlap_bytes=n << 20, expansion=0) for n in (2, 1))
    weights_io.open_weights(BytesIO(numbers), enough).close()
    with pytest.raises(weights_io.LimitError, match="the pickle asks for too much memory"):
        weights_io.open_weights(BytesIO(numbers), less)


def test_integer_keys_that_are_not_counted_up_are_charged_for_those_they_may_meet() -> None:
    """Right files have few of them, such as the ids by which an old torch named parameters."""
    counted, ids = range(60_000), [(number * 0x9E3779B97F4A7C15) >> 4 for number in range(5000)]
    work = {}
    for name, keys in (("counted", counted), ("ids", ids), ("few ids", ids[:2500])):
        held = {key & ((1 << 60) - 1): None for key in keys}
        with charged() as budgets:
            assert read_everything(pickle.dumps(held, 4)) == held
        work[name] = budgets[0].spent["work"]
    assert work["counted"] < 20 * len(counted)
    assert work["ids"] > 2.5 * work["few ids"]
    assert_refused(dear_files.low_keys_that_collide(), "too many opcodes", weights_io.LimitError)


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


def test_what_is_recalled_is_not_taken_apart_again() -> None:
    """The name of a class and the key of a storage may be long, and are recalled by two bytes."""
    classes = text("foo") + b"q\x00" + text("Bar") + b"q\x01" + b"h\x00h\x01\x93" * 50
    used = b"(" + storage()[1:-2] + b"tq\x02" + b"Qh\x02" * 50 + b"Q"
    calls = []

    def seen(_frame: Any, event: str, called: Any) -> None:
        if event == "c_call":
            calls.append(called.__name__)

    old = sys.getprofile()
    sys.setprofile(seen)
    try:
        with suppress(weights_io.ReportedError):
            read_everything(torch_zip(proto(b"((" + classes + used + b"\x91" + tensor() + b"t", 4)))
    finally:
        sys.setprofile(old)
    assert calls.count("casefold") == 1
    assert calls.count("isidentifier") == 1


def test_a_tensor_of_many_names_is_charged_for_each() -> None:
    """Whoever loads them has an array of each name."""
    names = {"a": tensor((1 << 18,), of=storage(1 << 18)) + b"q\x00"}
    records = {"0": bytes(1 << 20)}
    for count, is_read in ((70, True), (80, False)):
        again = {f"b.{i}": b"h\x00" for i in range(count)}
        data = BytesIO(torch_zip(state_dict(names | again), records))
        if is_read:
            weights_io.open_weights(data).close()
        else:
            with pytest.raises(weights_io.LimitError, match="too much memory"):
                weights_io.open_weights(data)


@pytest.mark.parametrize("item", [b"\x88", b"K\x07"], ids=["truths", "numbers"])
def test_a_million_values_that_lie_in_the_file_are_read(item: bytes) -> None:
    with weights_io.open_weights(BytesIO(proto(b"](" + 1_000_000 * item + b"e"))) as archive:
        assert len(archive.root) == 1_000_000  # type: ignore[arg-type]


def test_json_is_charged_before_it_is_parsed() -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    data = safetensors(json.dumps({str(i): entry for i in range(5)}).encode())
    marks = data.count(b",") + data.count(b"[") + data.count(b"{")
    weights_io.open_weights(BytesIO(data), weights_io.Limits(nodes=marks)).close()
    with pytest.raises(weights_io.LimitError, match="too many values"):
        weights_io.open_weights(BytesIO(data), weights_io.Limits(nodes=marks - 1))


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
