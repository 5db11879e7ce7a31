"""The exact table of what a pickle may name, and the inert thing each name stands for.

The key is the pair (module, name) exactly as the pickle spells it. A table keyed on a module, a
prefix or the joined string is a hole: `collections` with the name `abc.sys.modules` is a dotted
walk to anything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, cast

import numpy as np

from weights_io.dtypes import OTHER_TYPES, STORED
from weights_io.errors import RefusedGlobalError
from weights_io.pickles.foreign import (
    HISTORY,
    HISTORY_METHODS,
    Foreign,
    ForeignType,
    foreign_globals,
)
from weights_io.pickles.inert import (
    CfgNode,
    Inert,
    Namespace,
    NumpyArray,
    NumpyDtype,
    OrderedDict,
    PickledSet,
    Span,
    Storage,
    StorageType,
    TensorView,
    latin1_bytes,
    malformed,
    sizes,
)
from weights_io.pickles.records import Method, Record
from weights_io.text import sanitize

Args = tuple[Any, ...]
_LAZY_BITS = frozenset({"neg", "conj"})
# Attributes of a tensor: what torch sets of its own, and what else may hang there, of which types.
_OWN = frozenset(
    {"data", "grad", "real", "imag", "names", "requires_grad", "_backward_hooks"}
    | {"_post_accumulate_grad_hooks"}
)
_PLAIN = frozenset({bool, int, float, str, type(None), list, tuple, dict, OrderedDict, Span})
_MOST_HUNG = 64
_LONGEST_DEVICE, _MOST_DEVICES = 32, 1 << 16  # "privateuseone" has 13 letters


@dataclass(frozen=True, slots=True)
class Global:
    """A name the pickle may push; `reduce` and `new` say what applying it yields."""

    name: str
    reduce: Callable[[Args], object] | None = None
    new: Callable[[], object] | None = None


@dataclass(frozen=True, slots=True)
class Getattr(Global):
    """`getattr`, for one class's methods and those of records; refused wherever else it is."""

    module: str = "builtins"


def refuse(module: str, name: str, entry: str = "") -> NoReturn:
    """Raise the error that names a refused global exactly, and the `entry` that it stands in."""
    place = f" (in the entry {sanitize(entry)})" if entry else ""
    raise RefusedGlobalError(
        f"refused global {sanitize(f'{module}.{name}')}{place}: only arrays are read, and nothing "
        "that a file names is imported",
        advice="if this is a whole model or a training's object, re-save the weights alone where "
        "its code is: torch.save(model.state_dict(), path)",
    )


def _ordered_dict(args: Args) -> OrderedDict:
    _expect(args == (), "collections.OrderedDict")
    return OrderedDict()


def _default_dict(args: Args) -> dict[Any, Any]:
    _expect(args == () or (len(args) == 1 and args[0] in _FACTORIES), "collections.defaultdict")
    return {}


def _set(args: Args) -> PickledSet:
    """Keep the list as it is: its items are looked at, and charged, when the tree is built."""
    _expect(len(args) == 1 and type(args[0]) is list, "set")
    return PickledSet(args[0], len(args[0]))


def _size(args: Args) -> tuple[int, ...]:
    _expect(len(args) == 1, "torch.Size")
    return sizes(args[0])


def _device(args: Args) -> Inert:
    kinds = [type(arg) for arg in args[:3]]
    is_known = kinds in ([str], [str, int]) and len(args[0]) <= _LONGEST_DEVICE
    _expect(is_known and max(args[1:], default=0) < _MOST_DEVICES, "torch.device")
    return Inert("torch.device", ":".join(str(arg) for arg in args))


def _rebuild_tensor(args: Args) -> TensorView:
    _expect(len(args) in (6, 7), "torch._utils._rebuild_tensor_v2")
    storage, offset, shape, strides, _requires_grad, hooks, *metadata = args
    good = isinstance(storage, Storage) and type(offset) is int and hooks == {}
    _expect(good, "torch._utils._rebuild_tensor_v2")
    negate = bool(metadata) and _is_negated(metadata[0], storage)
    return TensorView(storage, offset, sizes(shape), sizes(strides), negate)


def _is_negated(metadata: object, storage: Storage) -> bool:
    """Read torch's lazy-math bits: `neg` is honoured, and `conj` where torch itself takes it.

    That is of complex numbers, which are stepped over whatever their sign; torch refuses it of real
    ones. Anything else changes values unknowably.
    """
    if metadata is None:
        return False
    if not (
        isinstance(metadata, dict)
        and metadata.keys() <= _LAZY_BITS
        and {bool}.issuperset(map(type, metadata.values()))
    ):
        raise malformed("a tensor carries metadata other than neg and conj")
    if metadata.get("conj") and not storage.dtype.startswith("Complex"):
        raise malformed("a tensor of real numbers is conjugated")
    return bool(metadata.get("neg"))


