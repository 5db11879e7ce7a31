"""Every kernel once, on small arrays: what it gave, what it should give, how far apart they may be.

A case takes CuPy (the fake one, or the real) and a storage dtype and gives `Check`s. The same cases
are compared with the reference, run in other thread orders, run under sanitizers, run on sabotaged
kernels, and run on a device.

Bounds: u is the unit roundoff of the arithmetic. One rounding of z is off by at most u |z|; a sum
in which no term goes through more than m additions by m u times the sum of the magnitudes (Higham,
Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2). u^2 is left out; a factor of
about 2 is left over.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

Array = Any
Case = Callable[[Any, Any], Iterator["Check"]]


class Check(NamedTuple):
    """`got` must be within `bound` of `wanted`, element by element."""

    name: str
    got: Array
    wanted: Array
    bound: Array

    def why_wrong(self) -> str | None:
        """What is wrong, or None."""
        if self.got.shape != self.wanted.shape:
            return f"{self.name}: shape {self.got.shape}, wanted {self.wanted.shape}"
        error = np.abs(self.got.astype(np.float64) - self.wanted)
        wrong = ~(error <= self.bound)
        if not wrong.any():
            return None
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        bound = np.broadcast_to(self.bound, error.shape)
        return (
            f"{self.name}: {wrong.sum()} of {wrong.size} outside the bound, first {place}: got "
            f"{self.got[place]}, wanted {self.wanted[place]}, bound {bound[place]:.3g}"
        )


def unit(dtype: Any) -> float:
    """Unit roundoff of the arithmetic on arrays of `dtype`."""
    return 2.0**-53 if np.dtype(dtype) == np.float64 else 2.0**-24


def stored(dtype: Any, magnitude: Array) -> Array:
    """How far rounding to `dtype` moves a number of that magnitude."""
    digits, least = {
        "float64": (53, 2.0**-1075),
        "float32": (24, 2.0**-150),
        "float16": (11, 2.0**-25),
        "bfloat16": (8, 2.0**-134),
    }[np.dtype(dtype).name]
    return 2.0**-digits * np.abs(magnitude) + least


def real(dtype: Any) -> Any:
    """The dtype of coefficients."""
    return np.float64 if np.dtype(dtype) == np.float64 else np.float32


class Data:
    """Random arrays on the device, and what they hold in float64."""

    def __init__(self, cupy: Any, seed: int) -> None:
        self.cupy, self.rng = cupy, np.random.default_rng(seed)

    def normal(
        self, shape: tuple[int, ...], dtype: Any, *, mean: float = 0.0, std: float = 1.0
    ) -> tuple[Array, Array]:
        """The device's array and its float64 copy."""
        return self.put((mean + std * self.rng.standard_normal(shape)).astype(dtype))

    def put(self, host: Array) -> tuple[Array, Array]:
        """The same of a given array."""
        return self.cupy.asarray(host), host.astype(np.float64)


def kernels() -> Any:
    """The launchers, as they were loaded under the CuPy of the moment."""
    return importlib.import_module("repvgg_ref.gpu.kernels")


def fetch(array: Array) -> Array:
    """A device array as a NumPy array."""
    return array.get()
