"""The arrays of a pickled torch module, named as its state dict would name them.

Only dicts are walked: `_parameters`, `_buffers` and `_modules`, in the order in which torch does.
Each step is charged, so a module that stands in itself a thousand times costs what it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from weights_io.budget import Budget
from weights_io.collector import seldom_collected
from weights_io.errors import WeightsFileError
from weights_io.lazy import LazyArray
from weights_io.modules import ModuleRecord
from weights_io.pickles.foreign import Foreign, ForeignType
from weights_io.pickles.globals import Getattr, refuse
from weights_io.pickles.inert import CfgNode, Inert, PickledSet, TensorView
from weights_io.pickles.records import PARTS, Record
from weights_io.text import sanitize

Resolve = Callable[[TensorView], LazyArray | Inert]

_UNSAVED = "_non_persistent_buffers_set"
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
# What computes, where an attribute of the object stands in the place of the class's method.
_METHODS = ("forward", "_conv_forward", "_call_impl", "_wrapped_call_impl")
# Pruning hooks make `weight` of `weight_orig` and `weight_mask`, which say so by their names.
_PRUNING = "torch.nn.utils.prune."
_MODULE_WORK, _PART_WORK = 64, 12


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
            with seldom_collected():
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
        one = _Module(raw, path)
        if any(raw is other for other in self._open):
            raise one.impossible("it holds itself")
        depth = len(self._open) + 1
        self._budget.limits.enforce("depth", depth, "the modules are nested too deeply")
        self._budget.charge("work", _MODULE_WORK, "the modules unfold into too many")
        self._open.append(raw)
        found = ModuleRecord(raw.type_name, path, self._altered(one), parent, one.state)
        parameters, buffers, modules = (self._part(one, part) for part in PARTS)
        unsaved = self._unsaved_names(one)
        own = {**parameters, **buffers}
        if len({*own, *modules}) < len(parameters) + len(buffers) + len(modules):
            raise one.impossible("two of its parts have one name")
        for name, value in own.items():
            full = self._name(one, name)
            if value is not None and not (name in buffers and name in unsaved):
                self.arrays[full] = self._array(one, full, value).of(found)
        for name, value in modules.items():
            full = self._name(one, name)
            if value is not None:
                found.children[name] = self._child(one, full, value, found)
        self._open.pop()
        return found

    def _part(self, one: _Module, part: str) -> Mapping[Any, Any]:
        """One of the three dicts; looking through it is charged, however often it is shared."""
        held = one.state[part]
        if not isinstance(held, dict) or isinstance(held, CfgNode):
            raise one.impossible(f"its {part} is no dict")
        self._budget.charge("nodes", 1 + len(held), "the modules unfold into too many parts")
        work = _PART_WORK * len(held)
        self._budget.charge("work", work, "the modules unfold into too many parts")
        return held

    def _name(self, one: _Module, name: object) -> str:
        """The path of a part: torch lets no name be empty or hold a dot.

        It is made of names that were read, so what is shared cannot unfold far beyond the file.
        """
        if type(name) is not str or not name or "." in name:
            kind = getattr(name, "type_name", type(name).__name__)
            shown = name if type(name) is str else f"a {kind}"
            raise one.impossible(f"no part can be called {sanitize(shown)!r}")
        if name in one.state:
            raise one.impossible(f"an attribute hides its part {sanitize(name)!r}")
        letters = len(one.path) + 1 + len(name)
        size = letters if one.path.isascii() and name.isascii() else 4 * letters
        self._budget.charge(
            "copied_bytes", size, "the modules unfold into too many, too long names"
        )
        return f"{one.path}.{name}" if one.path else name

    def _array(self, one: _Module, full: str, value: object) -> LazyArray:
        if isinstance(value, TensorView) and self._resolve is not None:
            found = self._resolve(value)
            if isinstance(found, LazyArray):
                return found
            raise WeightsFileError(
                f"{sanitize(full)} is a tensor of a type that no weights are read in",
                got=sanitize(found.type_name),
                wanted="real numbers of up to 64 bits",
                advice="save the state dict without it, where the module's code is",
            )
        raise _misplaced(one, full, value, "an array")

    def _child(self, one: _Module, full: str, value: object, found: ModuleRecord) -> ModuleRecord:
        if isinstance(value, Record) and value.state is not None:
            return self.module(value, full, found)
        raise _misplaced(one, full, value, "a module")

    def _unsaved_names(self, one: _Module) -> frozenset[str]:
        """The buffers that no state dict has."""
        held = one.state.get(_UNSAVED)
        if held is None:
            return frozenset()
        if id(held) in self._unsaved:
            return self._unsaved[id(held)]
        if not isinstance(held, PickledSet):
            raise one.impossible(f"its {_UNSAVED} is no set")
        names = held.items
        self._budget.charge("comparisons", len(names), "a module has too many buffers")
        if not all(type(name) is str for name in names):
            raise one.impossible(f"its {_UNSAVED} is no set of names")
        self._unsaved[id(held)] = frozenset(names)
        return self._unsaved[id(held)]

    def _altered(self, one: _Module) -> str:
        """What makes a module compute something else than its class does, if that can be seen."""
        for method in _METHODS:
            if method in one.state:
                return f"its {method} is replaced"
        for part in _HOOKS:
            hooks = one.state.get(part)
            if hooks is None:
                continue
            if not isinstance(hooks, dict):
                raise one.impossible(f"its {part} is no dict")
            self._budget.charge("nodes", len(hooks), "the modules have too many hooks")
            for hook in hooks.values():
                kind = hook.type_name if isinstance(hook, Foreign) else type(hook).__name__
                if not (kind.startswith(_PRUNING) and one.is_pruned):
                    return f"a hook may change what it computes ({sanitize(kind)})"
        return ""


class _Module:
    """A record that is a module, and where it stands."""

    def __init__(self, raw: Record, path: str) -> None:
        assert raw.state is not None
        self.state, self.path, self.type_name = raw.state, path, raw.type_name
        if len(raw.state) != raw.size:
            raise self.impossible("its attributes change after it was built")

    @property
    def is_pruned(self) -> bool:
        """By the names that pruning gives."""
        held = self.state["_parameters"]
        return any(f"{name}_orig" in held for name in ("weight", "bias"))

    def impossible(self, what: str) -> WeightsFileError:
        """The error for a module that torch does not make."""
        return WeightsFileError(
            f"no torch module can be so: {what}",
            got=f"a {sanitize(self.type_name)} at {sanitize(self.path) or 'the root'}",
            advice="the file is damaged, or was made to be read as something else",
        )


def _misplaced(one: _Module, full: str, value: object, wanted: str) -> WeightsFileError:
    """What is said of what stands in the place of an array or a module; an object by its name."""
    made_by = value.made_by if isinstance(value, Foreign) else value
    if isinstance(made_by, ForeignType):
        module, _, name = made_by.type_name.rpartition(".")
        refuse(module, name, full)
    if isinstance(made_by, Getattr):
        refuse(made_by.module, made_by.name, full)
    kind = made_by.type_name if isinstance(made_by, Inert) else type(value).__name__
    return WeightsFileError(
        f"a pickled module holds no {wanted.split()[-1]} under {sanitize(full)}",
        got=sanitize(kind),
        wanted=f"{wanted} or None",
        advice="the file is damaged, or was made to be read as something else",
    )
