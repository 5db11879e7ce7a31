"""Loaded kernels, called with CuPy's convention on NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from tests.gpu.emulator.build import kernels, library

_MOST_THREADS = 1024
_MOST_GRID = (2**31 - 1, 65535, 65535)
_seed = 0


class LaunchError(Exception):
    """A launch that a device would refuse, or never finish, or take for something else."""


@contextmanager
def thread_order(seed: int) -> Iterator[None]:
    """Run blocks and threads in an order drawn from `seed`; 0 is the ascending one."""
    global _seed
    before, _seed = _seed, seed
    try:
        yield
    finally:
        _seed = before


def compile(code: str, options: Sequence[str] = ()) -> Module:
    """Compile `code`; of the options those that define macros count."""
    return Module(code, tuple(options))


class Module:
    """Compiled kernels; as `cupy.RawModule`."""

    def __init__(self, code: str, options: tuple[str, ...]) -> None:
        self._names = kernels(code)
        self._library = library(code, options)

    def get_function(self, name: str) -> Kernel:
        """The kernel of that name."""
        if name not in self._names:
            raise LaunchError(f"named symbol not found: {name}; there are {self._names}")
        return Kernel(name, self._library)


class Kernel:
    """One kernel; as `cupy.RawKernel`."""

    def __init__(self, name: str, compiled: ctypes.CDLL) -> None:
        self.name = name
        describe = getattr(compiled, f"emulated_parameters_{name}")
        describe.restype = ctypes.c_char_p
        self._parameters: list[str] = describe().decode().split()
        self._launch = getattr(compiled, f"emulated_launch_{name}")
        self._launch.restype = ctypes.c_char_p

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        *,
        shared_mem: int = 0,
        stream: Any = None,
    ) -> None:
        """Run it; returns when it is done."""
        grid, block = ((*sizes, 1, 1)[:3] for sizes in (grid, block))
        if np.prod(block) > _MOST_THREADS or min(*grid, *block) < 1:
            raise LaunchError(f"{self.name}: invalid launch: grid {grid}, block {block}")
        if any(size > most for size, most in zip(grid, _MOST_GRID, strict=True)):
            raise LaunchError(f"{self.name}: invalid launch: grid {grid}")
        if len(args) != len(self._parameters):
            raise LaunchError(f"{self.name}: {len(args)} arguments, takes {len(self._parameters)}")
        values = [
            self._value(index, wanted, got)
            for index, (wanted, got) in enumerate(zip(self._parameters, args, strict=True))
        ]
        pointers = (ctypes.c_void_p * len(values))(*(value.ctypes.data for value in values))
        sizes = ctypes.c_int * 3
        error = self._launch(
            pointers, sizes(*grid), sizes(*block), ctypes.c_long(shared_mem), ctypes.c_ulong(_seed)
        )
        if error is not None:
            raise LaunchError(f"{self.name}: {error.decode()}")

    def _value(self, index: int, wanted: str, got: Any) -> Any:
        """A 0-d array of the bytes that the parameter takes."""
        kind = _kind(got)
        if wanted[0] == "p":
            if kind == "u8" and int(got) == 0:
                return np.zeros((), np.uint64)  # NULL
            if (isinstance(got, np.ndarray) and kind in (wanted, "p0")) or wanted == "p0":
                if not got.flags.c_contiguous:
                    raise LaunchError(f"{self.name}: argument {index} is not contiguous")
                return np.array(got.ctypes.data, np.uint64)
        elif kind == wanted:
            return np.ascontiguousarray(got)
        raise LaunchError(f"{self.name}: argument {index} is {kind}, the kernel takes {wanted}")


def _kind(got: Any) -> str:
    """How `got` would travel, in the words of `device.h`: p4f, i8, s64; a bool is 'u1'."""
    if isinstance(got, np.ndarray) and got.ndim == 0 and got.dtype.fields is not None:
        return f"s{got.dtype.itemsize}"
    if isinstance(got, np.ndarray):
        # float16 and bfloat16 are their bits in a .cu file
        letter = "u" if got.dtype.itemsize == 2 and got.dtype.kind in "fV" else got.dtype.kind
        return f"p{got.dtype.itemsize}{letter}"
    scalar = np.asarray(got)
    if scalar.dtype.kind not in "iufb":
        return type(got).__name__
    return f"{scalar.dtype.kind.replace('b', 'u')}{scalar.dtype.itemsize}"
