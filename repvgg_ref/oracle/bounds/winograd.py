"""Magnitudes of Winograd's minimal filtering: what its rounding errors are relative to.

Source of the algorithm: Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks"
(arXiv 1509.09308), equation 8; of the matrices for any points: Cook and Toom, as in Barabasz,
Anderson, Soodhalter & Gregg, "Error analysis and improving the accuracy of Winograd convolution for
deep neural networks", ACM TOMS 46 (2020), algorithm 1; of the bound: their theorem 2 for one
dimension and theorem 5 for two, kept per element instead of taking norms. With stride 2 only rows
are filtered so, the even and the odd ones apart (`cook_toom.every_other_output`), and taps across
are summed as they are: theorem 2, with three times the terms.
"""

from __future__ import annotations

from functools import cache
from math import inf
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.exact.cook_toom import cook_toom, every_other_output
from repvgg_ref.exact.points import Point

# Interpolation points of F(m, 3) in use, stated here and not taken from any engine that is judged:
# 1. Lavin & Gray's and NNPACK's, small integers and their inverses; ncnn's F(4, 3) takes square
#    roots of 1/2 and 2; 2. fractions that a search over small denominators finds to err least, as
#    Barabasz et al. did in their section 6. The bound is the largest over all of them.
_ROOT = 2.0**0.5


def _both_signs(*numbers: float) -> tuple[float, ...]:
    return tuple(sign * n for n in numbers for sign in (1, -1))


POINTS: dict[int, tuple[tuple[Point, ...], ...]] = {
    2: ((0, *_both_signs(1), inf),),
    3: ((0, *_both_signs(1), 2, inf), (0, *_both_signs(1), 1 / 2, inf)),
    4: (
        (0, *_both_signs(1, 2), inf),
        (0, *_both_signs(_ROOT / 2, _ROOT), inf),
        (0, *_both_signs(5 / 8, 3 / 2), inf),
        (0, *_both_signs(1, 1 / 2), inf),
        (0, *_both_signs(1 / 2, 3 / 2), inf),
    ),
    5: (
        (0, *_both_signs(5 / 8, 5 / 4, 3)),
        (0, *_both_signs(1, 2), 1 / 2, inf),
        (0, *_both_signs(1, 2), 3, inf),
        (0, *_both_signs(_ROOT / 2, _ROOT), 1, inf),
    ),
    6: (
        (0, *_both_signs(1, 2, 1 / 2), inf),
        (0, *_both_signs(1 / 2, 1, 7 / 4), inf),
        (0, *_both_signs(1, 2, 3), inf),
        (0, *_both_signs(_ROOT / 2, 1, _ROOT), inf),
    ),
    7: ((0, *_both_signs(1 / 2, 7 / 8, 3 / 2, 4)),),
    8: ((0, *_both_signs(1, 2, 1 / 2, 3 / 2), inf), (0, *_both_signs(1, 2, 1 / 2, 4), inf)),
}
# Of F(m, 2), the even half of a convolution with stride 2.
POINTS_OF_STRIDE_2: dict[int, tuple[Point, ...]] = {
    2: (0, -1, inf),
    4: (0, *_both_signs(3 / 4, 5 / 2)),
    7: (0, *_both_signs(1 / 2, 1, 2), inf),
}


class Underflow(NamedTuple):
    """What absolute errors of 1 in every number of a kind add to each output, (O, P) arrays.

    `inputs` and `weights`: in numbers as they are read, and as they are transformed. `both`: in the
    product of two such. `products`: in sums over channels, and in what becomes of them.
    """

    inputs: Array
    weights: Array
    both: Array
    products: Array


class Transforms(NamedTuple):
    """``Y = A^T [(G g G^T) . (B^T d B)] A``: `a` (t, m), `b` (t, t), `g` (t, 3)."""

    a: Array
    b: Array
    g: Array


@cache  # rational numbers are slow
def transforms(points: tuple[Point, ...], stride: int = 1) -> Transforms:
    """The exact matrices in float64, not to be written to.

    Scaling row j of one and dividing that of another changes nothing in a bound made of absolute
    values, so every library's variant of the same points is covered.
    """
    exact = every_other_output(points) if stride == 2 else cook_toom(points)
    matrices = Transforms(*(np.array(rows, dtype=float) for rows in exact))
    for matrix in matrices:
        matrix.flags.writeable = False
    return matrices


def applies(m: int, stride: int, dilation: int) -> bool:
    """Whether F(m x m, 3 x 3) is known for such a convolution."""
    known: dict[int, tuple[int, ...]] = {1: tuple(POINTS), 2: tuple(POINTS_OF_STRIDE_2)}
    return dilation == 1 and m in known.get(stride, ())


