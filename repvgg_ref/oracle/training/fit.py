"""The numbers that a port was trained with, estimated from its dump.

The residual of all arrays, each in units of what rounding does to it, is explained by changes of
one or two settings: Gauss-Newton, with the steps taken again at each estimate. A standard error has
two parts. One is cluster-robust with arrays as clusters; the other is what the rounding errors of a
few float32 runs would have moved the estimate by, since one early error goes through all arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError
from repvgg_ref.oracle.report import Finding
from repvgg_ref.oracle.training.allowance import Allowance, allowance
from repvgg_ref.oracle.training.order import phase
from repvgg_ref.oracle.training.rounding import samples_of_rounding
from repvgg_ref.oracle.training.run import Arrays, Setup, run
from repvgg_ref.oracle.training.settings import SETTINGS, Setting

_MOST_NUMBERS = 4096  # of one array; more would not make an estimate surer than others are
_ITERATIONS = 12
# How far a setting is moved for its derivative, in its own size. A ReLU may switch within the first
# nudge and spoil it: where its steps stall the next is taken, and after the last there is no more.
_NUDGES = (1e-4, -1e-6, 1e-6)
_STALLED = 0.98  # of the energy is left after a step
_CONVERGED = 1e-7
_HOPELESS = 0.1  # of the error: two settings that explain less are not estimated
_FAR = 0.1  # of an array's own distance is added to its unit
_SIGNIFICANT = 5.0  # standard errors
_RUNS = 3
_PHASES = {"forward": 0, "backward": 1, "after": 2, "statistics": 2}


@dataclass(frozen=True)
class Fitted:
    """Settings estimated together.

    Attributes
    ----------
    values : tuple of float
        Estimates, one a setting.
    estimated : callable
        Gives their standard errors; that takes some runs.
    setup : Setup
        The setup with these values.
    predicted : mapping
        What it gives.
    remaining : float
        Root mean square of what is left, in units of what rounding does.
    explains : float
        The share of the residual that is gone.
    """

    base: Setup
    settings: tuple[Setting, ...]
    values: tuple[float, ...]
    estimated: Callable[[], Array]
    setup: Setup
    predicted: Arrays
    remaining: float
    explains: float

    @cached_property
    def errors(self) -> tuple[float, ...]:
        """Standard errors of the values."""
        return tuple(map(float, self.estimated()))

    @property
    def is_significant(self) -> bool:
        """Whether every setting is away from the reference's."""
        right = [setting.right(self.base) or 0.0 for setting in self.settings]
        return all(
            abs(value - start) > _SIGNIFICANT * error
            for value, start, error in zip(self.values, right, self.errors, strict=True)
        )

    def findings(self, more: str = "") -> list[Finding]:
        """One finding a setting."""
        return [
            Finding(
                bug=_called(setting, value, error),
                layer=None,
                estimate=value,
                confidence=1.0,
                explains=self.explains,
                says=more + _said(setting, self.base, value, error),
                advice=setting.advice.format(right=setting.right(self.base)),
                standard_error=error,
            )
            for setting, value, error in zip(self.settings, self.values, self.errors, strict=True)
        ]


