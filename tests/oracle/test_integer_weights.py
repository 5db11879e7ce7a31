"""Integers against the trained network: right ones agree, wrong ones are placed and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.data.digits import MODEL_PATH, load_digits, to_input
from repvgg_ref.errors import ReportedError
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


def _scales(change: Callable[[Any], Any]) -> Callable[[IntegerLayer], IntegerLayer]:
    return lambda layer: _rescaled(layer, change(np.array(layer.weight_scale)))


def _put(places: list[int], sources: list[int]) -> Callable[[Any], Any]:
    def change(scale: Any) -> Any:
        scale[places] = scale[sources]
        return scale

    return change


def _times(factor: float, places: Any = slice(None)) -> Callable[[Any], Any]:
    def change(scale: Any) -> Any:
        scale[places] *= factor
        return scale

    return change


SCALES: dict[str, tuple[Callable[[Any], Any], str, str]] = {
    "the next one's": (_put([2], [3]), "neighbours-scale", "2 has channel 3's"),
    "the one's before": (_put([5], [4]), "neighbours-scale", "5 has channel 4's"),
    "two exchanged": (_put([2, 3], [3, 2]), "neighbours-scale", "2 is rounded with channel 3's"),
    "rolled": (lambda s: np.roll(s, 1), "neighbours-scale", "neighbour's"),
    "rolled back": (lambda s: np.roll(s, -1), "neighbours-scale", "neighbour's"),
    "rolled by two": (lambda s: np.roll(s, 2), "neighbours-scale", "0 is rounded with channel 2's"),
    "one larger": (_times(2.9, [4]), "weight-scale", "in channels 4 alone"),
    "all smaller": (_times(0.7), "weight-scale", "times what their scale says"),
}


@pytest.mark.parametrize("name", ["stage0", "stage1.1", "linear"])
@pytest.mark.parametrize("what", SCALES)
def test_whose_scale_a_channel_has_is_said(name: str, what: str) -> None:
    change, bug, says = SCALES[what]
    report = judged(with_layer(name, _scales(change)))
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    first = report.diagnosis[0]
    assert (first.bug, first.layer) == (bug, name), first
    assert says in first.says, first.says
    assert "unknown" not in {finding.bug for finding in report.diagnosis}


def test_zero_points_and_units_are_named() -> None:
    def moved(layer: IntegerLayer) -> IntegerLayer:
        return replace(layer, weight=np.clip(np.asarray(layer.weight), -100, 100) + np.int8(3))

    def doubled(layer: IntegerLayer) -> IntegerLayer:
        return replace(layer, bias=2 * np.asarray(layer.bias))

    found = judged(with_layer("stage1.1", doubled)).diagnosis
    assert [(each.bug, each.layer) for each in found] == [("bias-scale", "stage1.1")]
    assert "2 times" in found[0].says
    assert judged(with_layer("stage1.1", moved)).verdict == "disagree"


@pytest.mark.parametrize("part", ["input", "output", "weight_scale"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_what_is_no_scale_is_called_so(part: str, value: float) -> None:
    """NaN is unlike itself: two layers that share one do not differ in it."""
    bad = np.asarray(np.float32(value))

    def change(layer: IntegerLayer) -> IntegerLayer:
        if part == "weight_scale":
            return replace(layer, weight_scale=bad)
        return replace(layer, **{part: replace(getattr(layer, part), scale=bad)})

    with pytest.raises(ReportedError, match="holds what is no scale"):
        with_layer("stage1.1", change)


def test_another_network_is_told_by_its_shape() -> None:
    report = judged(NETWORK, distinct_model(SMALL["plain"], seed=0))
    assert report.verdict == "disagree"
