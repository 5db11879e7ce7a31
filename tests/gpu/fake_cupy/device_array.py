"""The fake `cupy.ndarray`: a NumPy array inside, and CuPy's manners outside.

It refuses to meet NumPy arrays, to become one unasked, and dtypes that a device has not; it counts
what makes the host wait. It has no attribute that CuPy's has not (`names.json`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.gpu.fake_cupy.ledger import LEDGER

NAMES: dict[str, list[str]] = {
    place: names.split()
    for place, names in json.loads(
        Path(__file__).with_name("names.json").read_text(encoding="utf-8")
    )["names"].items()
}

_OPERATORS = (
    *("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and", "or", "xor"),
    *("lshift", "rshift"),
)
_METHODS = (
    *("all", "any", "argmax", "argmin", "astype", "clip", "copy", "cumsum", "dot", "flatten"),
    *("max", "mean", "min", "prod", "ravel", "repeat", "reshape", "round", "squeeze", "std"),
    *("sum", "swapaxes", "take", "transpose", "var", "view", "fill"),
)
_NARROW = ("float16", "bfloat16")


class OutOfMemoryError(MemoryError):
    """As `cupy.cuda.memory.OutOfMemoryError`."""


class ndarray:  # noqa: N801 - CuPy's own name
    """An array on the fake device."""

    __array_priority__ = 100
    __hash__ = None  # type: ignore[assignment]  # as arrays have none
    __slots__ = ("__weakref__", "_host")

    def __init__(self, shape: Any, dtype: Any = float, *, _host: Any = None) -> None:
        self._host: np.ndarray[Any, Any] = _poisoned(shape, dtype) if _host is None else _host

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    T = property(lambda self: wrap(self._host.T))

    @property
    def data(self) -> Any:
        """A device pointer: here the host's, so that kernels and cuDNN can follow it."""
        return SimpleNamespace(ptr=self._host.ctypes.data)

    @property
    def flags(self) -> Any:
        flags = self._host.flags
        return SimpleNamespace(
            c_contiguous=flags.c_contiguous, f_contiguous=flags.f_contiguous, owndata=flags.owndata
        )

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError(
            "Implicit conversion to a NumPy array is not allowed. "
            "Please use `.get()` to construct a NumPy array explicitly."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
        """Reached when a NumPy scalar comes first; a NumPy array there is refused."""
        assert method == "__call__", f"CuPy has no {ufunc.__name__}.{method}"
        return on_device(ufunc.__name__, ufunc)(*inputs, **settings)

    def __bool__(self) -> bool:
        LEDGER.wait("bool()")
        return bool(self._host)

    def __int__(self) -> int:
        LEDGER.wait("int()")
        return int(self._host)

    def __float__(self) -> float:
        LEDGER.wait("float()")
        return float(self._host)

    def __len__(self) -> int:
        return len(self._host)

    def __iter__(self) -> Iterator[ndarray]:
        return (self[index] for index in range(len(self)))

    def __repr__(self) -> str:
        LEDGER.wait("repr()")
        return repr(self._host)

    def __getitem__(self, index: Any) -> Any:
        return wrap(self._host[_index(index, self._host.shape)])

    def __setitem__(self, index: Any, value: Any) -> None:
        host, place = unwrap(value), _index(index, self._host.shape)

        def store() -> None:
            self._host[place] = host

        LEDGER.launch("setitem", store)

    def get(self, out: Any = None) -> Any:
        """Copy to the host, and wait for it."""
        LEDGER.wait("get()")
        if out is None:
            return self._host.copy()
        out[...] = self._host
        return out

    def set(self, arr: Any, stream: Any = None) -> None:
        """Copy from the host."""
        assert isinstance(arr, np.ndarray)
        LEDGER.uploads += 1
        self._host[...] = arr

    def item(self) -> Any:
        """The only element, on the host."""
        LEDGER.wait("item()")
        return self._host.item()

    def tolist(self) -> Any:
        """All elements, on the host."""
        LEDGER.wait("tolist()")
        return self._host.tolist()


def wrap(value: Any) -> Any:
    """NumPy's results as the device's: reductions give 0-d arrays, not scalars."""
    if isinstance(value, tuple | list):
        return type(value)(map(wrap, value))
    if isinstance(value, np.ndarray | np.generic):
        return ndarray(None, _host=np.asarray(value))
    return value


def unwrap(value: Any) -> Any:
    """What is inside device arrays; a NumPy array among them is refused."""
    if isinstance(value, ndarray):
        return value._host
    if isinstance(value, np.ndarray):
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, tuple | list):
        return type(value)(map(unwrap, value))
    return value


