"""Which training bug is it? Every one is trained with, and held against the dump.

The residual of all arrays together is regressed on what the bug would change, each array in units
of its yardstick, arrays as clusters, and the trials are ranked as those of layers are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs.base import Bug, Mutant, Site, planted
from repvgg_ref.oracle.diagnosis.ranking import Trial, ranked
from repvgg_ref.oracle.diagnosis.regression import Fit, Sums, fitted
from repvgg_ref.oracle.report import Finding
from repvgg_ref.oracle.training.allowance import Allowance
from repvgg_ref.oracle.training.bugs import TRAINING_BUGS
from repvgg_ref.oracle.training.fit import Estimation, Fitted, tight
from repvgg_ref.oracle.training.noise import Yardstick
from repvgg_ref.oracle.training.pairs import likely_pairs
from repvgg_ref.oracle.training.rounding import yardstick_of
from repvgg_ref.oracle.training.run import Setup, run

_FINALISTS = 6
_OWN_RUNS = 2
# Sets of settings that are estimated: one setting, two, or one beside a bug.
_LIKELY, _LIKELY_TWO, _LIKELY_BESIDE = 8, 4, 3
_FIRSTS = 3  # bugs to which a second one is looked for
_OF_TWO = 0.05  # of the error each of them explains alone, at least
# Two bugs at once are looked for where a run is quick.
_MOST_PARAMETERS_FOR_PAIRS = 3_000_000
_FIRST = ("loss", "logits", "batch_mean", "batch_var", "grad", "stat")


class TrainingCase:
    """A dump that disagrees, and everything needed to explain it."""

    def __init__(
        self,
        setup: Setup,
        exact: Mapping[str, Array],
        given: Mapping[str, Array],
        allowed: Allowance,
        bad: list[str],
    ) -> None:
        self.setup, self.exact, self.bad = setup, exact, bad
        self.allowed, self.yardstick = allowed, allowed.yardstick
        self.given = {name: array for name, array in given.items() if name in allowed.yardstick.of}
        self.first_given = any(is_first_step(name) for name in self.given)
        self.first_bad = any(is_first_step(name) for name in bad)

    def findings(self) -> list[Finding]:
        """The bug's name, or "unknown" with what can be said."""
        if not self.given:
            return []
        trials = self._sweep(self.setup, None)
        named = self._finalists(trials)
        if named:
            return ranked(named, self._same, len(self.given))
        found = self._settings(self.setup, 1)
        if found:
            return found
        for layer in self._suspects():
            trials += self._sweep(replace(self.setup, at=frozenset({layer})), layer)
        named = self._finalists(trials)
        if named:
            return ranked(named, self._same, len(self.given))
        return (
            self._setting_and_late_bug()
            or self._settings(self.setup, 2)
            or self._pair(trials)
            or [self._unknown(trials)]
        )

    def _settings(self, base: Setup, count: int, more: str = "") -> list[Finding]:
        """So many settings, estimated; none if they do not explain everything."""
        late = None if self.first_bad or not self.first_given else True
        most = _LIKELY_TWO if count == 2 else _LIKELY_BESIDE if more else _LIKELY
        fitted = self._fitted(self.given, base, count, late=late, most=most)
        if fitted is None:
            return []
        return fitted.findings(more or ("two settings at once: " if count == 2 else ""))

    def _fitted(
        self,
        given: Mapping[str, Array],
        base: Setup,
        count: int,
        *,
        late: bool | None,
        most: int = _LIKELY,
    ) -> Fitted | None:
        """The likeliest settings with which nothing but rounding is left."""
        estimation = Estimation(given, self.allowed)
        for settings in estimation.likely(base, count, late=late)[:most]:
            fitted = estimation.fit(base, settings)
            if fitted is None or not (
                tight(given, fitted.predicted, self.allowed)
                or (fitted.explains > 0.9999 and self._is_tight_by_its_own(given, fitted))
            ):
                continue
            if fitted.is_significant:
                return fitted
        return None

    def _is_tight_by_its_own(self, given: Mapping[str, Array], fitted: Fitted) -> bool:
        """Whether all is explained if rounding goes as it does in the wrong steps."""
        predicted = {n: a for n, a in fitted.predicted.items() if n in given}
        own = yardstick_of(fitted.setup, predicted, runs=_OWN_RUNS).scaled(self.yardstick.u)
        return tight(given, predicted, replace(self.allowed, yardstick=own))

    def _setting_and_late_bug(self) -> list[Finding]:
        """A setting that explains the first step, and then a bug of the optimizer."""
        first = {name: array for name, array in self.given.items() if is_first_step(name)}
        if not self.first_bad or len(first) == len(self.given):
            return []
        fitted = self._fitted(first, self.setup, 1, late=False)
        if fitted is None:
            return []
        late = [bug for bug in TRAINING_BUGS if _is_late(bug)]
        seconds = self._trials(late, fitted.setup, None, first_only=False)
        named = self._finalists(seconds)
        if not named:
            return []
        best = min(named, key=lambda trial: trial.fit.remaining)
        return [*fitted.findings("two bugs at once, one of them: "), best.one_of_two()]

    def _sweep(self, setup: Setup, layer: str | None) -> list[Trial]:
        """Every bug that can explain what is wrong, on the numbers that tell soonest."""
        bugs = [
            bug
            for bug in TRAINING_BUGS
            if (layer is None or bug.scope != "network")
            and not (self.first_bad and _is_late(bug))
            and not (self.first_given and not self.first_bad and not _is_late(bug))
        ]
        return self._trials(bugs, setup, layer, first_only=self.first_bad)

    def _trials(
        self, bugs: Iterable[Bug[Setup]], setup: Setup, layer: str | None, *, first_only: bool
    ) -> list[Trial]:
        where = "" if layer is None else f" (in {layer} only)"
        tried = (
            self._trial(replace(mutant, where=where), first_only=first_only)
            for mutant in planted(bugs, Site(setup, setup.x), layer)
        )
        return [trial for trial in tried if trial is not None]

    def _trial(self, mutant: Mutant[Setup], *, first_only: bool) -> Trial | None:
        with np.errstate(all="ignore"):
            predicted = run(mutant.variant.program, first_only=first_only)
        common = {
            name: predicted[name]
            for name, array in self.given.items()
            if name in predicted
            and predicted[name].shape == array.shape
            and np.isfinite(predicted[name]).all()
        }
        fit = self._fit(common)
        if fit is None:
            return None
        return Trial(mutant, common, fit, self._within(common, self.yardstick))

    def _fit(self, predicted: Mapping[str, Array]) -> Fit | None:
        """Regress the residuals on the predicted changes; None if the bug changes nothing."""
        sums, count = list[tuple[float, ...]](), 0
        for name, values in predicted.items():
            scale, exact, given = self.yardstick.of[name].rms, self.exact[name], self.given[name]
            lost = ~np.isfinite(given)
            r = np.where(lost, 0, given - exact) / scale
            d = np.where(lost, 0, values - exact) / scale
            pairs = ((r, d), (d, d), (r - d, r - d), (r, r))
            sums.append(tuple(float((a * b).sum()) for a, b in pairs))
            count += r.size
        return fitted(Sums(*np.array(sums).T), count) if sums else None

    def _within(self, predicted: Mapping[str, Array], yardstick: Yardstick) -> bool:
        """Whether every wrong array is accounted for, and none is made wrong."""
        if any(name not in predicted for name in self._to_explain()):
            return False
        allowed = replace(self.allowed, yardstick=yardstick)
        return tight(self.given, predicted, allowed)

    def _to_explain(self) -> list[str]:
        """What a bug must predict; not what a batch norm in evaluation mode never computes."""
        return [n for n in self.bad if n in self.given and not n.startswith("batch_")]

    def _finalists(self, trials: list[Trial]) -> list[Trial]:
        """The best few, run to the end and judged by their own sensitivity to rounding."""
        best = sorted(trials, key=lambda t: t.fit.remaining)[:_FINALISTS]
        named = []
        for trial in best:
            if trial.fit.explains < 0.9:
                continue
            whole = self._trial(trial.mutant, first_only=False)
            if whole is not None and not whole.named and whole.fit.explains > 0.99:
                wrong = trial.mutant.variant.program
                own = yardstick_of(wrong, whole.predicted, runs=_OWN_RUNS)
                own = own.scaled(self.yardstick.u)
                whole = replace(whole, within=self._within(whole.predicted, own))
            if whole is not None and whole.named:
                named.append(whole)
        return named

    def _suspects(self) -> list[str]:
        """Layers where a bug of one layer could sit: where it shows first, and its neighbours."""
        layers = [spec.name for spec in self.setup.network.blocks]
        official = {self.setup.names[n]: n for n in self.setup.names}
        for name in self.bad:
            kind, _, rest = name.partition("/")
            ours = official.get(rest) or official.get(f"{rest}.weight", "")
            layer = next((x for x in layers if ours.startswith(f"{x}.")), None)
            if layer is not None and kind in _FIRST:
                at = layers.index(layer)
                return layers[max(0, at - 1) : at + 2]
        return layers[-1:] if self.first_bad else []

    def _pair(self, trials: list[Trial]) -> list[Finding]:
        """Two bugs at once: the most explaining ones with a setting, or two that add up."""
        size = sum(array.size for array in self.setup.params.values())
        if size > _MOST_PARAMETERS_FOR_PAIRS:
            return []
        for first in sorted(trials, key=lambda t: t.fit.remaining)[:_FIRSTS]:
            if first.fit.explains < _OF_TWO:
                continue
            wrong = first.mutant.variant.program
            found = self._settings(wrong, 1, "two bugs at once, one of them: ")
            if found:
                return [first.one_of_two(), *found]
        for first, mutant in self._pairs(trials):
            second = self._trial(mutant, first_only=False)
            if second is not None and second.named:
                return [first.one_of_two(), second.one_of_two()]
        return []

    def _pairs(self, trials: list[Trial]) -> Iterator[tuple[Trial, Mutant[Setup]]]:
        """Which two to try: one that explains the first step and a late one, then the best sums.

        The second is planted where the first one is.
        """
        if self.first_bad:
            for first in sorted(trials, key=lambda t: t.fit.remaining)[:_FIRSTS]:
                if first.fit.explains > 0.99:
                    late = filter(_is_late, TRAINING_BUGS)
                    yield from ((first, mutant) for mutant in _beside(first, late))
        for one, two in likely_pairs([t.predicted for t in trials], self.given, self.allowed):
            for first, second in ((trials[one], trials[two]), (trials[two], trials[one])):
                wanted = second.mutant.variant
                for mutant in _beside(first, [second.mutant.bug]):
                    found = mutant.variant
                    if (found.detail, found.parameter) == (wanted.detail, wanted.parameter):
                        yield first, mutant

    def _same(self, first: Trial, second: Trial) -> bool:
        return all(
            name in second.predicted
            and bool((np.abs(values - second.predicted[name]) <= self.yardstick.of[name].rms).all())
            for name, values in first.predicted.items()
        )

    def _unknown(self, trials: list[Trial]) -> Finding:
        """What can be said of a bug that is in no list: where, how large, and along what."""
        name = self.bad[0]
        says = f"no known training bug explains it; the first wrong numbers are {name}"
        if name in self.given and self.given[name].shape == self.exact[name].shape:
            says += ": " + _described(self.given[name], np.asarray(self.exact[name], np.float64))
        hint = max(trials, key=lambda t: t.fit.explains, default=None)
        if hint is not None and hint.fit.explains > 0.5:
            says += f"; {hint.mutant.bug.name} would explain {hint.fit.explains:.1%}"
        advice = "look at the operator whose gradient comes first in backward order"
        return Finding("unknown", name, None, 0.0, 0.0, says, advice)


def _beside(first: Trial, bugs: Iterable[Bug[Setup]]) -> Iterator[Mutant[Setup]]:
    """Bugs planted in addition to one that has been tried."""
    program, layer = first.mutant.variant.program, first.mutant.layer
    where = first.mutant.where
    for mutant in planted(bugs, Site(program, program.x), layer):
        yield replace(mutant, where=where)


def is_first_step(name: str) -> bool:
    """Whether a number belongs to the first step."""
    return name.partition("/")[0] in _FIRST


def _is_late(bug: Bug[Any]) -> bool:
    """Whether it shows after the first step only."""
    return bug.family in ("optimizer", "rates")


def _described(given: Array, exact: Array) -> str:
    """The relation of two arrays in words."""
    if not np.isfinite(given).all():
        return f"{int((~np.isfinite(given)).sum())} of {given.size} are NaN or infinite"
    norm = float(np.linalg.norm(exact))
    if norm == 0:
        return "zero in the reference, not in the dump"
    along = float((given * exact).sum()) / norm**2
    across = float(np.linalg.norm(given - along * exact)) / norm
    if across < 1e-4:
        return f"exactly {along:.4g} times the right ones"
    return f"{along:.3g} times the right ones plus something {across:.2g} of their size"
