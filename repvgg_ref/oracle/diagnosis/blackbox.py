"""Logits and nothing else: the bug, and the layer, that would give exactly these.

Without layer outputs nothing can be certified: an error is held against an estimate of what
rounding does to the logits (`logit_noise`). Every known bug in each layer, and in all layers at
once, is carried to the logits (`alternatives`); the one whose logits the candidate has is named. A
candidate agrees if rounding explains its logits and known bugs would have shown: which, where and
down to what size is part of the answer (`power`). A candidate that can be called again is asked
for more images where hypotheses are left that one batch does not separate (`probing`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bugs import LAYER_BUGS
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.diagnosis.alternatives import Alternative, Chain, Progress, alternatives
from repvgg_ref.oracle.diagnosis.fitting import fitted
from repvgg_ref.oracle.diagnosis.incomparable import not_finite, wrong_shape
from repvgg_ref.oracle.diagnosis.look import Look
from repvgg_ref.oracle.diagnosis.probing import Again, Probing
from repvgg_ref.oracle.diagnosis.ranking import FALSE_ALARM, Trial, ranked
from repvgg_ref.oracle.diagnosis.reordered import reordered
from repvgg_ref.oracle.power import Power, power_in_layers, power_of_bugs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.report import EVERYWHERE, Finding, LayerReport, Report, Verdict

Library = Callable[..., Iterable[Alternative]]

_SHARE = 0.9  # of the known bugs must have shown, for "agree"
_SHARE_IN_LAYER = 0.75  # and of those of each layer
_TELLING = 0.2  # of the logits' spread: what rounding may do must be smaller
_FINALISTS = 12
_NOT_TESTED = (
    "not tested: layers by themselves, training, other inputs than those of the calls named here"
)


def judge_logits(
    programs: Programs,
    outputs: Outputs,
    x: Array,
    precision: Precision,
    candidate: str,
    *,
    again: Callable[[Array], Array] | None = None,
    progress: Progress | None = None,
    library: Library = alternatives,
) -> Report:
    """Judge a candidate that shows its logits only.

    Parameters
    ----------
    again : callable, optional
        The candidate's logits for other images; it may raise `CandidateFailure`.
    progress : callable, optional
        Called with (layer, layers done, layers in all).
    library : callable
        What known bugs do, as `alternatives` tells it.
    """
    y_hat = np.asarray(outputs.layers["linear"], float)
    known = partial(library, precision=precision.number_format, progress=progress)
    chain = Chain(programs, x)
    found = _judge(chain, y_hat, precision, again, known)
    bad = found.verdict == "disagree"
    first = _first_place(chain, found.findings)
    return Report(
        verdict=found.verdict,
        reason=found.reason,
        model=programs.model.name,
        candidate=candidate,
        precision=precision.name,
        layers=(found.layer,),
        diagnosis=found.findings,
        first_bad_layer=first if bad else None,
        notes=(*outputs.notes, *found.notes, _NOT_TESTED),
        power=found.power,
    )


def _first_place(chain: Chain, findings: Sequence[Finding]) -> str | None:
    """The layer of the likeliest bug, if that is known; the first that can have it, if all do."""
    if not findings or findings[0].layer is None:
        return None
    if findings[0].layer != EVERYWHERE:
        return findings[0].layer
    named = findings[0]
    bugs = [bug for bug in LAYER_BUGS if bug.name == named.bug]
    for name in chain.names:
        made = planted(bugs, site_of(chain.programs, name, chain.inputs[name]), name)
        if any(m.bug.continuous or named.says.startswith(m.says) for m in made):
            return name
    return None


@dataclass(frozen=True)
class _Judgement:
    """What is found out about the logits."""

    verdict: Verdict
    reason: str
    layer: LayerReport
    findings: tuple[Finding, ...] = ()
    power: Power | None = None
    notes: tuple[str, ...] = ()


def _judge(
    chain: Chain,
    y_hat: Array,
    precision: Precision,
    again: Callable[[Array], Array] | None,
    known: Library,
) -> _Judgement:
    y = chain.logits
    if y_hat.shape != y.shape or not np.isfinite(y_hat).all():
        lost = float((~np.isfinite(y_hat)).mean())
        why = "not all finite" if y_hat.shape == y.shape else f"of shape {y_hat.shape}"
        bad = LayerReport.incomparable("linear", f"logits {why}")
        says = f"the logits are {why}, wanted {y.shape}"
        found = wrong_shape("linear", says)
        if y_hat.shape == y.shape:  # any layer may have made them
            found = replace(not_finite("linear", lost, overflow=False), layer=None)
        return _Judgement("disagree", says, bad, (found,))
    first = Look.at(chain, y_hat, precision)
    probing = Probing(first, precision, Again(again))
    look = probing.cheap()
    tried = list(known(look.chain))
    layer = _layer(first)
    named = _named(look, tried, probing)
    says = named[0].says if named else ""
    if not named and look.kappa > look.noise.strange:
        named = reordered(look)
        says = "; ".join(finding.says for finding in named)
    if named:
        findings = tuple(named)
        reason = f"{says}: the logits are reproduced"
        return _Judgement("disagree", reason, layer, findings, None, probing.notes)
    if not probing.all_right:
        return _unexplained(max(probing.looks, key=lambda each: each.kappa), layer, probing)
    smallest = probing.revealed(look.smallest(tried))
    worst = max(each.kappa for each in probing.looks)
    power = Power(
        worst,
        look.noise.allowed,
        look.noise.freedom,
        power_of_bugs(smallest),
        power_in_layers(smallest),
        look.smallest_errors(),
    )
    return replace(_within(look, layer, power), notes=(*probing.notes, power.says))


def _named(look: Look, tried: Sequence[Alternative], probing: Probing) -> list[Finding]:
    """The bugs that give these logits, likeliest first; none if chance could have done it."""
    matches = look.matches(tried)
    hopeful = sorted(matches, key=lambda m: m.left)[:_FINALISTS]
    sharp = [look.sharpened(match) for match in hopeful if match.left < 0.5 * match.size]
    if not look.is_right and not any(look.reproduces(match) for match in sharp):
        sharp = fitted(look, matches)
    found = probing.surviving([match for match in sharp if look.reproduces(match)])
    sure = [m for m in found if m.chance * len(tried) < FALSE_ALARM]
    if look.kappa <= look.noise.strange:  # some arithmetic may have done it: no name without proof
        found = sure
    if not found:
        return []
    doubt = min(1.0, min(m.chance for m in found) * len(tried))
    trials = [Trial(m.mutant, m.change, m.fit, within=True) for m in found]
    ranking = ranked(
        trials,
        lambda a, b: look.noise.kappa(a.predicted - b.predicted) <= 0.5,
        max(1, round(look.noise.freedom)),
    )
    return [replace(each, confidence=each.confidence * (1 - doubt)) for each in ranking]


def _unexplained(look: Look, layer: LayerReport, probing: Probing) -> _Judgement:
    """Beyond rounding, and no known bug."""
    says = f"the logits differ by {look.kappa:.3g} times what one simple rounding a layer does"
    if look.kappa <= look.noise.strange:
        reason = (
            f"{says}: more than right runtimes do ({look.noise.allowed:g}), less than Winograd with"
            " large tiles or adders that chop may do; give layer outputs to tell"
        )
        return _Judgement("cannot-judge", reason, layer, notes=probing.notes)
    unknown = Finding(
        "unknown",
        None,
        None,
        0.0,
        0.0,
        "no known bug gives these logits",
        "give layer outputs to find the layer",
    )
    return _Judgement("disagree", says, layer, (unknown,), notes=probing.notes)


def _within(look: Look, layer: LayerReport, power: Power) -> _Judgement:
    spread = float(look.chain.logits.std())
    blur = look.noise.allowed * float(np.sqrt((look.noise.deviation**2).mean()))
    if not blur <= _TELLING * spread:
        reason = (
            f"rounding alone may move these logits by {blur:.2g}, and they spread by {spread:.2g}:"
            " too little is known to agree; give layer outputs"
        )
        return _Judgement("cannot-judge", reason, layer, power=power)
    if power.share < _SHARE:
        reason = (
            f"the logits agree to rounding, but {power.tried - power.seen} of {power.tried} known"
            " bugs, each in each layer, could hide in it; give layer outputs to exclude them"
        )
        return _Judgement("cannot-judge", reason, layer, power=power)
    weakest = min(power.layers, key=lambda name: power.layers[name])
    if power.layers[weakest] < _SHARE_IN_LAYER:
        reason = (
            f"the logits agree to rounding, but only {power.layers[weakest]:.0%} of the known bugs"
            f" would show in {weakest}: others could hide there; give layer outputs, or other"
            " images"
        )
        return _Judgement("cannot-judge", reason, layer, power=power)
    reason = f"the logits agree to rounding, and {power.share:.1%} of the known bugs would show"
    return _Judgement("agree", reason, layer, power=power)


def _layer(look: Look) -> LayerReport:
    """The logits as a layer: a ratio of 1 is the largest error that agrees."""
    allowed = look.noise.allowed * look.kappa_per_logit
    ratio = np.abs(look.residual) / allowed
    at = np.unravel_index(np.argmax(ratio), ratio.shape)
    return LayerReport(
        "linear",
        float(np.abs(look.residual)[at]),
        float(allowed[at]),
        look.kappa / look.noise.allowed,
        ok=look.is_right,
        note="end to end: an estimate of the network's own rounding, not a certified bound",
    )
