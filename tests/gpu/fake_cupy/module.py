"""The fake modules `cupy` and `cupyx`: of CuPy's names, those that NumPy has or that stand here."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from tests.gpu.fake_cupy.device_array import (
    NAMES,
    OutOfMemoryError,
    matmul,
    ndarray,
    on_device,
    reserve,
    unwrap,
    wrap,
)
from tests.gpu.fake_cupy.ledger import LEDGER, DeviceSynchronized

DEVICE_NAME = "Fake device on NumPy"


class CUDARuntimeError(RuntimeError):
    """As `cupy.cuda.runtime.CUDARuntimeError`."""


class Event:
    """Time on the host's clock: nothing here runs behind the host's back."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.time = 0.0

    def record(self, stream: Any = None) -> None:
        self.time = time.perf_counter()

    def synchronize(self) -> None:
        LEDGER.wait("Event.synchronize()")


class Graph:
    """What a stream captured: launching it runs it again."""

    def __init__(self, work: list[Callable[[], object]]) -> None:
        self._work = work

    def launch(self, stream: Any = None) -> None:
        LEDGER.launches["graph"] += 1
        for each in self._work:
            each()


class Stream:
    """A stream whose work is done when it is asked for, unless it captures."""

    null: Any = None
    ptr = 0

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.null_stream = null

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def use(self) -> Stream:
        return self

    def synchronize(self) -> None:
        LEDGER.wait("Stream.synchronize()")

    def record(self, event: Any = None) -> Event:
        event = Event() if event is None else event
        event.record()
        assert isinstance(event, Event)
        return event

    def wait_event(self, event: Event) -> None:
        """The device waits, not the host."""

    def begin_capture(self, mode: Any = None) -> None:
        if self.null_stream:
            raise CUDARuntimeError("cudaErrorStreamCaptureUnsupported: the null stream")
        LEDGER.capturing = []

    def end_capture(self) -> Graph:
        work, LEDGER.capturing = LEDGER.capturing, None
        assert work is not None, "end_capture without begin_capture"
        return Graph(work)

    def is_capturing(self) -> bool:
        return LEDGER.capturing is not None


Stream.null = Stream(null=True)


class Device:
    """Device 0, and no other."""

    compute_capability = "90"

    def __init__(self, number: int = 0) -> None:
        self.id = number

    mem_info = property(lambda self: _memory())

    def synchronize(self) -> None:
        LEDGER.wait("Device.synchronize()")

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class MemoryPool:
    """The pool that has all the limit of the ledger."""

    def free_all_blocks(self) -> None:
        """Nothing is kept."""

    def used_bytes(self) -> int:
        return 0

    def total_bytes(self) -> int:
        return 0

    def malloc(self, size: int) -> Any:
        return alloc(size)


class Generator:
    """Random numbers of those kinds that CuPy's generator has: it has no `normal`, no `shuffle`."""

    def __init__(self, seed: int | None = None) -> None:
        self._host = np.random.default_rng(seed)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in NAMES["cupy.random.Generator"]:
            raise AttributeError(f"'Generator' object has no attribute '{name}'")
        return on_device(name, getattr(self._host, name))


class RawModule:
    """CUDA source, compiled for the host by the emulator of `tests.gpu.emulator`."""

    def __init__(
        self,
        code: str | None = None,
        *,
        path: str | None = None,
        options: tuple[str, ...] = (),
        backend: str = "nvrtc",
        name_expressions: Any = None,
    ) -> None:
        from tests.gpu import emulator

        assert code is not None, "the fake compiles source only"
        self._module: Any = emulator.compile(code, options)

    def get_function(self, name: str) -> Callable[..., None]:
        function = self._module.get_function(name)

        def launch(
            grid: tuple[int, ...],
            block: tuple[int, ...],
            args: tuple[Any, ...],
            *,
            shared_mem: int = 0,
            stream: Any = None,
        ) -> None:
            inside = tuple(_argument(argument) for argument in args)
            extra = {"shared_mem": shared_mem} if shared_mem else {}
            LEDGER.launch(name, lambda: function(grid, block, inside, **extra))

        return launch


def _argument(value: Any) -> Any:
    """A kernel takes arrays of the device, scalars, and structures: 0-d structured host arrays."""
    is_structure = isinstance(value, np.ndarray) and value.dtype.names and value.ndim == 0
    return value if is_structure else unwrap(value)


def alloc(size: int) -> Any:
    """Memory with a pointer; as `cupy.cuda.alloc`."""
    reserve(size)
    return SimpleNamespace(ptr=(kept := np.empty(max(size, 1), np.uint8)).ctypes.data, mem=kept)


def asarray(a: Any, dtype: Any = None, order: Any = None, **_: Any) -> Any:
    """A host array is copied to the device; a device array passes as it is."""
    if isinstance(a, ndarray):
        return wrap(np.asarray(a._host, dtype)) if dtype is not None else a
    host = np.asarray(a, dtype)
    if host.dtype.kind in "OSU":
        raise ValueError(f"Unsupported dtype {host.dtype}")
    reserve(host.nbytes)
    LEDGER.uploads += 1
    return wrap(host.copy())


