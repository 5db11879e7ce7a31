"""Advice: what is looked at on which images, and what is counted."""

from __future__ import annotations

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.data.digits import MODEL_PATH, load_digits, to_input
from repvgg_ref.errors import ReportedError
from repvgg_ref.integer.advise import advise
from repvgg_ref.integer.quantize import LINEAR, calibrate, quantize
from repvgg_ref.integer.simulate import layer_names
from repvgg_ref.integer.trial import Simulation, Trial
from repvgg_ref.models.network import Model, fuse
from tests.models.small import SMALL, distinct_model


@pytest.fixture(scope="module")
def model() -> Model:
    return rr.load(MODEL_PATH)


@pytest.fixture(scope="module")
def digits() -> tuple[Array, Array]:
    test = load_digits().test
    return to_input(test.images[:40]), test.labels[:40]


def simulation(right: str, same: str = "1") -> Simulation:
    """Images of which "1" is right."""
    arrays = [np.array([each == "1" for each in said]) for said in (same, right)]
    return Simulation("way", 20.0, arrays[0], arrays[1] if right else None)


def test_a_gain_is_counted_image_by_image() -> None:
    """Of 8 images one has 2 wrong that the other gets right, and 1 the other way round."""
    before, after = simulation("11110000"), simulation("11101100")
    gain = after.gain_over(before)
    assert gain.by == 1 / 8
    # Bonett and Price: 3/10 and 2/10, variance (0.5 - 0.01) / 10
    half = 1.959963984540054 * 0.049**0.5
    assert gain.low == pytest.approx(0.1 - half)
    assert gain.high == pytest.approx(0.1 + half)
    assert before.gain_over(after)[1:] == pytest.approx((-gain.high, -gain.low))
    assert after.top1 == 5 / 8
    assert after.interval[0] < 5 / 8 < after.interval[1]


def test_without_labels_the_same_class_is_counted() -> None:
    before, after = simulation("", "1100"), simulation("", "1111")
    assert after.top1 is None
    said = after.to_json(before)
    assert said["top1"] is None
    assert said["gain"]["by"] == 0.5
    assert said["interval"][1] == 1.0
    assert before.to_json(before)["gain"] is None


def test_a_trial_of_all_layers_is_nearly_the_integer_network(
    model: Model, digits: tuple[Array, Array]
) -> None:
    """Rounded numbers in real arithmetic against the integers of `quantize`."""
    x, labels = digits
    deploy = fuse(model)
    trial = Trial(deploy, calibrate(deploy, x, method="min-max"), x, labels)
    np.testing.assert_allclose(trial.wanted, deploy.forward(x), rtol=0, atol=1e-4)
    network = quantize(model, x, per_tensor=True)
    head = network.layers[-1].output
    integers = head.real(network.forward(x)[LINEAR])
    found = trial.run(layer_names(deploy), per_tensor=True)
    noise = np.abs(integers - trial.wanted).mean()
    assert np.abs(integers - found).mean() < noise  # their own difference is the smaller one
    assert trial.loss(layer_names(deploy), per_tensor=True) < trial.loss([], per_tensor=True)


def test_layers_are_looked_at_on_the_images_that_ranges_come_from() -> None:
    """Other held-out images leave layers, ranges and what is kept alone; gains are theirs."""
    small = distinct_model(SMALL["plain"], dtype=np.float32)
    x = np.random.default_rng(0).normal(size=(24, 3, 12, 12)).astype(np.float32)
    labels = small.forward(x).argmax(1)
    one = advise(small, x[8:16], labels[8:16], ranges_from=x[:8])
    other = advise(small, 3 * x[8:], labels[8:], ranges_from=x[:8])
    assert one.layers == other.layers
    assert one.images == other.images == 8
    assert (one.held_out, other.held_out) == (8, 16)
    assert one.simulated[1].sqnr > other.simulated[1].sqnr + 3  # three times as far: clipped
    alone = advise(small, x[:8])
    assert (alone.held_out, alone.source) == (0, "ranges and gains from the same 8 images")
    assert one.source == "ranges from 8 images, gains on 8 others"
    assert any("none that so few images show" in step for step in one.steps)
    with pytest.raises(ReportedError, match="a prediction needs images"):
        advise(small, x[:0], ranges_from=x[:8])
