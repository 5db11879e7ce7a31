"""Networks that the device has no fused way for are walked: graphs, other kernels, no ReLU."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.graph import INPUT, Graph, Network, Node
from repvgg_ref.models.layers import AddRelu, Block, Flatten, GlobalAvgPool, Linear, MaxPool
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.models.step import StepResult, training_step
from repvgg_ref.ops import REFERENCE, Ops
from tests.gpu.conftest import UnderTest
from tests.gpu.fake_cupy import LEDGER
from tests.gpu.test_operators import DTYPES, table
from tests.models.small import SMALL, distinct_model

CLASSES = 5


def conv(name: str, source: str, inputs: int, outputs: int, stride: int = 1, **other: Any) -> Node:
    """A convolution and its batch norm."""
    spec = BlockSpec(name, inputs, outputs, stride, **{"kind": "conv-bn", **other})
    return Node(name, Block(spec), (source,))


def resnet() -> Graph:
    """Two residual blocks, one with a convolution beside it, and what comes before and after."""
    return Graph(
        "resnet",
        (
            conv("stem", INPUT, 3, 6, 2, kernel=7),
            Node("narrow", MaxPool(3, 2, 1), ("stem",)),
            conv("a1", "narrow", 6, 6),
            conv("a2", "a1", 6, 6, activation="none", kind="repvgg"),
            Node("a", AddRelu(), ("a2", "narrow")),
            conv("b1", "a", 6, 8, 2),
            conv("b2", "b1", 8, 8, activation="none"),
            conv("beside", "a", 6, 8, 2, kernel=1, activation="none"),
            Node("b", AddRelu(), ("b2", "beside")),
            Node("pool", GlobalAvgPool(), ("b",)),
            Node("linear", Linear(8, CLASSES), ("pool",), loss_weight=1.0),
        ),
    )


def vgg() -> Graph:
    """Pixels in a row, and two linear layers; images of 20 x 24."""
    return Graph(
        "vgg",
        (
            conv("c1", INPUT, 3, 4),
            Node("p1", MaxPool(2, 2), ("c1",)),
            conv("c2", "p1", 4, 6),
            Node("p2", MaxPool(2, 2), ("c2",)),
            Node("flatten", Flatten(), ("p2",)),
            Node("fc", Linear(6 * 5 * 6, 7, relu=True), ("flatten",)),
            Node("linear", Linear(7, CLASSES), ("fc",), loss_weight=1.0),
        ),
    )


def with_blocks(**changes: Any) -> Network:
    """A plain chain whose last block is another."""
    arch = SMALL["plain"]
    return replace(arch, blocks=(*arch.blocks[:-1], replace(arch.blocks[-1], **changes)))


NETWORKS: dict[str, Network] = {
    "resnet": resnet(),
    "vgg": vgg(),
    "kernel of 5": with_blocks(kernel=5),
    "kernel of 1": with_blocks(kernel=1, kind="conv-bn"),
    "no ReLU": with_blocks(activation="none"),
}


@cache
def small(name: str) -> tuple[Model, Array, Array]:
    """In train form and float64."""
    network, rng = NETWORKS[name], np.random.default_rng(2)
    x = rng.normal(size=(3, network.in_channels, 20, 24))
    return distinct_model(network), x, rng.integers(0, network.num_classes, 3)


def step(ops: Ops, name: str, dtype: Any) -> StepResult:
    model, x, labels = small(name)
    params = {
        each: array if array.dtype.kind != "f" else ops.from_host(array.astype(dtype))
        for each, array in model.params.items()
    }
    return training_step(
        model.arch,
        params,
        ops.from_host(x.astype(dtype)),
        ops.from_host(labels),
        ops=ops,
        eps=model.eps,
        momentum=model.momentum,
        label_smoothing=0.1,
    )


def assert_close(got: Array, wanted: Array, tolerance: float, what: str) -> None:
    error = np.abs(np.asarray(got, np.float64) - wanted).max()
    assert error <= tolerance * max(np.abs(wanted).max(), 1e-300), f"{what}: off by {error}"


@pytest.mark.few
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("name", NETWORKS)
def test_evaluation_is_the_references(name: str, form: str, device: UnderTest) -> None:
    ops, (model, x, _) = table("fp32"), small(name)
    model = model if form == "train" else fuse(model)
    got = model.forward(x, backend=ops, layers=True)
    wanted = model.forward(x, backend="reference", layers=True)
    assert list(got) == list(wanted)
    for layer, exact in wanted.items():
        assert_close(got[layer], exact, 1e-11, layer)
    np.testing.assert_array_equal(model.forward(x, backend=ops), got[model.arch.head.name])
    if form == "deploy":
        assert model._at(ops).fast(model.arch, model.params, x.dtype) is None


def test_a_plain_chain_has_its_fused_way(device: UnderTest) -> None:
    from repvgg_ref.gpu.chain import Chain

    ops, model = table("fp32"), fuse(distinct_model(SMALL["plain"]))
    assert isinstance(model._at(ops).fast(model.arch, model.params, np.float32), Chain)


@pytest.mark.few
@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_is_the_references(name: str, device: UnderTest) -> None:
    wanted = step(REFERENCE, name, np.float64)
    got = step(table("fp32"), name, np.float64)
    assert_close(to_numpy(got.loss), wanted.loss, 1e-12, "loss")
    assert_close(to_numpy(got.logits), wanted.logits, 1e-11, "logits")
    for ours, exact in ((got.grads, wanted.grads), (got.stats, wanted.stats)):
        assert ours.keys() == exact.keys()
        for key, array in exact.items():
            assert_close(to_numpy(ours[key]), array, 1e-9, key)


@pytest.mark.few
@pytest.mark.parametrize("math", DTYPES)
@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_every_arithmetic_and_no_moment_of_waiting(name: str, math: str, device: UnderTest) -> None:
    ops, exact = table(math), step(REFERENCE, name, np.float64)
    if not device.is_fake:
        step(ops, name, np.float32)
    LEDGER.clear()
    with device.never_waits():
        got = step(ops, name, np.float32)
    assert not LEDGER.syncs
    assert got.logits.dtype == np.float32
    tolerance = {"fp32": 1e-4, "tf32": 1e-2, "fp16": 1e-2, "bf16": 0.1}[math]
    assert_close(to_numpy(got.loss), exact.loss, tolerance, "loss")
    assert all(grad.dtype == np.float32 for grad in got.grads.values())
    for key in ("linear.weight", "linear.bias"):
        assert_close(to_numpy(got.grads[key]), exact.grads[key], 4 * tolerance, key)
