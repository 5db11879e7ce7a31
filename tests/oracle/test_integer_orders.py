"""Channels of integers in another order: an equal network if the next layer takes them so."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.integer.equalize import equalize
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.quantize import quantize
from repvgg_ref.models.network import fuse
from repvgg_ref.oracle.integers.report import IntegerReport
from repvgg_ref.oracle.integers.weights import judge_integers
from tests.models.small import SMALL, distinct_model


def drawn(name: str, seed: int, *, per_tensor: bool = False, evened: bool = False) -> Any:
    model = distinct_model(SMALL[name], seed=seed)
    x = np.random.default_rng(seed).normal(size=(4, model.arch.in_channels, 24, 24))
    made = equalize(model)[0] if evened else model
    return fuse(model), quantize(made, x.astype(np.float32), per_tensor=per_tensor)


def outputs_taken(layer: IntegerLayer, order: Any) -> IntegerLayer:
    """The layer with its output channels in `order`."""
    scale = layer.weight_scale if layer.weight_scale.ndim == 0 else layer.weight_scale[order]  # type: ignore[union-attr, index]
    return replace(layer, weight=layer.weight[order], bias=layer.bias[order], weight_scale=scale)  # type: ignore[index]


def inputs_taken(layer: IntegerLayer, order: Any) -> IntegerLayer:
    """The layer for input channels in `order`, which keeps groups together in their places."""
    groups = layer.groups
    per_group, outputs = layer.weight.shape[1], len(layer.weight) // groups  # type: ignore[union-attr, arg-type]
    parts = [
        layer.weight[g * outputs : (g + 1) * outputs][  # type: ignore[index]
            :, order[g * per_group : (g + 1) * per_group] - g * per_group
        ]
        for g in range(groups)
    ]
    return replace(layer, weight=np.concatenate(parts))


def permuted(network: IntegerNetwork, places: list[int], seed: int) -> IntegerNetwork:
    """With the outputs of some layers in another order, taken back by the next ones.

    Channels stay in their group of the layer and of the next one.
    """
    layers = list(network.layers)
    rng = np.random.default_rng(seed)
    for place in places:
        after = next(i for i in range(place + 1, len(layers)) if layers[i].kind != "pool")
        count = len(layers[place].bias)  # type: ignore[arg-type]
        blocks = np.lcm(layers[place].groups, layers[after].groups)
        order = np.concatenate(
            [np.roll(part, rng.integers(1, 3)) for part in np.split(np.arange(count), blocks)]
        )
        layers[place] = outputs_taken(layers[place], order)
        layers[after] = inputs_taken(layers[after], order)
    return replace(network, layers=tuple(layers))


def names_of(network: IntegerNetwork, moved: IntegerNetwork) -> set[str]:
    """Layers whose biases stand elsewhere."""
    pairs = zip(network.layers, moved.layers, strict=True)
    return {a.name for a, b in pairs if a.kind == "conv" and (a.bias != b.bias).any()}  # type: ignore[union-attr]


def judged(network: IntegerNetwork, model: Any) -> IntegerReport:
    return judge_integers(model, network, candidate="candidate")


@pytest.mark.few(3)
@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("evened", [False, True])
@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_an_order_that_is_taken_back_makes_an_equal_network(
    name: str, evened: bool, per_tensor: bool
) -> None:
    for seed in range(2):
        model, network = drawn(name, seed, per_tensor=per_tensor, evened=evened)
        last = max(i for i, layer in enumerate(network.layers) if layer.kind == "conv")
        for places in ([0], [1], [last], [0, 1], list(range(last + 1))):
            moved = permuted(network, places, seed)
            x = network.entered(
                np.random.default_rng(9).normal(size=(2, network.in_channels, 12, 12)).astype("f4")
            )
            name_of = network.layers[-1].name
            np.testing.assert_array_equal(moved.forward(x)[name_of], network.forward(x)[name_of])
            report = judged(moved, model)
            assert report.verdict == "agree", (seed, places, report.reason)
            found = {same.layer for same in report.equivalences if same.kind == "permutation"}
            assert found == names_of(network, moved)


def test_whole_groups_may_change_places() -> None:
    """Groups of the next layer that are exchanged together with its outputs, and taken back."""
    model, network = drawn("grouped", 1)
    layers = list(network.layers)
    at = next(
        i for i in range(1, len(layers) - 3) if layers[i].groups == 2 and layers[i].kind == "conv"
    )
    before, grouped, after = layers[at - 1 : at + 2]
    if after.groups != 1 or before.groups != 1:
        pytest.skip("no grouped layer between two others")
    first = np.roll(np.arange(len(before.bias)), len(before.bias) // 2)
    second = np.roll(np.arange(len(grouped.bias)), len(grouped.bias) // 2)
    layers[at - 1] = outputs_taken(before, first)
    layers[at] = outputs_taken(grouped, second)
    layers[at + 1] = inputs_taken(after, second)
    report = judged(replace(network, layers=tuple(layers)), model)
    assert report.verdict == "agree", report.reason


@pytest.mark.parametrize("evened", [False, True])
@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_an_order_that_is_not_taken_back_is_named(name: str, evened: bool) -> None:
    model, network = drawn(name, 2, evened=evened)
    layers = list(network.layers)
    count, groups = len(layers[0].bias), layers[0].groups
    order = np.concatenate([part[::-1] for part in np.split(np.arange(count), groups)])
    layers[0] = outputs_taken(layers[0], order)
    report = judged(replace(network, layers=tuple(layers)), model)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage0")
    assert report.diagnosis[0].bug == "channels-permuted", report.diagnosis
    assert [row.name for row in report.layers if not row.ok] == ["stage0"]


def test_classes_in_another_order_are_wrong() -> None:
    model, network = drawn("plain", 0)
    layers = (*network.layers[:-1], outputs_taken(network.layers[-1], np.array([2, 0, 1])))
    assert judged(replace(network, layers=layers), model).verdict == "disagree"


@pytest.mark.parametrize("per_tensor", [False, True])
def test_factors_are_said_as_they_are(per_tensor: bool) -> None:
    """No digit is printed that the integers do not tell."""
    model = fuse(distinct_model(SMALL["plain"], seed=4))
    params = {name: array.copy() for name, array in model.params.items()}
    factor = np.array([0.3, 1, 1, 2.7], np.float32)
    params["stage0.fused.weight"] *= factor[:, None, None, None]
    params["stage0.fused.bias"] *= factor
    params["stage1.0.fused.weight"] /= factor[:, None, None]
    x = np.random.default_rng(0).normal(size=(4, 3, 24, 24)).astype(np.float32)
    network = quantize(replace(model, params=params), x, per_tensor=per_tensor)
    report = judged(network, model)
    assert report.verdict == "agree", report.reason
    (same,) = report.equivalences
    assert (same.layer, same.kind) == ("stage0", "scaling")
    assert same.says.startswith("2 channels")
    printed = re.findall(r"[0-9]+(?:[.][0-9]+)?", same.says.split("by", 1)[1])[:2]
    for word, true in zip(printed, (0.3, 2.7), strict=True):
        last = 10.0 ** -len(word.partition(".")[2])  # digit
        assert abs(float(word) - true) <= last, same.says
