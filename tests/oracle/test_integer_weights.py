"""Integers against the trained network: right ones agree, wrong ones are placed and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.data.digits import MODEL_PATH, load_digits, to_input
from repvgg_ref.files.checkpoint import load
from repvgg_ref.integer.equalize import equalize
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.quantize import quantize
from repvgg_ref.models.network import fuse
from repvgg_ref.oracle.integers.report import IntegerReport
from repvgg_ref.oracle.integers.weights import judge_integers
from tests.models.small import SMALL, distinct_model

MODEL = load(MODEL_PATH)
IMAGES = to_input(load_digits().train.images[:32])
NETWORK = quantize(MODEL, IMAGES)
NAMES = [layer.name for layer in NETWORK.layers if layer.kind != "pool"]


def judged(network: IntegerNetwork, model: Any = MODEL) -> IntegerReport:
    return judge_integers(model, network, candidate="candidate")


def with_layer(name: str, change: Callable[[IntegerLayer], IntegerLayer]) -> IntegerNetwork:
    layers = (change(each) if each.name == name else each for each in NETWORK.layers)
    return replace(NETWORK, layers=tuple(layers))


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("method", ["min-max", "percentile", "least-squares"])
@pytest.mark.parametrize("evened", [False, True])
def test_every_way_of_quantising_agrees(per_tensor: bool, method: str, evened: bool) -> None:
    model = equalize(MODEL)[0] if evened else MODEL
    report = judged(quantize(model, IMAGES, per_tensor=per_tensor, method=method))
    assert report.verdict == "agree", report.reason
    assert bool(report.equivalences) == evened


@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_random_networks_agree_equalised_too(name: str) -> None:
    for seed in range(3):
        model = distinct_model(SMALL[name], seed=seed)
        shape = (4, model.arch.in_channels, 24, 24)
        x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        for chosen in (model, fuse(model), equalize(model)[0]):
            report = judged(quantize(chosen, x), model)
            assert report.verdict == "agree", report.reason


CHANGES: dict[str, Callable[[IntegerLayer], IntegerLayer]] = {
    "kernel-flipped": lambda layer: replace(layer, weight=layer.weight[..., ::-1, ::-1]),  # type: ignore[index]
    "kernel-transposed": lambda layer: replace(layer, weight=layer.weight.swapaxes(2, 3)),  # type: ignore[union-attr]
    "neighbours-scale": lambda layer: _rescaled(layer, np.roll(np.asarray(layer.weight_scale), 1)),
    "bias-dropped": lambda layer: replace(layer, bias=np.zeros_like(layer.bias)),
    "bias-sign": lambda layer: replace(layer, bias=-layer.bias),  # type: ignore[operator]
    "bias-scale": lambda layer: replace(
        layer,
        bias=np.rint(layer.bias * float(layer.input.scale)).astype(np.int32),  # type: ignore[operator]
    ),
}


def _rescaled(layer: IntegerLayer, scale: Any) -> IntegerLayer:
    """Integers made with other scales than those that are stored."""
    return replace(layer, weight_scale=scale.astype(np.float32))


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        (name, bug)
        for name in ("stage0", "stage1.1", "stage2.1", "linear")
        for bug in CHANGES
        if name != "linear" or not bug.startswith("kernel")  # a matrix has none to flip
    ],
)
def test_wrong_integers_are_placed_and_named(name: str, bug: str) -> None:
    report = judged(with_layer(name, CHANGES[bug]))
    assert report.verdict == "disagree"
    assert report.first_bad_layer == name
    assert bug in {finding.bug for finding in report.diagnosis if finding.layer == name}, [
        (finding.bug, finding.says) for finding in report.diagnosis
    ]


@pytest.mark.parametrize("name", NAMES)
def test_one_wrong_weight_or_bias_is_found(name: str) -> None:
    def weight(layer: IntegerLayer) -> IntegerLayer:
        changed = layer.weight.copy()  # type: ignore[union-attr]
        where = (1,) + (0,) * (changed.ndim - 1)
        changed[where] += 1 if changed[where] < 100 else -1
        return replace(layer, weight=changed)

    def bias(layer: IntegerLayer) -> IntegerLayer:
        changed = layer.bias.copy()  # type: ignore[union-attr]
        changed[2] += 2
        return replace(layer, bias=changed)

    for change, says in ((weight, "1 of"), (bias, "biases")):
        report = judged(with_layer(name, change))
        assert (report.verdict, report.first_bad_layer) == ("disagree", name), says
        assert says in report.layers[NAMES.index(name)].note


def test_another_network_is_told_by_its_shape() -> None:
    report = judged(NETWORK, distinct_model(SMALL["plain"], seed=0))
    assert report.verdict == "disagree"
