"""Which bug is it? Every one is tried on the candidate's own input of one layer.

A bug is *named* if its prediction leaves nothing but rounding. If no single one does, pairs are
composed and tried, then each with something that is in no library; if none does, the answer is
"unknown", with what the residual looks like.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs import Bug, Site, bugs_for
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.diagnosis.composed import composed
from repvgg_ref.oracle.diagnosis.evidence import LayerEvidence
from repvgg_ref.oracle.diagnosis.pattern import unknown
from repvgg_ref.oracle.diagnosis.ranking import Trial
from repvgg_ref.oracle.programs.program import Program, Workspace, batch_output
from repvgg_ref.oracle.report import Finding

_PAIR_STARTS = 6
_PAIRS = 4  # of effects that add up to what is seen
_PIXELS = 24  # for a first look
_PARALLEL = 1e-4  # squared sine: effects too alike to be two

# Of two bugs at once the larger explains half of the residual or more if their effects are
# orthogonal, and still a twentieth if those cancel with a correlation of -0.47.
_PAIR_EXPLAINS = 0.05

_LEFT = 1e-4  # of a wrong shape's energy, by the bug that explains it


def diagnose(
    evidence: LayerEvidence, *, thoroughly: bool = True, together: Collection[str] | None = None
) -> list[Finding]:
    """Explain one bad layer: the named bug, two bugs at once, or "unknown" with a description.

    Parameters
    ----------
    thoroughly : bool
        Whether to look for one known bug beside something that is in no library, which takes
        seconds.
    together : collection of str, optional
        Only these bugs are tried as two at once, which takes seconds otherwise.
    """
    trials = list(evidence.trials())
    if named := [trial for trial in trials if trial.named]:
        return evidence.seen.ranked(named)
    if two := _pair(evidence, trials, together):
        return two
    found, alone = composed(evidence, trials) if thoroughly else ([], None)
    return found or [unknown(evidence, trials, alone)]


def diagnose_shape(site: Site[Any], y_hat: Array) -> list[Finding]:
    """Explain an output of the wrong size by a program that has this size and these values."""
    found: list[Finding] = []
    name = site.program.name
    for mutant in planted(bugs_for(site.program), site, name):
        left = _left_of(mutant.variant.program, site.x, y_hat)
        if left < _LEFT:
            bug, parameter = mutant.bug, mutant.variant.parameter
            explains = 1 - left
            found.append(Finding(bug.name, name, parameter, 1.0, explains, mutant.says, bug.advice))
    return sorted(found, key=lambda finding: -finding.explains)[:3]


def _left_of(program: Program, x: Array, y_hat: Array) -> float:
    """Energy of `y_hat` that the program's output does not account for; 1 if sizes differ."""
    size = program.output_size(*x.shape[2:])
    if size != y_hat.shape[2:] or min(size, default=1) < 1:
        return 1.0
    predicted = batch_output(program, x)
    return energy_left(predicted, y_hat) if predicted.shape == y_hat.shape else 1.0


def energy_left(predicted: Array, y_hat: Array) -> float:
    """The share of the energy of `y_hat` that a prediction of its shape does not account for."""
    return float(((y_hat - predicted) ** 2).sum() / max(float((y_hat**2).sum()), 1e-300))


def _pair(
    evidence: LayerEvidence, trials: list[Trial], together: Collection[str] | None
) -> list[Finding]:
    """Two bugs at once: the most explaining ones, each composed with every other."""
    if together is not None:
        trials = [trial for trial in trials if trial.mutant.bug.name in together]
    pairs: list[tuple[Trial, Trial]] = []
    thin = evidence.thinned(_PIXELS)
    for first in _starts(evidence, trials):
        thin.workspace = Workspace()  # another program's responses are of no use to this one
        evidence.workspace = Workspace()
        site = replace(evidence.site, program=first.mutant.variant.program)
        some = thin.trials(site) if together is None else thin.trials_of(_of(together, site), site)
        for second in some:
            if second.mutant.bug.name != first.mutant.bug.name and second.named:
                closer = evidence.trial(second.mutant)
                if closer is not None and closer.named:
                    pairs.append((first, closer))
    if not pairs:
        return []
    best = min(pairs, key=lambda pair: pair[1].fit.remaining)
    alike = [pair for pair in pairs if evidence.seen.same(pair[1], best[1])]
    found = []
    for which, trial in enumerate(best):
        other = best[1 - which].mutant.bug.name
        names = [
            pair[which].mutant.bug.name
            for pair in alike
            if pair[1 - which].mutant.bug.name == other
        ]
        also = tuple(dict.fromkeys(name for name in names if name != trial.mutant.bug.name))
        explains = best[1].fit.explains
        found.append(replace(trial.one_of_two(), explains=explains, equivalents=also))
    return found


def _of(names: Collection[str], site: Site[Any]) -> list[Bug[Any]]:
    return [bug for bug in bugs_for(site.program) if bug.name in names]


def _starts(evidence: LayerEvidence, trials: list[Trial]) -> list[Trial]:
    """Trials that may be one of two: those that leave least alone, and those of the best pairs.

    For the pairs both effects are taken to add up, each with a factor of its own: least squares in
    two unknowns for all pairs at once.
    """
    alone = [trial for trial in trials if trial.fit.explains > _PAIR_EXPLAINS]
    starts = sorted(alone, key=lambda t: t.fit.remaining)[:_PAIR_STARTS]
    seen = evidence.seen
    finite = np.isfinite(seen.y_hat)
    weight = np.where(finite, 1 / seen.likely, 0.0)
    size = float(np.sqrt(((weight * seen.residual) ** 2).sum()))
    if not size > 0 or not trials:
        return starts
    rows = np.stack([(weight * (trial.predicted - seen.y)).ravel() for trial in trials])
    sizes = np.sqrt((rows * rows).sum(axis=1))
    keep = (sizes > 1e-6 * size) & np.isfinite(sizes)
    kept = [trial for trial, good in zip(trials, keep, strict=True) if good]
    rows = rows[keep] / sizes[keep, None]
    cross = rows @ (weight * seen.residual).ravel() / size
    angle = rows @ rows.T  # cosines
    apart = np.maximum(1 - angle**2, 1e-9)
    explained = (cross[:, None] ** 2 + cross**2 - 2 * angle * np.outer(cross, cross)) / apart
    explained[1 - angle**2 < _PARALLEL] = 0.0
    for at in np.argsort(-np.triu(explained, 1), axis=None)[:_PAIRS]:
        for which in np.unravel_index(at, explained.shape):
            if not any(kept[which] is start for start in starts):
                starts.append(kept[which])
    return starts
