"""Which bug is it? Every one is tried on the candidate's own input of one layer.

A bug is *named* if its prediction leaves nothing but rounding. If no single one does, pairs are
composed and tried; if none does, the answer is "unknown", with what the residual looks like.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs import Site, bugs_for
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.diagnosis.evidence import LayerEvidence
from repvgg_ref.oracle.diagnosis.pattern import unknown
from repvgg_ref.oracle.diagnosis.ranking import Trial
from repvgg_ref.oracle.programs.program import Program, Workspace, batch_output
from repvgg_ref.oracle.report import Finding

_PAIR_STARTS = 6

# Of two bugs at once the larger explains half of the residual or more if their effects are
# orthogonal, and still a twentieth if those cancel with a correlation of -0.47.
_PAIR_EXPLAINS = 0.05

_LEFT = 1e-4  # of a wrong shape's energy, by the bug that explains it


def diagnose(evidence: LayerEvidence) -> list[Finding]:
    """Explain one bad layer: the named bug, two bugs at once, or "unknown" with a description."""
    trials = list(evidence.trials())
    if named := [trial for trial in trials if trial.named]:
        return evidence.seen.ranked(named)
    return _pair(evidence, trials) or [unknown(evidence, trials)]


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


def _pair(evidence: LayerEvidence, trials: list[Trial]) -> list[Finding]:
    """Two bugs at once: the most explaining ones, each composed with every other."""
    best: tuple[Trial, Trial] | None = None
    starts = [trial for trial in trials if trial.fit.explains > _PAIR_EXPLAINS]
    for first in sorted(starts, key=lambda t: t.fit.remaining)[:_PAIR_STARTS]:
        evidence.workspace = Workspace()  # another program's responses are of no use to this one
        for second in evidence.trials(replace(evidence.site, program=first.mutant.variant.program)):
            if second.mutant.bug.name == first.mutant.bug.name or not second.named:
                continue
            if best is None or second.fit.remaining < best[1].fit.remaining:
                best = first, second
    if best is None:
        return []
    return [replace(trial.one_of_two(), explains=best[1].fit.explains) for trial in best]
