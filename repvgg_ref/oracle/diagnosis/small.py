"""Explaining a layer that is within its certified bound and still not right.

An explanation counts if nothing but rounding is left once the reference has it, too: first the
bugs of the library, then what was estimated, then both together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.noise import noise_variance
from repvgg_ref.oracle.arithmetic.nuisance import Nuisance
from repvgg_ref.oracle.arithmetic.operands import Seen
from repvgg_ref.oracle.arithmetic.sample import Sample
from repvgg_ref.oracle.bounds.block import Bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bugs import Site
from repvgg_ref.oracle.diagnosis.evidence import DO_NOT_FIT, Evidence
from repvgg_ref.oracle.diagnosis.ranking import Observation, Trial
from repvgg_ref.oracle.estimates.estimate import Estimate
from repvgg_ref.oracle.estimates.layer import LayerEstimates
from repvgg_ref.oracle.estimates.patches import Explanation, Patch, explain_by_patches
from repvgg_ref.oracle.estimates.port import PortEstimates
from repvgg_ref.oracle.estimates.randomness import fixed_patterns
from repvgg_ref.oracle.estimates.taps import tap_errors, worst_channels
from repvgg_ref.oracle.programs.program import Program, Workspace
from repvgg_ref.oracle.report import Finding

_OUTPUTS = 160  # of a channel: enough to see which bugs are worth a closer look
_CLOSER = 6
_SOME = 0.2  # of a residual that is rounding for the most part: less is chance
_BETTER = 5.0  # standard errors by which a fitted bug must be better than one number
_HALF, _NEARLY = 0.5, 0.9  # of a residual: what a bug explains that may be there with another
# Beyond a bound a bug that is only like what is there explains up to 0.94 (SiLU for Mish), and
# others nearly as much; the one that is there leaves a twentieth of what others do beside noise.
_NEARLY_ALL, _APART = 0.95, 0.2
_CLEAR, _ZERO = 1e-3, 1e-12  # of the largest output
_NOTHING_KNOWN = "nothing in the library explains it: compare the estimated taps with the port's"

_ADVICE = {
    "outputs-scaled": "look for a factor applied to the whole layer, or to its batch norms",
    "bias-scaled": "look at how the bias is fused, stored or added",
    "bias-altered": "compare this channel's bias with the exact fusion",
    "channel-scaled": "compare this channel's weights and batch norm with the exact fusion",
    "taps-altered": "compare this weight with the exact fusion",
    "part-scaled": "look at how this part of the output is computed: a tail loop, a last tile",
    "output-altered": "look for a race, or memory written twice",
    "weights-rounded": "keep the weights in float32, or say --precision",
    "outputs-rounded": "look for a cast, or for sums kept in fewer bits",
}
ESTIMATED = frozenset(_ADVICE)  # findings that were estimated, not looked up


class SampleEvidence(Evidence):
    """A layer's sampled outputs, held against predictions to within rounding."""

    def __init__(
        self,
        site: Site[Any],
        seen: Seen,
        bound: Bound,
        estimates: PortEstimates,
        precision: Precision,
        *,
        most: int | None = None,
    ) -> None:
        self._shown = site, seen, bound, estimates, precision
        name = site.program.name
        self.estimates, self.sample = estimates, estimates.samples[name]
        self.workspace = Workspace()
        chosen = np.arange(self.sample.y.shape[1])
        if most is not None and len(chosen) > most:
            chosen = np.unique(np.linspace(0, len(chosen) - 1, most).astype(int))
        self.at = chosen
        small = self.sample.at(chosen)
        variance = estimates.arithmetic.nuisances[name].variance[:, chosen]
        likely = np.sqrt(variance + small.energy * estimates.arithmetic.unit**2) * small.gate
        values = (self._positions(array) for array in (seen.y, seen.y_hat, bound.certified))
        y, y_hat, certified = values
        observed = Observation(y[None], y_hat[None], certified[None], likely[None])
        super().__init__(site, observed, precision.number_format)

    def _positions(self, values: Array) -> Array:
        """(N, O, Ho, Wo) or (N, classes) -> (O, P) at the sample's outputs."""
        sample = self.sample
        if values.ndim == 2:
            return np.asarray(values.T)[:, self.at]
        images, rows, across = (a[self.at] for a in (sample.images, sample.rows, sample.across))
        return np.asarray(values[images, :, rows, across].T)

    def predict(self, program: Program) -> Array | None:
        """The program's output at the sampled places, (1, O, P)."""
        sample = self.sample
        if self.site.x.ndim == 4 and len(program.output_size(*self.site.x.shape[2:])) == 2:
            if program.output_size(*self.site.x.shape[2:]) != sample.size:
                return None
            first = sample.images == 0
            pixels = sample.rows[first], sample.across[first]
        else:
            pixels = None
        try:
            with np.errstate(all="ignore"):
                predicted = program.evaluate(self.site.x, pixels, self.workspace)
        except DO_NOT_FIT:
            return None
        flat = predicted.transpose(1, 0, 2).reshape(predicted.shape[1], -1)
        if flat.shape[1] != sample.y.shape[1] or len(flat) != len(sample.y):
            return None
        flat = flat[:, self.at]
        return flat[None] if np.isfinite(flat).all() else None

    def beside(self, predicted: Array) -> Sample:
        """The sample held against a prediction of all its outputs."""
        sample = self.sample
        y_hat = self.seen.y_hat[0] / sample.gate
        return sample.beside(predicted[0] / sample.gate, y_hat, self.estimates.arithmetic.unit)

    def best(self, is_worth: Callable[[Trial], bool]) -> list[Trial]:
        """The bugs that leave least at all outputs, of those worth it at a few; best first."""
        few = SampleEvidence(*self._shown, most=_OUTPUTS)
        worth = [trial for trial in few.trials() if is_worth(trial)]
        chosen = sorted(worth, key=lambda trial: trial.fit.remaining)[:_CLOSER]
        return [trial for t in chosen if (trial := self.trial(t.mutant)) is not None]

    def leaves_nothing(self, trial: Trial) -> bool:
        """Whether only rounding is left once the reference has the bug."""
        return not self.estimates.of(self.layer, self.beside(trial.predicted))