class Estimation:
    """A dump, and settings to be told from it."""

    def __init__(self, given: Mapping[str, Array], allowed: Allowance) -> None:
        self._allowed = allowed
        self._numbers: dict[str, tuple[Array, float]] = {}  # name -> which, and their unit
        target = []
        rng = np.random.default_rng(0)
        for name, array in given.items():
            unit = allowed.of(name).rms
            if not np.isfinite(array).all() or unit < 1e-100:
                continue
            chosen = np.arange(array.size)
            if array.size > _MOST_NUMBERS:
                chosen = rng.choice(array.size, _MOST_NUMBERS, replace=False)
            self._numbers[name] = chosen, unit
            target.append(array.reshape(-1)[chosen] / unit)
        self._target = np.concatenate(target) if target else np.zeros(0)
        self._phases = np.zeros(len(self._target))
        for name, part in zip(self._numbers, self._clusters(), strict=True):
            self._phases[part] = 2 if name == "losses" else _PHASES[phase(name)]

    def likely(
        self, base: Setup, count: int, *, late: bool | None = None
    ) -> list[tuple[Setting, ...]]:
        """The sets of `count` settings whose small changes explain most, the best first.

        Parameters
        ----------
        late : bool, optional
            Only settings that change nothing in the first step, or only the others.
        """
        settings = [
            setting
            for setting in SETTINGS
            if setting.right(base) is not None and late in (None, setting.late)
        ]
        start = self._vector(base)
        if start is None or not settings:
            return []
        columns, kept = [], []
        for setting in settings:
            right = np.array([setting.right(base) or 0.0])
            column = self._derivative(base, (setting,), right, 0, start, _NUDGES[0])
            if column is not None and np.any(column):
                columns.append(column)
                kept.append(setting)
        if len(kept) < count:
            return []
        found = []
        weight = self._weight(self._target - start)
        weighted = np.array(columns) * weight
        gram = weighted @ weighted.T
        along = weighted @ (weight * (self._target - start))
        for chosen in combinations(range(len(kept)), count):
            some = list(chosen)
            g, a = gram[np.ix_(some, some)], along[some]
            explained = float(a @ np.linalg.lstsq(g, a, rcond=1e-12)[0])
            found.append((explained, tuple(kept[i] for i in some)))
        found.sort(key=lambda pair: -pair[0])
        least = _HOPELESS * float(((weight * (self._target - start)) ** 2).sum())
        return [settings for explained, settings in found if explained > least or count == 1]

    def fit(self, base: Setup, settings: Sequence[Setting]) -> Fitted | None:
        """Estimate settings; None if the steps with them are not finite."""
        values = np.array([setting.right(base) or 0.0 for setting in settings])
        first = self._vector(base)
        if first is None:
            return None
        # What is near the cause responds most evenly: it says where to look with everything.
        values, here, _ = self._descended(base, settings, values, first, self._phases == 0)
        values, here, _ = self._descended(base, settings, values, here, self._phases <= 1)
        values, here, jacobian = self._descended(base, settings, values, here, self._phases <= 2)
        if not np.isfinite(jacobian).all():
            return None
        setup = _at(base, settings, values)
        left = self._target - here
        energy = float(((self._target - first) ** 2).sum())
        with np.errstate(all="ignore"):
            predicted = run(setup)
        return Fitted(
            base,
            tuple(settings),
            tuple(map(float, values)),
            partial(self._errors, setup, jacobian, left),
            setup,
            predicted,
            float(np.sqrt(np.mean(left**2))),
            1 - float((left**2).sum()) / energy if energy > 0 else 0.0,
        )

    def _descended(
        self,
        base: Setup,
        settings: Sequence[Setting],
        values: Array,
        here: Array,
        counts: Array,
    ) -> tuple[Array, Array, Array]:
        """Gauss-Newton from `values`: where it ends, what that gives, and its derivatives."""
        jacobian = np.full((len(here), len(settings)), np.nan)
        nudges = iter(_NUDGES)
        nudge = next(nudges)
        for _ in range(_ITERATIONS if counts.any() else 0):
            columns = [
                self._derivative(base, settings, values, i, here, nudge) for i in range(len(values))
            ]
            if any(column is None for column in columns):
                break
            jacobian = np.array(columns).T
            weight = counts * self._weight(self._target - here)
            step = np.linalg.lstsq(
                jacobian * weight[:, None], weight * (self._target - here), rcond=1e-12
            )[0]
            moved = self._moved(base, settings, values, step, here, weight)
            if moved is not None:
                done = np.abs(moved[0] - values) <= _CONVERGED * _sizes(settings, values)
                values, here, left = moved
                if done.all():
                    break
            if moved is None or left > _STALLED:
                nudge = next(nudges, 0.0)
                if not nudge:
                    break
        return values, here, jacobian

    def _moved(
        self,
        base: Setup,
        settings: Sequence[Setting],
        values: Array,
        step: Array,
        here: Array,
        weight: Array,
    ) -> tuple[Array, Array, float] | None:
        """New values, what they give, the energy's share left; steps shortened until better."""
        least = np.array([setting.least for setting in settings])
        before = float(((weight * (self._target - here)) ** 2).sum())
        for _ in range(4):
            tried = np.maximum(values + step, least)
            there = self._vector(_at(base, settings, tried))
            if there is not None:
                left = float(((weight * (self._target - there)) ** 2).sum())
                if left <= before:
                    return tried, there, left / max(before, 1e-300)
            step = step / 4
        return None

    def _vector(self, setup: Setup) -> Array | None:
        """What a setup gives, in the units and places of the target."""
        try:
            with np.errstate(all="ignore"):
                return self._taken(run(setup))
        except ReportedError:  # a smoothing above 1
            return None

    def _taken(self, found: Mapping[str, Array]) -> Array | None:
        parts = []
        for name, (chosen, unit) in self._numbers.items():
            if name not in found:
                if name.startswith("batch_"):
                    return None
                continue
            parts.append(np.asarray(found[name]).reshape(-1)[chosen] / unit)
        vector = np.concatenate(parts) if parts else np.zeros(0)
        return vector if vector.shape == self._target.shape and np.isfinite(vector).all() else None

    def _weight(self, left: Array) -> Array:
        """What every number counts: an array far from its target no more than one that is near.

        Effects are linear where they begin and less so the further they have gone.
        """
        weight = np.empty_like(left)
        for part in self._clusters():
            weight[part] = 1 / np.hypot(1, _FAR * np.sqrt(np.mean(left[part] ** 2)))
        return weight

    def _derivative(
        self,
        base: Setup,
        settings: Sequence[Setting],
        values: Array,
        moved: int,
        here: Array,
        share: float,
    ) -> Array | None:
        """What all numbers gain from one of the settings, moved by a share of its size."""
        nudge = share * max(abs(values[moved]), settings[moved].unit)
        nudged = values + nudge * (np.arange(len(values)) == moved)
        there = self._vector(_at(base, settings, nudged))
        return None if there is None else (there - here) / nudge

    def _errors(self, setup: Setup, jacobian: Array, left: Array) -> Array:
        """Standard errors of the estimates."""
        bread = np.linalg.pinv(jacobian.T @ jacobian)
        meat = np.zeros_like(bread)
        for part in self._clusters():
            score = jacobian[part].T @ left[part]
            meat += np.outer(score, score)
        robust = np.diag(bread @ meat @ bread)
        moved = [
            bread @ (jacobian.T @ error)
            for sample in samples_of_rounding(setup, _RUNS)
            if (error := self._taken(sample)) is not None
        ]
        level = max(self._allowed.level.values())
        rounding = level**2 * np.mean(np.square(moved), axis=0) if moved else 0.0
        return np.asarray(np.sqrt(robust + rounding))

    def _clusters(self) -> Iterator[slice]:
        at = 0
        for chosen, _ in self._numbers.values():
            yield slice(at, at + len(chosen))
            at += len(chosen)


