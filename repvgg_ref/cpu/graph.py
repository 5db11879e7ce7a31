"""A fused network that is no chain, on the chain's own convolutions: weights packed once.

A residual network keeps a layer's input alive until the addition (section 3.1 of arXiv 2101.03697).
So buffers are handed out by need, one more than a chain has; a sum is written over its first term.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu.convolution.layout import border_views, carve, interior
from repvgg_ref.cpu.convolution.schedule import Convolution, ConvShape
from repvgg_ref.cpu.engine import Plans
from repvgg_ref.cpu.plan import Tap, pack_convolutions
from repvgg_ref.cpu.workers.pool import Stage, Step, Team, pool, portion, prepared
from repvgg_ref.errors import ShapeError, require_equal
from repvgg_ref.models.graph import INPUT, QUIET, Network, Node, extents
from repvgg_ref.models.layers import (
    AddRelu,
    Block,
    Extent,
    Flatten,
    GlobalAvgPool,
    Linear,
    MaxPool,
)

KNOWN = (Block, MaxPool, AddRelu, GlobalAvgPool, Flatten, Linear)
GIVES_FEATURES = (GlobalAvgPool, Flatten, Linear)  # (N, C), the others images
PARTS_A_THREAD = 4  # of a linear layer's outputs: its weights are what is read


def is_known(network: Network) -> bool:
    """Whether every node is of those that a `GraphPlan` computes, the last one a linear layer."""
    images, features = {INPUT}, set[str]()
    for node in network.evaluated:
        op, sources = node.op, set(node.inputs)
        if isinstance(op, Linear):
            known = sources <= features
        elif isinstance(op, Block):
            known = sources <= images and _is_square(op.spec)
        elif isinstance(op, MaxPool):
            known = sources <= images and 2 * op.padding < op.kernel
        else:
            known = sources <= images
        if not known or type(op) not in KNOWN:  # a subclass may compute something else
            return False
        (features if isinstance(op, GIVES_FEATURES) else images).add(node.name)
    return isinstance(network.head.op, Linear)


def _is_square(spec: BlockSpec) -> bool:
    """Whether the fused block is what a `ConvShape` describes, then ReLU or nothing."""
    conv = fused_conv(spec)
    kernel, stride, dilation = conv.kernel[0], conv.stride[0], conv.dilation[0]
    padding = dilation * (kernel // 2)
    square = (conv.kernel, conv.stride, conv.dilation, conv.padding) == tuple(
        (number, number) for number in (kernel, stride, dilation, padding)
    )
    return square and kernel % 2 == 1 and spec.se == "none"


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
    ) -> None:
        super().__init__(params, dtype=dtype, algorithm=algorithm, threads=threads)
        self._network, self.head = network, network.head.name

    def _make(self, shape: tuple[int, ...]) -> GraphPlan:
        sizes = extents(self._network, *shape[2:])
        blocks = self._network.blocks
        shapes = [_conv_shape(spec, shape[0], sizes[spec.name]) for spec in blocks]
        team = pool(self._threads)
        algorithms = [self._choose(each) for each in shapes]
        convolutions = pack_convolutions(
            blocks, self._params, shapes, algorithms, team, self._packed
        )
        return GraphPlan(
            self._network.evaluated,
            self._params,
            sizes,
            {spec.name: each for spec, each in zip(blocks, convolutions, strict=True)},
            images=shape[0],
            dtype=self._dtype,
            team=team,
        )


def _conv_shape(spec: BlockSpec, images: int, y: Extent) -> ConvShape:
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


class _Buffer(NamedTuple):
    """An output, (N, H, W, C) in `view` with its border of zeros around; or features (N, C)."""

    view: Array
    inner: Array
    border: int = 0
    around: Sequence[Array] = ()


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
    nodes : the network's, in order
    params : mapping
        The deploy form's arrays, all of `dtype`.
    sizes : mapping
        Channels, height and width of every node's output, and of `INPUT`.
    convolutions : mapping
        Those of the blocks, by node.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        params: Mapping[str, Array],
        sizes: Mapping[str, Extent],
        convolutions: Mapping[str, Convolution],
        *,
        images: int,
        dtype: Any,
        team: Team,
    ) -> None:
        self.team = team
        _require_fitting(nodes, sizes)
        roots = _roots(nodes)
        padded, borders = _demands(nodes, sizes, convolutions, roots, images)
        slots, taken = _slots(nodes, roots, padded)
        self.buffers = [team.allocate(numbers, dtype) for numbers in slots]
        made: dict[str, _Buffer] = {}
        for name in [INPUT, *(node.name for node in nodes)]:
            channels, height, width = sizes[name]
            if roots[name] not in padded:
                features = np.empty((images, channels), dtype)
                made[name] = _Buffer(features, features)
                continue
            view, border = (
                carve(self.buffers[taken[roots[name]]], padded[roots[name]]),
                borders[roots[name]],
            )
            inner = interior(view, height, width, border)
            own = roots[name] == name
            around = border_views(view, height, width, border) if own else []
            made[name] = _Buffer(view, inner, border, around)
        arena = team.allocate(
            max((each.scratch for each in convolutions.values()), default=0), dtype
        )
        self._entry = made[INPUT]
        self._work = [
            _Work(
                node.name,
                made[node.name].inner,
                made[node.name].around,
                _stages(node, params, made, convolutions, arena, team.threads),
            )
            for node in nodes
        ]

    def run(self, x: Array, tap: Tap | None = None) -> Array:
        """Logits of `x`, (N, C, H, W) of the plan's shape; `tap` sees every layer."""
        with self.team.session():
            _clear(self._entry.around)
            self.team.run(Stage(len(x), lambda worker, n: _enter(x[n], self._entry.inner[n])))
            for name, y, around, stages in self._work:
                _clear(around)
                for stage in stages:
                    self.team.run(stage)
                if tap is not None and name not in QUIET:
                    tap(name, y)
            return self._work[-1].y.copy()


