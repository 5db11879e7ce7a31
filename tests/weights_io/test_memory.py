"""To read all arrays of a file and keep them takes three times its size at most, or is refused.

Small files here, with nothing free; large ones, by two ways of measuring, in
`tests.studies.weights_io.memory`.
"""

from __future__ import annotations

import json
import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import weights_io
from tests.weights_io.forge import npy, npz
from tests.weights_io.large_files import FILES
from weights_io.budget import Budget

MOST = 3
MOST_SLOPE = 1.1  # of the logarithms of time and size
SIZE = 4 << 20
OBJECTS = 3 << 19  # bytes that a few arrays, their names and the blocks of an inflater take
LIMITS = weights_io.Limits(overlap_bytes=0)
RESULTS = Path(__file__).parents[1] / "studies" / "weights_io" / "results" / "memory.json"
SLOPES = RESULTS.with_name("slopes.json")
REFUSED = {
    "torch zip, a storage shared by 5",
    "torch zip, views of one deflated",
    "torch zip, sets without end",
    "npz, deflated 2 to 1, Fortran",
    "npz, deflated 3 to 1, Fortran",
    "npz, deflated 4 to 1",
    "npz, deflated 4 to 1, Fortran",
}


def _arrays(node: Any) -> list[weights_io.LazyArray]:
    if isinstance(node, weights_io.LazyArray):
        return [node]
    values = node.values() if isinstance(node, dict) else ()  # in a list there is none
    return [each for value in values for each in _arrays(value)]


@pytest.mark.few(12)
@pytest.mark.parametrize("name", FILES)
def test_a_file_takes_three_times_its_size_at_most(name: str) -> None:
    data = FILES[name](SIZE)
    refused, kept = None, []
    tracemalloc.start()
    try:
        with weights_io.open_weights(BytesIO(data), LIMITS) as archive:
            kept = [each.read() for each in _arrays(archive.root)]
    except weights_io.LimitError as error:
        refused = error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert (refused is not None) == (name in REFUSED), refused
    assert bool(kept) != bool(refused)
    # The file itself lies in memory here, but not in what is traced.
    assert peak <= MOST * len(data) + OBJECTS


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("code", ["f2", "f4", "f8", "i4", "i2", "i1", "b1"])
def test_arrays_that_are_decoded_in_place_have_their_values(
    order: Literal["<", ">"], code: str
) -> None:
    values = np.arange(24).reshape(2, 3, 4).astype(code)
    stored = values.astype(np.dtype(code).newbyteorder(order))
    descr = f"'{np.dtype(stored.dtype).str}'"
    for fortran in ("False", "True"):
        raw = stored.tobytes("F" if fortran == "True" else "C")
        data = npz({"w": npy(raw, descr=descr, shape="(2, 3, 4)", fortran=fortran)})
        with weights_io.open_weights(BytesIO(data)) as archive:
            got = _arrays(archive.root)[0].read()
        assert got.dtype == values.dtype
        assert got.dtype.isnative
        assert np.array_equal(got, values)


def test_what_is_held_beside_an_array_is_charged_once() -> None:
    """Of all the most: arrays are read one after the other."""
    budget = Budget(LIMITS, 100)
    budget.charge_reading(100, "a")
    for size in (150, 200, 10):
        budget.charge_copy(size, "a")
    assert budget.left("total_bytes") == 0
    with pytest.raises(weights_io.LimitError, match="too much memory"):
        budget.charge_copy(201, "b")


def test_the_study_that_is_committed_found_no_file_above() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert set(found) <= set(FILES)
    assert len(found) > 20
    for each in found.values():
        assert max(each["ratio"].values()) <= MOST


def test_the_study_of_time_that_is_committed_found_none_that_grows_faster_than_its_file() -> None:
    found = json.loads(SLOPES.read_text(encoding="utf-8"))
    assert set(found) == set(FILES)
    assert all(each["slope"] <= MOST_SLOPE for each in found.values())
