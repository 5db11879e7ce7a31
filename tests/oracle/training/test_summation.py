"""Errors of sums that are added in sequence, against sums that really are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.training.noise import FLOAT32
from repvgg_ref.oracle.training.summation import adding_in_sequence
from tests.oracle.training.tiny import setup_of


def slips_of(x: Array, runs: int) -> Array:
    """Errors of the batch mean as the model has them, (runs, C)."""
    setup, one = setup_of(), np.ones(x.shape[1])
    exact = x.mean(axis=(0, 2, 3))
    found = []
    for seed in range(runs):
        table = adding_in_sequence(setup, FLOAT32, np.random.default_rng(seed)).ops
        _, cache = table.batch_norm_train_forward(x, one, one, eps=1e-5)
        found.append(cache.mean - exact)
    return np.array(found)


@pytest.mark.parametrize("centre", [0.0, 3.0], ids=["about zero", "positive"])
def test_the_slips_are_as_large_as_those_of_a_running_total(centre: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(centre, 1.0, (2, 64, 20, 30)).astype(np.float32)
    terms = x.transpose(1, 0, 2, 3).reshape(64, -1)
    total = np.cumsum(terms, axis=1, dtype=np.float32)[:, -1]  # one after the other
    real = (total.astype(np.float64) - terms.astype(np.float64).sum(axis=1)) / terms.shape[1]
    model = slips_of(x.astype(np.float64), 3)
    ratio = float(np.sqrt(np.mean(real**2)) / np.sqrt(np.mean(model**2)))
    assert 0.4 < ratio < 2.5, ratio


def test_only_sums_slip_and_the_output_goes_with_its_statistics() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(1.0, 2.0, (2, 3, 8, 9))
    gamma, beta = rng.normal(1, 0.1, 3), rng.normal(0, 0.1, 3)
    table: Any = adding_in_sequence(setup_of(), FLOAT32, rng).ops
    y, cache = table.batch_norm_train_forward(x, gamma, beta, eps=1e-5)
    mean, std = cache.mean[:, None, None], np.sqrt(cache.var + 1e-5)[:, None, None]
    wanted = gamma[:, None, None] * (x - mean) / std + beta[:, None, None]
    assert np.abs(y - wanted).max() < 1e-10  # to second order
    assert not np.array_equal(cache.mean, x.mean(axis=(0, 2, 3)))
    changed = {name for name, value in vars(table).items() if value is not vars(REFERENCE)[name]}
    assert changed == {
        "batch_norm_train_forward",
        "batch_norm_train_backward",
        "conv2d_backward",
        "global_avg_pool_forward",
    }


def test_gradients_slip_in_proportion_to_the_roundoff() -> None:
    setup = setup_of()
    grads = {}
    for u in (FLOAT32, FLOAT32 / 256):
        table = adding_in_sequence(setup, u, np.random.default_rng(1)).ops
        rng = np.random.default_rng(2)
        x, grad_y = rng.normal(size=(2, 2, 8, 8)), rng.normal(size=(2, 2, 8, 8))
        weight = rng.normal(size=(2, 2, 3, 3))
        how: dict[str, Any] = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1}
        _, cache = REFERENCE.conv2d_forward(x, weight, None, **how)
        right = REFERENCE.conv2d_backward(grad_y, cache).grad_weight
        assert right is not None
        found = replace(setup, ops=table).ops.conv2d_backward(grad_y, cache).grad_weight
        grads[u] = float(np.abs(found - right).max())
    assert 200 < grads[FLOAT32] / grads[FLOAT32 / 256] < 300
