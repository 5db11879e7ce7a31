"""Memory of arrays that have been written, for the next ones of their size."""

from __future__ import annotations

import threading
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array

_WORTH = 1 << 20  # bytes: smaller arrays get memory that the process has already


class Spares:
    """Makes arrays, and takes back those that nobody reads any more; threads may share it.

    The system hands out memory page by page, each filled with zeros: for arrays of a few megabytes
    that takes a quarter of the time that fusing them does.

    Parameters
    ----------
    most : int
        How many arrays are kept at most.
    """

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._kept: list[Array] = []

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """As `numpy.empty`."""
        size = prod(shape) * np.dtype(dtype).itemsize
        if size < _WORTH:
            return np.empty(shape, dtype)
        with self._lock:
            place = next((i for i, kept in enumerate(self._kept) if kept.nbytes == size), None)
            raw = None if place is None else self._kept.pop(place)
        raw = np.empty(size, np.uint8) if raw is None else raw
        made: Array = raw.view(dtype).reshape(shape)
        return made

    def take_back(self, array: Array) -> None:
        """Keep the memory of an array that `empty` made; what is kept longest goes."""
        raw = array
        while isinstance(raw.base, np.ndarray):
            raw = raw.base
        if raw.dtype == np.uint8 and raw.ndim == 1 and raw.nbytes == array.nbytes >= _WORTH:
            with self._lock:
                self._kept = [*self._kept, raw][-self._most :]
