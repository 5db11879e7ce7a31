"""The bug in the pool or the linear layer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.diagnosis.trials import Observation, Trial
from repvgg_ref.oracle.programs.head import HEAD_BUGS, HeadProgram, evaluate_head
from repvgg_ref.oracle.programs.layers import Comparison
from repvgg_ref.oracle.report import Finding


def diagnose_head(
    head: HeadProgram, x: Array, compared: Comparison, precision: str
) -> list[Finding]:
    """Explain logits that are beyond their bound; "unknown" if nothing does."""
    seen = _observation(compared)
    trials = list(_trials(head, x, seen, precision))
    if named := [trial for trial in trials if trial.named]:
        return seen.ranked(named)
    bad = np.flatnonzero((np.abs(seen.residual) > seen.certified).any(axis=(0, 2)))
    says = f"{len(bad)} of {seen.y.shape[1]} logits are beyond their bound, first {bad[:1]}"
    advice = "the bug is not in the library: compare weight and bias of the linear layer"
    return [Finding("unknown", "linear", None, 0.0, 0.0, says, advice)]


def hidden_head_bugs(
    head: HeadProgram, x: Array, compared: Comparison, precision: str, tests: int
) -> list[Finding]:
    """Bugs that are too small for the bound and too regular for rounding."""
    seen = _observation(compared)
    found = [t for t in _trials(head, x, seen, precision) if seen.is_hidden(t, tests)]
    return seen.ranked(found) if found else []


def _observation(compared: Comparison) -> Observation:
    """Logits as (N, K, 1): each class a channel."""
    assert compared.bound is not None
    arrays = (compared.y, compared.y_hat, compared.bound.certified, compared.bound.likely)
    return Observation("linear", *(array[:, :, None] for array in arrays))


def _trials(head: HeadProgram, x: Array, seen: Observation, precision: str) -> Iterator[Trial]:
    for bug in HEAD_BUGS:
        if precision in bug.precision:
            continue
        for program, detail in bug.variants(head):
            with np.errstate(all="ignore"):
                predicted = evaluate_head(program, x)[:, :, None]
            if np.isfinite(predicted).all():
                trial = seen.compare(bug, predicted, detail=detail)
                if trial is not None:
                    yield trial