def explain_alarms(
    site: Site[Any], seen: Seen, bound: Bound, estimates: PortEstimates, precision: Precision
) -> list[Finding]:
    """Why a layer within its bound is bad: a bug, what was estimated, or both."""
    site = replace(site, alike=())  # another layer's weights are never within a bound
    close = SampleEvidence(site, seen, bound, estimates, precision)
    nearer = close.best(lambda t: t.is_admissible and t.is_significant and t.fit.explains > _SOME)
    named = [trial for trial in nearer if close.leaves_nothing(trial)]
    if any(not trial.mutant.bug.continuous for trial in named):
        return close.seen.ranked(named)
    name = site.program.name
    nuisance = estimates.arithmetic.nuisances[name]
    explained = explain_by_patches(estimates.samples[name], nuisance)
    if named:
        return _as_simple(close, named, explained) or close.seen.ranked(named)
    if explained.patches and not explained.left:
        return [_finding(name, patch, len(explained.patches)) for patch in explained.patches]
    if found := _known_and_estimated(close, nearer, nuisance):
        return found
    if nearer and nearer[0].fit.explains > _HALF:
        return _known_and_unknown(close, nearer, nuisance)
    return [_unknown(name, estimates, explained)]


def _as_simple(
    close: SampleEvidence, named: Sequence[Trial], explained: Explanation
) -> list[Finding]:
    """One estimated number, where no fitted parameter of a bug explains significantly more.

    A factor of a layer that is next to 1 is nearly what some eps makes of it.
    """
    if explained.left or len(explained.patches) != 1 or explained.patches[0].change is None:
        return []
    patch, sample = explained.patches[0], close.sample
    beside = [close.beside(trial.predicted) for trial in named]
    mended = replace(sample, residual=sample.residual - patch.change)
    variance = noise_variance(beside[0], close.estimates.arithmetic.unit)
    least, mine = min(_squares(each, variance) for each in beside), _squares(mended, variance)
    if mine - least > _BETTER**2:
        return []
    names = tuple(dict.fromkeys(trial.mutant.bug.name for trial in named))
    return [replace(_finding(close.layer, patch, 1), equivalents=names)]


def _squares(sample: Sample, variance: Array) -> float:
    """The errors of a layer's outputs, squared and in units of their variance."""
    on = sample.active
    return float((sample.residual[on] ** 2 / np.maximum(variance[on], 1e-300)).sum())


def _known_and_estimated(
    close: SampleEvidence, trials: Sequence[Trial], nuisance: Nuisance
) -> list[Finding]:
    """A bug of the library and estimates that leave nothing once the reference has it."""
    name = close.layer
    for trial in trials:
        rest = explain_by_patches(close.beside(trial.predicted), nuisance)
        if not rest.left and rest.patches:
            return [trial.one_of_two(), *(_finding(name, patch, 2) for patch in rest.patches)]
    return []


