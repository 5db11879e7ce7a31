"""Logits and nothing else: the bug, and the layer, that would give exactly these.

Without layer outputs nothing can be certified: an error is held against the network's own
sensitivity, measured by letting every layer round at random as badly as is likely. The reference
is then run once for each bug in each layer (and in all layers at once); the one whose logits the
candidate has is named. A candidate agrees only if every known bug would have shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.block import layer_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.diagnosis.alternatives import Chain, alternatives
from repvgg_ref.oracle.diagnosis.ranking import FALSE_ALARM, Observation, Trial
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output
from repvgg_ref.oracle.report import Finding, LayerReport, Report, Verdict

_ROUNDINGS = 4  # runs that round differently, to see the network's sensitivity
_SIGMAS = 8.0
_LAMBDA = 6.0  # the probabilistic bound is about this many standard deviations
_EXPLAINED = 0.98  # of the logits' deviation, by the bug that is to be named
_SHOWN = 8


def judge_logits(
    programs: Programs, outputs: Outputs, x: Array, precision: Precision, candidate: str
) -> Report:
    """Judge a candidate that shows its logits only."""
    found = _judge(Chain(programs, x), np.asarray(outputs.layers["linear"], float), precision)
    bad = found.verdict == "disagree"
    first = next((f.layer for f in found.findings), None) or "linear"
    return Report(
        verdict=found.verdict,
        reason=found.reason,
        model=programs.model.name,
        candidate=candidate,
        precision=precision.name,
        layers=(found.layer,),
        diagnosis=found.findings,
        first_bad_layer=first if bad else None,
        notes=outputs.notes,
    )


@dataclass(frozen=True)
class _Judgement:
    """What is found out about the logits."""

    verdict: Verdict
    reason: str
    layer: LayerReport
    findings: tuple[Finding, ...] = ()


def _judge(chain: Chain, y_hat: Array, precision: Precision) -> _Judgement:
    y = chain.logits
    if y_hat.shape != y.shape or not np.isfinite(y_hat).all():
        why = "not all finite" if y_hat.shape == y.shape else f"of shape {y_hat.shape}"
        bad = LayerReport.incomparable("linear", f"logits {why}")
        return _Judgement("disagree", f"the logits are {why}, wanted {y.shape}", bad)
    allowed = _SIGMAS * sensitivity(chain, precision)
    layer = _layer(y, y_hat, allowed)
    seen = Observation(*(v[:, :, None] for v in (y, y_hat, allowed, allowed / _SIGMAS)))
    matches: list[Trial] = []
    hidden: set[str] = set()
    for mutant, logits in alternatives(chain, precision.number_format):
        trial = seen.compare(mutant, logits[:, :, None])
        if trial is None:
            continue
        if trial.fit.is_this and trial.fit.explains > _EXPLAINED:
            matches.append(trial)
        if not (np.abs(logits - y) > 2 * allowed).any():
            hidden.add(mutant.bug.name)
    if matches and not _is_noise(layer, matches):
        found = seen.ranked(matches)
        return _Judgement(
            "disagree", f"{found[0].says}: the logits are reproduced", layer, tuple(found)
        )
    if layer.ok:
        return _within(layer, sorted(hidden))
    unknown = Finding(
        "unknown",
        None,
        None,
        0.0,
        0.0,
        "no known bug gives these logits",
        "give layer outputs to find the layer",
    )
    reason = f"the logits differ by {layer.ratio:.3g} times what rounding can do"
    return _Judgement("disagree", reason, layer, (unknown,))


def _within(layer: LayerReport, hidden: Sequence[str]) -> _Judgement:
    if not hidden:
        reason = "the logits agree to rounding, and every known bug would show"
        return _Judgement("agree", reason, layer)
    shown = ", ".join(hidden[:_SHOWN]) + (", ..." if len(hidden) > _SHOWN else "")
    return _Judgement(
        "cannot-judge",
        f"the logits agree to rounding, but {len(hidden)} known bugs could hide in it: {shown};"
        " give layer outputs to exclude them",
        layer,
    )


def _is_noise(layer: LayerReport, matches: Sequence[Trial]) -> bool:
    """Whether so few numbers agree so loosely that chance could have done it.

    Among a few thousand alternatives one fits noise in d dimensions to correlation r with
    probability about ``thousands * (1 - r**2)**((d - 1) / 2)``.
    """
    best = max(trial.fit.explains for trial in matches)
    chance = 5000 * max(1 - best, 1e-16) ** ((matches[0].predicted.size - 1) / 2)
    return layer.ok and chance > FALSE_ALARM


def sensitivity(chain: Chain, precision: Precision) -> Array:
    """Standard deviation of each logit when every layer rounds at random, shape of the logits.

    Each layer's output is disturbed by Gaussian errors of the size its probabilistic bound
    stands for, several times what a good runtime commits but what Winograd arithmetic may; the
    root mean square over a few runs is floored by its mean over the image's logits.
    """
    rng = np.random.default_rng(0)
    total = np.zeros_like(chain.logits)
    for _ in range(_ROUNDINGS):
        x = chain.inputs[chain.names[0]]
        for name in chain.names[:-1]:
            out = layer_output(chain.plain[name], x)
            size = layer_bound(chain.programs[name], x, out, precision).likely / _LAMBDA
            x = np.where(out > 0, out + size * rng.normal(size=out.shape), out)
        logits = chain.logits_from("linear", x)
        own = layer_bound(chain.plain["linear"], x, logits, precision).likely / _LAMBDA
        total += (logits - chain.logits) ** 2 + own**2
    deviation = np.sqrt(total / _ROUNDINGS)
    return np.asarray(np.maximum(deviation, np.sqrt((deviation**2).mean(axis=1, keepdims=True))))


def _layer(y: Array, y_hat: Array, allowed: Array) -> LayerReport:
    ratio = np.abs(y_hat - y) / allowed
    at = np.unravel_index(np.argmax(ratio), ratio.shape)
    return LayerReport(
        "linear",
        float(np.abs(y_hat - y)[at]),
        float(allowed[at]),
        float(ratio[at]),
        ok=bool((ratio <= 1).all()),
        note="end to end: eight standard deviations of the network's own rounding",
    )
