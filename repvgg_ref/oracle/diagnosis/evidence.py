"""What a candidate shows of one layer, and what each bug would have shown instead."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.block import Bound
from repvgg_ref.oracle.bugs import Bug, Mutant, Site, bugs_for
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.diagnosis.ranking import Observation, Trial
from repvgg_ref.oracle.diagnosis.regression import regress
from repvgg_ref.oracle.programs.program import Pixels, Program, Workspace, all_pixels

_MOST_PIXELS = 96

# A continuous parameter is fitted from the settings that fit best, in steps of its logarithm.
_STARTS, _STEPS, _RANGE = 3, 20, (1e-15, 10.0)

# Two bugs at once need not make sense together: one leaves a quarter of the channels (groups
# ignored), the other permutes all of them.
DO_NOT_FIT = (IndexError, ValueError)


class Evidence:
    """One layer of a candidate beside the reference; `precision` excuses its own rounding."""

    fits_parameters = True  # else only the settings that a bug is likely to have are tried

    def __init__(self, site: Site[Any], seen: Observation, precision: str = "") -> None:
        self.site, self.seen, self.precision = site, seen, precision
        self.layer: str = site.program.name

    def predict(self, program: Program) -> Array | None:
        """What `seen` would be of this program, (N, O, P); None if it cannot be."""
        raise NotImplementedError

    def trial(self, mutant: Mutant[Any]) -> Trial | None:
        """Compare one mutant; None if it changes nothing here."""
        predicted = self.predict(mutant.variant.program)
        return None if predicted is None else self.seen.compare(mutant, predicted)

    def trials(self, site: Site[Any] | None = None) -> Iterator[Trial]:
        """Every bug that applies at `site` (default: the layer's), continuous parameters fitted."""
        site = site or self.site
        yield from self.trials_of(bugs_for(site.program), site)

    def trials_of(self, bugs: Iterable[Bug[Any]], site: Site[Any]) -> Iterator[Trial]:
        """These bugs at `site`, continuous parameters fitted."""
        for bug in bugs:
            try:
                yield from self._trials_of(bug, site)
            except DO_NOT_FIT:
                continue

    def hidden_trials(self, bug: str) -> Iterator[Trial]:
        """A bug of the library in what leads to this layer and is not shown; here nothing is."""
        yield from ()

    def usual(self) -> Iterator[Trial]:
        """Bugs with a continuous parameter, at the values that people use."""
        bugs = [bug for bug in bugs_for(self.site.program) if bug.continuous]
        for mutant in planted(bugs, self.site, self.layer, precision=self.precision):
            try:
                trial = self.trial(mutant)
            except DO_NOT_FIT:
                continue
            if trial is not None:
                yield trial

    def _trials_of(self, bug: Bug[Any], site: Site[Any]) -> Iterator[Trial]:
        found = planted([bug], site, self.layer, precision=self.precision)
        tried = (trial for mutant in found if (trial := self.trial(mutant)) is not None)
        if not (bug.continuous and self.fits_parameters):
            yield from tried
            return
        starts = _starts(sorted(tried, key=lambda trial: trial.fit.remaining))
        ends = [trial for start in starts if (trial := self.trial(self.fitted(start.mutant)))]
        yield from sorted(ends, key=lambda trial: trial.fit.remaining)[:1]

    def fitted(self, mutant: Mutant[Any]) -> Mutant[Any]:
        """Gauss-Newton on the logarithm of the parameter."""
        at, value = mutant.variant.at, mutant.variant.parameter
        assert at is not None
        assert value is not None
        for _ in range(_STEPS):
            here, near = self.predict(at(value)), self.predict(at(value * 1.001))
            if here is None or near is None:
                break
            residual = np.where(np.isfinite(self.seen.y_hat), self.seen.y_hat - here, 0.0)
            fit = regress(residual, (near - here) / np.log(1.001), self.seen.likely)
            if fit is None:
                break
            step = float(np.clip(fit.coefficient, -2, 2))
            value = float(np.clip(value * np.exp(step), *_RANGE))
            if abs(step) < max(1e-6, 0.01 * fit.standard_error):
                break
        variant = mutant.variant._replace(program=at(value), parameter=value)
        return replace(mutant, variant=variant)


def _starts(best: list[Trial]) -> list[Trial]:
    """Where to fit from: the best trials, and the best of each other detail (some norms, say)."""
    chosen = best[:_STARTS]
    seen = {trial.mutant.variant.detail for trial in chosen}
    for trial in best[_STARTS:]:
        if trial.mutant.variant.detail not in seen:
            seen.add(trial.mutant.variant.detail)
            chosen.append(trial)
    return chosen


class LayerEvidence(Evidence):
    """A layer's output, at sampled pixels."""

    def __init__(
        self,
        site: Site[Any],
        y: Array,
        y_hat: Array,
        bound: Bound,
        precision: str = "",
        *,
        everywhere: bool = False,
    ) -> None:
        self.size = y.shape[2:]
        image = self.size or (1, 1)
        self.pixels = all_pixels(*image) if everywhere else sample_pixels(*image)
        self.workspace = Workspace()
        seen = Observation(*map(self.at_pixels, (y, y_hat, *bound)))
        super().__init__(site, seen, precision)

    def at_pixels(self, y: Array) -> Array:
        """A whole output's sampled pixels, (N, O, P)."""
        rows, columns = self.pixels
        width = self.size[1] if self.size else 1
        return np.asarray(y.reshape(*y.shape[:2], -1)[:, :, rows * width + columns])

    def predict(self, program: Program) -> Array | None:
        """The program's output at the sampled pixels; None if it has another size."""
        return self.predict_in(program, self.workspace)

    def thinned(self, most: int) -> LayerEvidence:
        """At so many of the pixels, spread: a cheap first look at what many programs give."""
        count = len(self.pixels[0])
        at = np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
        thin = copy.copy(self)
        thin.pixels = self.pixels[0][at], self.pixels[1][at]
        seen = self.seen
        values = (a[:, :, at] for a in (seen.y, seen.y_hat, seen.certified, seen.likely))
        thin.seen, thin.workspace = Observation(*values), Workspace()
        return thin

    def predict_in(
        self, program: Program, workspace: Workspace, pixels: Pixels | None = None
    ) -> Array | None:
        """The same at other pixels, sharing what programs of another site share."""
        pixels = pixels or self.pixels
        if program.output_size(*self.site.x.shape[2:]) != self.size:
            return None
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                predicted = program.evaluate(self.site.x, pixels, workspace)
        except DO_NOT_FIT:
            return None
        wanted = (*self.seen.y.shape[:2], len(pixels[0])) if self.size else self.seen.y.shape
        if predicted.shape != wanted or not np.isfinite(predicted).all():
            return None
        return predicted

    def neighbours(self, program: Program, workspace: Workspace) -> Array | None:
        """The program's outputs at the sampled pixels and the eight around each, (9, N, O, P).

        Beyond the border it goes on at the other side.
        """
        height, width = self.size
        by = np.arange(-1, 2)
        rows = (self.pixels[0] + by[:, None, None]) % height + 0 * by[:, None]  # (3, 3, P)
        columns = (self.pixels[1] + by[:, None]) % width + 0 * by[:, None, None]
        found = self.predict_in(program, workspace, (rows.ravel(), columns.ravel()))
        if found is None:
            return None
        return np.moveaxis(found.reshape(*found.shape[:2], 9, -1), 2, 0)


def sample_pixels(height: int, width: int) -> Pixels:
    """Output pixels to look at: all if few, else corners, borders and a spread of the interior."""
    rows, columns = all_pixels(height, width)
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
