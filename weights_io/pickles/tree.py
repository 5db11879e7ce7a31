"""From the machine's raw object to a tree of plain values and lazy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weights_io.budget import Budget
from weights_io.dtypes import decode, kept_bytes
from weights_io.lazy import LazyArray
from weights_io.pickles.foreign import Foreign, ForeignType, OddKey
from weights_io.pickles.globals import Getattr, refuse
from weights_io.pickles.inert import (
    CfgNode,
    Inert,
    Namespace,
    NumpyArray,
    NumpyDtype,
    PickledSet,
    Span,
    TensorView,
    decode_text,
    malformed,
)
from weights_io.pickles.modules import PickledModule
from weights_io.pickles.records import Record
from weights_io.pickles.strangers import Stranger

Resolve = Callable[[TensorView], LazyArray | Inert]

_DTYPE = Inert(NumpyDtype.type_name, None)
_PLAIN = frozenset({str, int, float, bool, type(None), bytes, Inert})
_CONTAINERS = frozenset({list, tuple, dict})
_PLAIN_KEYS = frozenset({str, int})
_ITEM_WORK = 4  # of what stands in a list, tuple or dict that is looked through
_PART_WORK, _PART_BYTES = 8, 320  # of what is remembered, beside the places of a copy's items
_SET_WORK, _SET_ITEM_WORK = 9, 3  # beside a remembered part's: a set is made twice
_SET_BYTES, _SET_ITEM_BYTES = 216, 100
_FEW = 8  # items: to look through so many again costs no more than to remember that one has


class TreeBuilder:
    """Copies a raw object, resolving arrays and bounding what a walk over the copy can cost.

    A shared part stays shared. Its size counts each time it appears, so that a small pickle
    cannot unfold into an exponential tree (the "billion laughs"), and a part that holds itself
    is refused.
    """

    def __init__(self, budget: Budget, resolve: Resolve | None = None) -> None:
        self._budget, self._limits = budget, budget.limits
        self._resolve = resolve
        self._done: dict[int, tuple[object, int]] = {}  # by id: the copy and its unfolded size
        self._open: set[int] = set()
        self._root = -1

    def build(self, raw: object) -> object:
        """Return the plain tree that `raw` stands for; `raw` must outlive the call.

        Raises
        ------
        RefusedGlobalError
            If the pickle is one object of a class that is not listed, and no module: there is
            nothing beside it.
        """
        made_by = raw.made_by if isinstance(raw, Foreign) else raw
        if isinstance(made_by, Stranger) and not _is_module(raw):
            refuse(made_by.module, made_by.name)
        if isinstance(raw, NumpyDtype):
            raise malformed("a numpy dtype alone is none that weights come in")
        if isinstance(raw, Span):
            self._limits.enforce("text_bytes", raw.size, "the pickle holds too long a string")
        self._root = id(raw)
        copy, _ = self._copy(raw, 0)
        return copy

    def _copy(self, raw: object, depth: int) -> tuple[object, int]:
        kind = type(raw)
        if kind in _PLAIN:
            return raw, 1
        if kind is NumpyDtype:
            return _DTYPE, 1
        if kind in _CONTAINERS and len(raw) <= _FEW and _is_plain(raw):  # type: ignore[arg-type]
            self._limits.enforce("depth", depth, "the pickle is nested too deeply")
            return raw, 1 + len(raw) * (1 + (kind is dict))  # type: ignore[arg-type]
        key = id(raw)
        if key in self._done:
            copy, size = self._done[key]
            if isinstance(copy, LazyArray):  # of another name, under which it is read again
                self._budget.admit(copy.shape, kept_bytes(copy.dtype), "a tensor of many names")
            return copy, size
        if key in self._open:
            if key != self._root:
                return Inert("itself", None), 1  # beside the weights: a dead record of it
            raise malformed("an object holds itself")
        self._limits.enforce("depth", depth, "the pickle is nested too deeply")
        self._budget.charge("work", _PART_WORK, "the pickle holds too many objects")
        self._budget.charge_objects(_PART_BYTES, "the pickle")
        self._open.add(key)
        copy, size = self._container(raw, depth + 1)
        self._open.remove(key)
        self._budget.enforce("nodes", size, "the pickle unfolds into too many objects")
        self._done[key] = copy, size
        return copy, size

    def _container(self, raw: object, depth: int) -> tuple[object, int]:
        if isinstance(raw, TensorView):  # first, since most are
            return self._leaf(raw), 1
        if isinstance(raw, Namespace):
            content, size = self._dict(raw.content, depth)
            return Inert(raw.type_name, content), size
        if isinstance(raw, CfgNode):
            content, size = self._dict(raw, depth)
            return Inert(raw.type_name, content), size
        if isinstance(raw, dict):
            return self._dict(raw, depth)
        if isinstance(raw, list | tuple):
            return self._sequence(raw, depth)
        if isinstance(raw, PickledSet):
            return self._set(raw)
        return self._leaf(raw), 1

    def _sequence(self, raw: list[Any] | tuple[Any, ...], depth: int) -> tuple[object, int]:
        if _is_plain(raw):  # a million numbers need no copy
            return raw, 1 + len(raw)
        self._look_through(len(raw), raw.__sizeof__())
        items, size = [], 1
        for item in raw:
            copy, item_size = self._copy(item, depth)
            items.append(copy)
            size += item_size
        return (tuple(items) if isinstance(raw, tuple) else items), size

    def _look_through(self, items: int, size: int) -> None:
        """Charge that a container's items are copied, in as many bytes as it takes itself."""
        self._budget.charge("work", _ITEM_WORK * items, "the pickle holds too many objects")
        self._budget.charge_objects(size, "the pickle")

    def _set(self, raw: PickledSet) -> tuple[set[str] | Inert, int]:
        """A set of strings; of anything else only that there was one. Many can share one list."""
        items = raw.items
        work = _SET_WORK + _SET_ITEM_WORK * len(items)
        self._budget.charge("comparisons", len(items), "the sets of the pickle hold too much")
        self._budget.charge("work", work, "the sets of the pickle hold too much")
        if all(type(item) is str for item in items):
            size = _SET_BYTES + _SET_ITEM_BYTES * len(items)
            self._budget.charge_objects(size, "the pickle")
            return set(items), 1 + len(items)
        return Inert("builtins.set", None), 1

    def _dict(self, raw: dict[Any, Any], depth: int) -> tuple[dict[Any, object], int]:
        if _is_plain(raw):
            return (raw if type(raw) is dict else dict(raw)), 1 + 2 * len(raw)
        self._look_through(len(raw), raw.__sizeof__())
        content, size = {}, 1
        for place, (key, value) in enumerate(raw.items()):
            name = Inert(key.type_name, place) if isinstance(key, OddKey) else key
            content[name], value_size = self._copy(value, depth)
            size += 1 + value_size
        return content, size

    def _leaf(self, raw: object) -> LazyArray | PickledModule | Inert | str | bytes:
        if isinstance(raw, TensorView) and self._resolve is not None:
            return self._resolve(raw)
        if isinstance(raw, Record) and _is_module(raw):
            return PickledModule(raw, self._budget, self._resolve)
        if isinstance(raw, Foreign):
            return Inert(raw.type_name, None, raw.made_by.is_listed)
        if isinstance(raw, ForeignType):
            return Inert("type", raw.type_name, raw.is_listed)
        if isinstance(raw, Getattr):
            refuse(raw.module, raw.name)
        if isinstance(raw, NumpyArray):
            return self._numpy_array(raw)
        if isinstance(raw, Span):
            is_long = raw.size > self._limits.text_bytes
            return Inert(raw.type_name, None) if is_long else self._span(raw)
        raise malformed(f"a {type(raw).__name__} stands where data should be")

    def _span(self, raw: Span) -> str | bytes:
        if raw.encoding == "text":
            return self._budget.keep_text(decode_text(raw.read()))
        self._budget.charge("texts_bytes", raw.size, "the file holds too much text")
        return raw.read()

    def _numpy_array(self, raw: NumpyArray) -> LazyArray | Inert:
        kind = raw.dtype
        if kind is None:
            raise malformed("a numpy array has no state")
        dtype = kind.dtype
        if dtype is None:
            return Inert("numpy.ndarray", None)
        count = self._budget.admit(raw.shape, kind.stored.itemsize, "a numpy array")
        wanted, got = count * kind.stored.itemsize, raw.data_bytes
        if not got[0] <= wanted <= got[1]:
            raise malformed(f"a numpy array has {got[1]} bytes of data where {wanted} are needed")

        if raw.fortran:
            self._budget.charge_copy(wanted, "a numpy array")

        def read() -> NDArray[Any]:
            flat = decode(raw.values(), dtype)
            values = flat.reshape(raw.shape, order="F" if raw.fortran else "C")
            return np.ascontiguousarray(values).reshape(raw.shape)

        return LazyArray(raw.shape, dtype, read)


def _is_plain(raw: list[Any] | tuple[Any, ...] | dict[Any, Any]) -> bool:
    """Whether a container stands for itself: nothing in it has to be replaced by something else."""
    if isinstance(raw, dict):
        return _PLAIN_KEYS.issuperset(map(type, raw)) and _PLAIN.issuperset(map(type, raw.values()))
    return _PLAIN.issuperset(map(type, raw))


def _is_module(raw: object) -> bool:
    return isinstance(raw, Record) and raw.state is not None
