"""Sums over outputs in single precision against float64, and contrasts made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.directed import DIRECTIONS, Directed
from repvgg_ref.oracle.arithmetic.port import direct_nuisance
from repvgg_ref.oracle.arithmetic.sample import Sample, sample_of
from repvgg_ref.oracle.arithmetic.single import Along, Single
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.estimates.layer import LayerEstimates
from repvgg_ref.oracle.programs.layers import Programs
from tests.studies.oracle.arithmetics import run
from tests.studies.oracle.false_alarms import seen_of
from tests.studies.oracle.networks import network_and_inputs

U = 2.0**-24


def sample(network: str, layer: str) -> Sample:
    """One layer of a right port."""
    model, x = network_and_inputs(network, 7, (24, 20))
    programs = Programs(model)
    seen = seen_of(programs, x, run(programs, x, "blocked"))[layer]
    return sample_of(*seen, PRECISIONS["fp32"])


def of_float64(made: Sample, outputs: Array) -> Array:
    """What `Sample.met` says, in float64."""
    groups = len(made.columns)
    rows = outputs.reshape(groups, -1, outputs.shape[1])
    seen = np.einsum("gop,gkp->gok", rows, made.columns).reshape(made.magnitude.shape)
    branches = sum((outputs * each).sum(axis=1) ** 2 for each in made.branches)
    return np.asarray(((made.magnitude * seen) ** 2).sum(axis=1) + branches)


@pytest.mark.parametrize("network", ["grouped-16", "many-branches"])
def test_sums_are_float64_s_whatever_the_sizes_of_channels_and_inputs(network: str) -> None:
    made = sample(network, "stage2.1")
    outputs = np.random.default_rng(0).normal(size=made.y.shape)
    sizes = 10.0 ** np.linspace(-80, 80, len(outputs))
    for scale in (1.0, sizes[:, None]):
        np.testing.assert_allclose(
            made.met(outputs * scale), of_float64(made, outputs * scale), 1e-5
        )
    single = Single(made.columns, made.magnitude)
    far = 10.0 ** np.linspace(-25, 25, made.products)
    moved = Single(made.columns * far[:, None], made.magnitude / far)
    for each in (
        Along(*one.weighed(*one.along(outputs)), np.zeros((0, 1))) for one in (single, moved)
    ):
        alone = of_float64(made, outputs) - np.square(made.by_branches(outputs)).sum(axis=0)
        np.testing.assert_allclose(each.dot(each), alone, 1e-5)


def test_a_jolt_moves_each_tap_by_its_magnitude_at_random() -> None:
    magnitude = np.random.default_rng(1).uniform(1, 2, (64, 40))
    jolted = Single(np.eye(40)[None], magnitude).jolted(np.random.default_rng(2)) / magnitude
    assert abs(jolted.mean()) < 0.05
    assert 0.95 < jolted.std() < 1.05


@pytest.mark.parametrize(
    ("network", "spread"), [("plain-16", 1.0), ("many-branches", 1.0), ("plain-16", 3e-4)]
)
def test_the_error_of_a_contrast_is_that_of_its_regression(network: str, spread: float) -> None:
    """Regressed on is y of a part, less its weighted regression on 1 and y of the whole."""
    made = sample(network, "stage2.1")
    if spread < 1:  # beside their mean
        made = replace(made, y=1 + spread * made.y)
    nuisance = direct_nuisance(made, Directed(np.zeros(len(DIRECTIONS))), U)
    layer = LayerEstimates(made, nuisance)
    found = {each.where: each for each in layer.all() if each.kind == "contrast"}
    w = layer.weights
    for where, there in layer.places():
        part = np.where(there, made.y, 0.0)
        ones = [np.ones_like(made.y), made.y]
        gram = np.stack([[(w * a * b).sum(axis=1) for a in ones] for b in ones])  # (2, 2, O)
        cross = np.stack([(w * a * part).sum(axis=1) for a in ones])  # (2, O)
        level, slope = np.linalg.solve(gram.transpose(2, 0, 1), cross.T[..., None])[..., 0].T
        direction = part - level[:, None] - slope[:, None] * made.y
        power = (w * direction**2).sum(axis=1)
        conversion = nuisance.taps * U**2 * of_float64(made, w * direction)
        error = np.sqrt((power + conversion).sum()) / power.sum()
        value = (w * direction * layer.residual).sum() / power.sum()
        assert found[where].error == pytest.approx(error, rel=1e-4)
        assert found[where].value == pytest.approx(value, abs=1e-3 * error)
