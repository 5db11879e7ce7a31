"""Tensors as strided views of a storage: checked in Python integers, then read."""

from __future__ import annotations

from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weights_io.errors import WeightsFileError
from weights_io.limits import Limits
from weights_io.source import Readable


class View(NamedTuple):
    """A view of a storage; offset and strides count elements."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def extent(self) -> int:
        """The number of storage elements from the first to the last one used."""
        if 0 in self.shape:
            return 0
        reach: int = sum(map(mul, self.shape, self.strides))
        return 1 + reach - sum(self.strides)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie in row-major order without gaps."""
        pairs = zip(self.shape, self.strides, contiguous_strides(self.shape), strict=True)
        return all(size == 1 or step == row_major for size, step, row_major in pairs)


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the row-major strides of `shape`, in elements."""
    return tuple(accumulate(reversed(shape[1:]), mul, initial=1))[::-1] if shape else ()


def check_view(view: View, storage_count: int, count: int, itemsize: int, limits: Limits) -> int:
    """The extent of `view`, whose every element lies inside a storage of `storage_count` elements.

    Raises if one does not.

    Sizes have been found to be non-negative, with product `count`. The arithmetic is exact, so
    nothing can wrap around; and a view larger than its storage (stride zero, say) stays small.
    """
    if len(view.shape) != len(view.strides):
        raise _outside("a tensor has sizes and strides of different number", view, storage_count)
    if view.offset < 0 or (view.strides and min(view.strides) < 0):
        raise _outside("a tensor has a negative offset or stride", view, storage_count)
    extent = view.extent
    if view.offset + extent > storage_count:
        raise _outside("a tensor reaches outside its storage", view, storage_count)
    if count > storage_count:
        limits.enforce(
            "overlap_bytes", count * itemsize, "a tensor repeats its elements too many times"
        )
    return extent


def _outside(what: str, view: View, storage_count: int) -> WeightsFileError:
    return WeightsFileError(
        what,
        got=f"offset {view.offset}, sizes {view.shape}, strides {view.strides}"[:200],
        wanted=f"inside {storage_count} elements",
        advice="the file is damaged or hostile",
    )


def read_view(record: Readable, view: View, stored: np.dtype[Any]) -> NDArray[Any]:
    """Read a checked view into a fresh C-contiguous array of the stored type."""
    flat = read_elements(record, view.offset * stored.itemsize, view.extent, stored)
    if view.is_contiguous or not flat.size:
        return flat.reshape(view.shape)
    # The ndarray constructor checks strides against the buffer once more; as_strided would not.
    strides = tuple(step * stored.itemsize for step in view.strides)
    return np.ndarray(view.shape, stored, buffer=flat, strides=strides).copy("C")


def read_elements(record: Readable, start: int, count: int, stored: np.dtype[Any]) -> NDArray[Any]:
    """Read `count` elements from byte `start` of a record straight into a fresh flat array."""
    raw = np.empty(count * stored.itemsize, np.uint8)
    record.read_into(start, raw.data)
    return raw.view(stored)
