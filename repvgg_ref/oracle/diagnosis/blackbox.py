"""Logits and nothing else: the bug, and the layer, that would give exactly these.

Without layer outputs nothing can be certified: an error is held against the network's own
sensitivity, measured by letting every layer round at random as badly as is likely. The reference
is then run once for each bug in each layer (and in all layers at once); the one whose logits the
candidate has is named. A candidate agrees only if every known bug would have shown.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.block import block_bound, head_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.diagnosis.alternatives import Alternative, Chain, alternatives, make_chain
from repvgg_ref.oracle.diagnosis.trials import FALSE_ALARM, Observation, Trial
from repvgg_ref.oracle.programs.head import evaluate_head
from repvgg_ref.oracle.programs.layers import block_output
from repvgg_ref.oracle.report import Finding, LayerReport, Report, Verdict

_ROUNDINGS = 4  # runs that round differently, to see the network's sensitivity
_SIGMAS = 8.0
_LAMBDA = 6.0  # the probabilistic bound is about this many standard deviations
_EXPLAINED = 0.98  # of the logits' deviation, by the bug that is to be named


# Completes a report: verdict, reason, the logits' line, findings.
_Say = Callable[[Verdict, str, LayerReport, list[Finding]], Report]


def judge_logits(
    model: Model, outputs: Outputs, x: Array, precision: Precision, candidate: str
) -> Report:
    """Judge a candidate that shows its logits only."""
    chain = make_chain(model, x)
    y = evaluate_head(chain.head, chain.inputs["linear"])
    y_hat = np.asarray(outputs.layers["linear"], np.float64)

    def report(verdict: Verdict, reason: str, layer: LayerReport, found: list[Finding]) -> Report:
        first = next((f.layer for f in found), None) if verdict == "disagree" else None
        return Report(
            verdict,
            reason,
            model.name,
            candidate,
            precision.name,
            (layer,),
            tuple(found),
            first or ("linear" if verdict == "disagree" else None),
            outputs.notes,
        )

    if y_hat.shape != y.shape or not np.isfinite(y_hat).all():
        why = "not all finite" if y_hat.shape == y.shape else f"of shape {y_hat.shape}"
        bad = LayerReport("linear", float("nan"), 0.0, float("nan"), ok=False, note=f"logits {why}")
        return report("disagree", f"the logits are {why}, wanted {y.shape}", bad, [])
    allowed = _SIGMAS * sensitivity(chain, y, precision)
    layer = _layer(y, y_hat, allowed)
    seen = Observation("linear", *(v[:, :, None] for v in (y, y_hat, allowed, allowed / _SIGMAS)))
    matches: list[tuple[Trial, Alternative]] = []
    hidden: list[Alternative] = []
    for other in alternatives(chain, precision.number_format):
        trial = seen.compare(other, other.logits[:, :, None])
        if trial is None:
            continue
        if trial.fit.is_this and trial.fit.explains > _EXPLAINED:
            matches.append((trial, other))
        if not (np.abs(other.logits - y) > 2 * allowed).any():
            hidden.append(other)
    if matches and not _is_noise(layer, matches):
        return _named(report, layer, sorted(matches, key=lambda match: match[0].fit.remaining))
    if layer.ok:
        return _within(report, layer, hidden)
    unknown = Finding("unknown", None, None, 0.0, 0.0, "no known bug gives these logits",
                      "give layer outputs to find the layer")  # fmt: skip
    return report("disagree", f"the logits differ by {layer.ratio:.3g} times what rounding can do",
                  layer, [unknown])  # fmt: skip


def _within(report: _Say, layer: LayerReport, hidden: list[Alternative]) -> Report:
    if not hidden:
        return report(
            "agree", "the logits agree to rounding, and every known bug would show", layer, []
        )
    names = sorted({other.name for other in hidden})
    shown = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return report(
        "cannot-judge",
        f"the logits agree to rounding, but {len(names)} known bugs could hide in it: {shown};"
        " give layer outputs to exclude them",
        layer,
        [],
    )


def _is_noise(layer: LayerReport, matches: list[tuple[Trial, Alternative]]) -> bool:
    """Whether so few numbers agree so loosely that chance could have done it.

    Among a few thousand alternatives one fits noise in d dimensions to correlation r with
    probability about ``thousands * (1 - r**2)**((d - 1) / 2)``.
    """
    best = max(trial.fit.explains for trial, _ in matches)
    dimensions = matches[0][0].predicted.size
    chance = 5000 * max(1 - best, 1e-16) ** ((dimensions - 1) / 2)
    return layer.ok and chance > FALSE_ALARM


def _named(report: _Say, layer: LayerReport, matches: list[tuple[Trial, Alternative]]) -> Report:
    best = matches[0][0].fit.remaining
    likely = [(t, other) for t, other in matches if t.fit.remaining <= 2 * best + 1e-12]
    found = [
        Finding(
            bug=other.name,
            layer=other.layer,
            estimate=other.parameter,
            confidence=1 / len(likely),
            explains=trial.fit.explains,
            says=other.says + (f" (in {other.layer})" if other.layer else " (in every layer)"),
            advice=other.advice,
        )
        for trial, other in likely[:5]
    ]
    return report("disagree", f"{found[0].says}: the logits are reproduced", layer, found)


def sensitivity(chain: Chain, y: Array, precision: Precision) -> Array:
    """Standard deviation of each logit when every layer rounds at random, shape of `y`.

    Each layer's output is disturbed by Gaussian errors of the size its probabilistic bound
    stands for, several times what a good runtime commits but what Winograd arithmetic may; the
    root mean square over a few runs is floored by its mean over the image's logits.
    """
    rng = np.random.default_rng(0)
    total = np.zeros_like(y)
    for _ in range(_ROUNDINGS):
        x = chain.inputs[chain.names[0]]
        for name in chain.names:
            out = block_output(chain.plain[name], x)
            bound = block_bound(chain.programs[name], x, out, precision)
            x = np.where(out > 0, out + bound.likely / _LAMBDA * rng.normal(size=out.shape), out)
        logits = evaluate_head(chain.head, x)
        own = head_bound(chain.head.weight, chain.head.bias, x, logits, precision).likely / _LAMBDA
        total += (logits - y) ** 2 + own**2
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
