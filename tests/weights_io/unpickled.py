"""The independent witness: Python's own unpickler, with stubs for all that a file names.

What it makes of a file's opcodes is what torch would get, but for the classes, which are empty; so
a walk over it as torch's `Module.state_dict` does it says which arrays the file really holds.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict, defaultdict
from typing import Any


class Stub:
    """An object of any class; it takes a state as `torch.nn.Module.__setstate__` does."""

    def __new__(cls, *arguments: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *arguments: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)


class Tensor:
    """What every rebuild function of torch's gives."""


def _tensor(*arguments: Any) -> Tensor:
    return Tensor()


def _method(*arguments: Any) -> Stub:
    return Stub()


_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("collections", "defaultdict"): defaultdict,
    ("__builtin__", "set"): set,
    ("__builtin__", "dict"): dict,
    ("__builtin__", "getattr"): _method,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _tensor,
}


class _Unpickler(pickle._Unpickler):  # the one in Python, which no file can crash
    def find_class(self, module: str, name: str) -> Any:
        """Nothing is imported: a stub of that name, or one of the few above."""
        return _KNOWN.get((module, name)) or type("Named", (Stub,), {})

    def persistent_load(self, identity: Any) -> Any:
        """A class of a legacy stream, or a storage."""
        is_class = isinstance(identity, tuple) and identity[:1] == ("module",)
        return identity[1] if is_class else Stub()


def names_of(data: bytes) -> list[list[str]]:
    """The names of the state dict of every module that stands in the pickle's lists and dicts.

    Raises
    ------
    Exception
        Whatever an unpickler raises for a broken pickle.
    """
    root = _Unpickler(io.BytesIO(data)).load()
    return [list(_state_dict(module)) for module in _modules(root)]


def _modules(root: Any) -> list[Any]:
    if isinstance(root, Stub) and "_modules" in root.__dict__:
        return [root]
    inside = root.values() if isinstance(root, dict) else root if type(root) is list else ()
    return [module for each in inside for module in _modules(each)]


def _state_dict(module: Any, prefix: str = "") -> dict[str, Tensor]:
    """As torch/nn/modules/module.py has it: `_save_to_state_dict`, then the submodules."""
    found: dict[str, Tensor] = {}
    for name, value in module._parameters.items():
        if value is not None:
            found[prefix + name] = value
    for name, value in module._buffers.items():
        unsaved = module.__dict__.get("_non_persistent_buffers_set") or ()
        if value is not None and name not in unsaved:
            found[prefix + name] = value
    for name, child in module._modules.items():
        if child is not None:
            found |= _state_dict(child, prefix + name + ".")
    assert all(isinstance(value, Tensor) for value in found.values())
    return found
