"""Predictions of suspected bugs, held against what the candidate gave, and ranked.

Shared by the diagnosis of blocks (outputs at sampled pixels), of the head (logits) and of weight
files (taps): each makes predictions, this module compares and ranks them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.diagnosis.regression import Fit, posterior, regress
from repvgg_ref.oracle.report import Finding

# Chance of accusing a correct candidate, over a whole verification (Bonferroni-corrected).
FALSE_ALARM = 1e-6
_MOST_FINDINGS = 5
_SIGNIFICANT = 8.0  # standard errors


class Bug(Protocol):
    """What a bug says of itself."""

    @property
    def name(self) -> str:
        """Its name in reports."""

    @property
    def says(self) -> str:
        """A sentence with ``{parameter}`` and ``{detail}``."""

    @property
    def advice(self) -> str:
        """What to do about it."""


@dataclass(frozen=True)
class Trial:
    """One prediction, compared.

    Attributes
    ----------
    fit : Fit
        Regression of the residual on what the bug would change.
    within : bool
        Whether the prediction leaves nothing beyond the certified bound.
    payload : object
        Whatever made the prediction, to build on (a program).
    """

    bug: Bug
    parameter: float | None
    detail: str
    predicted: Array
    fit: Fit
    within: bool
    continuous: bool = False
    payload: Any = None

    @property
    def named(self) -> bool:
        """Whether this alone leaves nothing but rounding, and something was there to explain."""
        fit = self.fit
        return self.within and fit.is_this and fit.coefficient > _SIGNIFICANT * fit.standard_error

    @property
    def says(self) -> str:
        """The bug's sentence, filled in."""
        return self.bug.says.format(parameter=self.parameter or 0.0, detail=self.detail)


@dataclass(frozen=True)
class Observation:
    """Reference and candidate values with their bounds; all of shape (N, O, P), O the channels.

    NaN and infinities of the candidate are left out of regressions.
    """

    layer: str
    y: Array
    y_hat: Array
    certified: Array
    likely: Array

    @property
    def residual(self) -> Array:
        """Candidate minus reference, 0 where the candidate is not finite."""
        return np.where(np.isfinite(self.y_hat), self.y_hat - self.y, 0.0)

    def compare(
        self,
        bug: Bug,
        predicted: Array,
        *,
        parameter: float | None = None,
        detail: str = "",
        continuous: bool = False,
        payload: Any = None,
    ) -> Trial | None:
        """Hold a prediction against the candidate; None if the bug changes nothing here."""
        scale = np.where(np.isfinite(self.y_hat), self.likely, np.inf)
        fit = regress(self.residual, predicted - self.y, scale)
        if fit is None:
            return None
        allowed = self.certified * (1 + _relative_size(predicted, self.y))
        within = bool((np.abs(self.y_hat - predicted) <= allowed).all())
        return Trial(bug, parameter, detail, predicted, fit, within, continuous, payload)

    def is_hidden(self, trial: Trial, tests: int) -> bool:
        """Whether a bug within the bound is beyond doubt: regular as rounding never is."""
        fit = trial.fit
        return (
            fit.is_this
            and fit.p_value < FALSE_ALARM / max(1, tests)
            and fit.coefficient > _SIGNIFICANT * fit.standard_error
            and fit.explains > 0.2
        )

    def ranked(self, trials: Sequence[Trial]) -> list[Finding]:
        """Findings, likeliest first; what predicts the same values is listed as equivalent.

        Ties go to the earlier hypothesis and to a choice before a fitted number.
        """
        order = sorted(
            trials,
            key=lambda t: (round(float(np.log(max(t.fit.remaining, 1e-30))), 2), t.continuous),
        )
        groups: list[list[Trial]] = []
        for trial in order:
            home = next((g for g in groups if self._same(g[0], trial)), None)
            if home is None:
                groups.append([trial])
            else:
                home.append(trial)
        chances = posterior([group[0].fit.remaining for group in groups], self.y.shape[1])
        ranking = sorted(zip(groups, chances, strict=True), key=lambda pair: -round(pair[1], 9))
        return [
            self.finding(group[0], chance, tuple(trial.bug.name for trial in group[1:]))
            for group, chance in ranking[:_MOST_FINDINGS]
        ]

    def finding(
        self, trial: Trial, confidence: float, equivalents: tuple[str, ...] = ()
    ) -> Finding:
        """One trial as the report shows it."""
        measured = trial.parameter if trial.parameter is not None else trial.fit.coefficient
        error = trial.fit.standard_error
        if trial.continuous and trial.parameter is not None:
            error *= abs(trial.parameter)  # the fit is of its logarithm
        return Finding(
            bug=trial.bug.name,
            layer=self.layer,
            estimate=float(measured),
            confidence=confidence,
            explains=trial.fit.explains,
            says=trial.says,
            advice=trial.bug.advice,
            standard_error=float(error),
            equivalents=tuple(dict.fromkeys(n for n in equivalents if n != trial.bug.name)),
        )

    def _same(self, first: Trial, second: Trial) -> bool:
        """Whether two predictions cannot be told apart on this data."""
        return bool((np.abs(first.predicted - second.predicted) <= 0.1 * self.likely).all())


def _relative_size(predicted: Array, y: Array) -> float:
    """A bug that makes outputs larger makes their rounding larger, in proportion."""
    size = float(np.abs(y).max())
    return float(np.abs(predicted).max()) / size if size > 0 else 1.0
