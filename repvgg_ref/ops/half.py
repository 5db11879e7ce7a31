"""The one rule for float16: compute in float32, round each result once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np

from repvgg_ref.arrays import Array

P = ParamSpec("P")
R = TypeVar("R")


def rounds_half_once(operator: Callable[P, R]) -> Callable[P, R]:
    """Let `operator` compute float16 in float32 and round what it returns once.

    NumPy multiplies float16 matrices slowly and accumulates them in float16, where 2048 + 1 = 2048.
    The result is narrowed if the first argument (``x`` or ``grad_y``) is float16. A cache is
    internal: it keeps float32. Every other dtype passes through untouched. A result beyond 65504
    becomes infinite, with NumPy's own overflow warning.
    """

    @functools.wraps(operator)
    def rounded(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _is_half(args[0]):
            return operator(*args, **kwargs)
        wide: Any = cast("Callable[..., R]", operator)(*map(widen, args), **kwargs)
        return cast("R", _narrow_members(wide) if isinstance(wide, tuple) else _narrow(wide))

    return rounded


def widen(value: Any) -> Any:
    """Return a float16 array as float32, anything else as it is."""
    return value.astype(np.float32) if _is_half(value) else value


def _is_half(value: object) -> bool:
    return getattr(value, "dtype", None) == np.float16


def _narrow(value: Array) -> Array:
    return value.astype(np.float16)


def _narrow_members(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Narrow the arrays of ``(y, cache)`` or of a tuple of gradients; keep its type."""
    narrow = [_narrow(value) if hasattr(value, "dtype") else value for value in values]
    return values._make(narrow) if hasattr(values, "_make") else tuple(narrow)
