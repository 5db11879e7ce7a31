"""Memory that is used again: of the same size, by one at a time, and not without end."""

from __future__ import annotations

import numpy as np

from repvgg_ref.files.spares import Spares

LARGE = (512, 1024)  # 2 MB of float32


def test_memory_comes_back_for_arrays_of_its_size_alone() -> None:
    spares = Spares(2)
    first = spares.empty(LARGE, np.float32)
    assert first.shape == LARGE
    assert first.dtype == np.float32
    address = first.ctypes.data
    spares.take_back(first)
    other = spares.empty((513, 1024), np.float32)
    assert not np.shares_memory(other, first)
    again = spares.empty((1024, 512), np.float32)
    assert (again.ctypes.data, again.shape) == (address, (1024, 512))
    assert not np.shares_memory(spares.empty(LARGE, np.float32), again)


def test_no_more_is_kept_than_asked_and_nothing_that_is_small_or_anothers() -> None:
    spares = Spares(2)
    made = [spares.empty(LARGE, np.float32) for _ in range(4)]
    for array in made:
        spares.take_back(array)
    again = [spares.empty(LARGE, np.float32) for _ in range(4)]
    kept = [any(np.shares_memory(one, old) for old in made) for one in again]
    assert kept == [True, True, False, False]
    small = spares.empty((4,), np.float32)
    spares.take_back(small)
    assert not np.shares_memory(spares.empty((4,), np.float32), small)
    theirs = np.zeros(LARGE, np.float32)
    spares.take_back(theirs)
    assert not np.shares_memory(spares.empty(LARGE, np.float32), theirs)
