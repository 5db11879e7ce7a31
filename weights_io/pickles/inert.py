"""What the pickle reader builds instead of the objects a pickle names: data that does nothing."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import prod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from weights_io.dtypes import FROM_NUMPY_CODE
from weights_io.errors import WeightsFileError
from weights_io.source import Region, Source
from weights_io.strided import read_elements
from weights_io.text import bounded_repr, sanitize


@dataclass(frozen=True, slots=True, repr=False)
class Inert:
    """A foreign object reduced to its type's name and its plain content.

    Attributes
    ----------
    type_name : str
        As the pickle spells it: ``yacs.config.CfgNode``, ``argparse.Namespace``,
        ``torch.device``, ``torch.dtype``, ``pathlib.PosixPath``, ...
    value : object
        A dict for the first two, a string for the next two, and None for all others: what they
        hold is not kept.
    is_listed : bool
        Whether the type is known to stand beside weights; of others nothing but the name is known.
    """

    type_name: str
    value: object
    is_listed: bool = True

    def __repr__(self) -> str:
        """The type's name and the beginning of the content, which a file can make huge."""
        return f"Inert({self.type_name!r}, {bounded_repr(self.value)})"


@dataclass(frozen=True, slots=True)
class Span:
    """A large run of bytes left in the file; `encoding` says what stands there.

    ``"bytes"`` for bytes, ``"text"`` for UTF-8 text, ``"latin1"`` for bytes that protocol 2
    carries as text: each byte is the character of that number.
    """

    source: Source
    start: int
    size: int
    encoding: str

    @property
    def type_name(self) -> str:
        """Of what it stands for, as Python calls it."""
        return "builtins.str" if self.encoding == "text" else "builtins.bytes"

    def read(self) -> bytes:
        """Return the bytes that stand in the file, or that its text stands for."""
        data = self.source.read(self.start, self.size)
        return latin1_bytes(data) if self.encoding == "latin1" else data


def decode_text(data: bytes) -> str:
    """Decode text, strictly."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise malformed("a string is no UTF-8") from None


def latin1_bytes(data: bytes) -> bytes:
    """Undo protocol 2's detour of bytes through UTF-8 text."""
    try:
        return data.decode("utf-8").encode("latin-1")
    except UnicodeError:
        raise malformed("bytes written as text hold a character above 255") from None


@dataclass(frozen=True, slots=True)
class StorageType:
    """One of torch's typed storage classes."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Storage:
    """A torch storage: a key into the archive, an element type and a number of elements."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True, slots=True)
