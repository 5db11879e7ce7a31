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
    tied   log likelihood gained by the covariance over its diagonal  positive; in small layers
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
from repvgg_ref.oracle.arithmetic.sample import Sample, spread_channels, sums_by_image
from repvgg_ref.oracle.bounds.winograd import POINTS, transforms

_LARGEST, _PROVED = 6.0, 100.0
_TIED = 20.0  # by chance once in exp(20): Markov's inequality for a ratio of likelihoods
_OWN = 0.1  # of an output's variance: what tiles do not share, so that no covariance is singular
_LEAST_BETA, _SURE = 0.1, 3.0  # standard errors
_FEWEST_OUTPUTS, _FEWEST_ALIKE = 3000, 64  # for covariances, and for variances
_SMALLEST, _FEWEST_SIZED = 0.05, 16  # of c where nothing is proved, and outputs that tell it
_SMALL_LOSS = -0.03  # log likelihood an output, in a layer too small for more
_CHANNELS, _LAYERS = 32, 3  # looked at to choose the algorithm
_FEWEST_TIED = 5  # outputs of an image: two directions are lost
_TILES = 48  # for correlations


class Evidence(NamedTuple):
    """How well an algorithm's noise describes one layer's residual."""

    c: float
    gain: float
    beta: float
    beta_error: float
    outputs: int
    tied: float = 0.0

    def excuses(self, *, proved: bool) -> bool:
        """Whether the layer may be larger than direct summation; `proved` by other layers."""
        if self.outputs < _FEWEST_OUTPUTS and proved:
            return self.is_possible
        covaries = self.beta > max(_LEAST_BETA, _SURE * self.beta_error)
        return self.c <= _LARGEST and self.gain > 0 and covaries

    @property
    def is_possible(self) -> bool:
        """Whether errors are no larger than the algorithm's, and lie as its do, if that is told."""
        alike = self.gain > _SMALL_LOSS * self.outputs or self.outputs < _FEWEST_ALIKE
        return self.c <= 2 * _LARGEST and alike


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

    def tied(self, sample: Sample) -> float:
        """Log likelihood that covariances within tiles gain over the same variances alone.

        Image by image and channel by channel, without the directions 1 and y, along which faults
        and gates err as well (restricted likelihood); the variances are scaled freely.
        """
        tiles = self.tiles(sample)
        at = sample.rows % self.m * self.m + sample.across % self.m
        both = np.kron(self.a, self.a)
        logs, squares, count = np.zeros(2), np.zeros(2), 0
        for o, image in np.ndindex(len(sample.y), self.images):
            on = np.flatnonzero(sample.active[o] & (sample.images == image))
            if len(on) < _FEWEST_TIED:
                continue
            seen = both[:, at[on]] * np.sqrt(self.spectrum[o, tiles[on]].reshape(len(on), -1)).T
            shared = seen.T @ seen * (tiles[on][:, None] == tiles[on])
            plane = np.stack([np.ones(len(on)), sample.y[o, on]], axis=1)
            beside = np.linalg.qr(plane, mode="complete")[0][:, 2:]
            left = beside.T @ sample.residual[o, on]
            alone = np.diag(np.diag(shared))
            for k, covariance in enumerate((alone, _OWN * alone + (1 - _OWN) * shared)):
                reduced = beside.T @ covariance @ beside
                logs[k] += np.linalg.slogdet(reduced)[1]
                squares[k] += left @ np.linalg.solve(reduced, left)
            count += len(left)
        if not count or not squares.all():
            return 0.0
        likely = -(logs + count * np.log(squares)) / 2
        return float(likely[1] - likely[0])

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
    n = int(on.sum())
    v = unit**2 * noise.variance(sample) + 1e-300
    told = n
    if sample.gated:  # gates err, too, and know nothing of tiles
        told -= int(sums_by_image(sample.images, on).astype(bool).sum())
        sample = replace(sample, residual=sample.without_gate(np.where(on, 1 / v, 0.0)))
    if told <= 0:
        return Evidence(0.0, 0.0, 0.0, 1.0, n)
    squares = sample.residual[on] ** 2
    mine = v[on]
    c = float((squares / mine).sum()) / told
    if n < _FEWEST_ALIKE:
        return Evidence(c, 0.0, 0.0, 1.0, n)
    direct = noise_variance(sample, unit)[on] + 1e-300
    gain = likelihood(squares, mine) - likelihood(squares, direct)
    if gain <= least:
        return Evidence(c, gain, 0.0, 1.0, n)
    z = sample.residual / np.sqrt(v * max(c, 1e-300))
    beta, error = noise.beta(np.clip(z, -4, 4), on, sample)
    tied = noise.tied(sample) if n < _FEWEST_OUTPUTS else 0.0
    return Evidence(c, gain, beta, error, n, tied)


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


def possible(layers: Mapping[str, Layer], unit: float) -> tuple[Algorithm, ...]:
    """What a port may be computed by whose layers hold too few outputs to prove anything.

    All layers of stride 1 err by as much as they should, and nothing in them refutes it.
    """
    able = [each for each in layers.values() if each.sample.tile_stride == 1]
    told = [_thinned(each) for each in able if each.sample.active.sum() >= _FEWEST_SIZED]
    if not told or any(each.sample.active.sum() >= _FEWEST_OUTPUTS for each, _ in told):
        return ()
    return tuple(a for a in algorithms() if all(_may_be(a, *each, unit) for each in told))


def _may_be(algorithm: Algorithm, layer: Layer, channels: Array, unit: float) -> bool:
    noise = TileNoise(algorithm, layer.x, layer.weight, layer.sample.groups, channels)
    seen = evidence(noise, layer.sample, unit)
    return seen.is_possible and seen.c >= _SMALLEST and seen.tied > -_TIED / 4


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
    if sum(each.tied for each in known) > _TIED:
        return True
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
