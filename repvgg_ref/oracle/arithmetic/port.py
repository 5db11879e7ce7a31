"""The arithmetic of a whole port, inferred from all its layers at once, before any bug is tried."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from repvgg_ref.oracle.arithmetic.directed import DIRECTIONS, Directed, fit_directed
from repvgg_ref.oracle.arithmetic.fourier import FFT, in_images, is_proved
from repvgg_ref.oracle.arithmetic.noise import noise_variance
from repvgg_ref.oracle.arithmetic.nuisance import Nuisance
from repvgg_ref.oracle.arithmetic.sample import Sample
from repvgg_ref.oracle.arithmetic.tiles import (
    Algorithm,
    Evidence,
    Layer,
    TileNoise,
    evidence,
    possible,
    recognise,
)

_DRIFT = 0.2  # of a fitted drift may be left
_CHOPS = 5.0  # cut partial sums err more, independently too: twice and more at half an ulp


@dataclass(frozen=True)
class PortArithmetic:
    """What the port's rounding does.

    Attributes
    ----------
    unit : float
        Unit roundoff of its numbers.
    directed : Directed
    nuisances : mapping
        Layer -> the errors that it may have.
    algorithms : mapping
        Layer -> Winograd's algorithm, where the residual has that covariance.
    evidence : mapping
        Layer -> for those, how well it fits.
    possible : tuple of Algorithm
        What layers of stride 1 may be computed by although they are too small to prove it.
    """

    unit: float
    directed: Directed
    nuisances: Mapping[str, Nuisance]
    algorithms: Mapping[str, Algorithm]
    evidence: Mapping[str, Evidence]
    possible: tuple[Algorithm, ...] = ()

    @property
    def says(self) -> str:
        """In a sentence; empty for the ordinary: sums in order, rounding to nearest."""
        parts = []
        used = sorted(set(self.algorithms.values()), key=lambda each: each.m)
        for algorithm in used:
            layers = sum(each == algorithm for each in self.algorithms.values())
            if algorithm == FFT:
                says = "errs" if layers == 1 else "err"
                parts.append(f"{layers} of the layers {says} alike all over an image, as FFTs do")
                continue
            points = ", ".join(f"{p:.4g}" for p in algorithm.points)
            shown = "a layer errs" if layers == 1 else f"{layers} layers err"
            parts.append(
                f"{shown} as Winograd's F({algorithm.m}x{algorithm.m}, 3x3) does (points {points})"
            )
        if self.directed.is_any:
            shares = zip(DIRECTIONS, self.directed.coefficients, strict=True)
            largest = [f"{name} {share:+.2f}" for name, share in shares if abs(share) > 0.08]
            parts.append(f"rounding is directed (in ulps: {', '.join(largest)})")
        return "; ".join(parts)


def infer(
    layers: Mapping[str, Layer],
    unit: float,
    suspects: Iterable[str] = (),
    *,
    pool: ThreadPoolExecutor,
) -> PortArithmetic:
    """The arithmetic that the layers show.

    Parameters
    ----------
    layers : mapping
        Every layer whose outputs can be compared.
    unit : float
        Unit roundoff of the port's numbers.
    suspects : iterable of str
        Layers that direct summation does not explain: only for them algorithms in tiles are
        looked for, since they err more than direct summation does.
    pool : executor
        Layers are worked on in parallel.
    """
    samples = {name: layer.sample for name, layer in layers.items()}
    directed = fit_directed(samples, unit, pool=pool)
    made = pool.map(lambda sample: direct_nuisance(sample, directed, unit), samples.values())
    nuisances = dict(zip(samples, made, strict=True))
    suspects = list(suspects)
    tiled = any(samples[name].tile_stride == 1 for name in suspects)
    known = recognise(layers, unit, pool=pool) if tiled else ()
    able = [name for name in layers if known and samples[name].tile_stride == 1]
    found = pool.map(lambda n: _in_tiles(layers[n], known, unit, nuisances[n]), able)
    chosen: dict[str, Algorithm] = {}
    seen: dict[str, Evidence] = {}
    for name, best in zip(able, found, strict=True):
        if best is not None:
            chosen[name], seen[name], nuisances[name] = best
    left = [name for name in suspects if name not in chosen]
    flat = {n: in_images(samples[n], unit, nuisances[n]) for n in left}
    fits = {name: each for name, each in flat.items() if each is not None}
    if is_proved([each[1] for each in fits.values()]):
        for name, fit in fits.items():
            chosen[name], seen[name], nuisances[name] = fit
    unproved = possible(layers, unit) if tiled and not chosen else ()
    return PortArithmetic(unit, directed, nuisances, chosen, seen, unproved)


def direct_nuisance(sample: Sample, directed: Directed, unit: float) -> Nuisance:
    """A right layer that sums products one after the other, in whatever order."""
    drift = directed.drift(sample, unit)
    left = replace(sample, residual=sample.residual - drift)
    size = 0.0  # of the drift, relative to the outputs
    if directed.is_any and sample.active.any():
        size = abs(float(np.mean(drift / np.maximum(sample.y, 1e-300), where=sample.active)))
    level = (6 + sample.products / 25) * (1 + _CHOPS * directed.chopped)
    return Nuisance(
        unit,
        noise_variance(left, unit, level),
        drift,
        level=level,
        allowed_drift=_DRIFT * size / unit,
        gate=1.0 + size / unit / 4,
    )


def _in_tiles(
    layer: Layer, known: tuple[Algorithm, ...], unit: float, direct: Nuisance
) -> tuple[Algorithm, Evidence, Nuisance] | None:
    """The algorithm of those known that describes a layer best, if it gains over direct noise."""
    sample = replace(layer.sample, residual=layer.sample.residual - direct.drift)
    best: tuple[Algorithm, Evidence, TileNoise] | None = None
    for algorithm in known:
        noise = TileNoise(algorithm, layer.x, layer.weight, sample.groups)
        found = evidence(noise, sample, unit)
        if found.excuses(proved=True) and (best is None or found.gain > best[1].gain):
            best = algorithm, found, noise
    if best is None:
        return None
    algorithm, found, noise = best
    variance = unit**2 * max(found.c, 0.2) * noise.variance(sample)
    nuisance = direct.of_algorithm(
        sample,
        algorithm.name,
        variance,
        tiles=noise.tiles(sample),
        clustering=noise.widening(),
    )
    return algorithm, found, nuisance
