"""Minimal filtering by interpolation: exact matrices A, B, G for F(m, taps), from chosen points.

A filter of `taps` taps g slides over ``t = m + taps - 1`` pixels d and gives m outputs

    y_i = sum over k of g_k d_(i+k)                                                (1)

with m * taps multiplications. Cook and Toom need only t of them. The *product* of two polynomials
of degrees m - 1 and taps - 1 has t coefficients; it can be had by evaluating both factors at t
points, multiplying the t pairs of values, and interpolating. Filtering (1) is the transpose of
that bilinear map, so the same three matrices, transposed, give (Lavin & Gray, arXiv 1509.09308,
equation 8; Barabasz et al., ACM TOMS 46 (2020), algorithm 1)

    y = A^T [(G g) . (B^T d)]      and in two dimensions      Y = A^T [(G g G^T) . (B^T d B)] A

Row p of A evaluates a polynomial with m coefficients at point p, row p of G one with `taps`
coefficients, divided by ``prod over q != p of (p - q)``; column p of B holds the coefficients of
``prod over q != p of (x - q)`` (Lagrange). The point at infinity reads the leading coefficient.
That the matrices do compute (1) is one identity, `is_minimal_filter`, checked with ``==``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

from repvgg_ref.exact.points import Point

Rows = tuple[tuple[Fraction, ...], ...]


class MinimalFilter(NamedTuple):
    """``y = A^T [(G g) . (B^T d)]``: `a` (t, m), `b` (t, t), `g` (t, taps), exact rationals."""

    a: Rows
    b: Rows
    g: Rows


def cook_toom(points: Sequence[Point], taps: int = 3) -> MinimalFilter:
    """The matrices of F(m, taps) with ``m = len(points) - taps + 1``.

    Parameters
    ----------
    points : distinct numbers, at most one of them infinity
        A float stands for exactly the rational number that it is.

    Raises
    ------
    ValueError
        If two points coincide or there are fewer than `taps`.
    """
    if len(set(points)) != len(points) or len(points) < taps:
        raise ValueError(f"cook_toom: {taps} or more distinct points wanted, got {points}")
    m = len(points) - taps + 1
    finite = [Fraction(p) for p in points if p != math.inf]
    a, b_columns, g = [], [], []
    for point in points:
        if point == math.inf:
            a.append(_leading(m))
            g.append(_leading(taps))
            b_columns.append(_monic(finite))
            continue
        p = Fraction(point)
        others = [q for q in finite if q != p]
        scale = math.prod((p - q for q in others), start=Fraction(1))
        a.append(tuple(p**i for i in range(m)))
        g.append(tuple(p**k / scale for k in range(taps)))
        b_columns.append(_monic(others))
    size = len(points)
    b = tuple(
        tuple(column[j] if j < len(column) else Fraction(0) for column in b_columns)
        for j in range(size)
    )
    return MinimalFilter(tuple(a), b, tuple(g))


def every_other_output(points: Sequence[Point]) -> MinimalFilter:
    """Three taps with stride 2, ``y_i = sum over k of g_k d_(2i+k)``, from the points of F(m, 2).

    The even pixels meet two taps, g_0 and g_2, which is F(m, 2); the odd ones meet g_1 alone. The
    two stand side by side: t = 2 m + 1 pixels and as many multiplications, instead of 3 m.
    """
    even = cook_toom(points, taps=2)
    m, zero = len(points) - 1, Fraction(0)
    unit = [tuple(Fraction(i == j) for j in range(m)) for i in range(m)]
    a = (*even.a, *unit)
    g = (*((row[0], zero, row[1]) for row in even.g), *([(zero, Fraction(1), zero)] * m))
    b = [
        (*even.b[j // 2], *([zero] * m)) if j % 2 == 0 else ((zero,) * (m + 1) + unit[j // 2])
        for j in range(2 * m + 1)
    ]
    return MinimalFilter(a, tuple(b), g)


def is_minimal_filter(matrices: MinimalFilter, stride: int = 1) -> bool:
    """Whether ``sum over p of A[p, i] G[p, k] B[j, p]`` is 1 where ``j = stride i + k``, else 0."""
    a, b, g = matrices
    return all(
        sum(a[p][i] * g[p][k] * b[j][p] for p in range(len(a))) == (j == stride * i + k)
        for i in range(len(a[0]))
        for k in range(len(g[0]))
        for j in range(len(b))
    )


def _monic(roots: Sequence[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of ``prod over q of (x - q)``, the constant one first."""
    coefficients = [Fraction(1)]
    for q in roots:
        shifted = [Fraction(0), *coefficients]
        for power, c in enumerate(coefficients):
            shifted[power] -= q * c
        coefficients = shifted
    return tuple(coefficients)


def _leading(length: int) -> tuple[Fraction, ...]:
    return (Fraction(0),) * (length - 1) + (Fraction(1),)