def roundings(m: int, stride: int, channels: int) -> int:
    """How many roundings one product meets in F(m x m, 3 x 3), `channels` being those of a group.

    A row of a transform with k entries is a dot product with k - 1 additions, one multiplication
    and a rounded constant: k + 1 roundings a dimension, in whatever order it is evaluated. G has
    3, B and A^T t entries; there are two dimensions; then the product of the two sides, and its sum
    over channels. With stride 2, one dimension: G has 2 entries for the even rows, B and A^T
    m + 1, the odd rows are added, and the sum is over three taps of each channel.
    """
    if stride == 2:
        return (2 + 1) + 2 * (m + 1 + 1) + 1 + 1 + 3 * channels
    t = m + 2
    return 2 * (3 + 1) + 4 * (t + 1) + 1 + channels


def winograd_magnitudes(
    padded: Array, weight: Array, groups: int, size: tuple[int, ...], m: int, stride: int
) -> tuple[Array, Array]:
    """``|A^T| [sum over c of (|G| |g| |G^T|) . (|B^T| |d| |B|)] |A|``, and its root-square sum.

    Every rounding of the algorithm multiplies one of the products in these sums, so the error is
    at most ``((1 - u)^-k - 1)`` times the first array, with k the roundings a product meets. The
    second is ``sqrt(t)`` times the root of the sum of squared products: one rounding after the
    first pass of a transform reaches t products, whose sum is at most that (Cauchy-Schwarz). With
    stride 2 there is one pass, and ``|G|`` and ``|B|`` stand on one side only.

    Parameters
    ----------
    padded : (C, H, W) array, absolute values with their border of zeros
    weight : (O, C/G, 3, 3) array, absolute values
    size : (Ho, Wo); tiles start at output pixel (0, 0), as in every runtime

    Returns
    -------
    magnitude, energy : (O, Ho * Wo) arrays
    """
    if stride == 2:
        matrices = _absolute(POINTS_OF_STRIDE_2[m], stride)
        magnitude, energy = _by_rows(padded, weight, groups, size, matrices)
        return magnitude, np.sqrt(energy)
    variants = [_absolute(points, stride) for points in POINTS[m]]
    found = [_of_variant(padded, weight, groups, size, matrices) for matrices in variants]
    magnitudes, energies = zip(*found, strict=True)
    t = len(variants[0].a)
    return np.maximum.reduce(magnitudes), np.sqrt(t * np.maximum.reduce(energies))


def winograd_underflow(
    padded: Array, weight: Array, groups: int, size: tuple[int, ...], m: int, stride: int
) -> Underflow:
    """How the transforms spread absolute errors; parameters as of `winograd_magnitudes`.

    One error in every d, every entry of ``B^T d`` and every one of ``B^T d B`` is at most an error
    of ``(|B^T| + 1/t) 1 (|B| + 1/t)`` in the last, 1 being a tile of ones and t its length: the
    brackets expand to the three and more. So with G and A. Unlike roundings, these do depend on how
    rows are scaled. Lagrange's denominators stand in one of the three matrices; all are tried.
    Shared out among them as powers, exponents adding up to 1, they do no more: a sum of
    exponentials is convex, hence largest at a corner.
    """
    points = (POINTS_OF_STRIDE_2[m],) if stride == 2 else POINTS[m]
    of_tiles = _by_rows if stride == 2 else _of_variant
    channels, outputs = weight.shape[1], len(weight) // groups
    inputs = padded.reshape(groups, channels, *padded.shape[1:]).sum(axis=1)
    weight = weight.sum(axis=1, keepdims=True)
    tile, taps = np.ones((groups, 2 * m + 1, 2 * m + 1)), np.ones((groups, 1, 3, 3))
    one_tile = (m, 1 if stride == 2 else m)
    rows, columns = (np.arange(n) % k for n, k in zip(size, one_tile, strict=True))

    def repeated(y: Array) -> Array:
        """One tile's outputs (O, m * m) -> all (O, Ho * Wo)."""
        return np.asarray(y.reshape(-1, *one_tile)[:, rows][:, :, columns].reshape(len(y), -1))

    found = []
    for a, b, g in (t for p in points for t in _scalings(_absolute(p, stride))):
        a1, b1, g1 = (matrix + 1 / len(matrix) for matrix in (a, b, g.T))
        down = a1.sum(axis=0)
        across = np.ones(1) if stride == 2 else down
        found.append(
            (
                repeated(of_tiles(tile, weight, groups, one_tile, Transforms(a, b1, g))[0]),
                of_tiles(inputs, taps, groups, size, Transforms(a, b, g1.T))[0],
                repeated(of_tiles(tile, taps, groups, one_tile, Transforms(a, b1, g1.T))[0]),
                repeated(np.outer(down, across).reshape(1, -1)),
            )
        )
    of_inputs, of_weights, of_both, of_products = (
        np.maximum.reduce(kind) for kind in zip(*found, strict=True)
    )
    return Underflow(
        of_inputs,
        np.repeat(of_weights, outputs, axis=0),
        np.repeat(channels * of_both, outputs, axis=0),
        np.repeat(of_products, len(weight), axis=0),
    )


