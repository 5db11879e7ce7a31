"""Which training bug is it? Every one is trained with, and held against the dump.

The residual of all arrays together is regressed on what the bug would change, each array in units
of its yardstick, arrays as clusters: as `oracle.regression` does for a layer's channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import scipy  # its parts are loaded when they are first used: a second of start-up

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.diagnosis.regression import Fit, posterior
from repvgg_ref.oracle.report import Finding
from repvgg_ref.oracle.training.bugs import LIBRARY, TrainingBug, Wrong
from repvgg_ref.oracle.training.noise import ALLOWED, Yardstick, measure
from repvgg_ref.oracle.training.run import Setup, run

_MOST_FINDINGS = 5
_FINALISTS = 6
_OWN_RUNS = 3
# Two bugs at once are looked for where a run is quick.
_MOST_PARAMETERS_FOR_PAIRS = 3_000_000
_FIRST = ("loss", "logits", "batch_mean", "batch_var", "grad", "stat")


@dataclass(frozen=True)
class Trial:
    """One wrong setup beside the dump."""

    bug: TrainingBug
    wrong: Wrong
    layer: str | None
    predicted: Mapping[str, Array]
    fit: Fit
    within: bool

    @property
    def named(self) -> bool:
        """Whether this alone leaves nothing but rounding."""
        return self.within and self.fit.is_this

    @property
    def says(self) -> str:
        """The bug's sentence, filled in."""
        text = self.bug.says.format(parameter=self.wrong.parameter or 0.0, detail=self.wrong.detail)
        return text if self.layer is None else f"{text} (in {self.layer} only)"