def _known_and_unknown(
    close: SampleEvidence, trials: Sequence[Trial], nuisance: Nuisance
) -> list[Finding]:
    """A bug of the library that is there, and what is left; trials are the best first."""
    sample = close.beside(trials[0].predicted)
    left = explain_by_patches(sample, nuisance).left
    says = "; ".join(["two causes at once, one of them in no library", *_said(left)])
    other = Finding("unknown", close.layer, None, 0.0, 0.0, says, _NOTHING_KNOWN)
    return [trials[0].one_of_two(), replace(other, taps=_taps(sample, nuisance))]


def _is_there(trials: Sequence[Trial]) -> bool:
    """Whether the first bug is there beyond doubt, beside what it leaves, and not one like it."""
    if not trials or not trials[0].is_admissible or not trials[0].is_significant:
        return False
    first, name = trials[0], trials[0].mutant.bug.name
    others = (1 - t.fit.explains for t in trials if t.mutant.bug.name != name)
    left = 1 - first.fit.explains
    return left < 1 - _NEARLY_ALL and left <= _APART * min(others, default=_HALF)


def _finding(layer: str, patch: Patch, causes: int) -> Finding:
    says = patch.says if causes == 1 else f"one of {causes} causes at once: {patch.says}"
    return Finding(
        bug=patch.kind,
        layer=layer,
        estimate=patch.value,
        confidence=1.0 if causes == 1 else 0.5,
        explains=1.0,
        says=says,
        advice=_ADVICE[patch.kind],
        standard_error=patch.error,
    )


def explain_unknown(
    finding: Finding,
    site: Site[Any],
    seen: Seen,
    bound: Bound,
    estimates: PortEstimates,
    precision: Precision,
    *,
    closely: bool = True,
) -> list[Finding]:
    """Why a layer beyond its bound that no bug of the library explains alone is bad.

    `closely`: a known bug beside something estimated is sought, too, which takes a second.
    """
    name = site.program.name
    nuisance = estimates.arithmetic.nuisances[name]
    sample = estimates.samples[name]
    explained = explain_by_patches(sample, nuisance)
    gone = _gone(sample, explained.patches)
    if explained.patches and not explained.left and not gone:
        return [_finding(name, patch, len(explained.patches)) for patch in explained.patches]
    close = SampleEvidence(site, seen, bound, estimates, precision)
    is_settled = finding.explains > _NEARLY or not closely
    nearer = [] if is_settled else close.best(lambda trial: trial.fit.explains > _HALF)
    if found := _known_and_estimated(close, nearer, nuisance):
        return found
    if _is_there(nearer):
        return _known_and_unknown(close, nearer, nuisance)
    lost = [f"{gone:.1%} of the outputs that should be far above 0 are 0"] if gone else []
    says = "; ".join([finding.says, *lost, *_said(estimates.alarms.get(name, ()))])
    return [replace(finding, says=says, taps=_taps(sample, nuisance))]


def _gone(sample: Sample, patches: Sequence[Patch]) -> float:
    """The share of outputs that are 0 although they are far above it with all patches.

    Estimates look at outputs that are not 0 alone: what is dropped, they do not see.
    """
    predicted = sample.y + sum(patch.change for patch in patches if patch.change is not None)
    size = float(np.abs(predicted).max())
    clear = predicted > _CLEAR * size
    zero = np.abs(sample.y + sample.residual) <= _ZERO * size
    return float((clear & zero).sum()) / max(int(clear.sum()), 1)


def _unknown(layer: str, estimates: PortEstimates, explained: Explanation) -> Finding:
    """What can be said of a layer that nothing explains: its estimates, and its taps."""
    sample, nuisance = estimates.samples[layer], estimates.arithmetic.nuisances[layer]
    patterns = fixed_patterns(sample, LayerEstimates(sample, nuisance).perpendicular)
    says = "; ".join([*_said(estimates.alarms[layer]), *patterns])
    taps = _taps(sample, nuisance)
    return Finding("unknown", layer, None, 0.0, 0.0, says, _NOTHING_KNOWN, taps=taps)


def _said(alarms: Sequence[Estimate]) -> list[str]:
    return [estimate.says for estimate in alarms[:3]]


def _taps(sample: Sample, nuisance: Nuisance) -> dict[str, Any]:
    """The errors of the worst channels' weights, as far as outputs tell them."""
    kernel = (sample.products // sample.kernel_size, *sample.kernel_sides)
    return tap_errors(sample, nuisance, worst_channels(sample, nuisance), kernel)
