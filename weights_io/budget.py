"""The work that reading one file may take, charged step by step as it is done.

What a file asks for can grow faster than the file: a list recalled a thousand times, views of one
storage, members that unpack. Each such step is charged here before it is taken, in units that do
not depend on the machine, so a file is refused for what it asks and not for the time that passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import MappingProxyType
from typing import Literal

from weights_io.errors import LimitError, WeightsFileError
from weights_io.limits import DEFAULT_LIMITS, Limits
from weights_io.text import sanitize

Charged = Literal[
    "opcodes",
    "nodes",
    "containers",
    "comparisons",
    "texts_bytes",
    "copied_bytes",
    "tensors",
    "total_bytes",
]
_CHARGED: tuple[Charged, ...] = Charged.__args__  # type: ignore[attr-defined]


_FREE_BYTES, _FREE_COMPARISONS = 1 << 16, 1000
# What a pickle's machine may do, of any file and for each so many bytes of a larger one: a network
# of a thousand layers, pickled whole, has a million opcodes in a hundred megabytes. An opcode can
# make an object of 144 bytes.
_FREE_OPCODES, _BYTES_AN_OPCODE = 250_000, 48
_FREE_MEMO, _BYTES_A_PLACE = 150_000, 32
# Arrays: with its name, type and shape even one of a single number takes about so many bytes.
_FREE_TENSORS, _BYTES_A_TENSOR = 4096, 128


def _unless_raised(limits: Limits, field: str, in_proportion: int) -> int:
    """The lesser of a limit and what is in proportion to the file; who raises it means it."""
    own: int = getattr(limits, field)
    is_raised = field != "total_bytes" and own > getattr(DEFAULT_LIMITS, field)
    return own if is_raised else min(own, in_proportion)


class Budget:
    """What reading one file has been charged so far, held against its limits.

    Parameters
    ----------
    limits : Limits
        The most of everything.
    file_bytes : int
        Size of the file, which bounds what its arrays may ask for together.
    """

    def __init__(self, limits: Limits, file_bytes: int) -> None:
        self.limits = limits
        self._spent = dict.fromkeys(_CHARGED, 0)
        self._beside = 0
        self._most: dict[Charged, int] = {field: getattr(limits, field) for field in _CHARGED}
        # What is looked through or made twice stays in proportion to the file.
        in_file, free = limits.expansion * file_bytes, limits.overlap_bytes
        in_proportion: dict[Charged, int] = {
            "total_bytes": max(in_file, free),
            "copied_bytes": max(in_file, _FREE_BYTES),
            "comparisons": max(in_file, _FREE_COMPARISONS),
            "opcodes": max(file_bytes // _BYTES_AN_OPCODE, _FREE_OPCODES),
            "tensors": max(file_bytes // _BYTES_A_TENSOR, _FREE_TENSORS),
        }
        for field, most in in_proportion.items():
            self._most[field] = _unless_raised(limits, field, most)
        places = max(file_bytes // _BYTES_A_PLACE, _FREE_MEMO)
        self._most_memo = _unless_raised(limits, "memo", places)

    @property
    def spent(self) -> Mapping[Charged, int]:
        """What has been charged, by the field of `Limits` that bounds it."""
        return MappingProxyType(self._spent)

    def left(self, field: Charged) -> int:
        """What may still be charged to `field`."""
        return self._most[field] - self._spent[field]

    def charge(self, field: Charged, amount: int, what: str) -> None:
        """Charge `amount`, or raise `LimitError` that says `what` asks too much."""
        self._spent[field] += amount
        most = self._most[field]
        if self._spent[field] > most:
            advice = (
                "save the weights alone; if you trust the file, Python's open_weights can "
                f"raise weights_io.Limits.{field}"
            )
            if field == "total_bytes":
                advice += " or .expansion, or unpack the archive into a folder"
            raise LimitError(what, got=self._spent[field], wanted=f"at most {most}", advice=advice)

    def admit_memo(self, places: int) -> None:
        """Raise `LimitError` if a pickle remembers more than the file may ask for."""
        if places > self._most_memo:
            raise LimitError(
                "the pickle remembers too many objects",
                got=places,
                wanted=f"at most {self._most_memo}",
                advice="if you trust the file, raise weights_io.Limits.memo",
            )

    def keep_text(self, text: str) -> str:
        """Charge the memory of a string of the file, and return it."""
        # One letter above 255 makes all of a string's letters four bytes wide, at worst.
        size = len(text) if text.isascii() else 4 * len(text)
        self.charge("texts_bytes", size, "the file holds too much text")
        return text

    def admit(self, shape: tuple[int, ...], itemsize: int, what: str) -> int:
        """Charge one array and return its number of elements, or raise `LimitError`.

        `itemsize` is that of an element once it is read.
        """
        limits = self.limits
        if len(shape) > limits.dimensions:  # asked here: a call for every array is dear
            limits.enforce("dimensions", len(shape), f"{sanitize(what)} has too many dimensions")
        if shape and min(shape) < 0:
            raise WeightsFileError(
                f"{sanitize(what)} has a negative size",
                got=sanitize(shape),
                advice="the file is damaged or hostile",
            )
        # An empty array may not have other sizes that NumPy's index arithmetic cannot hold.
        count = prod(shape)
        index_space = count or prod(max(size, 1) for size in shape)
        if index_space > limits.elements:
            limits.enforce("elements", index_space, f"{sanitize(what)} has too many elements")
        self.charge("tensors", 1, "the file holds too many arrays")
        self.charge_reading(count * itemsize, what)
        return count

    def charge_copy(self, size: int, what: str) -> None:
        """Charge bytes that are held beside an array while it is read: once, of all the most."""
        more = max(0, size - self._beside)
        self._beside += more
        self._most["total_bytes"] -= more
        self.charge_reading(0, what)

    def charge_reading(self, size: int, what: str) -> None:
        """Charge bytes that reading an array takes."""
        if self._spent["total_bytes"] + size > self._most["total_bytes"]:
            what = f"the arrays of the file ask for too much memory, up to {sanitize(what)}"
        self.charge("total_bytes", size, what)
