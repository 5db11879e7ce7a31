"""Intervals of counted rates against SciPy's, and against every outcome that there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats

from repvgg_ref.models.rates import paired_interval, wilson_interval


@pytest.mark.parametrize(("right", "images"), [(0, 7), (7, 7), (3, 7), (36205, 50_000), (1, 10**9)])
def test_the_interval_is_wilsons(right: int, images: int) -> None:
    wanted = scipy.stats.binomtest(right, images).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(right, images)
    assert abs(low - wanted.low) <= 1e-12
    assert abs(high - wanted.high) <= 1e-12
    assert 0 <= low <= right / images <= high <= 1


def test_no_image_says_nothing() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)
    assert paired_interval(0, 0, 0) == (-1.0, 1.0)


@pytest.mark.parametrize("images", [20, 60])
@pytest.mark.parametrize(("up", "down"), [(0.02, 0.0), (0.05, 0.01), (0.3, 0.1), (0.2, 0.2)])
def test_paired_interval_holds_the_truth_in_95_of_100_cases(
    up: float, down: float, images: int
) -> None:
    """Over all outcomes of the trinomial, each weighed by its exact probability."""
    covered = 0.0
    for gained in range(images + 1):
        for lost in range(images - gained + 1):
            low, high = paired_interval(gained, lost, images)
            if low <= up - down <= high:
                rest = images - gained - lost
                ways = math.comb(images, gained) * math.comb(images - gained, lost)
                covered += ways * up**gained * down**lost * (1 - up - down) ** rest
    assert 0.94 <= covered <= 1 + 1e-9


def test_paired_interval_narrows_shifts_and_turns_round() -> None:
    """Antisymmetric, around the plain difference, the narrower the fewer images differ."""
    assert paired_interval(9, 2, 100) == tuple(-x for x in paired_interval(2, 9, 100))[::-1]
    low, high = np.array([paired_interval(0, n, 100) for n in range(45)]).T
    assert (low <= -np.arange(45) / 100).all()
    assert (high >= -np.arange(45) / 100).all()
    assert (np.diff(high - low) > 0).all()
    low, high = paired_interval(300, 100, 1000)
    # Wald's, which many images come near: 0.2 +- 1.96 sqrt((0.4 - 0.04) / 1000)
    assert abs(low - 0.1628) < 1e-3
    assert abs(high - 0.2372) < 1e-3
