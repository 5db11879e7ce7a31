"""What a residual that no bug explains looks like: channels, border, taps, shape."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.diagnosis.composed import Composed
from repvgg_ref.oracle.diagnosis.evidence import LayerEvidence
from repvgg_ref.oracle.diagnosis.ranking import Trial
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.head import HeadProgram
from repvgg_ref.oracle.report import Finding

_CHANNELS_SHOWN = 6


def unknown(
    evidence: LayerEvidence, trials: Sequence[Trial], alone: Composed | None = None
) -> Finding:
    """What can be said of a bug that is in no library; `alone`: what explains nearly all of it."""
    hint = max(trials, key=lambda t: t.fit.explains, default=None)
    says = _described(evidence) if alone is None else f"{alone.says}; {_described(evidence)}"
    if alone is None and hint is not None and hint.fit.explains > 0.5:
        says += (
            f"; {hint.mutant.bug.name} would explain {hint.fit.explains:.1%},"
            " but one explanation is not enough"
        )
    look = (
        "compare weight and bias of the linear layer"
        if isinstance(evidence.site.program, HeadProgram)
        else "look at the residual's pattern"
    )
    advice = f"the bug is not in the library: {look}"
    explains = 0.0 if alone is None else alone.share
    return Finding("unknown", evidence.layer, None, 0.0, explains, says, advice)


def _described(evidence: LayerEvidence) -> str:
    """Say in words where the residual lies."""
    residual = evidence.seen.residual
    beyond = ~(np.abs(residual) <= evidence.seen.certified)
    if not beyond.any():
        return "beyond its bound at few outputs"
    if not evidence.size:
        bad = np.flatnonzero(beyond.any(axis=(0, 2)))
        program = evidence.site.program
        is_last = isinstance(program, HeadProgram) and not program.relu
        what = "logits" if is_last else "outputs"
        return f"{len(bad)} of {beyond.shape[1]} {what} are beyond their bound, first {bad[:1]}"
    said = [
        f"{beyond.mean():.1%} of the outputs looked at are beyond their bound",
        _channels(beyond),
        _border(beyond, evidence),
        _kind(residual, beyond, evidence),
        _taps(residual, evidence) if isinstance(evidence.site.program, BlockProgram) else "",
    ]
    return "; ".join(part for part in said if part)


def _patches(evidence: LayerEvidence) -> Array:
    """What the looked-at outputs see: (N, P, C, kernel height, kernel width)."""
    x = np.asarray(evidence.site.x, np.float64)
    return np.asarray(evidence.site.program.gather(x, *evidence.pixels))


def _channels(beyond: Array) -> str:
    bad = np.flatnonzero(beyond.any(axis=(0, 2)))
    if len(bad) == beyond.shape[1]:
        return "in every channel"
    shown = ", ".join(map(str, bad[:_CHANNELS_SHOWN]))
    more = ", ..." if len(bad) > _CHANNELS_SHOWN else ""
    return f"in {len(bad)} of {beyond.shape[1]} channels ({shown}{more})"


def _border(beyond: Array, evidence: LayerEvidence) -> str:
    height, width = evidence.size
    rows, columns = evidence.pixels
    edge = (rows % max(height - 1, 1) == 0) | (columns % max(width - 1, 1) == 0)
    if edge.all() or not edge.any():
        return ""
    border, interior = beyond[:, :, edge].mean(), beyond[:, :, ~edge].mean()
    if interior == 0:
        return "beyond it on the border only"
    if border == 0:
        return "beyond it in the interior only"
    return ""


def _kind(residual: Array, beyond: Array, evidence: LayerEvidence) -> str:
    """A constant a channel (bias), or a factor a channel (scale)."""
    y = evidence.seen.y
    active = (y > 0) & ((y + residual) > 0)  # where ReLU hides nothing
    count = active.sum(axis=(0, 2))
    chosen = (count > 4) & beyond.any(axis=(0, 2))
    if not chosen.any():
        return ""
    r, v, a = (array[:, chosen] for array in (residual, y, active))
    n = a.sum(axis=(0, 2))
    energy = float((r**2 * a).sum())
    if energy == 0:
        return "where the reference's ReLU is off"
    constant = (r * a).sum(axis=(0, 2)) / n
    factor = (r * v * a).sum(axis=(0, 2)) / np.maximum((v**2 * a).sum(axis=(0, 2)), 1e-300)
    left_constant = float((((r - constant[:, None]) * a) ** 2).sum()) / energy
    left_factor = float((((r - factor[:, None] * v) * a) ** 2).sum()) / energy
    if left_constant < 0.01:
        return f"a constant a channel (up to {np.abs(constant).max():.3g}): look at the bias"
    if left_factor < 0.01:
        factors = 1 + factor
        return f"a factor a channel ({factors.min():.4g} to {factors.max():.4g}): look at the scale"
    return ""


def _taps(residual: Array, evidence: LayerEvidence) -> str:
    """Which kernel taps the residual goes with, by correlation with the input patches."""
    patches = _patches(evidence)
    n, p, _, *size = patches.shape
    count = size[0] * size[1]
    flat = patches.reshape(n * p, -1)
    flat = flat / np.maximum(np.sqrt((flat**2).sum(axis=0)), 1e-300)
    r = residual.transpose(0, 2, 1).reshape(n * p, -1)
    score = (flat.T @ r) ** 2  # (channels * taps, O)
    by_tap = score.sum(axis=1).reshape(-1, count).sum(axis=0)
    total = float(by_tap.sum())
    if total == 0:
        return ""
    share = by_tap / total
    best = int(np.argmax(share))
    by_channel = score.sum(axis=1).reshape(-1, count).sum(axis=1) / total
    said = []
    if count > 1 and share[best] > 0.3:
        said.append(f"it goes with kernel tap ({best // size[1]}, {best % size[1]})")
    if by_channel.max() > 0.5:
        said.append(f"it goes with input channel {int(np.argmax(by_channel))}")
    return "; ".join(said)
