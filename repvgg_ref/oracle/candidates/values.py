"""What ports return, as NumPy arrays: tensors of any framework, told by what they can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.candidates.base import CandidateFailure
from weights_io import sanitize

SHORT = {"float16": "fp16", "bfloat16": "bf16"}


class Value(NamedTuple):
    """An array of real numbers and, if its element type says so, the precision it came in."""

    array: Array
    precision: str | None


def to_value(given: Any, name: str) -> Value:
    """One tensor of NumPy, torch, JAX, TensorFlow, CuPy or anything that speaks DLPack.

    Parameters
    ----------
    given : object
        The tensor.
    name : str
        What it is called in an error.

    Returns
    -------
    Value
        float16, float32 or float64; bfloat16 comes as float32, integers as float64.

    Raises
    ------
    CandidateFailure
        If it is no array of real numbers.
    """
    try:
        array, kind = _as_numpy(given)
    except Exception as error:
        raise CandidateFailure(
            f"{sanitize(name)}: the output cannot be made an array",
            got=f"{type(given).__name__}: {last_line(error)}",
        ) from None
    if array.dtype.name == "bfloat16":  # ml_dtypes, which JAX brings
        array, kind = array.astype(np.float32), "bfloat16"
    return Value(real_numbers(array, name), SHORT.get(kind or array.dtype.name))


def real_numbers(array: Array, name: str) -> Array:
    """`array` as float16, 32 or 64; `CandidateFailure` if it holds anything but numbers."""
    if array.dtype.kind in "iu":
        return array.astype(np.float64)
    if array.dtype.kind != "f" or array.ndim == 0 or array.size == 0:
        raise CandidateFailure(
            f"{sanitize(name)}: the output is no array of real numbers",
            got=f"dtype {array.dtype}, shape {array.shape}",
            wanted="floating-point numbers, at least one",
        )
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


def _as_numpy(given: Any) -> tuple[Array, str | None]:
    if isinstance(given, np.ndarray):
        return np.asarray(given), None
    if hasattr(given, "detach") and hasattr(given, "cpu"):  # torch, and MindSpore's like
        tensor = given.detach().cpu()
        kind = str(tensor.dtype).rpartition(".")[2]
        return np.asarray((tensor.float() if kind == "bfloat16" else tensor).numpy()), kind
    for method in ("numpy", "get", "asnumpy"):  # TensorFlow; CuPy; MXNet
        if callable(getattr(given, method, None)) and not isinstance(given, Mapping):
            return np.asarray(getattr(given, method)()), None
    if hasattr(given, "__dlpack__") and not hasattr(given, "__array__"):
        return np.from_dlpack(given), None
    return np.asarray(given), None


def last_line(error: BaseException) -> str:
    """``ValueError: what it says last``, on one line and safe to print."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    name = type(error).__name__
    return sanitize(f"{name}: {lines[-1]}" if lines else name)
