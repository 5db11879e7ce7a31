"""ResNet and VGG: their published sizes, their names, and exact fusion of a residual network."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.errors import CheckpointError
from repvgg_ref.models.baselines import BASELINES
from repvgg_ref.models.cost import cost
from repvgg_ref.models.graph import Network, walk
from repvgg_ref.models.layers import Linear, Pass
from repvgg_ref.models.names import official_names
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.registry import network
from repvgg_ref.ops import REFERENCE, Ops
from tests.blocks.exact_blocks import EPS, WITHOUT_RELU, exact_array, fused_exactly
from tests.models.small import GRAPHS, distinct_model
from tests.ops.exact import assert_exact, rationals

# Parameters in millions (batch norm folded, truncated), FLOPs and Winograd multiplications in
# billions as the paper's Table 4 prints them.
PRINTED = {
    "ResNet-18": ("11.68", "1.8", "1.0"),
    "ResNet-34": ("21.78", "3.7", "1.8"),
    "ResNet-50": ("25.53", "3.9", "2.8"),
    "ResNet-101": ("44.49", "7.6", "5.5"),
    "ResNet-152": ("60.11", "11.3", "8.1"),
    "ResNeXt-50": ("24.99", "4.2", "4.1"),
    "VGG-16": ("138.35", "15.5", "6.9"),
}
# Parameters in both forms, as torchvision counts the first; 1 per channel goes with each batch
# norm. Multiply-accumulates, counted by the benchmark of version 0.1.0.
COUNTED = {
    "ResNet-18": (11_689_512, 11_689_512 - 4_800, 1_814_073_344),
    "ResNet-34": (21_797_672, 21_797_672 - 8_512, 3_663_761_408),
    "ResNet-50": (25_557_032, 25_557_032 - 26_560, 3_857_973_248),
    "ResNet-101": (44_549_160, 44_549_160 - 52_672, 7_570_194_432),
    "ResNet-152": (60_192_808, 60_192_808 - 75_712, 11_282_415_616),
    "ResNeXt-50": (25_028_904, 25_028_904 - 34_112, 4_230_479_872),
    "ResNeXt-101": (44_177_704, 44_177_704 - 68_928, 7_969_996_800),
    "ResNet-50-RepVGG": (26_829_608, 25_557_032 - 26_560, 3_857_973_248),
    "VGG-16": (138_357_544, 138_357_544, 15_470_264_320),
}


@pytest.mark.parametrize("name", PRINTED)
def test_the_papers_columns_are_reproduced_digit_for_digit(name: str) -> None:
    counted = cost(network(name))
    hundredths = counted.params_deploy // 10_000
    params = f"{hundredths // 100}.{hundredths % 100:02}"
    printed = (params, f"{counted.macs / 1e9:.1f}", f"{float(counted.wino_muls) / 1e9:.1f}")
    assert printed == PRINTED[name]


@pytest.mark.parametrize("name", COUNTED)
def test_every_count_is_exact(name: str) -> None:
    counted = cost(network(name))
    assert (counted.params_train, counted.params_deploy, counted.macs) == COUNTED[name]


@pytest.mark.parametrize(
    ("name", "macs"),
    [("ResNet-18", 222_580_736), ("ResNet-34", 449_073_152), ("ResNet-50", 474_202_112)],
)
def test_cost_follows_the_images_extents(name: str, macs: int) -> None:
    assert cost(network(name), height=64, width=96).macs == macs


def test_every_baseline_is_in_a_table() -> None:
    assert set(PRINTED) <= set(COUNTED) == set(BASELINES)


def test_names_are_found_whatever_their_case() -> None:
    assert network("resnet-18").name == network("resnet18").name == "ResNet-18"
    assert network("resnext50_32x4d").name == "ResNeXt-50"
    assert network("regnet_x_3_2gf").name == network("regnetx_032").name == "RegNetX-3.2GF"
    assert network("efficientnet_b0").name == "EfficientNet-B0"
    assert network("a0") == network("RepVGG-A0") == rr.architecture("A0")
    with pytest.raises(CheckpointError, match=r"RepVGG-A0.*VGG-16"):
        network("VGG-19")


def test_classes_channels_and_size_are_the_callers() -> None:
    small = network("VGG-16", num_classes=7, in_channels=1, size=64)
    assert (small.num_classes, small.in_channels) == (7, 1)
    first = next(node.op for node in small.nodes if isinstance(node.op, Linear))
    assert first.features == 512 * 2 * 2
    assert network("ResNet-50", num_classes=7).num_classes == 7


def test_a_baseline_is_built_fused_and_trained_by_its_name() -> None:
    model = rr.build("ResNet-18", num_classes=5, seed=1)
    x = np.random.default_rng(0).standard_normal((2, 3, 32, 32), np.float32)
    assert rr.fuse(model).forward(x).shape == (2, 5)
    step = model.loss_and_grads(x, np.array([0, 4]))
    state = model.state_dict()
    assert set(step.grads) | set(step.stats) == set(state)
    assert all(step.grads[name].shape == state[name].shape for name in step.grads)


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("arch", GRAPHS.values(), ids=GRAPHS.keys())
def test_arrays_that_no_published_code_names_keep_our_names(arch: Network, form: Any) -> None:
    model = distinct_model(arch)
    model = model if form == "train" else rr.fuse(model)
    shapes = param_shapes(arch, form)
    assert official_names(arch, form) == {name: name for name in shapes}
    assert {name: array.shape for name, array in model.state_dict().items()} == shapes
    changed = {name: array + 1 for name, array in model.state_dict().items()}
    model.load_state_dict(changed)
    assert all((model.params[name] == changed[name]).all() for name in shapes)


@pytest.mark.parametrize("ops", [REFERENCE, WITHOUT_RELU], ids=["with ReLU", "without"])
@pytest.mark.parametrize(("height", "width"), [(9, 10), (12, 7)])
def test_every_layer_is_the_same_in_both_forms_exactly(height: int, width: int, ops: Ops) -> None:
    """Nothing is rounded; without the ReLUs no difference of negative numbers is hidden."""
    arch, rng = GRAPHS["residual"], np.random.default_rng(height)
    shapes = param_shapes(arch, "train")
    params = {name: exact_array(name, shape, rng) for name, shape in shapes.items()}
    deploy = {name: array for name, array in params.items() if name.startswith("linear.")}
    for spec in arch.blocks:
        fused = fused_exactly(spec, params, EPS)
        deploy[f"{spec.name}.fused.weight"], deploy[f"{spec.name}.fused.bias"] = fused
    assert deploy.keys() == param_shapes(arch, "deploy").keys()
    x = rationals(rng, 2, 2, height, width)
    wanted = layers(arch, Pass(params, ops, EPS, "train"), x)
    got = layers(arch, Pass(deploy, ops, EPS, "deploy"), x)
    assert list(got) == list(wanted)
    for name, y in wanted.items():
        assert_exact(got[name], y)


def layers(arch: Network, run: Pass, x: Array) -> dict[str, Array]:
    return {visit.node.name: visit.y for visit in walk(arch.evaluated, x, lambda node: run)}