class TrainingCase:
    """A dump that disagrees, and everything needed to explain it."""

    def __init__(
        self,
        setup: Setup,
        exact: Mapping[str, Array],
        given: Mapping[str, Array],
        yardstick: Yardstick,
        bad: list[str],
    ) -> None:
        self.setup, self.exact, self.yardstick, self.bad = setup, exact, yardstick, bad
        self.given = {name: array for name, array in given.items() if name in yardstick.of}
        self.first_given = any(is_first_step(name) for name in self.given)
        self.first_bad = any(is_first_step(name) for name in bad)

    def findings(self) -> list[Finding]:
        """The bug's name, or "unknown" with what can be said."""
        if not self.given:
            return []
        trials = self._sweep(self.setup, None)
        named = self._finalists(trials)
        if not named:
            for layer in self._suspects():
                trials += self._sweep(replace(self.setup, at=frozenset({layer})), layer)
            named = self._finalists(trials)
        if named:
            return self._ranked(named)
        return self._pair(trials) or [self._unknown(trials)]

    def _sweep(self, setup: Setup, layer: str | None) -> list[Trial]:
        """Every bug that can explain what is wrong, on the numbers that tell soonest."""
        bugs = [
            bug
            for bug in LIBRARY
            if (bug.local or layer is None)
            and not (self.first_bad and not bug.first)
            and not (self.first_given and not self.first_bad and bug.first)
        ]
        return self._trials(bugs, setup, layer, first_only=self.first_bad)

    def _trials(
        self, bugs: Iterable[TrainingBug], setup: Setup, layer: str | None, *, first_only: bool
    ) -> list[Trial]:
        tried = (
            self._trial(bug, wrong, layer, first_only=first_only)
            for bug, wrong in wrong_setups(setup, bugs)
        )
        return [trial for trial in tried if trial is not None]

    def _trial(
        self, bug: TrainingBug, wrong: Wrong, layer: str | None, *, first_only: bool
    ) -> Trial | None:
        with np.errstate(all="ignore"):
            predicted = run(wrong.setup, first_only=first_only)
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
        return Trial(bug, wrong, layer, common, fit, self._within(common, self.yardstick))

    def _fit(self, predicted: Mapping[str, Array]) -> Fit | None:
        """Regress the residuals on the predicted changes; None if the bug changes nothing."""
        cross, power, energy, left, count = [], [], 0.0, 0.0, 0
        for name, values in predicted.items():
            scale, exact, given = self.yardstick.of[name].rms, self.exact[name], self.given[name]
            lost = ~np.isfinite(given)
            r = np.where(lost, 0, given - exact) / scale
            d = np.where(lost, 0, values - exact) / scale
            cross.append(float((r * d).sum()))
            power.append(float((d * d).sum()))
            energy += float((r * r).sum())
            left += float(((r - d) ** 2).sum())
            count += r.size
        crosses, powers = np.array(cross), np.array(power)
        total = float(powers.sum())
        if not 0 < total < np.inf:
            return None
        coefficient = float(crosses.sum() / total)
        spread = crosses - coefficient * powers
        clusters = float(total**2 / (powers**2).sum())
        freedom = max(clusters - 1, 0.5)
        error = float(np.sqrt((spread**2).sum() * clusters / freedom) / total)
        error = max(error, float(np.sqrt(left / max(count, 1) / total)), 1e-300)
        p_value = float(2 * scipy.stats.t.sf(abs(coefficient / error), freedom))
        explains = 1 - left / energy if energy > 0 else 0.0
        return Fit(coefficient, error, p_value, explains, float(np.sqrt(left / max(count, 1))))

    def _within(self, predicted: Mapping[str, Array], yardstick: Yardstick) -> bool:
        """Whether every wrong array is accounted for, and none is made wrong."""
        if any(name not in predicted for name in self._to_explain()):
            return False
        return all(
            _agrees(self.given[name], values, yardstick, name, self.exact[name])
            for name, values in predicted.items()
        )

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
            whole = self._trial(trial.bug, trial.wrong, trial.layer, first_only=False)
            if whole is not None and not whole.named and whole.fit.explains > 0.99:
                own = measure(
                    trial.wrong.setup, whole.predicted, u=self.yardstick.u, runs=_OWN_RUNS
                )
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
        """Two bugs at once: the most explaining ones, each with every other."""
        size = sum(array.size for array in self.setup.params.values())
        if size > _MOST_PARAMETERS_FOR_PAIRS:
            return []
        for first in sorted(trials, key=lambda t: t.fit.remaining)[:2]:
            others = [bug for bug in LIBRARY if bug.name != first.bug.name]
            seconds = self._trials(others, first.wrong.setup, first.layer, first_only=False)
            best = min(seconds, key=lambda t: t.fit.remaining, default=None)
            if best is not None and best.named:
                chosen = (self._finding(first, 0.5), self._finding(best, 0.5))
                return [replace(f, says="two bugs at once, one of them: " + f.says) for f in chosen]
        return []

    def _ranked(self, trials: list[Trial]) -> list[Finding]:
        """Likeliest first; those that predict the same numbers are listed as equivalent."""
        order = sorted(trials, key=lambda t: round(float(np.log(max(t.fit.remaining, 1e-30))), 2))
        groups: list[list[Trial]] = []
        for trial in order:
            home = next((g for g in groups if self._same(g[0], trial)), None)
            if home is None:
                groups.append([trial])
            else:
                home.append(trial)
        chances = posterior([g[0].fit.remaining for g in groups], len(self.given))
        ranking = sorted(zip(groups, chances, strict=True), key=lambda pair: -round(pair[1], 9))
        return [
            self._finding(g[0], chance, tuple(t.bug.name for t in g[1:]))
            for g, chance in ranking[:_MOST_FINDINGS]
        ]

    def _same(self, first: Trial, second: Trial) -> bool:
        return all(
            name in second.predicted
            and bool((np.abs(values - second.predicted[name]) <= self.yardstick.of[name].rms).all())
            for name, values in first.predicted.items()
        )

    def _finding(
        self, trial: Trial, confidence: float, equivalents: tuple[str, ...] = ()
    ) -> Finding:
        parameter = trial.wrong.parameter
        return Finding(
            bug=trial.bug.name,
            layer=trial.layer,
            estimate=trial.fit.coefficient if parameter is None else parameter,
            confidence=confidence,
            explains=trial.fit.explains,
            says=trial.says,
            advice=trial.bug.advice,
            standard_error=trial.fit.standard_error,
            equivalents=tuple(dict.fromkeys(n for n in equivalents if n != trial.bug.name)),
        )

    def _unknown(self, trials: list[Trial]) -> Finding:
        """What can be said of a bug that is in no list: where, how large, and along what."""
        name = self.bad[0]
        says = f"no known training bug explains it; the first wrong numbers are {name}"
        if name in self.given and self.given[name].shape == self.exact[name].shape:
            says += ": " + _described(self.given[name], np.asarray(self.exact[name], np.float64))
        hint = max(trials, key=lambda t: t.fit.explains, default=None)
        if hint is not None and hint.fit.explains > 0.5:
            says += f"; {hint.bug.name} would explain {hint.fit.explains:.1%}"
        advice = "look at the operator whose gradient comes first in backward order"
        return Finding("unknown", name, None, 0.0, 0.0, says, advice)


def is_first_step(name: str) -> bool:
    """Whether a number belongs to the first step."""
    return name.partition("/")[0] in _FIRST


def _agrees(given: Array, wanted: Array, yardstick: Yardstick, name: str, exact: Array) -> bool:
    """`given` is `wanted` but for rounding, which grows with what the bug makes larger."""
    size = float(np.abs(exact).max())
    growth = 1 + (float(np.abs(wanted).max()) / size if size > 0 else 0.0)
    error = np.abs(given - wanted)
    yard = yardstick.of[name]
    return bool((error <= ALLOWED * growth * yard.largest).all()) and bool(
        np.sqrt(np.mean(error**2)) <= ALLOWED * growth * yard.rms
    )


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


def wrong_setups(
    setup: Setup, bugs: Iterable[TrainingBug] = LIBRARY
) -> Iterator[tuple[TrainingBug, Wrong]]:
    """Every bug, planted everywhere it applies."""
    for bug in bugs:
        for wrong in bug.mutate(setup):
            yield bug, wrong
