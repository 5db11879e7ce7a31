"""Which bug is it? Every hypothesis is tried on the candidate's own input of one layer.

A bug is *named* if its prediction leaves nothing but rounding. If no single one does, pairs are
composed and tried; if none does, the answer is "unknown", with what the residual looks like.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs import LIBRARY, Hypothesis, Site, Variant
from repvgg_ref.oracle.bugs.batch_norm import with_eps
from repvgg_ref.oracle.diagnosis.pattern import describe, is_structured
from repvgg_ref.oracle.diagnosis.regression import regress
from repvgg_ref.oracle.diagnosis.trials import Observation, Trial
from repvgg_ref.oracle.programs.evaluate import evaluate
from repvgg_ref.oracle.programs.program import BlockProgram, Pixels, Workspace, output_size
from repvgg_ref.oracle.report import Finding

_MOST_PIXELS = 96
_PAIR_STARTS = 6

# Of two bugs at once the larger explains half of the residual or more if their effects are
# orthogonal, and still a twentieth if those cancel with a correlation of -0.47.
_PAIR_EXPLAINS = 0.05

# Two bugs at once need not make sense together: one leaves a quarter of the channels (groups
# ignored), the other permutes all of them.
_DO_NOT_FIT = (IndexError, ValueError)


@dataclass(frozen=True)
class Evidence:
    """One layer of a candidate beside the reference.

    Attributes
    ----------
    site : Site
    y, y_hat : arrays (N, O, Ho, Wo)
        Reference and candidate output for the candidate's input, float64.
    certified, likely : arrays, same shape
        The two error bounds.
    tests : int
        Hypotheses x layers of the whole verification, for the significance level.
    precision : str
        What the candidate was judged at; its own rounding is no bug.
    """

    site: Site
    y: Array
    y_hat: Array
    certified: Array
    likely: Array
    tests: int
    precision: str = "fp32"


class LayerView:
    """One layer at sampled pixels, and predictions at the same pixels."""

    def __init__(self, evidence: Evidence) -> None:
        self.evidence, self.site = evidence, evidence.site
        self.pixels = sample_pixels(*evidence.y.shape[2:])
        self.workspace = Workspace()
        rows, columns = self.pixels
        self.seen = Observation(
            evidence.site.program.spec.name,
            *(
                np.asarray(array[:, :, rows, columns])
                for array in (evidence.y, evidence.y_hat, evidence.certified, evidence.likely)
            ),
        )

    def predict(self, program: BlockProgram) -> Array | None:
        """The program's output at the sampled pixels; None if it has another size."""
        skipped = not program.branches and program.fused is None
        if (
            not skipped
            and output_size(program, *self.site.x.shape[2:]) != self.evidence.y.shape[2:]
        ):
            return None
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                predicted = evaluate(program, self.site.x, self.pixels, self.workspace)
        except _DO_NOT_FIT:
            return None
        if predicted.shape != self.seen.y.shape or not np.isfinite(predicted).all():
            return None
        return predicted

    def trial(self, hypothesis: Hypothesis, variant: Variant) -> Trial | None:
        """Compare one variant; None if it changes nothing here."""
        predicted = self.predict(variant.program)
        if predicted is None:
            return None
        return self.seen.compare(
            hypothesis,
            predicted,
            parameter=variant.parameter,
            detail=variant.detail,
            continuous=hypothesis.continuous,
            payload=variant.program,
        )

    def trials(self, site: Site) -> Iterator[Trial]:
        """Every applicable variant at `site`, continuous parameters fitted."""
        for hypothesis in LIBRARY:
            if self.evidence.precision in hypothesis.precision:
                continue
            if hypothesis.continuous:
                fitted = self._fitted_eps(hypothesis, site.program)
                yield from () if fitted is None else (fitted,)
            else:
                for variant in _variants(hypothesis, site):
                    if (trial := self.trial(hypothesis, variant)) is not None:
                        yield trial

    def _fitted_eps(self, hypothesis: Hypothesis, program: BlockProgram) -> Trial | None:
        """Gauss-Newton on log eps, from a few starts; the best end wins."""
        ends = []
        for start in (1e-2, 1e-3, program.eps * 1.5, 1e-7) if program.branches else ():
            eps = self._descend(program, start)
            trial = self.trial(hypothesis, Variant(with_eps(program, eps), eps))
            if trial is not None:
                ends.append(trial)
        return min(ends, key=lambda trial: trial.fit.remaining, default=None)

    def _descend(self, program: BlockProgram, eps: float) -> float:
        for _ in range(20):
            here = self.predict(with_eps(program, eps))
            near = self.predict(with_eps(program, eps * 1.001))
            if here is None or near is None:
                break
            residual = np.where(np.isfinite(self.seen.y_hat), self.seen.y_hat - here, 0.0)
            fit = regress(residual, (near - here) / np.log(1.001), self.seen.likely)
            if fit is None:
                break
            step = float(np.clip(fit.coefficient, -2, 2))
            eps = float(np.clip(eps * np.exp(step), 1e-15, 10.0))
            if abs(step) < max(1e-6, 0.01 * fit.standard_error):
                break
        return eps


