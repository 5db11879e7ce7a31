"""Every layer of a port estimated, and what rounding does not explain."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.directed import fit_directed
from repvgg_ref.oracle.arithmetic.operands import Seen, with_operands
from repvgg_ref.oracle.arithmetic.port import PortArithmetic, direct_nuisance, infer
from repvgg_ref.oracle.arithmetic.sample import Sample, sample_of
from repvgg_ref.oracle.arithmetic.tiles import Layer
from repvgg_ref.oracle.blas import pool_for_estimates
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.estimates.estimate import Estimate, alarms, told
from repvgg_ref.oracle.estimates.layer import LayerEstimates
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.head import HeadProgram

T = TypeVar("T")

# Direct summation has to explain a layer this easily, or algorithms in tiles are tried on it.
_UNEASY, _UNEASY_LEVEL = 3.5, 0.4
# No algorithm does that: F(8), the coarsest, has 1e5 times direct sums' noise, in squares, and its
# outputs are right on the whole.
_HOPELESS, _HOPELESS_SCALE = 1e8, 1e4  # the second in unit roundoffs
_NO_BORDER = 2  # rows or columns that are all border


@dataclass(frozen=True)
class PortEstimates:
    """What the layers of a port compute, and how well that can be told.

    Attributes
    ----------
    arithmetic : PortArithmetic
    samples : mapping
        Layer -> its outputs as they were looked at.
    estimates, alarms : mappings
        Layer -> all its estimates, and those that no rounding explains.
    heaviness : mapping
        Layer -> see `LayerEstimates.heaviness`.
    """

    arithmetic: PortArithmetic
    samples: Mapping[str, Sample]
    estimates: Mapping[str, list[Estimate]]
    alarms: Mapping[str, list[Estimate]]
    heaviness: Mapping[str, float]

    @property
    def is_of_unknown_noise(self) -> bool:
        """Whether most layers err as in no arithmetic that is modelled.

        Tails are heavier, or partial sums are cut in a way that no direction describes.
        """
        if self.arithmetic.directed.is_at_limit:
            return True
        known = [value for value in self.heaviness.values() if value > 0]
        return bool(known) and float(np.median(known)) > 1

    def detects(self, name: str) -> dict[str, float | None]:
        """The smallest errors that would have been alarms in a layer, by what they would be in.

        Relative: "scale" of outputs, of one "channel", "bias", "channel bias", "part" (an image,
        row or column), "tap" (a channel's largest weight), "taps" (all, each at random). For
        "channel", "channel bias" and "tap" it is what three in four of the channels that can be
        judged alone show. None where it would be more than `LARGEST_CLAIM`: the certified bound
        alone tells. Layers of two rows or columns have no "part": their borders are not told from
        the rest.
        """
        found: dict[str, float] = {}
        sample = self.samples.get(name)
        borders = sample is not None and min(sample.size) > _NO_BORDER
        tests = sum(map(len, self.estimates.values()))
        for estimate in self.estimates.get(name, ()):
            key = estimate.sensitivity
            if key and (key != "part" or borders):
                size = estimate.smallest(tests)
                size = self.arithmetic.unit * size**0.5 if key == "taps" else size
                found[key] = max(size, found.get(key, 0.0))
        return {what: told(size) for what, size in found.items()}

    def of(self, name: str, sample: Sample) -> list[Estimate]:
        """What would be alarms in a layer if its outputs were held against another reference.

        A fault may have bent what was taken for noise and for directed rounding: both are fitted
        again.
        """
        nuisance = self.arithmetic.nuisances[name]
        if nuisance.algorithm == "direct":
            unit, directed = self.arithmetic.unit, self.arithmetic.directed
            if directed.is_any:
                directed = fit_directed({**self.samples, name: sample}, unit)
            nuisance = direct_nuisance(sample, directed, unit)
        return alarms(LayerEstimates(sample, nuisance).all(claims=False))


def estimate_port(seen: Mapping[str, Seen], precision: Precision) -> PortEstimates:
    """Estimate all layers.

    Parameters
    ----------
    seen : mapping
        Every layer whose outputs can be compared.
    """
    with pool_for_estimates() as pool:
        return _estimate_port(seen, precision, pool)


def _estimate_port(
    seen: Mapping[str, Seen], precision: Precision, pool: ThreadPoolExecutor
) -> PortEstimates:
    def each(make: Callable[[str], T]) -> dict[str, T]:
        return dict(zip(seen, pool.map(make, seen), strict=True))

    unit = precision.unit
    seen = with_operands(seen, precision)
    samples = each(lambda name: sample_of(*seen[name], precision))
    layers = {
        name: Layer(samples[name], layer.x, _kernel(layer.program)) for name, layer in seen.items()
    }

    def estimated(arithmetic: PortArithmetic) -> PortEstimates:
        def of_layer(name: str) -> tuple[list[Estimate], float]:
            layer = LayerEstimates(samples[name], arithmetic.nuisances[name])
            return layer.all(), layer.heaviness()

        made = each(of_layer)
        found = {name: listed for name, (listed, _) in made.items()}
        heaviness = {name: value for name, (_, value) in made.items()}
        return PortEstimates(arithmetic, samples, found, _alarms(found), heaviness)

    found = estimated(infer(layers, unit, pool=pool))
    uneasy = [n for n, listed in found.estimates.items() if _may_be_in_tiles(listed, unit)]
    if not uneasy:
        return found
    tiled = infer(layers, unit, uneasy, pool=pool)
    if tiled.algorithms:
        return estimated(tiled)
    return replace(found, arithmetic=tiled) if tiled.possible else found


def _kernel(program: Any) -> Array:
    if isinstance(program, BlockProgram):
        return program.fused_kernel().weight
    return np.asarray(program.weight[:, :, None, None])


def _may_be_in_tiles(listed: Sequence[Estimate], unit: float) -> bool:
    """Whether an algorithm in tiles may explain what direct summation does not."""
    most = {"noise": _HOPELESS, "scale": _HOPELESS_SCALE * unit}
    hopeless = any(abs(each.value) > most.get(each.kind, np.inf) for each in listed)
    return not hopeless and any(map(_is_uneasy, listed))


def _is_uneasy(estimate: Estimate) -> bool:
    if estimate.kind == "noise":
        return estimate.value > _UNEASY_LEVEL * estimate.tolerance
    return estimate.deviation > _UNEASY


def _alarms(found: Mapping[str, list[Estimate]]) -> dict[str, list[Estimate]]:
    """Alarms by layer, Holm's procedure over all layers together."""
    home = {id(estimate): name for name, listed in found.items() for estimate in listed}
    by_layer: dict[str, list[Estimate]] = {}
    for estimate in alarms(e for listed in found.values() for e in listed):
        by_layer.setdefault(home[id(estimate)], []).append(estimate)
    return {name: by_layer[name] for name in found if name in by_layer}


def is_estimable(program: Any, precision: Precision) -> bool:
    """Whether a layer's errors follow the law of sums that estimates rest on.

    Not where a branch with a norm inside may be kept in 16 bits on the way: what that rounds is the
    same for all pixels, and in no kernel that is known.
    """
    if not isinstance(program, BlockProgram | HeadProgram):
        return False
    inside = isinstance(program, BlockProgram) and program.at_eps is not None
    return not (inside and precision.number_format in ("fp16", "bf16"))
