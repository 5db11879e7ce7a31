"""From a backend's name to its table of operators; the names of algorithms, and memory."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from repvgg_ref.cpu import NUMPY
from repvgg_ref.cpu.budget import required_memory
from repvgg_ref.cpu.convolution.algorithms import require_algorithm
from repvgg_ref.errors import BackendError, did_you_mean
from repvgg_ref.ops import REFERENCE, Ops

__all__ = ["BACKENDS", "VARIABLE", "backend_ops", "require_algorithm", "required_memory"]

BACKENDS = ("reference", "numpy", "cupy", "auto")
VARIABLE = "REPVGG_BACKEND"


def backend_ops(name: str | Ops | None = None, dtype: Any = np.float32) -> Ops:
    """The operator table called `name`; default the variable ``REPVGG_BACKEND``, else "numpy".

    A table is passed through.

    The fast NumPy table knows float32 and float64; other arrays (`dtype`) go to the reference.
    "cupy" computes float16 and bfloat16 in mixed precision, float32 strictly; for TF32 take
    `repvgg_ref.gpu.cupy_ops`. "auto" is "cupy" where a GPU has computed something, else "numpy".

    Raises
    ------
    BackendError
        If there is no such backend, or it cannot be used on this machine: "cupy" never becomes
        another in silence.
    """
    if isinstance(name, Ops):
        return name
    chosen = name or os.environ.get(VARIABLE) or "numpy"
    if chosen == "auto":
        from repvgg_ref.gpu import has_device

        chosen = "cupy" if has_device() else "numpy"
    if chosen == "numpy":
        return NUMPY if dtype in (np.float32, np.float64) else REFERENCE
    if chosen == "reference":
        return REFERENCE
    if chosen == "cupy":
        from repvgg_ref.gpu import cupy_ops, math_of

        return cupy_ops(math_of(dtype))
    raise BackendError(
        "there is no such backend",
        got=repr(chosen),
        wanted=", ".join(BACKENDS),
        advice=did_you_mean(chosen, BACKENDS),
    )
