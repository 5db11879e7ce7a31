"""What is to be written, and the bytes of each array once it is there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weights_io.dtypes import STORED
from weights_io.errors import WeightsFileError
from weights_io.text import sanitize


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """Name, shape and element type of an array to be written.

    `dtype` is one of the names of `LazyArray.dtype`; for bfloat16 the array is given as float32
    values that bfloat16 can hold.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def count(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.count * STORED[self.dtype].itemsize


def check_specs(specs: Sequence[ArraySpec]) -> None:
    """Raise unless there is something to write, each under a name of its own."""
    if not specs:
        raise WeightsFileError("there is no array to write")
    names = set()
    for spec in specs:
        if spec.dtype not in STORED:
            raise WeightsFileError(
                f"{sanitize(spec.name)} has a dtype that is not written here",
                got=sanitize(spec.dtype),
                wanted=", ".join(STORED),
            )
        if spec.name in names or "\0" in spec.name or spec.name == "__metadata__":
            raise WeightsFileError(
                "an array cannot be written under this name",
                got=sanitize(spec.name),
                wanted="different names other than __metadata__",
            )
        names.add(spec.name)


def encode_all(specs: Sequence[ArraySpec], arrays: Iterable[NDArray[Any]]) -> Iterator[memoryview]:
    """Yield the bytes of one array after the other, each checked against its spec."""
    given = iter(arrays)
    for position, spec in enumerate(specs):
        array = next(given, None)
        if array is None:
            raise WeightsFileError("too few arrays", got=position, wanted=len(specs))
        yield _encode(spec, array)
        del array  # so that the caller's next array can take its memory
    if next(given, None) is not None:
        raise WeightsFileError("too many arrays", wanted=len(specs))


def _encode(spec: ArraySpec, array: NDArray[Any]) -> memoryview:
    wanted = "float32" if spec.dtype == "bfloat16" else spec.dtype
    if array.shape != spec.shape or array.dtype.name != wanted:
        raise WeightsFileError(
            f"{sanitize(spec.name)} is not the array that was announced",
            got=f"{array.dtype.name} {array.shape}",
            wanted=f"{wanted} {spec.shape}",
        )
    if spec.dtype == "bfloat16":
        array = _upper_halves(spec, array)
    little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
    return little.reshape(-1).view(np.uint8).data


def _upper_halves(spec: ArraySpec, array: NDArray[Any]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    if np.any(bits & 0xFFFF):
        raise WeightsFileError(
            f"{sanitize(spec.name)} has values that bfloat16 cannot hold",
            advice="round them first, or write float32",
        )
    return (bits >> 16).astype(np.uint16)
