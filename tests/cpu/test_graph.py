"""Graphs on the fast convolutions: any wiring, any size, and what is not known is declined."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu import NUMPY
from repvgg_ref.cpu.buffers import Reading, hand_out
from repvgg_ref.cpu.engine import CHUNK, Engine
from repvgg_ref.cpu.graph import GraphEngine
from repvgg_ref.errors import BackendError, ShapeError
from repvgg_ref.models.graph import INPUT, Graph, Network, Node, extents
from repvgg_ref.models.layers import (
    AddRelu,
    Block,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
    Operation,
)
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.models.registry import network
from repvgg_ref.ops import REFERENCE
from tests.models.small import GRAPHS, SMALL, distinct_model
from tests.random_networks import random_model


def block(name: str, source: str, channels: int, outputs: int, **settings: Any) -> Node:
    chosen: dict[str, Any] = {"stride": 1, "kind": "conv-bn", **settings}
    spec = BlockSpec(name, channels, outputs, **chosen)
    return Node(name, Block(spec), (source,))


# Everything at once: a pool that sees negative numbers at its border, a strided shortcut, readers
# of one output with borders 0, 1 and 2, groups, dilation, three branches, an output that is needed
# again after several others, sums of sums, a head of two layers on all pixels.
BODY = (
    block("stem", INPUT, 3, 8, kernel=7, stride=2, activation="none"),
    Node("maxpool", MaxPool(kernel=3, stride=2, padding=1), ("stem",)),
    block("a", "maxpool", 8, 8),
    block("b", "a", 8, 8, activation="none", kind="repvgg", groups=2),
    Node("sum", AddRelu(), ("b", "maxpool")),
    block("wide", "sum", 8, 8, dilation=2, activation="none"),
    Node("twice", AddRelu(), ("sum", "wide")),
    block("down", "twice", 8, 16, kernel=1, stride=2, activation="none"),
    block("c", "twice", 8, 4, kernel=1, kind="conv-bias"),
    block("d", "c", 4, 4, kernel=5, stride=2),
    block("e", "d", 4, 16, kernel=1, activation="none"),
    Node("last", AddRelu(), ("down", "e")),
    Node("pool2", MaxPool(kernel=2, stride=2), ("last",)),
)


def everything(height: int, width: int) -> Graph:
    features = math.prod(extents(Graph("body", BODY), height, width)["pool2"])
    head = (
        Node("flatten", Flatten(), ("pool2",)),
        Node("fc0", Linear(features, 12, relu=True), ("flatten",)),
        Node("fc1", Linear(12, 5), ("fc0",), loss_weight=1.0),
    )
    return Graph("everything", BODY + head)


def images(count: int, height: int, width: int, dtype: Any = np.float32) -> Array:
    return np.random.default_rng(count).standard_normal((count, 3, height, width)).astype(dtype)


def by_the_reference(arch: Network, params: dict[str, Array], x: Array) -> dict[str, Array]:
    """NCHW, one operator after the other; of a node only its settings are used."""
    found = {INPUT: x}
    for node in arch.nodes:
        y, op = found[node.inputs[0]], node.op
        if isinstance(op, Block):
            weight, bias = (params[f"{node.name}.fused.{part}"] for part in ("weight", "bias"))
            settings = {"dilation": op.spec.dilation, "groups": op.spec.groups}
            padding = op.spec.kernel // 2 * op.spec.dilation
            y, _ = REFERENCE.conv2d_forward(
                y, weight, bias, stride=op.spec.stride, padding=padding, **settings
            )
            y = np.maximum(y, 0) if op.spec.activation == "relu" else y
        elif isinstance(op, AddRelu):
            y = np.maximum(y + found[node.inputs[1]], 0)
        elif isinstance(op, MaxPool):
            side = ((0, 0), (0, 0), (op.padding,) * 2, (op.padding,) * 2)
            padded = np.pad(y, side, constant_values=-np.inf)
            windows = np.lib.stride_tricks.sliding_window_view(padded, (op.kernel,) * 2, (2, 3))
            y = windows[:, :, :: op.stride, :: op.stride].max(axis=(4, 5))
        elif isinstance(op, GlobalAvgPool):
            y = y.mean((2, 3))
        elif isinstance(op, Flatten):
            y = y.reshape(len(y), -1)
        else:
            assert isinstance(op, Linear)
            y = y @ params[f"{node.name}.weight"].T + params[f"{node.name}.bias"]
            y = np.maximum(y, 0) if op.relu else y
        found[node.name] = y
    return found


def widened(model: Model) -> dict[str, Array]:
    return {name: array.astype(np.float64) for name, array in model.params.items()}


def assert_near(got: Array, wanted: Array, tolerance: float) -> None:
    assert got.shape == wanted.shape
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error <= tolerance, error


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("algorithm", ["auto", "direct", "winograd4"])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (45, 38)])
def test_values_are_the_references(height: int, width: int, algorithm: str, threads: int) -> None:
    arch = everything(height, width)
    deploy = fuse(random_model(arch, 0))
    x = images(3, height, width)
    wanted = by_the_reference(arch, widened(deploy), x.astype(np.float64))
    how: dict[str, Any] = {"algorithm": algorithm, "threads": threads}
    for _ in range(2):  # buffers are used again
        assert_near(deploy.forward(x, **how), wanted["fc1"], 2e-5)
        got = deploy.forward(x, layers=True, **how)
        assert tuple(got) == arch.layer_names
        for name, y in got.items():
            assert_near(y, wanted[name], 2e-5)
    assert recognised(arch) is GraphEngine


def test_float64_is_direct_and_exact_to_its_last_digits() -> None:
    arch = everything(33, 40)
    deploy = fuse(random_model(arch, 0, np.float64))
    x = images(2, 33, 40, np.float64)
    wanted = by_the_reference(arch, deploy.params, x)
    for name, y in deploy.forward(x, layers=True).items():
        assert y.dtype == np.float64
        assert_near(y, wanted[name], 1e-13)


@pytest.mark.parametrize("arch", GRAPHS.values(), ids=GRAPHS.keys())
def test_both_forms_agree_on_both_backends(arch: Network) -> None:
    model = distinct_model(arch, dtype=np.float32)
    x = np.random.default_rng(0).standard_normal((3, 2, 36, 34), np.float32)
    assert recognised(arch) is GraphEngine
    wanted = distinct_model(arch).forward(x.astype(np.float64), layers=True, backend="reference")
    for each in (model, fuse(model)):
        for backend in ("reference", "numpy"):
            for name, y in each.forward(x, layers=True, backend=backend).items():
                assert_near(y, wanted[name], 2e-6)


@pytest.mark.parametrize("seed", range(30))
def test_any_wiring(seed: int) -> None:
    arch = random_graph(np.random.default_rng(seed))
    deploy = fuse(random_model(arch, seed, np.float64))
    x = images(2, 19, 14, np.float64)
    wanted = by_the_reference(arch, deploy.params, x)
    assert recognised(arch) is GraphEngine
    for name, y in deploy.forward(x, layers=True, threads=1 + seed % 2).items():
        assert_near(y, wanted[name], 1e-12)


def random_graph(rng: np.random.Generator) -> Graph:
    """Blocks, pools and sums that read what they like; the head reads the last of them."""
    nodes: list[Node] = []
    sizes = {INPUT: (3, 19, 14)}
    for number in range(12):
        name, source = f"n{number}", str(rng.choice([*sizes][-4:]))
        fellows = [other for other, size in sizes.items() if size == sizes[source] != (3, 19, 14)]
        op: Operation
        inputs: tuple[str, ...] = (source,)
        kind = rng.choice(["block", "block", "sum", "pool"])
        if kind == "sum" and fellows:
            op, inputs = AddRelu(), (source, str(rng.choice(fellows)))
        elif kind == "pool" and min(sizes[source][1:]) > 3:
            kernel = int(rng.integers(2, 4))
            op = MaxPool(kernel, int(rng.integers(1, 3)), int(rng.integers(0, (kernel + 1) // 2)))
        else:
            spec = BlockSpec(
                name,
                sizes[source][0],
                int(rng.choice([4, 4, 6])),
                stride=int(rng.choice([1, 1, 2])),
                kernel=int(rng.choice([1, 3, 3, 5])),
                dilation=int(rng.choice([1, 1, 2])),
                groups=2 if sizes[source][0] % 2 == 0 and rng.random() < 0.3 else 1,
                kind=str(rng.choice(["conv-bn", "conv-bias"])),
                activation="relu" if rng.random() < 0.5 else "none",
            )
            op = Block(spec)
        nodes.append(Node(name, op, inputs))
        sizes[name] = op.extent([sizes[each] for each in inputs])
    head = [Node("pool", GlobalAvgPool(), (nodes[-1].name,))]
    head.append(Node("linear", Linear(sizes[nodes[-1].name][0], 3), ("pool",), loss_weight=1.0))
    return Graph("random", (*nodes, *head))


def test_a_deep_residual_network_is_the_references() -> None:
    deploy = fuse(random_model(network("ResNet-50"), 0))
    x = images(1, 32, 32)
    wanted = by_the_reference(deploy.arch, widened(deploy), x.astype(np.float64))
    assert_near(deploy.forward(x, threads=1), wanted["linear"], 1e-4)


@pytest.mark.parametrize("count", [1, 2 * CHUNK + 3])
def test_a_batch_is_its_images(count: int) -> None:
    deploy = fuse(random_model(everything(33, 40), 0))
    x = images(count, 33, 40)
    alone = np.concatenate([deploy.forward(x[n : n + 1]) for n in range(count)])
    assert_near(deploy.forward(x), alone, 2e-5)


def test_a_plan_may_run_again_and_after_another_shape() -> None:
    deploy = fuse(random_model(GRAPHS["residual"], 0))
    x = np.random.default_rng(0).standard_normal((2, 2, 30, 20), np.float32)
    first = deploy.forward(x)
    deploy.forward(x[:1, :, :17])
    assert (deploy.forward(x) == first).all()


def test_the_input_is_left_alone_and_needed_buffers_only_are_held() -> None:
    arch = network("ResNet-50")
    x = np.zeros((1, 3, 64, 64), np.float32)
    x.flags.writeable = False
    deploy = fuse(random_model(arch, 0))
    engine = GraphEngine(arch, deploy.params, dtype=x.dtype, threads=1)
    engine.forward(x)
    sizes = [math.prod(extent) for extent in extents(arch, 64, 64).values()]
    held = sum(buffer.size for buffer in engine.plan(x.shape).buffers)
    assert held < sum(sizes) / 4
    assert held >= max(sizes)


def test_nan_goes_through() -> None:
    deploy = fuse(random_model(everything(33, 40), 0))
    x = images(1, 33, 40)
    x[0, 1, 5, 5] = np.nan
    assert np.isnan(deploy.forward(x)).all()


def test_replaced_weights_are_seen_and_changes_in_place_refused() -> None:
    deploy = fuse(random_model(GRAPHS["residual"], 0))
    x = np.random.default_rng(0).standard_normal((1, 2, 30, 20), np.float32)
    before = deploy.forward(x)
    name = "layer1.0.conv1.fused.weight"
    with pytest.raises(ValueError, match="read-only"):
        deploy.params[name] *= 2
    deploy.params[name] = deploy.params[name] * 2
    after = deploy.forward(x)
    assert_near(after, deploy.forward(x, backend="reference"), 2e-5)
    assert not np.allclose(before, after)


@pytest.mark.parametrize("backend", ["numpy", "reference"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (2, 2)])
def test_images_that_do_not_fit_are_named(backend: str, height: int, width: int) -> None:
    deploy = fuse(random_model(everything(32, 32), 0))
    with pytest.raises(ShapeError):
        deploy.forward(images(1, height, width), backend=backend)


def test_an_unknown_algorithm_is_refused() -> None:
    with pytest.raises(BackendError, match="algorithm"):
        fuse(random_model(everything(32, 32), 0)).forward(images(1, 32, 32), algorithm="fft")


@dataclass(frozen=True, slots=True)
class Negation(AddRelu):
    """What looks like a sum to `isinstance`, and is none."""

    def forward(self, name: str, x: list[Array], run: Any) -> tuple[Array, Any]:
        return -x[0], None


STEM = block("stem", INPUT, 3, 4)
HEAD = (Node("pool", GlobalAvgPool(), ("x",)), Node("linear", Linear(4, 2), ("pool",)))
UNKNOWN = {
    "squeeze and excitation": (
        Node("smaller", MaxPool(2, 2), ("stem",)),
        block("x", "smaller", 4, 4, se="after_relu", se_channels=2),
        *HEAD,
    ),
    "an operation of a stranger": (Node("x", Negation(), ("stem", "stem")), *HEAD),
    "a pool with more border than windows have": (Node("x", MaxPool(2, 2, 1), ("stem",)), *HEAD),
    "features added": (
        Node("x", MaxPool(2, 2), ("stem",)),
        HEAD[0],
        Node("both", AddRelu(), ("pool", "pool")),
        Node("linear", Linear(4, 2), ("both",)),
    ),
    "images as logits": (block("x", "stem", 4, 4),),
    "a linear layer before the end": (
        Node("x", MaxPool(2, 2), ("stem",)),
        *HEAD,
        Node("pool2", MaxPool(2, 2), ("x",)),
    ),
}


@pytest.mark.parametrize("rest", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_what_is_not_known_is_declined_and_walked(rest: tuple[Node, ...]) -> None:
    arch = Graph("unknown", (STEM, *rest))
    assert recognised(arch) is type(None)
    if not isinstance(arch.head.op, Linear):
        return
    deploy = fuse(random_model(arch, 0))
    x = images(2, 11, 12)
    assert_near(deploy.forward(x), deploy.forward(x, backend="reference"), 2e-6)


def test_a_plain_chain_keeps_its_own_engine() -> None:
    assert recognised(SMALL["grouped"]) is Engine
    assert recognised(network("A0")) is Engine
    assert recognised(SMALL["plus"]) is Engine  # squeeze and excitation is part of a chain


def recognised(arch: Network) -> type:
    """What the table offers for a fused network."""
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes(arch).items()}
    return type(NUMPY.recognise_network(arch, params, np.float32, algorithm="auto", threads=1))


def shapes(arch: Network) -> dict[str, tuple[int, ...]]:
    return {
        f"{node.name}.{part}": shape
        for node in arch.evaluated
        for part, shape in node.op.shapes("deploy").items()
    }


@pytest.mark.parametrize("seed", range(30))
def test_buffers_of_what_is_needed_are_apart_and_large_enough(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = random_graph(rng).nodes
    sizes = extents(Graph("random", nodes), 19, 14)
    readings = {
        node.name: Reading(border := int(rng.integers(0, 4)), (19 + border, 20 + border))
        for node in nodes
        if isinstance(node.op, Block)
    }
    memory, buffers = hand_out(nodes, sizes, readings, 2, np.zeros)
    assert len(memory) < sum(y.inner.ndim == 4 for y in buffers.values())
    last = {name: place for place, node in enumerate(nodes) for name in (node.name, *node.inputs)}
    for place, node in enumerate(nodes):
        if node.name in readings:
            wanted = readings[node.name]
            seen = buffers[node.inputs[0]].read(wanted.border)
            assert all(a >= b for a, b in zip(seen.shape[1:3], wanted.padded, strict=True))
            inner = seen[:, wanted.border :, wanted.border :]
            assert np.shares_memory(inner[0, 0, 0], buffers[node.inputs[0]].inner[0, 0, 0])
        y = buffers[node.name]
        before = list(sizes)[: place + 1]  # the input, and the nodes before this one
        over = isinstance(node.op, AddRelu)  # a sum may be written over what it is the last to read
        for other in (name for name in before if last[name] >= place + over):
            assert not np.shares_memory(y.view, buffers[other].view), other
