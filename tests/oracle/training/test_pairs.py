"""Two effects that add up to the error are ranked first, whatever else there is."""

from __future__ import annotations

import numpy as np

from repvgg_ref.oracle.training.allowance import Allowance
from repvgg_ref.oracle.training.pairs import likely_pairs
from tests.oracle.training import tiny


def _allowed() -> Allowance:
    _, steps = tiny.case()
    return Allowance(steps.yardstick, steps.exact, {})


def _moved(seed: int) -> dict[str, np.ndarray]:
    """All gradients moved at random, as a bug would."""
    _, steps = tiny.case()
    rng = np.random.default_rng(seed)
    return {
        name: array + 0.01 * np.abs(array).max() * rng.standard_normal(array.shape)
        for name, array in steps.exact.items()
        if name.startswith("grad/")
    }


def test_the_two_that_add_up_come_first() -> None:
    predicted = [_moved(seed) for seed in range(6)]
    exact = _allowed().exact
    given = {n: predicted[1][n] + predicted[4][n] - exact[n] for n in predicted[1]}
    assert likely_pairs(predicted, given, _allowed())[0] == (1, 4)


def test_what_no_two_explain_has_no_pair() -> None:
    assert likely_pairs([_moved(1), _moved(2), _moved(3)], _moved(7), _allowed()) == []


def test_the_same_twice_is_no_pair_that_divides_by_zero() -> None:
    found = likely_pairs([_moved(1), _moved(1)], _moved(1), _allowed())
    assert found == [(0, 1)]
