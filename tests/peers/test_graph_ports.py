"""Ports of networks that are no chain: torch's modules, and Winograd's algorithm where it errs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.models.baselines import resnet
from repvgg_ref.models.graph import INPUT, Graph
from repvgg_ref.models.layers import Block, Pass
from repvgg_ref.models.network import Model
from repvgg_ref.models.regnet import regnet, stages
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model

pytest.importorskip("torch")
pytestmark = pytest.mark.peers

X = np.random.default_rng(0).standard_normal((2, 3, 48, 40)).astype(np.float32)
LINE: dict[str, Any] = {"depth": 3, "initial": 16, "slope": 8, "step": 2.0}
NEXT: dict[str, Any] = {"groups": 4, "group_width": 4, "strides": (1, 2)}
SMALL: dict[str, Callable[[], Graph]] = {
    "resnet": partial(resnet, "small", depths=(1, 1), bottleneck=False, num_classes=5),
    "resnext": partial(resnet, "small", depths=(1, 1), bottleneck=True, num_classes=5, **NEXT),
    "regnet": partial(regnet, "small", group_width=8, num_classes=5, **LINE),
}


@cache
def trained(name: str) -> Model:
    return distinguishing_model(SMALL[name](), seed=1, x=X)


def module(name: str) -> Any:
    from tests.peers.torch_baselines import ResNet, basic, bottleneck, filled
    from tests.peers.torch_gated import RegNet

    made: dict[str, Callable[[], Any]] = {
        "resnet": lambda: ResNet(basic, (1, 1), widening=1, classes=5),
        "resnext": lambda: ResNet(bottleneck, (1, 1), widening=4, classes=5, **NEXT),
        "regnet": lambda: RegNet(stages(*LINE.values()), 8, 5),
    }
    return filled(made[name](), trained(name)).eval()


def __getattr__(name: str) -> Any:
    """The right modules by the names of their networks, for ``module:callable``."""
    if name.startswith("small_"):
        return module(name.removeprefix("small_"))
    raise AttributeError(name)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("outside", [False, True])
def test_torch_modules_are_heard_in_this_process_and_in_another(name: str, outside: bool) -> None:
    port = f"{__file__}:small_{name}" if outside else module(name)
    report = rr.verify(trained(name), port, inputs=X)
    assert report.verdict == "agree", report.reason
    heard = {layer.name for layer in report.layers}
    if name == "regnet":
        assert heard == set(trained(name).arch.layer_names)
    else:
        inner = {f"layer{n}.0.conv{k}" for n in (1, 2) for k in range(1, len(heard))}
        assert len(heard & inner) == 2, "only the last convolution of a block has a module"
        assert "layer2.0.downsample" in heard


@pytest.mark.few(1)
@pytest.mark.parametrize("name", SMALL)
def test_a_wrong_torch_module_is_placed_and_named(name: str) -> None:
    wrong = module(name)
    norm = wrong.trunk_output[1][0].f.c[1] if name == "regnet" else wrong.layer2[0].downsample[1]
    norm.eps = 1e-2
    report = rr.verify(trained(name), wrong, inputs=X)
    layer = "block2.0.c" if name == "regnet" else "layer2.0.downsample"
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("eps-value", layer)]


# ------------------------------------------------------------------------ Winograd's algorithm


def without_biases(name: str) -> Model:
    """Nothing but zeros comes of zeros."""
    model = trained(name)
    ends = (".beta", ".running_mean")
    params = {n: 0 * array if n.endswith(ends) else array for n, array in model.params.items()}
    return replace(model, params=params)


def by_winograd(model: Model, m: int, x: Array) -> dict[str, Array]:
    """Every layer in float32, convolutions by F(m x m, 3 x 3) where it applies."""
    from tests.peers.right_convolutions import winograd

    params, run = rr.fuse(model).params, Pass(model.params, REFERENCE, model.eps)
    known: dict[str, Array] = {INPUT: x}
    for node in model.arch.evaluated:
        xs = [known[source] for source in node.inputs]
        if isinstance(node.op, Block):
            conv = fused_conv(node.op.spec)
            weight, bias = (params[f"{node.name}.fused.{part}"] for part in ("weight", "bias"))
            how = {"stride": conv.stride, "padding": conv.padding, "dilation": conv.dilation}
            y = winograd(m, xs[0], weight, bias, groups=conv.groups, **how)
            known[node.name] = np.maximum(y, 0) if node.op.spec.activation == "relu" else y
        else:
            y = node.op.forward(node.name, xs, run)[0]
            known[node.name] = np.asarray(y, np.float32)
    return {name: known[name] for name in model.arch.layer_names}


def spot() -> Array:
    """A few bright pixels in the dark, where direct sums are exactly 0."""
    x = np.zeros((2, 3, 64, 64), np.float32)
    x[:, :, 20:22, 20:22] = 30 * np.random.default_rng(0).standard_normal((2, 3, 2, 2))
    return x


SHOWN: dict[str, Callable[[str], bool]] = {
    "blocks": lambda layer: layer.endswith(".add") or layer == "linear",
    "relus": lambda layer: not layer.endswith((".conv2", ".downsample", ".proj", ".c")),
    "all": lambda layer: True,
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("m", [4, 6])
@pytest.mark.parametrize("shown", SHOWN)
def test_right_ports_by_winograd_are_never_called_wrong(name: str, m: int, shown: str) -> None:
    model, x = without_biases(name), spot()
    port = {n: y for n, y in by_winograd(model, m, x).items() if SHOWN[shown](n)}
    report = rr.verify(model, port, inputs=x)
    if shown == "all":
        assert report.verdict == "agree", report.reason
    else:  # of layers that are not shown nobody knows by which algorithm they were computed
        assert report.verdict == "agree" or "show " in report.reason


@pytest.mark.parametrize("layer", ["layer1.0.conv1", "layer2.0.conv2"])
def test_a_wrong_weight_in_a_layer_that_is_not_shown_does_not_pass(layer: str) -> None:
    """One weight of thousands times 1.5, which shows in the block's output alone."""
    model = trained("resnet")
    name = f"{layer}.conv.weight"
    weight = model.params[name].copy()
    weight.flat[np.argsort(np.abs(weight), axis=None)[weight.size // 2]] *= 1.5
    outputs = replace(model, params={**model.params, name: weight}).forward(X, layers=True)
    blocks = {n: y for n, y in outputs.items() if SHOWN["blocks"](n)}
    report = rr.verify(model, blocks, inputs=X)
    assert report.verdict != "agree"
    assert report.verdict == "disagree" or "show " in report.reason
