"""Equalised networks whose factors are near 1, which no layer by itself tells from none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.integer.equalize import equalize, scale_channels
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.quantize import LINEAR, as_chain, quantize
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.integers.report import IntegerReport
from repvgg_ref.oracle.integers.weights import judge_integers
from tests.models.small import SMALL, distinct_model

SEEDS = range(6)


def layers_of(model: Model) -> list[str]:
    return [*(spec.name for spec in as_chain(model).arch.blocks), LINEAR]


def equal(model: Model, spread: float, *, seed: int) -> Model:
    """An equal network, each channel scaled by up to exp(`spread`), a few not at all."""
    deploy, rng = as_chain(model), np.random.default_rng(seed)
    params = {name: array.astype(np.float64) for name, array in deploy.params.items()}
    for first, second in pairwise(layers_of(model)):
        factor = np.exp(rng.uniform(-spread, spread, len(params[f"{first}.fused.bias"])))
        factor[rng.random(len(factor)) < 0.1] = 1.0
        scale_channels(params, first, second, factor)
    return replace(deploy, params=params)


def quantised(model: Model, *, seed: int, per_tensor: bool = False) -> IntegerNetwork:
    shape = (2, model.arch.in_channels, 16, 16)
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return quantize(model, x, per_tensor=per_tensor)


def judged(model: Model, network: IntegerNetwork) -> IntegerReport:
    return judge_integers(model, network, candidate="candidate")


@pytest.mark.few(6)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [1e-3, 3e-3, 1e-2, 3e-2, 0.5])
@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_right_networks_agree_however_near_to_1_their_factors_are(
    name: str, spread: float, seed: int
) -> None:
    model = distinct_model(SMALL[name], seed=seed)
    network = quantised(equal(model, spread, seed=seed), seed=seed, per_tensor=bool(seed % 2))
    report = judged(model, network)
    assert report.verdict == "agree", report.reason
    assert {each.kind for each in report.equivalences} == {"scaling"}


@pytest.mark.few(3)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("spread", [0.0, 0.02])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_what_our_own_equalisation_makes_of_channels_of_like_ranges_agrees(
    per_tensor: bool, spread: float, seed: int
) -> None:
    """Of a network that was equalised before, too: the second time its factors are 1, or nearly."""
    model = distinct_model(SMALL["plain"], seed=seed, dtype=np.float32)
    once = equal(equalize(model)[0], spread, seed=seed)
    network = quantised(equalize(once)[0], seed=seed, per_tensor=per_tensor)
    report = judged(once, network)
    assert report.verdict == "agree", report.reason


Fault = Callable[[IntegerLayer, Any], IntegerLayer]


def _weight(layer: IntegerLayer, rng: Any) -> IntegerLayer:
    weight = np.array(layer.weight)
    place = tuple(rng.integers(size) for size in weight.shape)
    weight[place] += 1 if weight[place] < 100 else -1
    return replace(layer, weight=weight)


def _channel(layer: IntegerLayer, rng: Any) -> IntegerLayer:
    weight = np.array(layer.weight).astype(int)
    weight[rng.integers(len(weight))] += 1
    return replace(layer, weight=np.clip(weight, -127, 127).astype(np.int8))


def _no_bias(layer: IntegerLayer, rng: Any) -> IntegerLayer:
    bias = np.array(layer.bias)
    bias[rng.integers(len(bias))] = 0
    return replace(layer, bias=bias)


FAULTS: dict[str, Fault] = {"weight": _weight, "channel": _channel, "bias": _no_bias}


def with_faults(network: IntegerNetwork, fault: Fault, names: list[str], rng: Any) -> Any:
    layers = (fault(each, rng) if each.name in names else each for each in network.layers)
    return replace(network, layers=tuple(layers))


@pytest.mark.few(4)
@pytest.mark.parametrize("seed", SEEDS[:3])
@pytest.mark.parametrize("spread", [1e-3, 1e-2])
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("count", [1, 2])
def test_wrong_numbers_beside_factors_near_1_are_placed(
    count: int, fault: str, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    model = distinct_model(SMALL["plain"], seed=seed)
    names = sorted(rng.choice(layers_of(model)[1:-1], count, replace=False))
    network = quantised(equal(model, spread, seed=seed), seed=seed)
    report = judged(model, with_faults(network, FAULTS[fault], names, rng))
    assert report.verdict == "disagree"
    bad = [row.name for row in report.layers if not row.ok]
    # Two can leave so much open between them that a neighbour is not told from them.
    assert bad == names if count == 1 else bad[0] == names[0] and set(names) <= set(bad)


@pytest.mark.parametrize("side", ["multiplied", "divided"])
def test_a_factor_on_one_side_only_is_found(side: str) -> None:
    model = distinct_model(SMALL["plain"], seed=0)
    made = equal(model, 1e-2, seed=0)
    before, params = dict(made.params), dict(made.params)
    factor = np.ones(len(params["stage1.0.fused.bias"]))
    factor[1] = 1.05
    scale_channels(params, "stage1.0", "stage1.1", factor)
    unscaled = "stage1.1" if side == "multiplied" else "stage1.0"
    params |= {key: array for key, array in before.items() if key.startswith(unscaled)}
    report = judged(model, quantised(replace(made, params=params), seed=0))
    assert report.verdict == "disagree"
    assert report.first_bad_layer in ("stage1.0", "stage1.1")
    assert sum(not row.ok for row in report.layers) == 1


@pytest.mark.parametrize("seed", SEEDS[:3])
def test_factors_are_no_excuse_for_biases_that_are_wrong(seed: int) -> None:
    """A factor of 1.001 gives a bias two more, too; but nothing else in the network asks for it."""

    def two_more(layer: IntegerLayer, rng: Any) -> IntegerLayer:
        bias: Array = np.array(layer.bias)
        bias[0] += 2
        return replace(layer, bias=bias)

    model = distinct_model(SMALL["plain"], seed=seed)
    names, rng = ["stage1.1", "stage2.1"], np.random.default_rng(0)
    network = with_faults(quantised(model, seed=seed), two_more, names, rng)
    report = judged(model, network)
    assert [row.name for row in report.layers if not row.ok] == names
    assert not report.equivalences


def with_scale(network: IntegerNetwork, place: int, by: float | str) -> IntegerNetwork:
    """One number changed: a channel's scale, or the only one that the layer has."""
    layers = list(network.layers)
    scale = np.array(layers[place].weight_scale)
    where = 1 if scale.ndim else ()
    scale[where] = scale[2] if by == "next" else scale[where] * by
    layers[place] = replace(layers[place], weight_scale=scale)
    return replace(network, layers=tuple(layers))


