"""How much a file may ask for before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

from weights_io.errors import LimitError

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds on everything a weights file can ask for.

    The defaults keep a file of up to 1 MB within half a second and 100 MB of memory; a larger one
    may take so much more as it is larger. Sizes are in bytes, work in steps of a sixth of a
    microsecond; everything else is a count. What is said to be of a file is charged to its
    `Budget` while it is read.
    """

    file_bytes: int = 16 * _GIB
    total_bytes: int = 16 * _GIB  # of a file: all its arrays once, and what is made of the rest
    expansion: int = 3  # the same / size of the file (shared weights, deflated archives), but
    overlap_bytes: int = 72 * _MIB  # so much is free; also one array whose strides repeat elements
    work: int = 1 << 40  # of a file; 2,000,000, or 2 a byte
    elements: int = 1 << 31  # of one array
    dimensions: int = 32
    header_bytes: int = 2 * _MIB  # of metadata and of an index of shards
    npy_header_bytes: int = 4096
    pickle_bytes: int = 16 * _MIB  # of one pickle, the array data in it not counted
    nodes: int = 1 << 24  # of the tree, shared parts each time; of JSON; 250,000, or 1 a byte
    comparisons: int = 1 << 24  # of a file: items of sets, attributes; 1,000, or 1 a byte
    depth: int = 100
    text_bytes: int = 64 * 1024  # of one string
    texts_bytes: int = 16 * _MIB  # of a file: all its strings, as they lie in memory
    copied_bytes: int = 16 * _MIB  # of a file: bytes made of what was remembered
    integer_bytes: int = 32

    def enforce(self, field: str, value: int, what: str) -> None:
        """Raise `LimitError` when `value` is above the limit called `field`."""
        most = getattr(self, field)
        if value > most:
            raise LimitError(
                what,
                got=value,
                wanted=f"at most {most}",
                advice="save the weights alone; if you trust the file, Python's open_weights can "
                f"raise weights_io.Limits.{field}",
            )


DEFAULT_LIMITS = Limits()
