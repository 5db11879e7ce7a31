"""The noise of Winograd's algorithm: larger than direct summation's, and alike within tiles.

For transforms A, B, G (`bounds.winograd`), an input tile x and a kernel w, independent roundings of
the transformed input, of the transformed kernel and of their products have variances that add up to

    S = (G2 w2 G2') (B'x B)2 + (G w G')2 (B2' x2 B2) + 2 (G w G')2 (B'x B)2,   summed over channels

with 2 for squared elementwise; the tile's outputs have the covariance ``(A (x) A)' diag(S) (A (x)
A)``. One number a layer scales it. That a residual has the *size* that this allows proves nothing
(errors of bugs have, too); it must have the covariance:

    c      mean r**2 / (u**2 v)                                       about 1, at most 6
    gain   log likelihood gained over direct noise, v scaled freely   positive
    beta   regression of products within tiles on the predicted       1 for these points, 0 else
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.exact.points import Point
from repvgg_ref.oracle.arithmetic.noise import noise_variance
from repvgg_ref.oracle.arithmetic.sample import Sample, spread_channels
from repvgg_ref.oracle.bounds.winograd import POINTS, transforms

_LARGEST, _PROVED = 6.0, 100.0
_LEAST_BETA, _SURE = 0.1, 3.0  # standard errors
_FEWEST_OUTPUTS = 3000
_SMALL_LOSS = -0.03  # log likelihood an output, in a layer too small for more
_CHANNELS, _LAYERS = 32, 3  # looked at to choose the algorithm
_TILES = 48  # for correlations


class Evidence(NamedTuple):
    """How well an algorithm's noise describes one layer's residual."""

    c: float
    gain: float
    beta: float
    beta_error: float
    outputs: int

    def excuses(self, *, proved: bool) -> bool:
        """Whether the layer may be larger than direct summation; `proved` by other layers."""
        if self.outputs < _FEWEST_OUTPUTS and proved:
            return self.c <= 2 * _LARGEST and self.gain > _SMALL_LOSS * self.outputs
        covaries = self.beta > max(_LEAST_BETA, _SURE * self.beta_error)
        return self.c <= _LARGEST and self.gain > 0 and covaries


class Algorithm(NamedTuple):
    """F(m x m, 3 x 3) with these points; m is 0 for Fourier transforms (`fourier`)."""

    m: int
    points: tuple[Point, ...]

    @property
    def name(self) -> Any:
        """As reports name it."""
        return f"winograd{self.m}" if self.m else "fft"


def algorithms() -> list[Algorithm]:
    """All that are known, the likelier first."""
    return [Algorithm(m, points) for m in sorted(POINTS) for points in POINTS[m]]


class TileNoise:
    """The noise that an algorithm predicts of one layer.

    Parameters
    ----------
    x : (N, C, H, W) array
        The layer's input.
    weight : (O, C/G, 3, 3) array
    channels : array of int, optional
        Output channels wanted; default all.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        x: Array,
        weight: Array,
        groups: int,
        channels: Array | None = None,
    ) -> None:
        self.a, b, g = transforms(algorithm.points)
        self.tile, self.m = self.a.shape
        self.images, _, height, width = x.shape
        self.grid = -(-height // self.m), -(-width // self.m)
        per_group = len(weight) // groups
        chosen = np.arange(len(weight)) if channels is None else np.asarray(channels)
        u = g @ weight[chosen] @ g.T
        u2 = (g**2) @ (weight[chosen] ** 2) @ (g**2).T
        seen = self._tiles(x, height, width)  # (C, T, t, t)
        v, v2 = b.T @ seen @ b, (b**2).T @ (seen**2) @ b**2
        v, v2 = v**2, v2
        s = np.empty((len(chosen), seen.shape[1], self.tile, self.tile))
        inputs = weight.shape[1]
        for group in range(groups):
            mine = np.flatnonzero(chosen // per_group == group)
            own = slice(group * inputs, (group + 1) * inputs)
            first, second = u2[mine], u[mine] ** 2
            s[mine] = _sum(first, v[own]) + _sum(second, v2[own] + 2 * v[own])
        self.spectrum = s  # (O, T, t, t), T over images, rows, columns of tiles

    def _tiles(self, x: Array, height: int, width: int) -> Array:
        m, t = self.m, self.tile
        rows, across = self.grid
        padded = np.zeros((*x.shape[:2], rows * m + t - m, across * m + t - m))
        padded[:, :, 1 : height + 1, 1 : width + 1] = x
        windows = np.lib.stride_tricks.sliding_window_view(padded, (t, t), axis=(2, 3))
        windows = windows[:, :, ::m, ::m].transpose(1, 0, 2, 3, 4, 5)
        return np.ascontiguousarray(windows).reshape(x.shape[1], -1, t, t)

    def variance(self, sample: Sample) -> Array:
        """V at the sample's outputs, (O, P); without u**2."""
        a2 = self.a**2
        v = a2.T @ self.spectrum @ a2  # (O, T, m, m)
        return np.asarray(v[:, self.tiles(sample), sample.rows % self.m, sample.across % self.m])

    def tiles(self, sample: Sample) -> Array:
        """The tile in which each of the sample's outputs lies, (P,)."""
        rows, across = self.grid
        at = sample.images * rows + sample.rows // self.m
        return np.asarray(at * across + sample.across // self.m)

    def beta(self, z: Array, active: Array, sample: Sample) -> tuple[float, float]:
        """Regression of products ``z_i z_j`` within tiles on predicted correlations.

        `z` (O, P) is the residual over the predicted deviation. Standard error over tiles.
        """
        m = self.m
        at = self.tiles(sample)
        count = int(at.max()) + 1
        keep = np.unique(np.linspace(0, count - 1, _TILES).astype(int))
        full = np.zeros((len(z), count, m, m))
        full[:, at, sample.rows % m, sample.across % m] = np.where(active, z, 0.0)
        flat = full[:, keep].reshape(len(z), len(keep), m * m)
        on = flat != 0
        both = np.kron(self.a, self.a)  # (t t, m m)
        spectrum = self.spectrum[:, keep].reshape(len(z), len(keep), -1)
        found, sizes = [], []
        for o in range(len(z)):  # (T, m m, m m) at a time
            covariance = np.einsum("si,ts,sj->tij", both, spectrum[o], both, optimize=True)
            deviation = np.sqrt(np.maximum(np.einsum("tii->ti", covariance), 1e-300))
            rho = covariance / deviation[:, :, None] / deviation[:, None, :]
            rho *= on[o][:, :, None] & on[o][:, None, :]
            np.einsum("tii->ti", rho)[...] = 0.0
            found.append(np.einsum("ti,tij,tj->t", flat[o], rho, flat[o]))
            sizes.append((rho**2).sum(axis=(1, 2)))
        cross, power = np.concatenate(found), np.concatenate(sizes)
        total = max(float(power.sum()), 1e-300)
        beta = float(cross.sum()) / total
        uneven = float(((cross - beta * power) ** 2).sum())
        return beta, float(np.sqrt(uneven)) / total

    def widening(self) -> float:
        """By how much correlated outputs of a tile widen a standard error: ``sqrt(1'R1/m**2)``."""
        both = np.kron(self.a, self.a)
        mean = self.spectrum.mean(axis=(0, 1)).reshape(-1)
        covariance = (both * mean[:, None]).T @ both
        deviation = np.sqrt(np.diag(covariance))
        rho = np.abs(covariance / deviation / deviation[:, None])
        return float(np.sqrt(rho.sum() / len(rho)))


def _sum(kernels: Array, tiles: Array) -> Array:
    """``sum_c kernels[o, c] tiles[c, t]`` at each place: (O, C, ..), (C, T, ..) -> (O, T, ..)."""
    k = kernels.transpose(2, 3, 0, 1)
    v = tiles.transpose(2, 3, 0, 1)
    return np.asarray((np.ascontiguousarray(k) @ np.ascontiguousarray(v)).transpose(2, 3, 0, 1))


def evidence(noise: TileNoise, sample: Sample, unit: float, *, least: float = -np.inf) -> Evidence:
    """How well the noise describes the sample's residual (the same channels).

    With a gain of `least` or less, products within tiles are not regressed, which takes long.
    """
    on = sample.active
    v = unit**2 * noise.variance(sample) + 1e-300
    if sample.gated:  # gates err, too, and know nothing of tiles
        sample = replace(sample, residual=sample.without_gate(np.where(on, 1 / v, 0.0)))
    squares = sample.residual[on] ** 2
    direct = noise_variance(sample, unit)[on] + 1e-300
    mine = v[on]
    n = len(squares)
    if n < 64:
        return Evidence(0.0, 0.0, 0.0, 1.0, n)
    c = float((squares / mine).mean())
    gain = likelihood(squares, mine) - likelihood(squares, direct)
    if gain <= least:
        return Evidence(c, gain, 0.0, 1.0, n)
    z = sample.residual / np.sqrt(v * max(c, 1e-300))
    beta, error = noise.beta(np.clip(z, -4, 4), on, sample)
    return Evidence(c, gain, beta, error, n)


def likelihood(squares: Array, variance: Array) -> float:
    """Log likelihood of Gaussian errors with this variance, scaled freely."""
    scale = max(float((squares / variance).mean()), 1e-300)
    return float(-0.5 * np.log(variance).sum() - 0.5 * len(squares) * np.log(scale))


class Layer(NamedTuple):
    """What an algorithm is looked for in."""

    sample: Sample
    x: Array
    weight: Array  # (O, C/G, 3, 3)


def recognise(
    layers: Mapping[str, Layer], unit: float, *, pool: ThreadPoolExecutor
) -> tuple[Algorithm, ...]:
    """The algorithms that stride-1 layers show, the surest first; a port has one or few.

    Each of the largest layers chooses by its gain among those that all of them together prove.
    """
    able = {n: each for n, each in layers.items() if each.sample.tile_stride == 1}
    size = {n: each.sample.active.sum() * each.sample.products for n, each in able.items()}
    largest = sorted(able, key=lambda n: -size[n])[:_LAYERS]
    seen = list(pool.map(lambda name: _fitting(able[name], unit), largest))
    proved = {a for a in algorithms() if _is_proved([fits[a] for fits in seen if a in fits])}
    found: dict[Algorithm, float] = {}
    for fits in seen:
        best = max(proved & fits.keys(), key=lambda a: fits[a].gain, default=None)
        if best is not None:
            found[best] = found.get(best, 0.0) + fits[best].gain
    return tuple(sorted(found, key=lambda algorithm: -found[algorithm]))


def _fitting(layer: Layer, unit: float) -> dict[Algorithm, Evidence]:
    """The algorithms that describe a layer's variances better than direct summation does."""
    layer, channels = _thinned(layer)
    fits = {}
    for algorithm in algorithms():
        noise = TileNoise(algorithm, layer.x, layer.weight, layer.sample.groups, channels)
        seen = evidence(noise, layer.sample, unit, least=0.0)
        if seen.c <= _LARGEST and seen.gain > 0:
            fits[algorithm] = seen
    return fits


def _is_proved(seen: Sequence[Evidence]) -> bool:
    """Whether outputs covary as an algorithm's do, in all layers together: small ones hold few."""
    known = [each for each in seen if each.beta_error > 0]
    if sum(each.gain for each in known) <= _PROVED / 2:
        return False
    precision = [each.beta_error**-2 for each in known]
    beta = sum(p * each.beta for p, each in zip(precision, known, strict=True)) / sum(precision)
    return bool(beta > max(_LEAST_BETA, _SURE * sum(precision) ** -0.5))


def _thinned(layer: Layer) -> tuple[Layer, Array]:
    """The same with a few output channels of each group and no more images than are needed."""
    sample = layer.sample
    channels = spread_channels(len(sample.y), sample.groups, _CHANNELS)
    few = sample.of_channels(channels)
    one_image = max(1, int(few.active[:, sample.images == 0].sum()))
    images = -(-_FEWEST_OUTPUTS // one_image)
    kept = few.at(np.flatnonzero(sample.images < images))
    return Layer(kept, layer.x[:images], layer.weight), channels
