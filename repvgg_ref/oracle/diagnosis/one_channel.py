"""One channel that is scaled, in a layer whose input is not known well enough to estimate it.

The factor is fitted to the channel's own outputs and counts only if the layer with it is within
its bound everywhere: in all channels, and where the activation hides the products.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.diagnosis.evidence import LayerEvidence
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.program import plain
from repvgg_ref.oracle.report import Finding

_FEWEST = 4  # active outputs: fewer follow nearly any one number
_ADVICE = "compare this channel's weights and batch norm with the exact fusion"


def scaled_channel(evidence: LayerEvidence) -> Finding | None:
    """The factor of the only wrong channel, if it explains all; of its outputs, or its weights."""
    program, seen = plain(evidence.site.program), evidence.seen
    if not isinstance(program, BlockProgram) or program.fused is None:
        return None
    beyond = ~(np.abs(seen.y_hat - seen.y) <= seen.certified)
    (bad,) = np.nonzero(beyond.any(axis=(0, 2)))
    if len(bad) != 1:
        return None
    channel = int(bad[0])
    y, y_hat = seen.y[:, channel], seen.y_hat[:, channel]
    active = (y > 0) & (y_hat > 0)
    if active.sum() < _FEWEST:
        return None
    bias = program.fused.bias[channel]
    fits = [
        (*_factor((y_hat - y)[active], scaled[active]), of)
        for of, scaled in (("outputs", y), ("weights", y - bias))
    ]
    excess, error, of = min(fits, key=lambda fit: fit[1])
    if 1 + excess <= 0 or not _is_right(evidence, program, channel, 1 + excess, of):
        return None
    says = f"the {of} of channel {channel} are {1 + excess:.6g} times the right ones"
    return Finding(
        "channel-scaled", evidence.layer, excess, 1.0, 1.0, says, _ADVICE, standard_error=error
    )


def _factor(residual: Array, direction: Array) -> tuple[float, float]:
    """Least squares of one number, and its standard error."""
    energy = max(float((direction**2).sum()), 1e-300)
    factor = float((residual * direction).sum()) / energy
    left = float(((residual - factor * direction) ** 2).sum())
    return factor, float(np.sqrt(left / (len(residual) - 1) / energy))


def _is_right(
    evidence: LayerEvidence, program: BlockProgram, channel: int, factor: float, of: str
) -> bool:
    """Whether the layer is within its bound with this factor; of "outputs": the bias, too."""
    assert program.fused is not None
    weight, bias = program.fused.weight.copy(), program.fused.bias.copy()
    weight[channel] *= factor
    if of == "outputs":
        bias[channel] *= factor
    predicted = evidence.predict(replace(program, fused=FusedConv(weight, bias)))
    seen = evidence.seen
    return predicted is not None and bool((np.abs(seen.y_hat - predicted) <= seen.certified).all())