def _require_fitting(nodes: Sequence[Node], sizes: Mapping[str, Extent]) -> None:
    """Raise `ShapeError`, as the operators do, where images are of a size that does not fit."""
    for node in nodes:
        if isinstance(node.op, Linear):
            found = sizes[node.inputs[0]][0]
            require_equal(node.name, "weight.shape[1]", node.op.features, "features", found)
        elif min(sizes[node.name]) < 1:
            raise ShapeError(f"{node.name}: no window fits", got=sizes[node.inputs[0]])


def _roots(nodes: Sequence[Node]) -> dict[str, str]:
    """Output -> the one in whose memory it lies: a sum is written over a term only it reads."""
    readers = Counter(name for node in nodes for name in node.inputs)
    roots = {INPUT: INPUT}
    for node in nodes:
        spare = [name for name in node.inputs if readers[name] == 1 and name != INPUT]
        over = isinstance(node.op, AddRelu) and spare
        roots[node.name] = roots[spare[0]] if over else node.name
    return roots


def _demands(
    nodes: Sequence[Node],
    sizes: Mapping[str, Extent],
    convolutions: Mapping[str, Convolution],
    roots: Mapping[str, str],
    images: int,
) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Every image's padded shape and border, so that all who read it find their own in it."""
    features = {node.name for node in nodes if isinstance(node.op, GIVES_FEATURES)}
    kept = [name for name in roots.values() if name not in features]
    borders = dict.fromkeys(kept, 0)
    blocks = [(node, node.op.spec) for node in nodes if isinstance(node.op, Block)]
    for node, spec in blocks:
        source = roots[node.inputs[0]]
        borders[source] = max(borders[source], _border(spec))
    padded: dict[str, tuple[int, ...]] = {}
    for name in borders:
        channels, *size = sizes[name]
        padded[name] = images, *(n + 2 * borders[name] for n in size), channels
    for node, spec in blocks:
        source = roots[node.inputs[0]]
        offset = borders[source] - _border(spec)
        _, *size, channels = padded[source]
        least = convolutions[node.name].padded
        size = [max(n, offset + wanted) for n, wanted in zip(size, least, strict=True)]
        padded[source] = images, *size, channels
    return padded, borders


def _border(spec: BlockSpec) -> int:
    return fused_conv(spec).padding[0]


def _slots(
    nodes: Sequence[Node], roots: Mapping[str, str], padded: Mapping[str, tuple[int, ...]]
) -> tuple[list[int], dict[str, int]]:
    """How many numbers each piece of memory holds, and which one an image is in.

    An image takes the piece nearest in size of those that hold nothing any more.
    """
    last_use = {INPUT: 0}
    for place, node in enumerate(nodes):
        last_use |= {roots[name]: place for name in (node.name, *node.inputs)}
    slots: list[int] = []
    free: list[int] = []
    taken: dict[str, int] = {}
    for place, name in enumerate([INPUT, *(node.name for node in nodes)], start=-1):
        if name in padded:
            numbers = math.prod(padded[name])
            slot = min(free, key=lambda k: abs(slots[k] - numbers), default=len(slots))
            if slot == len(slots):
                slots.append(numbers)
            else:
                free.remove(slot)
                slots[slot] = max(slots[slot], numbers)
            taken[name] = slot
        free += [taken[each] for each, last in last_use.items() if last == place and each in taken]
    return slots, taken


def _stages(
    node: Node,
    params: Mapping[str, Array],
    made: Mapping[str, _Buffer],
    convolutions: Mapping[str, Convolution],
    arena: Array,
    threads: int,
) -> list[Stage]:
    """A node's work. It holds no plan, so that a plan ends with its last user."""
    y, op = made[node.name].inner, node.op
    source = made[node.inputs[0]]
    x = source.inner
    if isinstance(op, Block):
        offset = source.border - _border(op.spec)
        bias = params[f"{node.name}.fused.bias"]
        rectified = op.spec.activation == "relu"
        seen = source.view[:, offset:, offset:]
        return list(convolutions[node.name].stages(seen, y, bias, arena, relu=rectified))
    if isinstance(op, Linear):
        weight, bias = params[f"{node.name}.weight"], params[f"{node.name}.bias"]
        return [_linear(x, weight, bias, y, relu=op.relu, threads=threads)]
    if isinstance(op, AddRelu):
        other = made[node.inputs[1]].inner
        steps = _each(len(y), lambda n: _add_relu(x[n], other[n], y[n]))
    elif isinstance(op, MaxPool):
        steps = _each(len(y), lambda n: _max_pool(x[n], y[n], op))
    elif isinstance(op, GlobalAvgPool):
        steps = _each(len(y), lambda n: [partial(np.mean, x[n], axis=(0, 1), out=y[n])])
    else:
        # (N, C H W) = (N, C, H, W) <- (N, H, W, C)
        chw = x.transpose(0, 3, 1, 2)
        flat = y.reshape(chw.shape)
        steps = _each(len(y), lambda n: [partial(np.copyto, flat[n], chw[n])])
    return [steps]


def _each(images: int, steps: Callable[[int], list[Step]]) -> Stage:
    return prepared(images, lambda worker, n: steps(n))


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
    return [partial(np.add, x, other, out=y), partial(np.maximum, y, 0, out=y)]


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
