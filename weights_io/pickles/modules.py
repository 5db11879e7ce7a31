"""The arrays of a pickled torch module, named as its state dict would name them.

Only dicts are walked: `_parameters`, `_buffers` and `_modules`, in the order in which torch does.
Each step is charged, so a module that stands in itself a thousand times costs what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from weights_io.budget import Budget
from weights_io.errors import WeightsFileError
from weights_io.lazy import LazyArray
from weights_io.modules import SETTINGS, ModuleRecord
from weights_io.pickles.foreign import Foreign, ForeignType
from weights_io.pickles.globals import Getattr, refuse
from weights_io.pickles.inert import CfgNode, Inert, PickledSet, TensorView
from weights_io.pickles.records import HOOKS, UNSAVED, Record
from weights_io.text import sanitize

Resolve = Callable[[TensorView], LazyArray]

_MOST_SIZES = 8  # of a tuple that is a setting
_MOST_BITS = 64
_LONGEST = 64  # letters of a setting that is text
# What computes, where an attribute of the object stands in the place of the class's method.
_METHODS = ("forward", "_conv_forward", "_call_impl", "_wrapped_call_impl")
# Pruning hooks make `weight` of `weight_orig` and `weight_mask`, which say so by their names.
_PRUNING = "torch.nn.utils.prune."


class PickledModule:
    """A whole torch module in a pickle: its class's name, and its arrays when they are asked for.

    Attributes
    ----------
    type_name : str
        As the pickle spells it; nothing of that name is ever imported.
    """

    __slots__ = ("_arrays", "_budget", "_record", "_resolve")

    def __init__(self, record: Record, budget: Budget, resolve: Resolve | None) -> None:
        self._record, self._budget, self._resolve = record, budget, resolve
        self._arrays: dict[str, LazyArray] | None = None

    @property
    def type_name(self) -> str:
        """Of its class."""
        return self._record.type_name

    def arrays(self) -> dict[str, LazyArray]:
        """Its arrays under the names of its state dict, each with the module that holds it.

        Raises
        ------
        RefusedGlobalError
            When an object of another kind stands where an array or a module should.
        LimitError
            When they are more, with the shared ones counted each time, than the file may ask for.
        WeightsFileError
            When no torch module can be so: one holds itself, two arrays have one name.
        """
        if self._arrays is None:
            walk = _Walk(self._budget, self._resolve)
            walk.module(self._record, "", None)
            self._arrays = walk.arrays
        return self._arrays

    def __repr__(self) -> str:
        return f"PickledModule({self.type_name!r})"


class _Walk:
    def __init__(self, budget: Budget, resolve: Resolve | None) -> None:
        self.arrays: dict[str, LazyArray] = {}
        self._budget, self._resolve = budget, resolve
        self._open: list[Record] = []  # from the root down to where it is
        self._unsaved: dict[int, frozenset[str]] = {}  # by the id of a set, which outlives the walk

    def module(self, raw: Record, path: str, parent: ModuleRecord | None) -> ModuleRecord:
        """Collect the arrays of a module at `path` and of all in it."""
        if any(raw is other for other in self._open):
            raise _impossible(raw, path, "it holds itself")
        depth = len(self._open) + 1
        self._budget.limits.enforce("depth", depth, "the modules are nested too deeply")
        self._open.append(raw)
        altered = self._altered(raw, path)
        found = ModuleRecord(raw.type_name, path, _settings(raw), altered, parent)
        parameters, buffers, modules = (
            self._part(raw, path, part) for part in ("_parameters", "_buffers", "_modules")
        )
        unsaved = self._unsaved_names(raw, path)
        own = {**parameters, **buffers}
        if len({*own, *modules}) < len(parameters) + len(buffers) + len(modules):
            raise _impossible(raw, path, "two of its parts have one name")
        for name, value in own.items():
            full = self._name(raw, path, name)
            if value is not None and not (name in buffers and name in unsaved):
                self.arrays[full] = self._array(raw, full, value).of(found)
        for name, value in modules.items():
            full = self._name(raw, path, name)
            if value is not None:
                found.children[name] = self._child(raw, full, value, found)
        self._open.pop()
        return found

    def _part(self, raw: Record, path: str, part: str) -> Mapping[Any, Any]:
        """One of the three dicts; looking through it is charged, however often it is shared."""
        assert raw.fields is not None
        held = raw.fields[part]
        if not isinstance(held, dict) or isinstance(held, CfgNode):
            raise _impossible(raw, path, f"its {part} is no dict")
        self._budget.charge("nodes", 1 + len(held), "the modules unfold into too many parts")
        return held

    def _name(self, raw: Record, path: str, name: object) -> str:
        """The path of a part: torch lets no name be empty or hold a dot."""
        if type(name) is not str or not name or "." in name:
            shown = name if type(name) is str else type(name).__name__
            raise _impossible(raw, path, f"no part can be called {sanitize(shown)!r}")
        if name in raw.state:
            raise _impossible(raw, path, f"an attribute hides its part {sanitize(name)}")
        letters = len(path) + 1 + len(name)
        size = letters if path.isascii() and name.isascii() else 4 * letters
        self._budget.charge("texts_bytes", size, "the names of the modules are too long together")
        return f"{path}.{name}" if path else name

    def _array(self, raw: Record, full: str, value: object) -> LazyArray:
        if isinstance(value, TensorView) and self._resolve is not None:
            return self._resolve(value)
        self._refuse(raw, full, value, "an array")

    def _child(self, raw: Record, full: str, value: object, found: ModuleRecord) -> ModuleRecord:
        if isinstance(value, Record) and value.fields is not None:
            return self.module(value, full, found)
        self._refuse(raw, full, value, "a module")

    def _refuse(self, raw: Record, full: str, value: object, wanted: str) -> NoReturn:
        """Say what stands in the place of an array or a module: an object by its name."""
        made_by = value.made_by if isinstance(value, Foreign) else value
        if isinstance(made_by, ForeignType):
            module, _, name = made_by.type_name.rpartition(".")
            refuse(module, name, full)
        if isinstance(made_by, Getattr):
            refuse(made_by.module, made_by.name, full)
        kind = made_by.type_name if isinstance(made_by, Inert) else type(value).__name__
        raise WeightsFileError(
            f"a pickled module holds no {wanted.split()[-1]} under {sanitize(full)}",
            got=sanitize(kind),
            wanted=f"{wanted} or None, as every {sanitize(raw.type_name)} of torch has there",
            advice="the file is damaged or was made to do something else than hold weights",
        )

    def _unsaved_names(self, raw: Record, path: str) -> frozenset[str]:
        """The buffers that no state dict has."""
        assert raw.fields is not None
        held = raw.fields.get(UNSAVED)
        if held is None:
            return frozenset()
        if id(held) in self._unsaved:
            return self._unsaved[id(held)]
        if not isinstance(held, PickledSet) or not all(type(n) is str for n in held.items):
            raise _impossible(raw, path, f"its {UNSAVED} is no set of names")
        self._budget.charge("comparisons", len(held.items), "a module has too many buffers")
        self._unsaved[id(held)] = frozenset(held.items)
        return self._unsaved[id(held)]

    def _altered(self, raw: Record, path: str) -> str:
        """What makes a module compute something else than its class does, if that can be seen."""
        assert raw.fields is not None
        for method in _METHODS:
            if method in raw.state:
                return f"its {method} is replaced"
        for part in HOOKS:
            hooks = raw.fields.get(part)
            if hooks is None:
                continue
            if not isinstance(hooks, dict):
                raise _impossible(raw, path, f"its {part} is no dict")
            self._budget.charge("nodes", len(hooks), "the modules have too many hooks")
            for hook in hooks.values():
                kind = hook.type_name if isinstance(hook, Foreign) else type(hook).__name__
                if not (kind.startswith(_PRUNING) and _is_pruned(raw)):
                    return f"a hook may change what it computes ({sanitize(kind)})"
        return ""


def _is_pruned(raw: Record) -> bool:
    """By the names that pruning gives: looked for once for each hook, of which there are few."""
    assert raw.fields is not None
    return any(f"{name}_orig" in raw.fields["_parameters"] for name in ("weight", "bias"))


def _settings(raw: Record) -> dict[str, object]:
    assert raw.fields is not None
    return {name: _plain(raw.fields[name]) for name in SETTINGS if name in raw.fields}


def _plain(value: object) -> object:
    """A setting as it is, if it is one: a number, a truth, None, text, or integers."""
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int and value.bit_length() <= _MOST_BITS:
        return value
    if type(value) is str and len(value) <= _LONGEST:
        return value
    if type(value) is tuple and len(value) <= _MOST_SIZES:
        if all(type(each) is int and each.bit_length() <= _MOST_BITS for each in value):
            return value
    return Inert(type(value).__name__, None)


def _impossible(raw: Record, path: str, what: str) -> WeightsFileError:
    return WeightsFileError(
        f"no torch module can be so: {what}",
        got=f"a {sanitize(raw.type_name)} at {sanitize(path) or 'the root'}",
        advice="the file is damaged, or was made to be read as something else",
    )