def _rebuild_parameter(args: Args) -> TensorView | Foreign:
    _expect(len(args) == 3 and args[2] == {}, "torch._utils._rebuild_parameter")
    tensor = args[0]
    if isinstance(tensor, Foreign) and tensor.made_by in _OTHER_TENSORS:
        return tensor
    if not isinstance(tensor, TensorView):
        raise malformed("torch._utils._rebuild_parameter of something that is no tensor")
    return tensor


def _rebuild_parameter_with_state(args: Args) -> TensorView | Foreign:
    """Serve a parameter that somebody hung attributes on, which are let go."""
    _expect(len(args) == 4, "torch._utils._rebuild_parameter_with_state")
    _require_aside(args[3])
    return _rebuild_parameter(args[:3])


def _require_aside(state: object) -> None:
    """Refuse attributes that may change a tensor's values, which torch sets one by one.

    ``data`` is one: a tensor set there is what torch computes with. What is plain data can, under
    no name, do more than make torch raise an error, whatever it holds.
    """
    for part in state if type(state) is tuple and len(state) == 2 else (state,):
        if part is None:
            continue
        if not isinstance(part, dict) or len(part) > _MOST_HUNG:
            raise malformed("a tensor has attributes of an unknown form")
        for name, value in part.items():
            if type(name) is not str or name in _OWN or name.startswith("__"):
                raise malformed(f"a tensor's own attribute {sanitize(name)} is set anew")
            if type(value) not in _PLAIN:
                kind = getattr(value, "type_name", type(value).__name__)
                raise malformed(
                    f"a tensor has an attribute {sanitize(name)} that is no plain data "
                    f"({sanitize(kind)})"
                )


def _rebuild_from_type(args: Args) -> TensorView | Foreign:
    """Serve a tensor with attributes: ``(function, class, its arguments, attributes)``."""
    named = len(args) == 4 and isinstance(args[1], ForeignType)
    good = named and args[0] in (*_REBUILDS, *_OTHER_TENSORS)
    _expect(good and type(args[2]) is tuple, "torch._tensor._rebuild_from_type_v2")
    if args[1] not in _TENSORS or args[0] in _OTHER_TENSORS:
        return Foreign(args[1])  # of a class of its own, or of a kind that is stepped over
    _require_aside(args[3])
    rebuild = args[0].reduce
    return cast("TensorView", rebuild(args[2]))


def _rebuild_oldest(args: Args) -> TensorView:
    """Serve torch before 0.4: no gradient flag, no hooks."""
    _expect(len(args) == 4, "torch._utils._rebuild_tensor")
    return _rebuild_tensor((*args, False, {}))


def _method(module: str) -> Callable[[Args], Foreign]:
    """Serve mmengine's ``HistoryBuffer.mean``, and a method that a record was given for another.

    That is how YOLO's fused modules come to a `forward` of their own. It stays a name.
    """

    def reduce(args: Args) -> Foreign:
        if len(args) == 2 and isinstance(args[0], Record) and _is_word(args[1]):
            return Method(args[0].made_by)
        if len(args) != 2 or args[0] is not GLOBALS[HISTORY] or args[1] not in HISTORY_METHODS:
            refuse(module, "getattr")
        return Foreign(cast("ForeignType", args[0]))

    return reduce


def _is_word(name: object) -> bool:
    return type(name) is str and name.isidentifier() and not name.startswith("__")


def _encode(args: Args) -> bytes | Span:
    """Serve the `_codecs.encode(text, "latin1")` by which protocol 2 carries bytes."""
    _expect(len(args) == 2 and args[1] in ("latin1", "latin-1"), "_codecs.encode")
    text = args[0]
    if isinstance(text, Span):
        _expect(text.encoding == "text", "_codecs.encode")
        return Span(text.source, text.start, text.size, "latin1")
    _expect(type(text) is str, "_codecs.encode")
    return latin1_bytes(text.encode("utf-8"))


def _empty_bytes(args: Args) -> bytes:
    """Serve protocol 2's `bytes()`, which is how it spells no bytes at all."""
    _expect(args == (), "bytes")
    return b""


def _array(args: Args) -> NumpyArray | Foreign:
    """Serve an empty array; one of another class, such as a matrix, is stepped over."""
    _expect(len(args) == 3 and args[1:] == ((0,), b"b"), "_reconstruct")
    if isinstance(args[0], ForeignType):
        return Foreign(args[0])
    _expect(args[0] is _NDARRAY, "_reconstruct")
    return NumpyArray()


