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
    "work",
    "nodes",
    "comparisons",
    "texts_bytes",
    "copied_bytes",
    "total_bytes",
]
_CHARGED: tuple[Charged, ...] = Charged.__args__  # type: ignore[attr-defined]

# What is free, and how much more a byte of a larger file gives. Whatever a file holds has its bytes
# in it, so a right one needs no more; a small one that is read again and again does.
_FREE_WORK, _WORK_A_BYTE = 2_000_000, 2
_FREE_NODES = 250_000
_FREE_COMPARISONS, _FREE_COPIES = 1000, 1 << 16
# An array, from its description to its values, and a member of an archive: work, and memory beside
# the values.
_ARRAY_WORK, _ARRAY_BYTES = 80, 600
MEMBER_WORK, MEMBER_BYTES = 60, 480
_READ_BYTES = 128  # or inflated, with one unit of work
# Objects that are not weighed: a few arrays and their names, which every file has.
_FREE_OBJECTS = 1 << 20


def _unless_raised(limits: Limits, field: Charged, in_proportion: int) -> int:
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
        Size of the file, which bounds what it may ask for.
    """

    def __init__(self, limits: Limits, file_bytes: int) -> None:
        self.limits = limits
        self._spent = dict.fromkeys(_CHARGED, 0)
        self._beside = self._objects = 0
        self._most: dict[Charged, int] = {field: getattr(limits, field) for field in _CHARGED}
        in_file, free = limits.expansion * file_bytes, limits.overlap_bytes
        in_proportion: dict[Charged, int] = {
            "work": max(_WORK_A_BYTE * file_bytes, _FREE_WORK),
            "nodes": max(file_bytes, _FREE_NODES),  # a truth takes one byte
            "comparisons": max(file_bytes, _FREE_COMPARISONS),
            "copied_bytes": max(in_file, _FREE_COPIES),
            "total_bytes": max(in_file, free),
        }
        for field, most in in_proportion.items():
            self._most[field] = _unless_raised(limits, field, most)

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
        if self._spent[field] > self._most[field]:
            raise self._too_much(field, self._spent[field], what)

    def enforce(self, field: Charged, value: int, what: str) -> None:
        """Raise `LimitError` when one part of the file alone is above the most of all of it."""
        if value > self._most[field]:
            raise self._too_much(field, value, what)

    def _too_much(self, field: Charged, got: int, what: str) -> LimitError:
        advice = (
            "save the weights alone; if you trust the file, Python's open_weights can "
            f"raise weights_io.Limits.{field}"
        )
        if field == "total_bytes":
            advice += " or .expansion, or unpack the archive into a folder"
        return LimitError(what, got=got, wanted=f"at most {self._most[field]}", advice=advice)

    @property
    def room(self) -> int:
        """The bytes that `charge_objects` may still be charged."""
        return self.left("total_bytes") + max(0, _FREE_OBJECTS - self._objects)

    def charge_objects(self, size: int, what: str) -> None:
        """Charge the memory of objects that stand for what the file says."""
        weighed = max(0, self._objects - _FREE_OBJECTS)
        self._objects += size
        more = max(0, self._objects - _FREE_OBJECTS) - weighed
        self.charge("total_bytes", more, f"{what} asks for too much memory")

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
        self.charge("work", _ARRAY_WORK, "the file holds too many arrays")
        self.charge_objects(_ARRAY_BYTES, "the description of the arrays")
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
        self.charge("work", size // _READ_BYTES, "the arrays of the file take too much work")
