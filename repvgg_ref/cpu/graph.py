"""A fused network that is no chain, such as a residual one, on the chain's own convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu.budget import Memory
from repvgg_ref.cpu.buffers import GIVES_FEATURES, Reading, hand_out
from repvgg_ref.cpu.convolution.schedule import ConvShape, Staged, rectified
from repvgg_ref.cpu.engine import Plans
from repvgg_ref.cpu.gated import gate, gelu_steps, row_stage, silu_steps
from repvgg_ref.cpu.plan import Tap, pack_convolutions
from repvgg_ref.cpu.workers.pool import Stage, Step, Team, pool, portion, prepared
from repvgg_ref.errors import ShapeError, require_equal
from repvgg_ref.models.gated import Add, Dropout, Gate, Gelu, Silu
from repvgg_ref.models.graph import INPUT, QUIET, Network, Node, extents
from repvgg_ref.models.heads import NormLinear
from repvgg_ref.models.layers import (
    AddRelu,
    Block,
    Extent,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
)

_FEATURES = (GlobalAvgPool, Flatten, Linear, NormLinear, Dropout)
KNOWN: tuple[type, ...] = (Block, MaxPool, AddRelu, Silu, Gelu, Gate, Add, *_FEATURES)
PARTS_A_THREAD = 4  # of a linear layer's outputs: its weights are what is read


def is_known(network: Network) -> bool:
    """Whether every node is of those that a `GraphPlan` computes, the last one a linear layer."""
    images, features = {INPUT}, set[str]()
    for node in network.evaluated:
        op, sources = node.op, set(node.inputs)
        if isinstance(op, Linear | Dropout):
            known = sources <= features
        elif isinstance(op, Block):
            known = sources <= images and op.spec.se == "none" and is_square(op.spec)
        elif isinstance(op, MaxPool):
            known = sources <= images and 2 * op.padding < op.kernel
        else:
            known = sources <= images
        if not known or type(op) not in KNOWN:  # a subclass may compute something else
            return False
        (features if isinstance(op, GIVES_FEATURES) else images).add(node.name)
    return isinstance(network.head.op, Linear)


def is_square(spec: BlockSpec) -> bool:
    """Whether the fused block's convolution is what a `ConvShape` describes."""
    conv = fused_conv(spec)
    kernel, stride, dilation = conv.kernel[0], conv.stride[0], conv.dilation[0]
    padding = dilation * (kernel // 2)
    square = (conv.kernel, conv.stride, conv.dilation, conv.padding) == tuple(
        (number, number) for number in (kernel, stride, dilation, padding)
    )
    return square and kernel % 2 == 1


class GraphEngine(Plans["GraphPlan"]):
    """Evaluates a fused network that `is_known`; arguments as for `Plans`."""

    def __init__(
        self,
        network: Network,
        params: Mapping[str, Array],
        *,
        dtype: Any,
        algorithm: str = "auto",
        threads: int | None = None,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(params, dtype=dtype, algorithm=algorithm, threads=threads, memory=memory)
        self._network, self.head = network, network.head.name

    def _make(self, shape: tuple[int, ...]) -> GraphPlan:
        network, sizes, team = (
            self._network,
            extents(self._network, *shape[2:]),
            pool(self._threads),
        )
        _require_fitting(network, sizes)
        shapes = [conv_shape(spec, shape[0], sizes[spec.name]) for spec in network.blocks]
        convolutions = pack_convolutions(
            network.blocks, self._params, shapes, self._choose(shapes), team, self._packed
        )
        names = [spec.name for spec in network.blocks]
        made = dict(zip(names, zip(shapes, convolutions, strict=True), strict=True))
        return GraphPlan(
            network, self._params, sizes, made, images=shape[0], dtype=self._dtype, team=team
        )


def _require_fitting(network: Network, sizes: Mapping[str, Extent]) -> None:
    """Raise `ShapeError`, as the operators do, where images are of a size that does not fit."""
    for node in network.evaluated:
        if isinstance(node.op, Linear):
            found = sizes[node.inputs[0]][0]
            require_equal(node.name, "weight.shape[1]", node.op.features, "features", found)
        elif min(sizes[node.name]) < 1:
            raise ShapeError(f"{node.name}: no window fits", got=sizes[node.inputs[0]])


def conv_shape(spec: BlockSpec, images: int, y: Extent) -> ConvShape:
    """The convolution of a fused block that `is_square`, y being its channels and pixels."""
    outputs, height, width = y
    conv = fused_conv(spec)
    return ConvShape(
        images,
        height,
        width,
        spec.in_channels,
        outputs,
        conv.kernel[0],
        conv.stride[0],
        conv.dilation[0],
        conv.groups,
    )


class _Work(NamedTuple):
    """What a node does, after what lies around its output has been zeroed."""

    name: str
    y: Array
    around: Sequence[Array]
    stages: list[Stage]


class GraphPlan:
    """A graph's nodes for one batch shape; `run` may be called any number of times.

    Parameters
    ----------
    params : mapping
        The deploy form's arrays, all of `dtype`.
    sizes : mapping
        Channels, height and width of every node's output, and of `INPUT`.
    convolutions : mapping
        Those of the blocks, by node.
    """

    def __init__(
        self,
        network: Network,
        params: Mapping[str, Array],
        sizes: Mapping[str, Extent],
        convolutions: Mapping[str, tuple[ConvShape, Staged]],
        *,
        images: int,
        dtype: Any,
        team: Team,
    ) -> None:
        def allocate(numbers: int) -> Array:
            return team.allocate(numbers, dtype)

        self.team, nodes = team, network.evaluated
        readings = {
            name: Reading(shape.border, convolution.padded)
            for name, (shape, convolution) in convolutions.items()
        }
        self.buffers, made = hand_out(nodes, sizes, readings, images, allocate)
        arena = allocate(max(convolution.scratch for _, convolution in convolutions.values()))
        self._entry, self._work = made[INPUT], list[_Work]()
        for node in nodes:
            y, around = made[node.name].inner, made[node.name].around
            if isinstance(node.op, Block):
                shape, convolution = convolutions[node.name]
                x, bias = made[node.inputs[0]].read(shape.border), params[f"{node.name}.fused.bias"]
                relu = node.op.spec.activation == "relu"
                stages = list(convolution.stages(x, y, bias, arena, relu=relu))
            else:
                inputs = [made[name].inner for name in node.inputs]
                stages = [_stage(node, inputs, y, params, team.threads)]
            self._work.append(_Work(node.name, y, around, stages))

    def run(self, x: Array, tap: Tap | None = None) -> Array:
        """Logits of `x`, (N, C, H, W) of the plan's shape; `tap` sees every layer."""
        entry = self._entry
        with self.team.session():
            _clear(entry.around)
            self.team.run(Stage(len(x), lambda worker, n: _enter(x[n], entry.inner[n])))
            for name, y, around, stages in self._work:
                _clear(around)
                for stage in stages:
                    self.team.run(stage)
                if tap is not None and name not in QUIET:
                    tap(name, y)
            return self._work[-1].y.copy()


def _stage(
    node: Node, inputs: list[Array], y: Array, params: Mapping[str, Array], threads: int
) -> Stage:
    """What a node without a convolution does. It holds no plan: one ends with its last user."""
    op, x = node.op, inputs[0]
    if isinstance(op, Linear):
        weight, bias = params[f"{node.name}.weight"], params[f"{node.name}.bias"]
        return _linear(x, weight, bias, y, relu=op.relu, threads=threads)
    if isinstance(op, Silu | Gelu):
        return row_stage(silu_steps if isinstance(op, Silu) else gelu_steps, x, y, threads)

    def image(worker: int, n: int) -> list[Step]:
        if isinstance(op, AddRelu):
            return _add_relu(x[n], inputs[1][n], y[n])
        if isinstance(op, MaxPool):
            return _max_pool(x[n], y[n], op)
        if isinstance(op, Gate):
            return [partial(gate, node.name, x[n], params, y[n], relu=op.relu)]
        if isinstance(op, Add):
            return [partial(np.add, x[n], inputs[1][n], out=y[n])]
        if isinstance(op, Dropout):
            return [partial(np.copyto, y[n], x[n])]
        if isinstance(op, GlobalAvgPool):
            return [partial(np.mean, x[n], axis=(0, 1), out=y[n])]
        chw = x[n].transpose(2, 0, 1)  # (C, H, W) <- (H, W, C)
        return [partial(np.copyto, y[n].reshape(chw.shape), chw)]

    return prepared(len(y), image)


def _linear(x: Array, weight: Array, bias: Array, y: Array, *, relu: bool, threads: int) -> Stage:
    """``x W^T + b``, the outputs shared out."""
    parts = min(PARTS_A_THREAD * threads, len(weight))

    def part(worker: int, item: int) -> list[Step]:
        some = portion(len(weight), item, parts)
        rows = slice(some.start, some.stop)
        its = y[:, rows]
        steps: list[Step] = [
            partial(np.matmul, x, weight[rows].T, out=its),
            partial(np.add, its, bias[rows], out=its),
        ]
        return [*steps, partial(np.maximum, its, 0, out=its)] if relu else steps

    return prepared(parts, part)


def _add_relu(x: Array, other: Array, y: Array) -> list[Step]:
    return [partial(np.add, x, other, out=y), rectified(y, y)]


def _max_pool(x: Array, y: Array, op: MaxPool) -> list[Step]:
    """One image: the largest of what the taps meet; a tap beyond the border meets fewer pixels."""
    rows, columns = (
        [_met(tap - op.padding, op.stride, n, size) for tap in range(op.kernel)]
        for n, size in zip(x.shape[:2], y.shape[:2], strict=True)
    )
    taps = [((to_i, to_j), x[i, j]) for to_i, i in rows for to_j, j in columns]
    (_, first), *others = sorted(taps, key=lambda tap: -tap[1].size)  # the first meets all pixels
    steps: list[Step] = [partial(np.copyto, y, first)]
    return steps + [partial(np.maximum, y[to], met, out=y[to]) for to, met in others]


def _met(offset: int, stride: int, pixels: int, outputs: int) -> tuple[slice, slice]:
    """The outputs whose tap at `offset` falls on one of the pixels, and those pixels."""
    first = max(0, -(offset // stride))
    count = max(0, min(outputs, (pixels - 1 - offset) // stride + 1) - first)
    begin = first * stride + offset
    return slice(first, first + count), slice(begin, begin + count * stride, stride)


def _enter(image: Array, inner: Array) -> None:
    for channel, plane in enumerate(image):  # a quarter of the time of a transposed copy
        inner[:, :, channel] = plane


def _clear(around: Sequence[Array]) -> None:
    for view in around:
        view.fill(0)
