"""How much a file may ask for before it is refused."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from weights_io.errors import LimitError, WeightsFileError
from weights_io.text import sanitize

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds on everything a weights file can ask for.

    The defaults leave an order of magnitude above the largest RepVGG training checkpoint.
    Sizes are in bytes; everything else is a count.
    """

    file_bytes: int = 16 * _GIB
    total_bytes: int = 16 * _GIB  # all arrays of a file together
    expansion: int = 16  # all arrays together / size of the file (shared and tied weights)
    overlap_bytes: int = 64 * _MIB  # one array whose strides repeat elements
    elements: int = 1 << 31  # of one array
    dimensions: int = 32
    tensors: int = 20_000
    header_bytes: int = 2 * _MIB  # safetensors header, zip directory, metadata
    npy_header_bytes: int = 4096
    members: int = 20_000  # of a zip archive
    compression_ratio: int = 200  # of a member larger than one MiB
    pickle_bytes: int = 16 * _MIB  # of one pickle, the array data in it not counted
    opcodes: int = 250_000  # of one pickle
    memo: int = 150_000
    nodes: int = 250_000  # of the tree, every shared part counted each time it appears
    depth: int = 100
    text_bytes: int = 64 * 1024  # of one string
    integer_bytes: int = 32

    def enforce(self, field: str, value: int, what: str) -> None:
        """Raise `LimitError` when `value` is above the limit called `field`."""
        most = getattr(self, field)
        if value > most:
            raise LimitError(
                what,
                got=value,
                wanted=f"at most {most}",
                advice=f"if you trust the file, raise weights_io.Limits.{field}",
            )


DEFAULT_LIMITS = Limits()


class Ledger:
    """The running total of what the arrays of one file ask for."""

    def __init__(self, limits: Limits, file_bytes: int) -> None:
        self.limits = limits
        self._most = min(limits.total_bytes, limits.expansion * file_bytes + limits.overlap_bytes)
        self._bytes = 0
        self._tensors = 0

    def admit(self, shape: tuple[int, ...], itemsize: int, what: str) -> int:
        """Count one array in and return its number of elements, or raise `LimitError`."""
        limits = self.limits
        limits.enforce("dimensions", len(shape), f"{what} has too many dimensions")
        if any(size < 0 for size in shape):
            raise WeightsFileError(
                f"{what} has a negative size",
                got=sanitize(shape),
                advice="the file is damaged or hostile",
            )
        # An empty array may not have other sizes that NumPy's index arithmetic cannot hold.
        index_space = prod(max(size, 1) for size in shape)
        limits.enforce("elements", index_space, f"{what} has too many elements")
        count = prod(shape)
        self._tensors += 1
        limits.enforce("tensors", self._tensors, "the file holds too many arrays")
        self._bytes += count * itemsize
        if self._bytes > self._most:
            raise LimitError(
                "the arrays of the file ask for too much memory",
                got=f"{self._bytes} bytes up to {what}",
                wanted=f"at most {self._most} bytes for a file of this size",
                advice="if you trust the file, raise weights_io.Limits.expansion or .total_bytes",
            )
        return count
