"""Many named arrays in one vector: one all-reduce, one optimiser step, one array to save."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from repvgg_ref.arrays import Array, array_module


class Layout:
    """Where each named array lies in a flat vector.

    Parameters
    ----------
    shapes : mapping
        Name -> shape, in the order of the vector.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self._slices: dict[str, slice] = {}
        at = 0
        for name, shape in self.shapes.items():
            self._slices[name] = slice(at, at + prod(shape))
            at += prod(shape)
        self.size = at

    def pack(self, arrays: Mapping[str, Array]) -> Array:
        """The arrays of this layout's names behind one another, copied: (size,)."""
        parts = [arrays[name].reshape(-1) for name in self.shapes]
        packed: Array = array_module(parts[0]).concatenate(parts)
        return packed

    def unpack(self, flat: Array) -> dict[str, Array]:
        """The named arrays as views of `flat`."""
        return {name: flat[self._slices[name]].reshape(s) for name, s in self.shapes.items()}

    def spread(self, values: Mapping[str, float | Array], like: Array) -> Array:
        """A vector that holds each name's number at all of its elements, of `like`'s kind."""
        spread: Array = array_module(like).empty(self.size, like.dtype)
        for name, value in values.items():
            spread[self._slices[name]] = value
        return spread