def _frombuffer(args: Args) -> NumpyArray:
    """Serve protocol 5's contiguous arrays: `_frombuffer(data, dtype, shape, order)`."""
    _expect(len(args) == 4 and args[3] in ("C", "F"), "_frombuffer")
    array = NumpyArray()
    array.fill(args[2], args[1], args[3] == "F", args[0])
    return array


def _dtype(args: Args) -> NumpyDtype:
    good = len(args) == 3 and args[1] in (False, 0) and args[2] in (True, 1)
    _expect(good, "numpy.dtype")
    return NumpyDtype("V" if isinstance(args[0], ForeignType) else args[0])  # of numpy.record


def _scalar(args: Args) -> object:
    good = len(args) == 2 and isinstance(args[0], NumpyDtype) and isinstance(args[1], bytes | Span)
    _expect(good, "numpy scalar")
    kind, data = args
    if kind.dtype is None:
        return Inert("numpy scalar", None)
    _expect(type(data) is bytes and len(data) == kind.stored.itemsize, "numpy scalar")
    return data != b"\0" if kind.dtype == "bool" else np.frombuffer(data, kind.stored).item()


def _expect(condition: bool, name: str) -> None:
    if not condition:
        raise malformed(f"{name} with arguments it never has")


_NDARRAY = Global("numpy.ndarray")
_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
}

GLOBALS: dict[tuple[str, str], object] = {
    ("collections", "OrderedDict"): Global("OrderedDict", _ordered_dict, OrderedDict),
    ("collections", "defaultdict"): Global("defaultdict", _default_dict),
    ("argparse", "Namespace"): Global("Namespace", None, Namespace),
    ("yacs.config", "CfgNode"): Global("CfgNode", None, CfgNode),
    ("torch", "Size"): Global("Size", _size),
    ("torch", "device"): Global("device", _device),
    ("torch._utils", "_rebuild_tensor_v2"): Global("_rebuild_tensor_v2", _rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): Global("_rebuild_parameter", _rebuild_parameter),
    ("torch._utils", "_rebuild_parameter_with_state"): Global(
        "_rebuild_parameter_with_state", _rebuild_parameter_with_state
    ),
    ("torch._utils", "_rebuild_tensor"): Global("_rebuild_tensor", _rebuild_oldest),
    ("torch._tensor", "_rebuild_from_type_v2"): Global("_rebuild_from_type_v2", _rebuild_from_type),
    ("__builtin__", "bytes"): Global("bytes", _empty_bytes),
    ("_codecs", "encode"): Global("encode", _encode),
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): Global("dtype", _dtype),
}
for _name, _kind in _STORAGES.items():
    GLOBALS["torch", _name] = StorageType(_kind)
for _kind in (*STORED, *OTHER_TYPES):
    GLOBALS["torch", _kind] = Inert("torch.dtype", _kind)
for _core in ("numpy.core", "numpy._core"):  # NumPy 1 and NumPy 2
    GLOBALS[f"{_core}.multiarray", "_reconstruct"] = Global("_reconstruct", _array)
    GLOBALS[f"{_core}.multiarray", "scalar"] = Global("scalar", _scalar)
    GLOBALS[f"{_core}.numeric", "_frombuffer"] = Global("_frombuffer", _frombuffer)
for _builtins in ("__builtin__", "builtins"):  # protocol 2 spells it as Python 2 did
    GLOBALS[_builtins, "set"] = Global("set", _set)
    GLOBALS[_builtins, "getattr"] = Getattr("getattr", _method(_builtins), None, _builtins)
    for _name in ("bool", "bytes", "dict", "float", "int", "list", "str", "tuple"):
        # a defaultdict's factory, or a type noted in a configuration; never called
        GLOBALS.setdefault((_builtins, _name), Inert("type", f"builtins.{_name}"))
_FACTORIES = [GLOBALS["builtins", name] for name in ("dict", "list", "int", "float", "str", "set")]
GLOBALS |= dict(foreign_globals())
_REBUILDS = [
    GLOBALS["torch._utils", name]
    for name in ("_rebuild_tensor_v2", "_rebuild_parameter", "_rebuild_parameter_with_state")
]
_OTHER_TENSORS = [
    found
    for (module, _), found in GLOBALS.items()
    if module == "torch._utils" and isinstance(found, ForeignType)
]
_TENSORS = [
    GLOBALS["torch", "Tensor"],
    GLOBALS["torch.nn.parameter", "Parameter"],
    GLOBALS["torch.nn.parameter", "Buffer"],
]
