"""Asymmetric weights, less a zero point of their own: right ones agree, wrong ones are named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.integer.equalize import equalize
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.quantize import LINEAR, quantize
from repvgg_ref.models.network import Model, fuse
from tests.models.small import SMALL, distinct_model
from tests.oracle.test_integer_weights import CHANGES, IMAGES, MODEL, judged


def asymmetric(model: Model, images: Array, *, per_tensor: bool = False) -> IntegerNetwork:
    """Weights from -128 to 127 over their own range, as quantisers of activations do it."""
    network, params = quantize(model, images), fuse_once(model).params
    layers = [
        layer if layer.kind == "pool" else _asymmetric(layer, params, per_tensor=per_tensor)
        for layer in network.layers
    ]
    return replace(network, layers=tuple(layers))


def fuse_once(model: Model) -> Model:
    return model if model.form == "deploy" else fuse(model)


def _asymmetric(layer: IntegerLayer, params: Any, *, per_tensor: bool) -> IntegerLayer:
    key = layer.name if layer.name == LINEAR else f"{layer.name}.fused"
    weight, bias = (params[f"{key}.{part}"].astype(np.float64) for part in ("weight", "bias"))
    flat = weight.reshape(1 if per_tensor else len(weight), -1)
    low, high = np.minimum(flat.min(1), 0), np.maximum(flat.max(1), 0)
    scale = ((high - low) / 255).astype(np.float32)
    zero = np.rint(-128 - low / scale).astype(np.int64)
    across = (-1,) + (1,) * (weight.ndim - 1)
    stored = np.rint(weight / scale.reshape(across)) + zero.reshape(across)
    numbers = np.clip(stored, -128, 127) - zero.reshape(across)
    unit = float(layer.input.scale) * scale.astype(np.float64)
    return replace(
        layer,
        weight=numbers.astype(np.int16),
        bias=np.rint(bias / unit).astype(np.int32),
        weight_scale=scale.reshape(()) if per_tensor else scale,
        weight_zero_point=zero.reshape(()) if per_tensor else zero,
    )


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("evened", [False, True])
def test_right_integers_agree(evened: bool, per_tensor: bool) -> None:
    model = equalize(MODEL)[0] if evened else MODEL
    network = asymmetric(model, IMAGES, per_tensor=per_tensor)
    weights = [layer.weight for layer in network.layers if layer.weight is not None]
    assert all(np.abs(weight).max() > 128 for weight in weights)  # beyond int8
    report = judged(network)
    assert report.verdict == "agree", report.reason
    assert bool(report.equivalences) == evened


@pytest.mark.parametrize("name", ["plain", "grouped"])
def test_random_networks_agree(name: str) -> None:
    for seed in range(3):
        model = distinct_model(SMALL[name], seed=seed)
        shape = (4, model.arch.in_channels, 24, 24)
        x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
        for chosen in (model, equalize(model)[0]):
            report = judged(asymmetric(chosen, x), model)
            assert report.verdict == "agree", report.reason


def moved(layer: IntegerLayer) -> IntegerLayer:
    """The zero point two less than what the weights were rounded with."""
    zero = np.asarray(layer.weight_zero_point) - 2
    return replace(layer, weight=np.asarray(layer.weight) + np.int16(2), weight_zero_point=zero)


@pytest.mark.parametrize(
    ("name", "bug"),
    [
        (name, bug)
        for name in ("stage0", "stage1.1", "linear")
        for bug in (*CHANGES, "weight-zero-point")
        if name != "linear" or not bug.startswith("kernel")  # a matrix has none to flip
    ],
)
def test_wrong_integers_are_placed_and_named(name: str, bug: str) -> None:
    changes: dict[str, Callable[[IntegerLayer], IntegerLayer]] = CHANGES | {
        "weight-zero-point": moved
    }
    network = asymmetric(MODEL, IMAGES)
    layers = (changes[bug](each) if each.name == name else each for each in network.layers)
    report = judged(replace(network, layers=tuple(layers)))
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    found = {finding.bug for finding in report.diagnosis if finding.layer == name}
    assert bug in found, [(finding.bug, finding.says) for finding in report.diagnosis]


@pytest.mark.parametrize(
    ("kind", "stored"),
    [("symmetric", "uint8")]
    + [(kind, stored) for kind in ("per tensor", "per channel") for stored in ("int8", "uint8")],
)
def test_a_file_without_the_zero_points_is_told_so_in_every_layer(kind: str, stored: str) -> None:
    """As where uint8 weights are written without the zero point that they were made with."""
    made = asymmetric(MODEL, IMAGES, per_tensor=kind == "per tensor")
    network = quantize(MODEL, IMAGES) if kind == "symmetric" else made
    more = 128 if stored == "uint8" else 0

    def forgotten(layer: IntegerLayer) -> IntegerLayer:
        if layer.weight is None:
            return layer
        held = layer.weight_zero_point
        zero = np.zeros((), np.int64) if held is None else np.asarray(held)
        across = (-1,) + (1,) * (layer.weight.ndim - 1)
        moved = layer.weight.astype(np.int16) + (zero + more).astype(np.int16).reshape(across)
        return replace(layer, weight=moved, weight_zero_point=np.full_like(zero, -more))

    report = judged(replace(network, layers=tuple(map(forgotten, network.layers))))
    assert report.first_bad_layer == "stage0"
    layers = [layer.name for layer in network.layers if layer.weight is not None]
    assert [(each.layer, each.bug) for each in report.diagnosis] == [
        (name, "weight-zero-point") for name in layers
    ]