@pytest.mark.few(4)
@pytest.mark.parametrize("by", [0.7, 1.05, 2.9, "next"])
@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("name", ["plain", "grouped"])
@pytest.mark.parametrize("spread", ["equalised", 1e-2])
def test_a_wrong_scale_in_an_equalised_network_is_put_into_its_own_layer(
    spread: Any, name: str, per_tensor: bool, by: Any
) -> None:
    """One number there, which as a factor would ask for every weight of a channel behind it."""
    if per_tensor and by == "next":
        pytest.skip("there is no other scale")
    model = distinct_model(SMALL[name], seed=1)
    made = equalize(model)[0] if spread == "equalised" else equal(model, spread, seed=1)
    network = quantised(made, seed=1, per_tensor=per_tensor)
    for place in (0, 2, len(network.layers) - 3, len(network.layers) - 1):
        layer = network.layers[place]
        report = judged(model, with_scale(network, place, by))
        assert [row.name for row in report.layers if not row.ok] == [layer.name]
        (finding,) = report.diagnosis
        assert finding.bug in ("weight-scale", "neighbours-scale"), finding.says
        assert finding.layer == layer.name


def test_right_factors_are_found_without_a_search_for_orders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which took a minute for RepVGG-A0."""
    model = distinct_model(SMALL["plain"], seed=2)
    network = quantised(equal(model, 1e-2, seed=2), seed=2)

    def searched(*given: Any) -> None:
        raise AssertionError("orders were searched")

    monkeypatch.setattr("repvgg_ref.oracle.integers.weights.settle", searched)
    assert judged(model, network).verdict == "agree"
    assert judged(model, with_scale(network, 2, 1.3)).first_bad_layer == network.layers[2].name


WHOLE: dict[str, Callable[[IntegerLayer], dict[str, Any]]] = {
    "bias-dropped": lambda layer: {"bias": np.zeros_like(layer.bias)},
    "bias-sign": lambda layer: {"bias": -np.asarray(layer.bias)},
    "bias-scale": lambda layer: {
        "bias": np.rint(np.asarray(layer.bias) * float(layer.input.scale)).astype(np.int32)
    },
    "bias-scale, doubled": lambda layer: {"bias": 2 * np.asarray(layer.bias)},
    "weights-negated": lambda layer: {"weight": -np.asarray(layer.weight)},
    "kernel-flipped": lambda layer: {"weight": np.asarray(layer.weight)[..., ::-1, ::-1]},
    "kernel-transposed": lambda layer: {"weight": np.asarray(layer.weight).swapaxes(2, 3)},
    "neighbours-scale": lambda layer: {"weight_scale": np.roll(np.asarray(layer.weight_scale), 1)},
}


@pytest.mark.few(4)
@pytest.mark.parametrize("bug", WHOLE)
@pytest.mark.parametrize("name", ["stage0", "stage1.1", "stage2.1"])
def test_what_is_wrong_in_a_whole_layer_of_an_equalised_network_is_named(
    name: str, bug: str
) -> None:
    """Its own integers say nothing of its channels' factors then, or the wrong thing."""
    model = distinct_model(SMALL["grouped"], seed=1)
    network = quantised(equalize(model)[0], seed=1)
    layers = tuple(
        replace(each, **WHOLE[bug](each)) if each.name == name else each for each in network.layers
    )
    report = judged(model, replace(network, layers=layers))
    assert [row.name for row in report.layers if not row.ok] == [name]
    assert [finding.bug for finding in report.diagnosis] == [bug.split(",")[0]]


@pytest.mark.parametrize("place", [1, 3])
def test_a_wrong_weight_leaves_its_channels_bias_alone(place: int) -> None:
    """Whose factor the bias tells, where the weights cannot all."""
    model = distinct_model(SMALL["plain"], seed=1)
    network = quantised(equalize(model)[0], seed=1)
    layer = network.layers[place]
    weight = np.array(layer.weight)
    weight[5, 3, 1, 1] += 3 if weight[5, 3, 1, 1] < 100 else -3
    layers = list(network.layers)
    layers[place] = replace(layer, weight=weight)
    report = judged(model, replace(network, layers=tuple(layers)))
    assert [row.name for row in report.layers if not row.ok] == [layer.name]
    assert [finding.says for finding in report.diagnosis] == ["weights differ in channels 5"]