def tight(given: Mapping[str, Array], predicted: Mapping[str, Array], allowed: Allowance) -> bool:
    """Whether a dump is what was `predicted` but for rounding, by its own level."""
    names = [name for name in given if name in predicted]
    errors = {name: given[name] - predicted[name] for name in names}
    if not all(np.isfinite(error).all() for error in errors.values()):
        return False
    own = replace(allowance(allowed.yardstick, predicted, errors), exact=predicted)
    grown = {name: _growth(predicted[name], allowed.exact[name]) for name in names}
    return all(own.used(name, error) <= grown[name] for name, error in errors.items())


def _growth(predicted: Array, exact: Array) -> float:
    """A bug that makes numbers larger makes their rounding larger, in proportion."""
    size = float(np.abs(exact).max())
    return max(1.0, float(np.abs(predicted).max()) / size if size > 0 else 1.0)


def _at(base: Setup, settings: Sequence[Setting], values: Array) -> Setup:
    for setting, value in zip(settings, values, strict=True):
        base = setting.at(base, float(value))
    return base


def _sizes(settings: Sequence[Setting], values: Array) -> Array:
    return np.maximum(np.abs(values), [setting.unit for setting in settings])


def _called(setting: Setting, value: float, error: float) -> str:
    """The name of the disagreement."""
    is_zero = abs(value) <= max(_SIGNIFICANT * error, 1e-6 * setting.unit)
    return setting.at_zero if setting.at_zero and is_zero else setting.bug


def _said(setting: Setting, base: Setup, value: float, error: float) -> str:
    """The sentence, the value with as many digits as its error leaves."""
    right = setting.right(base) or 0.0
    digits = 2
    if error > 0 and value:
        digits = int(np.clip(np.ceil(np.log10(abs(value) / error)) + 1, 2, 8))
    shown = f"{value:.{digits}g} (standard error {error:.1g})"
    return setting.says.format(value=shown, right=f"{right:g}")