class TensorView:
    """A tensor as a strided view of a storage, in elements; nothing is checked yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    negate: bool

    type_name: ClassVar[str] = "torch.Tensor"


# Unsigned, complex and wide numbers, and text: in a trainer's state, never in weights.
_OTHER_CODES = "u[248]|c8|c16|c32|f16|[SU][0-9]{1,6}|[Mm]8|V[0-9]{0,6}"
_OF_PARTS = ("M", "m", "V")  # dates, spans of time, structures: their state says more
_TEXT_UNITS = {"S": 1, "U": 4}
_ALONE = "re-save the weights alone: torch.save(model.state_dict(), path)"
_INTEGER = frozenset({int})  # no bool, which is one, too
_MOST_SIZES = 64  # NumPy's own limit; a recalled tuple is looked through each time


class OrderedDict(dict[Any, Any]):
    """`collections.OrderedDict`."""

    def build(self, state: object) -> None:
        """Accept and drop what torch hangs on a state dict: ``_metadata``, module versions."""
        if not (isinstance(state, dict) and state.keys() == {"_metadata"}):
            raise malformed("an OrderedDict has attributes other than _metadata")


class Namespace:
    """`argparse.Namespace`: attributes with string names."""

    type_name = "argparse.Namespace"

    def __init__(self) -> None:
        self.content: dict[Any, Any] = {}

    def build(self, state: object) -> None:
        """Take the attributes."""
        if self.content or not (isinstance(state, dict) and all(type(key) is str for key in state)):
            raise malformed("an argparse.Namespace has no plain attributes")
        self.content = state


class CfgNode(dict[Any, Any]):
    """`yacs.config.CfgNode`: a dict with exactly four bookkeeping attributes."""

    type_name = "yacs.config.CfgNode"
    _fields = frozenset(
        {"__immutable__", "__deprecated_keys__", "__renamed_keys__", "__new_allowed__"}
    )

    def build(self, state: object) -> None:
        """Accept and drop the bookkeeping."""
        if not (isinstance(state, dict) and state.keys() == self._fields):
            raise malformed("a CfgNode has attributes other than its four bookkeeping fields")


@dataclass(slots=True)
class PickledSet:
    """A set before its items are looked at.

    `of_list` is the size of the list that it was made of, which may be shared, and grow later.
    """

    own: list[Any]
    of_list: int | None = None

    @property
    def items(self) -> list[Any]:
        """What it holds: as many as the list had when the set was made of it."""
        return self.own if self.of_list in (None, len(self.own)) else self.own[: self.of_list]

    def add(self, items: list[Any]) -> None:
        """Take more items; a set that was made of a list gets none."""
        if self.of_list is not None:
            raise malformed("it adds items to a set that is complete")
        self.own.extend(items)

    type_name: ClassVar[str] = "builtins.set"


class NumpyDtype:
    """`numpy.dtype` of plain elements; `dtype` is None for those that weights never come in."""

    type_name = "numpy.dtype"

    def __init__(self, code: object) -> None:
        if code in ("O", "O8"):
            raise WeightsFileError(
                "an object array is refused: its elements could be anything, code included",
                advice=_ALONE,
            )
        known = type(code) is str and (code in FROM_NUMPY_CODE or re.fullmatch(_OTHER_CODES, code))
        if type(code) is not str or not known:
            raise malformed(f"numpy dtype {sanitize(code)} is none that weights come in")
        self.dtype = FROM_NUMPY_CODE.get(code)
        self._has_parts = code[0] in _OF_PARTS
        self._own = (-1, -1, 0)  # element, alignment, flags: only text has its own
        if code[0] in _TEXT_UNITS:
            unit = _TEXT_UNITS[code[0]]
            self._own = (unit * int(code[1:]), unit, 8 if unit > 1 else 0)
        self.stored = np.dtype("u1" if self.dtype in (None, "bool") else code).newbyteorder("=")

    def build(self, state: object) -> None:
        """Take the byte order; every other field must say "plain"."""
        if self._has_parts and type(state) is tuple and len(state) in (8, 9):
            return  # its arrays are not read, so neither are its parts
        if not (
            type(state) is tuple
            and len(state) == 8
            and type(state[1]) is str
            and state[1] in ("<", ">", "|", "=")
            and (state[0], *state[2:]) == (3, None, None, None, *self._own)
        ):
            raise malformed("a numpy dtype has fields or flags of its own")
        # "=" was native where the file was written; like "|" it has to do for "<" here.
        self.stored = self.stored.newbyteorder(">" if state[1] == ">" else "<")


@dataclass(slots=True)
class NumpyArray:
    """A pickled `numpy.ndarray`: empty until its state arrives."""

    shape: tuple[int, ...] = ()
    dtype: NumpyDtype | None = None
    fortran: bool = False
    data: bytes | Span = field(default=b"", repr=False)

    def build(self, state: object) -> None:
        """Take the state ``(version, shape, dtype, is_fortran, data)``."""
        if self.dtype is not None or not (type(state) is tuple and len(state) == 5):
            raise malformed("a numpy array has a state of an unknown form")
        version, shape, dtype, fortran, data = state
        if version != 1 or type(fortran) is not bool:
            raise malformed("a numpy array has a state of an unknown version")
        self.fill(shape, dtype, fortran, data)

    def fill(self, shape: object, dtype: object, fortran: bool, data: object) -> None:
        """Take shape, type, order and data, each of the right kind."""
        if not isinstance(dtype, NumpyDtype) or not isinstance(data, bytes | Span):
            raise malformed("a numpy array is no plain array of numbers")
        if isinstance(data, Span) and data.encoding == "text":
            raise malformed("a numpy array has text for its data")
        self.shape = sizes(shape)
        self.dtype, self.fortran, self.data = dtype, fortran, data

    @property
    def data_bytes(self) -> tuple[int, int]:
        """The least and the most bytes that the data may turn out to be."""
        if isinstance(self.data, bytes):
            return len(self.data), len(self.data)
        size = self.data.size
        # UTF-8 takes one or two bytes for each character up to 255.
        return (size + 1) // 2 if self.data.encoding == "latin1" else size, size

    def values(self) -> NDArray[Any]:
        """Return the elements, flat and in file order; `fill` has come before."""
        assert self.dtype is not None
        stored, count = self.dtype.stored, prod(self.shape)
        if isinstance(self.data, Span) and self.data.encoding == "bytes":
            span = self.data
            return read_elements(Region(span.source, span.start, span.size), 0, count, stored)
        data = self.data if isinstance(self.data, bytes) else self.data.read()
        if len(data) != count * stored.itemsize:
            raise malformed("a numpy array has data of the wrong length")
        return np.frombuffer(bytearray(data), stored)


def sizes(value: object) -> tuple[int, ...]:
    """Return a pickled shape or stride tuple if it is one: a tuple of plain integers."""
    if type(value) is tuple and len(value) > _MOST_SIZES:
        raise malformed(f"a shape of {len(value)} numbers has too many dimensions")
    if type(value) is tuple and _INTEGER.issuperset(map(type, value)):
        return value
    raise malformed("a shape is no tuple of integers")


def malformed(what: str) -> WeightsFileError:
    """Return the error for a pickle that no writer of weights makes."""
    return WeightsFileError(
        f"the pickle is malformed: {what}",
        advice=_ALONE,
    )
