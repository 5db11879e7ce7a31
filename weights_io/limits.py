"""How much a file may ask for before it is refused."""

from __future__ import annotations

from dataclasses import dataclass

from weights_io.errors import LimitError

_MIB = 1 << 20
_GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper bounds on everything a weights file can ask for.

    The defaults leave an order of magnitude above the largest RepVGG training checkpoint, and keep
    a file of up to 1 MB within 100 MB of memory. Sizes are in bytes; everything else is a count.
    What is said to be of a file is charged to its `Budget` while it is read.
    """

    file_bytes: int = 16 * _GIB
    total_bytes: int = 16 * _GIB  # of a file: what reading all its arrays once takes
    expansion: int = 3  # the same / size of the file (shared weights, deflated archives), but
    overlap_bytes: int = 16 * _MIB  # so much is free; also one array whose strides repeat elements
    elements: int = 1 << 31  # of one array
    dimensions: int = 32
    tensors: int = 20_000  # of a file; 4096, or one in 128 bytes
    header_bytes: int = 2 * _MIB  # safetensors header, zip directory, metadata
    npy_header_bytes: int = 4096
    members: int = 20_000  # of a zip archive
    compression_ratio: int = 200  # of a member larger than one MiB
    pickle_bytes: int = 16 * _MIB  # of one pickle, the array data in it not counted
    opcodes: int = 2_000_000  # of a file, all its pickles together; 250,000, or one in 48 bytes
    memo: int = 1_000_000  # of a pickle; 150,000, or one in 32 bytes
    nodes: int = 250_000  # of the tree, every shared part counted each time; of JSON
    containers: int = 50_000  # of a file: dicts, lists, tuples and sets of its tree
    comparisons: int = 250_000  # of a file: items of sets, attributes; at most `expansion` a byte
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
