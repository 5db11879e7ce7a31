"""A checkpoint's arrays under canonical names, each read when it is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.arguments import working_dtype
from weights_io import LazyArray


class LazyParams(Mapping[str, Array]):
    """Canonical name -> array, read from the file at every access, in its canonical shape.

    Floats come as float32, or float64 if stored so, unless `dtype` says otherwise. Batch norm's
    step counter may be absent (torch before 0.4.1, MegEngine): it is 0 then.
    """

    def __init__(
        self,
        lazy: Mapping[str, LazyArray],
        shapes: Mapping[str, tuple[int, ...]],
        dtype: Any,
        keys: Mapping[str, str],
    ):
        self._lazy, self._shapes, self._dtype, self._keys = lazy, shapes, dtype, keys

    def __getitem__(self, name: str) -> Array:
        if name not in self._lazy and is_counter(name):
            return np.zeros((), np.int64)
        array = self._lazy[name].read().reshape(self._shapes[name])
        if is_counter(name):
            return array
        wanted = self._dtype or working_dtype(array.dtype)
        return array.astype(wanted, copy=False)

    def key(self, name: str) -> str:
        """What the file calls the array, for people."""
        return self._keys.get(name, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def is_counter(name: str) -> bool:
    """Whether this is batch norm's count of steps."""
    return name.endswith(".num_batches_tracked")