def _scalings(matrices: Transforms) -> list[Transforms]:
    """The denominators ``prod over q of |p - q|`` with G, as given, with B and with A."""
    a, b, g = matrices
    scale = np.divide(1, g[:, :1], out=np.ones((len(g), 1)), where=g[:, :1] > 0)
    return [matrices, Transforms(a, b / scale.T, g * scale), Transforms(a / scale, b, g * scale)]


def _absolute(points: tuple[Point, ...], stride: int) -> Transforms:
    return Transforms(*(np.abs(matrix) for matrix in transforms(points, stride)))


def _by_rows(
    padded: Array, weight: Array, groups: int, size: tuple[int, ...], matrices: Transforms
) -> tuple[Array, Array]:
    """Both sums with stride 2, the second still squared: rows transformed, columns met directly."""
    a, b, g = matrices
    tile, m = a.shape
    rows = -(-size[0] // m)
    d = np.zeros((len(padded), (rows - 1) * 2 * m + tile, 2 * size[1] + 1))
    d[:, : padded.shape[1], : padded.shape[2]] = padded[:, : d.shape[1], : d.shape[2]]
    strips = np.lib.stride_tricks.sliding_window_view(d, tile, axis=1)[:, :: 2 * m]
    v = strips @ b  # (C, rows, Wp, tile)
    v = np.lib.stride_tricks.sliding_window_view(v, 3, axis=2)[:, :, ::2]
    u = g @ weight  # (O, C/G, tile, 3)
    # (tile, G, O/G, C/G * 3) and (tile, G, C/G * 3, rows * Wo)
    u = (
        u.reshape(groups, -1, *u.shape[1:])
        .transpose(3, 0, 1, 2, 4)
        .reshape(tile, groups, -1, 3 * u.shape[1])
    )
    v = v.transpose(3, 0, 4, 1, 2).reshape(tile, groups, u.shape[3], -1)

    def rejoined(products: Array, to_rows: Array) -> Array:
        """(tile, G, O/G, rows * Wo) -> (O, Ho * Wo)."""
        y = np.einsum("tm,tgon->gonm", to_rows, products).reshape(-1, rows, size[1], m)
        y = y.transpose(0, 1, 3, 2).reshape(len(y), rows * m, size[1])[:, : size[0]]
        return np.ascontiguousarray(y).reshape(len(y), -1)

    return rejoined(u @ v, a), rejoined(np.square(u) @ np.square(v), a**2)


def _of_variant(
    padded: Array,
    weight: Array,
    groups: int,
    size: tuple[int, ...],
    matrices: Transforms,
) -> tuple[Array, Array]:
    """Both sums for one set of points; the second still squared."""
    a, b, g = matrices
    tile, m = a.shape
    rows, columns = (-(-length // m) for length in size)
    d = np.zeros((len(padded), (rows - 1) * m + tile, (columns - 1) * m + tile))
    d[:, : padded.shape[1], : padded.shape[2]] = padded[:, : d.shape[1], : d.shape[2]]
    windows = np.lib.stride_tricks.sliding_window_view(d, (tile, tile), axis=(1, 2))
    windows = windows[:, ::m, ::m]
    v = b.T @ windows @ b  # (C, rows, columns, tile, tile)
    u = g @ weight @ g.T  # (O, C/G, tile, tile)
    # (tile^2, G, O/G, C/G) and (tile^2, G, C/G, rows * columns)
    u = np.ascontiguousarray(u.reshape(groups, -1, *u.shape[1:]).transpose(3, 4, 0, 1, 2))
    v = v.reshape(groups, -1, rows * columns, tile, tile).transpose(3, 4, 0, 1, 2)
    v = np.ascontiguousarray(v)
    return (
        _gather_tiles(u @ v, a, size, (rows, columns)),
        _gather_tiles(np.square(u, out=u) @ np.square(v, out=v), a**2, size, (rows, columns)),
    )


def _gather_tiles(
    products: Array, a: Array, size: tuple[int, ...], tiles: tuple[int, int]
) -> Array:
    """``A^T P A`` of every tile, put side by side: (tile, tile, G, O/G, T) -> (O, Ho * Wo)."""
    m = a.shape[1]
    outputs = products.shape[2] * products.shape[3]
    y = a.T @ products.transpose(2, 3, 4, 0, 1) @ a  # (G, O/G, T, m, m)
    y = y.reshape(outputs, *tiles, m, m).transpose(0, 1, 3, 2, 4)  # -> (O, rows, m, columns, m)
    y = y.reshape(outputs, tiles[0] * m, tiles[1] * m)[:, : size[0], : size[1]]
    return np.ascontiguousarray(y).reshape(outputs, -1)
