"""Which two bugs of a training step may be there at once: those whose effects add up to the error.

Effects of two bugs are nearly those of each one added, so that no pair needs a run to be ranked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.training.allowance import Allowance

_MOST_NUMBERS = 512  # of one array
_PAIRS = 8
_EXPLAINED = 0.5  # of the error, at least


def likely_pairs(
    predicted: Sequence[Mapping[str, Array]], given: Mapping[str, Array], allowed: Allowance
) -> list[tuple[int, int]]:
    """Pairs of predictions, the one first that explains most when both are scaled and added.

    Every array counts the same, in units of its own error.
    """
    names = [n for n in given if all(n in each for each in predicted)]
    if len(predicted) < 2 or not names:
        return []
    rng = np.random.default_rng(0)
    columns: list[list[Array]] = [[] for _ in range(1 + len(predicted))]
    for name in names:
        exact = np.asarray(allowed.exact[name], np.float64).reshape(-1)
        chosen = np.arange(exact.size)
        if exact.size > _MOST_NUMBERS:
            chosen = rng.choice(exact.size, _MOST_NUMBERS, replace=False)
        error = given[name].reshape(-1)[chosen] - exact[chosen]
        unit = max(float(np.sqrt(np.mean(error**2))), allowed.of(name).rms)
        unit *= np.sqrt(len(chosen))
        if not np.isfinite(unit):
            continue
        columns[0].append(error / unit)
        for column, each in zip(columns[1:], predicted, strict=True):
            column.append((each[name].reshape(-1)[chosen] - exact[chosen]) / unit)
    if not columns[0]:
        return []
    error, *effects = (np.concatenate(column) for column in columns)
    gram, along = np.array(effects) @ np.array(effects).T, np.array(effects) @ error
    gains = _gains(gram, along)
    first, second = np.triu_indices(len(effects), 1)
    found = gains[first, second]
    best = np.argsort(-found, kind="stable")[:_PAIRS]
    best = best[found[best] > _EXPLAINED * float(error @ error)]
    return [(int(first[i]), int(second[i])) for i in best]


def _gains(gram: Array, along: Array) -> Array:
    """The energy that every two effects explain together (the normal equations, solved)."""
    power = np.diag(gram)
    a, b = along[:, None], along[None, :]
    p, q = power[:, None], power[None, :]
    left = p * q - gram**2
    with np.errstate(all="ignore"):
        both = (q * a**2 + p * b**2 - 2 * gram * a * b) / left
        alone = np.maximum(a**2 / p, b**2 / q)
    told_apart = left > 1e-9 * p * q
    return np.asarray(np.nan_to_num(np.where(told_apart, both, alone), nan=0.0, posinf=0.0))
