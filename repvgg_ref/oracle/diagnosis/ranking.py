"""Predictions of suspected bugs, held against what the candidate gave, and ranked.

Layer outputs, the taps of weight files, logits alone and training steps: each makes predictions
in its own way; what a prediction is worth, and which is the likeliest, is decided here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs.base import Mutant
from repvgg_ref.oracle.diagnosis.regression import Fit, posterior, regress
from repvgg_ref.oracle.report import EVERYWHERE, Finding

# Chance of accusing a correct candidate, over a whole verification (Bonferroni-corrected).
FALSE_ALARM = 1e-6
_MOST_FINDINGS = 5
_MOST_EXPLAINED = 0.5  # of the residual: a bug that is there leaves rounding
_SIGNIFICANT = 8.0  # standard errors
_SURE = 4.0  # so many make an interval


@dataclass(frozen=True)
class Trial:
    """One prediction, compared.

    Attributes
    ----------
    fit : Fit
        Regression of the residual on what the bug would change.
    within : bool
        Whether the prediction leaves nothing beyond what rounding may do.
    """

    mutant: Mutant[Any]
    predicted: Any
    fit: Fit
    within: bool

    @property
    def named(self) -> bool:
        """Whether this alone leaves nothing but rounding, and something was there to explain."""
        most = self.fit.explains > _MOST_EXPLAINED
        return self.within and self.is_admissible and self.is_significant and most

    @property
    def is_admissible(self) -> bool:
        """Whether the bug's name can mean what was fitted: once, and with such a parameter."""
        return self.fit.is_this and self.mutant.is_admissible(_SURE * self.error)

    @property
    def error(self) -> float:
        """Standard error of the parameter, or of the coefficient where there is none."""
        parameter = self.mutant.variant.parameter
        if self.mutant.bug.continuous and parameter is not None:
            return self.fit.standard_error * abs(parameter)  # the fit is of its logarithm
        return self.fit.standard_error

    @property
    def is_significant(self) -> bool:
        """Whether the coefficient is well away from 0."""
        return self.fit.coefficient > _SIGNIFICANT * self.fit.standard_error

    def is_hidden(self, tests: int) -> bool:
        """Whether a bug within the bound is beyond doubt: regular as rounding never is."""
        fit = self.fit
        significant = fit.p_value < FALSE_ALARM / max(1, tests) and self.is_significant
        return self.is_admissible and significant and fit.explains > 0.2

    def finding(self, confidence: float, equivalents: Sequence[str] = ()) -> Finding:
        """The trial as the report shows it."""
        bug, parameter, fit = self.mutant.bug, self.mutant.variant.parameter, self.fit
        layer = self.mutant.layer
        if layer is None and bug.scope != "network":
            layer = EVERYWHERE
        return Finding(
            bug=bug.name,
            layer=layer,
            estimate=float(fit.coefficient if parameter is None else parameter - bug.right),
            confidence=confidence,
            explains=fit.explains,
            says=self.mutant.says,
            advice=bug.advice,
            standard_error=float(self.error),
            equivalents=tuple(dict.fromkeys(name for name in equivalents if name != bug.name)),
            also=self.mutant.also,
        )

    def one_of_two(self) -> Finding:
        """The trial as the report shows it beside another that must be there too."""
        says = "two bugs at once, one of them: " + self.mutant.says
        return replace(self.finding(0.5), says=says)


def ranked(
    trials: Sequence[Trial], same: Callable[[Trial, Trial], bool], outputs: int
) -> list[Finding]:
    """Findings, likeliest first; what predicts the same values is listed as equivalent.

    Ties go to the earlier bug and to a choice before a fitted number.

    Parameters
    ----------
    same : callable
        Whether two predictions cannot be told apart on this data.
    outputs : int
        How many independent numbers were predicted.
    """
    order = sorted(
        trials,
        key=lambda t: (
            round(float(np.log(max(t.fit.remaining, 1e-30))), 2),
            t.mutant.bug.continuous,
        ),
    )
    groups: list[list[Trial]] = []
    for trial in order:
        home = next((group for group in groups if same(group[0], trial)), None)
        if home is None:
            groups.append([trial])
        else:
            home.append(trial)
    chances = posterior([group[0].fit.remaining for group in groups], outputs)
    ranking = sorted(zip(groups, chances, strict=True), key=lambda pair: -round(pair[1], 9))
    return [
        group[0].finding(chance, [trial.mutant.bug.name for trial in group[1:]])
        for group, chance in ranking[:_MOST_FINDINGS]
    ]


@dataclass(frozen=True)
class Observation:
    """Reference and candidate values with their bounds; all of shape (N, O, P), O the channels.

    NaN and infinities of the candidate are left out of regressions.
    """

    y: Array
    y_hat: Array
    certified: Array
    likely: Array

    @property
    def residual(self) -> Array:
        """Candidate minus reference, 0 where the candidate is not finite."""
        return np.where(np.isfinite(self.y_hat), self.y_hat - self.y, 0.0)

    def compare(self, mutant: Mutant[Any], predicted: Array) -> Trial | None:
        """Hold a prediction against the candidate; None if the bug changes nothing here."""
        scale = np.where(np.isfinite(self.y_hat), self.likely, np.inf)
        fit = regress(self.residual, predicted - self.y, scale)
        if fit is None:
            return None
        allowed = self.certified * (1 + _relative_size(predicted, self.y))
        within = bool((np.abs(self.y_hat - predicted) <= allowed).all())
        return Trial(mutant, predicted, fit, within)

    def ranked(self, trials: Sequence[Trial]) -> list[Finding]:
        """Findings, likeliest first."""
        return ranked(trials, self.same, self.y.shape[1])

    def same(self, first: Trial, second: Trial) -> bool:
        """Whether two predictions cannot be told apart on these outputs."""
        return bool((np.abs(first.predicted - second.predicted) <= 0.1 * self.likely).all())


def _relative_size(predicted: Array, y: Array) -> Array:
    """A bug that makes outputs larger makes their rounding larger, in proportion: (O, 1).

    Of a channel that grows by more than the others do, its own.
    """
    size = np.abs(y).max()
    whole = np.abs(predicted).max() / size if size > 0 else 1.0
    own, seen = (np.abs(each).max(axis=(0, 2)) for each in (predicted, y))
    grown = np.divide(own, seen, out=np.zeros_like(own), where=seen > 0)
    return np.asarray(np.maximum(grown, whole)[:, None])