def _variants(hypothesis: Hypothesis, site: Site) -> Iterator[Variant]:
    """The hypothesis's variants, as far as they can be made of the program at `site`."""
    try:
        yield from hypothesis.variants(site)
    except _DO_NOT_FIT:
        return


def sample_pixels(height: int, width: int) -> Pixels:
    """Output pixels to look at: all if few, else corners, borders and a spread of the interior."""
    rows, columns = np.divmod(np.arange(height * width), width)
    if height * width <= _MOST_PIXELS:
        return rows, columns
    rng = np.random.default_rng(height * 65537 + width)
    outer_row = (rows == 0) | (rows == height - 1)
    outer_column = (columns == 0) | (columns == width - 1)
    corner, edge = outer_row & outer_column, outer_row ^ outer_column
    chosen = [
        rng.choice(np.flatnonzero(kind), min(count, int(kind.sum())), replace=False)
        for kind, count in (
            (corner, 4),
            (edge, 24),
            (~corner & ~edge, _MOST_PIXELS - 28),
        )
    ]
    at = np.sort(np.concatenate(chosen))
    return rows[at], columns[at]


def diagnose(evidence: Evidence) -> list[Finding]:
    """Explain one bad layer: the named bug, two bugs at once, or "unknown" with a description."""
    view = LayerView(evidence)
    trials = list(view.trials(evidence.site))
    if named := [trial for trial in trials if trial.named]:
        return view.seen.ranked(named)
    if pair := _pair(view, trials):
        return pair
    return [_unknown(view, max(trials, key=lambda t: t.fit.explains, default=None))]


def errs_like_a_bug(evidence: Evidence, channels: Iterable[int]) -> bool:
    """Whether the residual of one of these channels has a single cause: no arithmetic's has."""
    view = LayerView(evidence)
    return is_structured(view.seen.residual, channels, view.pixels, evidence)


def hidden_bugs(evidence: Evidence) -> list[Finding]:
    """Bugs too small for the certified bound but too regular for rounding, in a layer within it.

    Named only if the coefficient is 1 and its significance survives the correction for all
    hypotheses in all layers, so that a correct candidate is never accused.
    """
    view = LayerView(evidence)
    site = replace(evidence.site, alike=())  # another layer's weights are never within a bound
    found = [t for t in view.trials(site) if view.seen.is_hidden(t, evidence.tests)]
    return view.seen.ranked(found) if found else []


def diagnose_shape(site: Site, y_hat: Array) -> list[Finding]:
    """Explain an output of the wrong size by a program that has this size and these values."""
    found: list[Finding] = []
    for hypothesis in LIBRARY:
        for variant in hypothesis.variants(site):
            left = _left_of_shape(variant.program, site.x, y_hat)
            if left < 1e-4:
                says = hypothesis.says.format(
                    parameter=variant.parameter or 0.0, detail=variant.detail
                )
                found.append(
                    Finding(
                        hypothesis.name,
                        site.program.spec.name,
                        variant.parameter,
                        1.0,
                        1 - left,
                        says,
                        hypothesis.advice,
                    )
                )
    return sorted(found, key=lambda finding: -finding.explains)[:3]


def _left_of_shape(program: BlockProgram, x: Array, y_hat: Array) -> float:
    """Energy of `y_hat` that the program's output does not account for; 1 if sizes differ."""
    skipped = not program.branches and program.fused is None
    size = x.shape[2:] if skipped else output_size(program, *x.shape[2:])
    if size != y_hat.shape[2:] or min(size) < 1:
        return 1.0
    predicted = evaluate(program, x).reshape(len(x), -1, *size)
    if predicted.shape != y_hat.shape:
        return 1.0
    return float(((y_hat - predicted) ** 2).sum() / max(float((y_hat**2).sum()), 1e-300))


def _pair(view: LayerView, trials: list[Trial]) -> list[Finding]:
    """Two bugs at once: the most explaining ones, each composed with every other."""
    best: tuple[Trial, Trial] | None = None
    starts = [trial for trial in trials if trial.fit.explains > _PAIR_EXPLAINS]
    for first in sorted(starts, key=lambda t: t.fit.remaining)[:_PAIR_STARTS]:
        view.workspace = Workspace()  # another program's responses are of no use to this one
        for second in view.trials(replace(view.site, program=first.payload)):
            if second.bug.name == first.bug.name or not second.named:
                continue
            if best is None or second.fit.remaining < best[1].fit.remaining:
                best = first, second
    if best is None:
        return []
    return [
        replace(
            view.seen.finding(trial, 0.5),
            explains=best[1].fit.explains,
            says="two bugs at once, one of them: " + trial.says,
        )
        for trial in best
    ]


def _unknown(view: LayerView, hint: Trial | None) -> Finding:
    says = describe(view.seen.residual, view.seen.certified, view.pixels, view.evidence)
    if hint is not None and hint.fit.explains > 0.5:
        says += (
            f"; {hint.bug.name} would explain {hint.fit.explains:.1%},"
            " but one explanation is not enough"
        )
    return Finding(
        bug="unknown",
        layer=view.seen.layer,
        estimate=None,
        confidence=0.0,
        explains=0.0,
        says=says,
        advice="the bug is not in the library: look at the residual's pattern",
    )
