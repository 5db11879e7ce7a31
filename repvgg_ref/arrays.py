"""Arrays of any kind: NumPy or CuPy, floating point or exact rationals.

Exact arrays have dtype ``object`` and hold `fractions.Fraction` (integers are welcome among them).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping
from dataclasses import fields
from fractions import Fraction
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from repvgg_ref.errors import InexactError, ReportedError

Array: TypeAlias = NDArray[Any]
Real: TypeAlias = float | Fraction

_LONGEST = 120  # characters of a value in a repr of one line


def array_module(x: Array) -> ModuleType:
    """Return the module whose functions work on `x`: ``cupy`` for its arrays, else ``numpy``."""
    cupy = sys.modules.get(
        "cupy"
    )  # never imported here: an array of it exists only if it is loaded
    return cupy if cupy is not None and isinstance(x, cupy.ndarray) else np


def to_numpy(x: Array) -> Array:
    """Return `x` in host memory, without a copy when it is there already."""
    return np.asarray(x) if array_module(x) is np else np.asarray(x.get())  # type: ignore[attr-defined]


def is_exact(x: Array) -> bool:
    """Say whether `x` holds exact rationals."""
    return x.dtype == np.object_


def is_finite(x: Array) -> bool:
    """Say whether `x` holds no NaN and no infinity.

    By the sum, in which NaN and infinity stay; where that alone overflows, by the extremes. Neither
    needs an array of flags as large as a block.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(np.einsum(x, list(range(x.ndim)), [])):
            return True
    return bool(np.isfinite(x.min()) and np.isfinite(x.max()))


def require_finite(
    x: Array,
    what: str,
    *,
    error: type[ReportedError] = ReportedError,
    advice: str = "take an earlier checkpoint of this run",
) -> None:
    """Raise `error`, which says `what` and how many numbers are not finite, unless all are."""
    if not is_finite(x):
        raise error(
            what,
            got=f"{int((~np.isfinite(x)).sum())} such values",
            wanted="finite numbers",
            advice=advice,
        )


def scalar_like(value: Real, x: Array) -> Any:
    """Return `value` fit to meet the elements of `x`: a `Fraction` among exact rationals.

    Without it ``0 / 4`` and ``Fraction(1, 2) + 1e-5`` would quietly leave the rationals. A float is
    taken at its exact binary value.
    """
    return Fraction(value) if is_exact(x) else value


def sqrt(x: Array) -> Array:
    """Square root of every element; of exact rationals, the exact rational root.

    Parameters
    ----------
    x : array of any shape, floating or exact

    Returns
    -------
    array, shape and dtype of `x`

    Raises
    ------
    InexactError
        If `x` is exact and an element is not the square of a rational; the message names it.
    """
    if is_exact(x):
        return np.asarray(np.frompyfunc(_rational_sqrt, 1, 1)(x), dtype=object)
    root: Array = array_module(x).sqrt(x)
    return root


def refuse_exact(operator: str, x: Array, why: str) -> None:
    """Raise `InexactError` if `x` is exact: `operator` has no rational result, because `why`."""
    if is_exact(x):
        raise InexactError(
            f"{operator}: exact rationals have no exact result here: {why}",
            got="an array of dtype object",
            wanted="a floating-point array",
        )


def one_line(record: Any) -> str:
    """The repr of a NamedTuple or dataclass that holds arrays: their types and shapes, no numbers.

    In a dataclass: ``__repr__ = one_line``.
    """
    names = getattr(record, "_fields", None) or [
        each.name for each in fields(record) if each.repr and not each.name.startswith("_")
    ]
    shown = ", ".join(f"{name}={_short(getattr(record, name))}" for name in names)
    return f"{type(record).__name__}({shown})"


def _short(value: Any) -> str:
    """A value in a few words."""
    if hasattr(value, "shape") and hasattr(value, "dtype") and value.shape:
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, Mapping | Collection) and not isinstance(value, str | bytes):
        return f"<{type(value).__name__} of {len(value)}>" if len(value) else repr(value)
    text = repr(value)
    return text if len(text) <= _LONGEST and text.isprintable() else f"<{type(value).__name__}>"


def _rational_sqrt(value: Real) -> Fraction:
    """Return the non-negative rational whose square is `value`."""
    exact = Fraction(value)
    if exact >= 0:
        root = Fraction(math.isqrt(exact.numerator), math.isqrt(exact.denominator))
        if root * root == exact:
            return root
    raise InexactError(f"sqrt: {value} is not the square of a rational", got=value)