def on_device(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """NumPy's `function` as CuPy's of the same name."""

    def called(*arrays: Any, **settings: Any) -> Any:
        inside = [unwrap(array) for array in arrays]
        named = {key: unwrap(value) for key, value in settings.items()}
        _refuse_dtypes(inside, named)
        if settings.get("out") is not None:

            def store() -> None:
                with np.errstate(all="ignore"):  # a device does not warn
                    function(*inside, **named)

            LEDGER.launch(name, store)
            return settings["out"]
        if LEDGER.capturing is not None:
            raise RuntimeError(f"cudaErrorStreamCaptureUnsupported: {name} allocates its result")
        LEDGER.launches[name] += 1
        with np.errstate(all="ignore"):
            return wrap(_fresh(function(*inside, **named), inside))

    return called


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """Two dimensions as cuBLAS does it: 16-bit operands, sums in float32. Not capturable."""
    if a.ndim != 2 or b.ndim != 2:
        raise AssertionError("cupy.matmul beyond two dimensions upcasts float16: avoid it")
    left, right = unwrap(a), unwrap(b)
    if left.dtype != right.dtype or (out is not None and out.dtype != left.dtype):
        raise AssertionError("cupy.matmul of unlike dtypes converts in passes of their own")
    narrow = left.dtype.name in _NARROW

    def multiply() -> Any:
        wide = [m.astype(np.float32) if narrow else m for m in (left, right)]
        with np.errstate(all="ignore"):
            return (wide[0] @ wide[1]).astype(left.dtype)

    if out is None:
        LEDGER.launch("matmul", lambda: None, capturable=False)
        return wrap(multiply())

    def store() -> None:
        unwrap(out)[...] = multiply()

    LEDGER.launch("matmul", store, capturable=False)
    return out


def reserve(nbytes: int) -> None:
    """Raise as the memory pool does when `nbytes` more are too many."""
    limit = LEDGER.memory_limit
    if limit is not None and nbytes > limit:
        raise OutOfMemoryError(
            f"Out of memory allocating {nbytes:,} bytes (allocated so far: 0 bytes, "
            f"limit set to: {limit:,} bytes)."
        )


def _poisoned(shape: Any, dtype: Any) -> Any:
    """Memory as a device gives it: not zeroed. NaN, so that reading before writing shows."""
    host = np.empty(shape, dtype)
    _refuse_dtypes([host], {})
    reserve(host.nbytes)
    host.reshape(-1).view(np.uint8)[...] = 0xFF
    return host


def _fresh(result: Any, inputs: list[Any]) -> Any:
    """NumPy may give an input back (`asarray`); a device copy of a host array never aliases it."""
    if isinstance(result, np.ndarray):
        reserve(0 if any(result is each for each in inputs) else result.nbytes)
    return result


def _refuse_dtypes(arrays: list[Any], named: dict[str, Any]) -> None:
    for value in (*arrays, named.get("dtype")):
        dtype = getattr(value, "dtype", value if isinstance(value, np.dtype | type) else None)
        if dtype is object or (isinstance(dtype, np.dtype) and dtype.kind in "OSUMm"):
            raise ValueError(f"Unsupported dtype {dtype}")


def _index(index: Any, shape: tuple[int, ...]) -> Any:
    """As CuPy indexes: a boolean mask waits for the device, integers out of range wrap."""
    parts = list(index) if isinstance(index, tuple) else [index]
    axis = 0
    for place, part in enumerate(parts):
        if isinstance(part, ndarray):
            if part.dtype == np.bool_:
                LEDGER.wait("boolean mask")
                parts[place] = part._host
            else:
                parts[place] = part._host % shape[axis]
        elif isinstance(part, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        axis += part is not None and part is not Ellipsis
    return tuple(parts) if isinstance(index, tuple) else parts[0]


def _method(name: str) -> Callable[..., Any]:
    numpy_method = getattr(np.ndarray, name)

    def called(self: ndarray, *arguments: Any, **settings: Any) -> Any:
        return on_device(name, numpy_method)(self, *arguments, **settings)

    return called


def _operator(name: str) -> Callable[..., Any]:
    def called(self: ndarray, other: Any) -> Any:
        if name in ("__matmul__", "__rmatmul__"):
            pair = (self, other) if name == "__matmul__" else (other, self)
            return matmul(*pair)
        return on_device(name, getattr(np.ndarray, name))(self, other)

    return called


def _in_place(name: str) -> Callable[..., Any]:
    ufunc = {"add": "add", "sub": "subtract", "mul": "multiply", "truediv": "true_divide"}

    def called(self: ndarray, other: Any) -> Any:
        return on_device(name, getattr(np, ufunc[name]))(self, other, out=self)

    return called


for _name in _METHODS:
    setattr(ndarray, _name, _method(_name))
for _name in _OPERATORS:
    for _special in (f"__{_name}__", f"__r{_name}__"):
        setattr(ndarray, _special, _operator(_special))
for _name in ("add", "sub", "mul", "truediv"):
    setattr(ndarray, f"__i{_name}__", _in_place(_name))
for _name in ("lt", "le", "eq", "ne", "gt", "ge", "neg", "pos", "abs", "invert"):
    _special = f"__{_name}__"
    _unary = _name in ("neg", "pos", "abs", "invert")
    setattr(ndarray, _special, _method(_special) if _unary else _operator(_special))
