"""A fused kernel's taps as evidence: what each bug would have made of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.bounds.linear_part import layer_kernels
from repvgg_ref.oracle.bugs import Site
from repvgg_ref.oracle.diagnosis.evidence import Evidence
from repvgg_ref.oracle.diagnosis.ranking import Observation
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.weights.arithmetic import FLUSH
from repvgg_ref.oracle.weights.conversion import OWN_ERROR, Conversion

_LIKELY = 1.0
_TOGETHER = 1 << 16  # taps that are looked at together: what is made of them stays in cache
_COARSE = 6.0  # roundings of the largest tap, for comparing other kernels


def observed(program: BlockProgram, got: FusedConv, conversion: Conversion) -> Observation:
    """A block's exact taps and a file's, and how far apart these may be."""
    magnitudes = layer_kernels(program)  # of the terms of each tap
    sizes = _taps(FusedConv(magnitudes.weight_magnitude, magnitudes.bias_magnitude))
    unit = np.full(sizes.shape, conversion.units[0])
    unit[..., -1] = conversion.units[1]
    tiny = np.where(unit == 2.0**-11, 2.0**-24, FLUSH)
    return Observation(
        _taps(program.fused_kernel()),
        _taps(got),
        (conversion.roundings * unit + OWN_ERROR) * sizes + tiny,
        (_LIKELY * unit + OWN_ERROR) * sizes + tiny,
    )


class Distance(NamedTuple):
    """How far a file's taps are from the exact ones.

    Attributes
    ----------
    error, certified : float
        Of the tap whose error is the largest part of what its bound allows.
    ratio, likely : float
        That part, and the largest one of a single rounding.
    lost : int
        How many taps are NaN or infinite.
    ok : bool
        Whether every tap is within its bound.
    """

    error: float
    certified: float
    ratio: float
    likely: float
    lost: int
    ok: bool


def distance(program: BlockProgram, got: FusedConv, conversion: Conversion) -> Distance:
    """The largest error of a file's taps; some channels after others, as rows are independent.

    Says what `observed` would, without an array of every tap for each of its numbers.
    """
    step = max(1, _TOGETHER // got.weight[0].size)
    parts = [
        _distance(observed(program.of_channels(rows), _rows(got, rows), conversion))
        for rows in (slice(at, at + step) for at in range(0, len(got.weight), step))
    ]
    worst = max(parts, key=lambda part: (part.ratio != part.ratio, part.ratio))
    return worst._replace(
        likely=float(np.max([part.likely for part in parts])),
        lost=sum(part.lost for part in parts),
        ok=all(part.ok for part in parts),
    )


def _distance(seen: Observation) -> Distance:
    error = np.abs(seen.y_hat - seen.y)
    ratio = error / seen.certified
    at = np.unravel_index(np.argmax(ratio), ratio.shape)  # of a NaN, if there is one
    return Distance(
        float(error[at]),
        float(seen.certified[at]),
        float(ratio[at]),
        float((error / seen.likely).max()),
        int((~np.isfinite(seen.y_hat)).sum()),
        bool((error <= seen.certified).all()),
    )


def _rows(kernel: FusedConv, rows: slice) -> FusedConv:
    return FusedConv(kernel.weight[rows], kernel.bias[rows])


def _coarse(seen: Observation, unit: float) -> Observation:
    """The same for comparing *other* kernels, which put large taps where ours are small.

    Bounds are those of the largest tap, and of the largest bias.
    """
    largest = np.maximum(np.abs(seen.y), np.abs(seen.y_hat))
    bound = np.empty_like(seen.y)
    bound[..., :-1], bound[..., -1] = largest[..., :-1].max(), max(largest[..., -1].max(), 1e-30)
    return replace(seen, certified=_COARSE * unit * bound, likely=_LIKELY * unit * bound)


class TapEvidence(Evidence):
    """A fused kernel: bugs that leave geometry and activations alone show in it."""

    fits_parameters = False  # some eps can be found for any tap that is slightly wrong

    def predict(self, program: Any) -> Array | None:
        """The program's taps; None if its kernel is of another shape, or it has none."""
        if program.is_skipped:
            return None
        taps = _taps(program.fused_kernel())
        return taps if taps.shape == self.seen.y.shape else None


def tap_evidence(site: Site[BlockProgram], got: FusedConv, conversion: Conversion) -> TapEvidence:
    """A kernel as evidence of which bug made it."""
    return evidence_of(site, observed(site.program, got, conversion), conversion)


def evidence_of(site: Site[BlockProgram], seen: Observation, conversion: Conversion) -> TapEvidence:
    """The same of taps that were observed before."""
    return TapEvidence(site, _coarse(seen, conversion.units[0]), conversion.stored[0])


class FittedTaps(TapEvidence):
    """The same with continuous parameters fitted, for bounds of each tap's own size."""

    fits_parameters = True


def _taps(kernel: FusedConv) -> Array:
    """Kernel and bias as one (1, O, taps + 1) array: the bias is the last tap."""
    flat = np.asarray(kernel.weight, np.float64).reshape(len(kernel.weight), -1)
    bias = np.asarray(kernel.bias, np.float64)[:, None]
    return np.concatenate([flat, bias], axis=1)[None]