def ascontiguousarray(a: Any, dtype: Any = None) -> Any:
    """As NumPy's, for arrays of either side."""
    if not isinstance(a, ndarray):
        return asarray(np.ascontiguousarray(a, dtype))
    same = a.flags.c_contiguous and (dtype is None or np.dtype(dtype) == a.dtype)
    return a if same else on_device("ascontiguousarray", np.ascontiguousarray)(a, dtype=dtype)


def empty(shape: Any, dtype: Any = float, order: str = "C") -> Any:
    """Full of NaN, so that reading before writing shows."""
    return ndarray(shape, dtype)


def empty_like(prototype: Any, dtype: Any = None, **_: Any) -> Any:
    return ndarray(prototype.shape, prototype.dtype if dtype is None else dtype)


def asnumpy(a: Any, *_: Any, **__: Any) -> Any:
    return a.get() if isinstance(a, ndarray) else np.asarray(a)


def where(condition: Any, x: Any, y: Any) -> Any:
    """As CuPy's, which has no loop for bfloat16 and gives float32 instead."""
    found = on_device("where", np.where)(condition, x, y)
    return found.astype(np.float32) if found.dtype.name == "bfloat16" else found


def _never(name: str, why: str) -> Callable[..., Any]:
    def called(*_: Any, **__: Any) -> Any:
        raise AssertionError(f"cupy.{name}: {why}")

    return called


class _Products:
    """CuPy's private choice of the arithmetic inside products."""

    def __init__(self) -> None:
        self._chosen = 1

    def get(self, dtype: Any) -> int:
        return self._chosen

    def set(self, dtype: Any, chosen: int) -> None:
        self._chosen = chosen


def _core() -> Any:
    products = _Products()
    place = "cupy._core._routines_linalg"
    return SimpleNamespace(
        _routines_linalg=_namespace(
            place,
            COMPUTE_TYPE_DEFAULT=1,
            COMPUTE_TYPE_TF32=7,
            get_compute_type=products.get,
            set_compute_type=products.set,
        )
    )


def _memory() -> tuple[int, int]:
    limit = LEDGER.memory_limit
    return (2**33, 2**34) if limit is None else (limit, 2**34)


def _elapsed(start: Event, end: Event) -> float:
    return (end.time - start.time) * 1000


@contextmanager
def _allow_synchronize(allow: bool) -> Iterator[None]:
    warnings.warn("cupyx.allow_synchronize will be removed in future releases", stacklevel=3)
    before, LEDGER.may_wait = LEDGER.may_wait, allow
    try:
        yield
    finally:
        LEDGER.may_wait = before


def _namespace(place: str, **members: Any) -> Any:
    """A module that holds `members` and has no name that CuPy's has not."""
    made = ModuleType(place)
    made.__spec__ = ModuleSpec(place, None)  # `find_spec` asks a loaded module for it
    for name, member in members.items():
        assert name in NAMES[place], f"{place} has no {name}"
        setattr(made, name, member)
    return made


def make_cupy(version: str) -> ModuleType:
    """A new module `cupy` of the fake."""
    runtime = _namespace(
        "cupy.cuda.runtime",
        CUDARuntimeError=CUDARuntimeError,
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda number: {
            "name": DEVICE_NAME.encode(),
            "multiProcessorCount": 4,
            "totalGlobalMem": 2**34,
        },
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 12090,
        memGetInfo=_memory,
        deviceSynchronize=lambda: LEDGER.wait("deviceSynchronize()"),
        streamBeginCapture=None,
        streamCaptureModeThreadLocal=1,
        profilerStart=lambda: None,
        profilerStop=lambda: None,
    )
    cuda = _namespace(
        "cupy.cuda",
        runtime=runtime,
        memory=_namespace("cupy.cuda.memory", OutOfMemoryError=OutOfMemoryError),
        Device=Device,
        Event=Event,
        Graph=Graph,
        MemoryPool=MemoryPool,
        Stream=Stream,
        alloc=alloc,
        get_current_stream=lambda: Stream.null,
        get_elapsed_time=_elapsed,
        is_available=lambda: True,
    )
    module: Any = _namespace(
        "cupy",
        cuda=cuda,
        random=_namespace("cupy.random", default_rng=Generator),
        ndarray=ndarray,
        RawModule=RawModule,
        asarray=asarray,
        array=lambda *a, **k: asarray(*a, **k).copy(),
        ascontiguousarray=ascontiguousarray,
        asnumpy=asnumpy,
        empty=empty,
        empty_like=empty_like,
        matmul=matmul,
        where=where,
        einsum=_never("einsum", "ignores the choice of TF32"),
        get_default_memory_pool=MemoryPool,
        get_array_module=lambda *a: module if any(isinstance(x, ndarray) for x in a) else np,
    )
    module.__version__ = version
    module._core = _core()
    for name in NAMES["cupy"]:
        value = getattr(np, name, None)
        if hasattr(module, name) or name.startswith("_") or isinstance(value, ModuleType):
            continue
        if value is not None:
            is_function = callable(value) and not isinstance(value, type)
            setattr(module, name, on_device(name, value) if is_function else value)
    made: ModuleType = module
    return made


def make_cupyx() -> ModuleType:
    """A new module `cupyx` of the fake."""
    made: ModuleType = _namespace(
        "cupyx",
        DeviceSynchronized=DeviceSynchronized,
        allow_synchronize=_allow_synchronize,
        rsqrt=on_device("rsqrt", lambda x, **named: np.divide(1, np.sqrt(x), **named)),
    )
    return made
