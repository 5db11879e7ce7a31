"""Arrays that a converter only copies: the same numbers, rounded at most to a narrower type."""

from __future__ import annotations

import numpy as np

from repvgg_ref.oracle.weights.arithmetic import FORMAT_NAMES, UNITS, least_error
from weights_io import LazyArray

_FORMATS = {dtype: short for short, dtype in FORMAT_NAMES.items()}
_COUNTER = "num_batches_tracked"


def is_counter(key: str) -> bool:
    """Whether it counts a batch norm's batches, which nothing is computed from."""
    return key == _COUNTER or key.endswith(f".{_COUNTER}")


def unlike(array: LazyArray, copy: LazyArray) -> str:
    """How `copy` differs from `array`; "" if it holds the same numbers.

    A narrower type of real numbers may round in any direction; none may overflow. NaN is the same
    as NaN: a copy of a broken array is a copy.
    """
    if copy.shape != array.shape:
        return f"shape {copy.shape}, not {array.shape}"
    ours, theirs = array.read(), copy.read()
    to, source = _FORMATS.get(copy.dtype), _FORMATS.get(array.dtype)
    if to is None or source is None:
        same = np.array_equal(ours, theirs)
        return "" if same else "holds other numbers, and belongs to no block"
    ours, theirs = ours.astype(np.float64), theirs.astype(np.float64)
    room = 0.0
    if UNITS[to] > UNITS[source]:
        room = 2 * UNITS[to] * np.abs(ours) + least_error(to)
    finite = np.isfinite(ours)
    with np.errstate(invalid="ignore"):
        near = np.where(finite, np.abs(theirs - ours) <= room, theirs == ours)
    same = bool((near | (np.isnan(ours) & np.isnan(theirs))).all())
    return "" if same else "holds other numbers, and belongs to no block"
