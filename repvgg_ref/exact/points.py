"""Interpolation points for minimal filtering whose rounding errors are small.

The matrices of `cook_toom` are exact for any points; how much the roundings of a computation with
them are magnified is decided by the points. These are the best that a search over small fractions
found (tests/cpu/test_accuracy.py): Lavin & Gray's 0, 1, -1, 2, -2 for F(4, 3) err four times more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

Point = int | float | Fraction


def _both_signs(numerators: Iterable[int], denominator: int) -> tuple[Fraction, ...]:
    """``n / denominator`` and its negative for each n."""
    return tuple(sign * Fraction(n, denominator) for n in numerators for sign in (1, -1))


POINTS: dict[int, tuple[Point, ...]] = {
    2: (0, 1, -1, math.inf),
    4: (0, *_both_signs((5,), 8), *_both_signs((3,), 2), math.inf),
    5: (0, *_both_signs((5, 10, 24), 8)),
    6: (0, *_both_signs((2, 4, 7), 4), math.inf),
    7: (0, *_both_signs((4, 7, 12, 32), 8)),
}
"""m -> the points of F(m, 3)."""

POINTS_OF_STRIDE_2: dict[int, tuple[Point, ...]] = {
    2: (0, -1, math.inf),
    4: (0, *_both_signs((3, 10), 4)),
    7: (0, *_both_signs((1, 2, 4), 2), math.inf),
}
"""m -> the points of F(m, 2), which a convolution with stride 2 does to its even rows."""
