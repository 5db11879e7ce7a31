"""Arrays of which something was made, so that a change of them is seen or refused.

A fast form of a network holds its weights packed, so it must know when they change. An array that
nobody but the model holds is made immutable, which costs nothing later. Any other may be written
through a view that is older than the model's knowledge of it, which NumPy tells nobody: such an
array is summed anew at every use.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping

import numpy as np

from repvgg_ref.arrays import Array, is_exact

_PERIOD = 8191  # words of 8 bytes; a prime, so that no step from channel to channel is a multiple
_HELD = {"": np.empty(1)}
# How often an array is counted that a mapping alone holds, asked as below.
_ALONE = sys.getrefcount(_HELD[""]) if hasattr(sys, "getrefcount") else 0


class Guarded:
    """One array as it is now."""

    def __init__(self, array: Array) -> None:
        self._array, self._facts = array, _facts(array)

    def holds(self, array: Array) -> bool:
        """Whether this is the very same array, and what is in it is the same."""
        return self._array is array and self._facts == _facts(array)


def guarded(params: dict[str, Array], name: str) -> Guarded:
    """``params[name]``, in whose place an immutable copy is put if nobody else can reach it."""
    if _is_alone(params, name):
        params[name] = immutable(params[name])
    return Guarded(params[name])


def immutable(array: Array) -> Array:
    """A copy that nothing can be written to, not even after its flag is set: it lies in `bytes`."""
    if not array.size or is_exact(array) or not isinstance(array, np.ndarray):
        return array
    return np.frombuffer(array.tobytes(), array.dtype).reshape(array.shape)


def _is_alone(params: Mapping[str, Array], name: str) -> bool:
    """Whether nobody but `params` can reach the array's memory, as far as references tell."""
    if not isinstance(params[name], np.ndarray) or sys.getrefcount(params[name]) != _ALONE:
        return False
    array = params[name]
    while isinstance(array.base, np.ndarray):
        if sys.getrefcount(array.base) != _ALONE:
            return False
        array = array.base
    return array.base is None


def _facts(array: Array) -> tuple[object, ...]:
    """How the bytes are read, and what they add up to, if they can change without a word."""
    read = array.dtype, array.shape, array.strides
    if not isinstance(array, np.ndarray) or is_exact(array) or _in_bytes(array):
        return read
    return *read, *_sums(array)


def _in_bytes(array: Array) -> bool:
    while isinstance(array, np.ndarray):
        array = array.base  # type: ignore[assignment]  # in the end what owns the memory
    return isinstance(array, bytes)


def _sums(array: Array) -> tuple[int, int]:
    """Hashes of the sums over every period, and of the rest: in a quarter of a byte hash's time.

    Any change of one number changes them, and any of several but those that cancel exactly at
    places a multiple of the period apart.
    """
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = data.size // (8 * _PERIOD) * 8 * _PERIOD
    words = data[:whole].view(np.uint64).reshape(-1, _PERIOD)
    return hash(words.sum(axis=0).tobytes()), hash(data[whole:].tobytes())
