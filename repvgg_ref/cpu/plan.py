"""The fused network as a plan: a chain of convolutions between two buffers.

Section 3.1 of arXiv 2101.03697: a plain topology frees a layer's input as soon as its output is
there. So two buffers do for all layers, each layer reading one and writing the other. An output
is written straight into the middle of the next layer's padded input; only borders are zeroed.
One arena of scratch serves every layer, so that it stays warm in cache.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu.budget import Choice
from repvgg_ref.cpu.convolution.algorithms import Algorithm, make_convolution
from repvgg_ref.cpu.convolution.layout import border_views, carve, interior
from repvgg_ref.cpu.convolution.schedule import ConvShape, Packed, Staged
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import Stage, Team, portion

Tap = Callable[[str, Array], None]


class Layer(NamedTuple):
    """One block bound to its buffers: `x` padded, `y` the middle of the next one's input."""

    spec: BlockSpec
    algorithm: Algorithm
    convolution: Staged
    x: Array
    y: Array
    beside: list[Array]  # what lies around `y`, to be zeroed
    stages: list[Stage]


def conv_shapes(
    blocks: tuple[BlockSpec, ...], images: int, height: int, width: int
) -> list[ConvShape]:
    """The convolutions of a fused chain on `images` of height x width."""
    shapes = []
    for spec in blocks:
        # padding equals dilation: floor((H + 2 d - 2 d - 1) / stride) + 1
        height, width = ((size - 1) // spec.stride + 1 for size in (height, width))
        shapes.append(
            ConvShape(
                images,
                height,
                width,
                spec.in_channels,
                spec.out_channels,
                stride=spec.stride,
                dilation=spec.dilation,
                groups=spec.groups,
            )
        )
    return shapes


class Plan:
    """The fused chain for one batch shape; `run` may be called any number of times.

    Where the team's workers are processes, each of them has the plan: the caller's `run` and the
    others' `follow` go through the same stages, on buffers that all see.

    Parameters
    ----------
    blocks, params
        The architecture's blocks and the deploy form's arrays, all of `dtype`.
    shape : (N, C, H, W)
    choices : one for each block
    packed : dict
        Packed weights, shared by the plans of a model; filled here.
    """

    def __init__(
        self,
        blocks: tuple[BlockSpec, ...],
        params: Mapping[str, Array],
        shape: tuple[int, ...],
        *,
        dtype: Any,
        team: Team,
        choices: list[Choice],
        packed: Packed,
    ) -> None:
        self.shape, self.team = shape, team
        shapes = conv_shapes(blocks, shape[0], *shape[2:])
        convolutions = pack_convolutions(blocks, params, shapes, choices, team, packed)
        padded = _padded_shapes(convolutions, shapes, shape)
        self._allocate(convolutions, padded, len(params["linear.bias"]), np.dtype(dtype))
        sizes = [(shape[2], shape[3]), *((each.height, each.width) for each in shapes)]
        borders = [*(each.border for each in shapes), 0]
        views = [carve(self.buffers[i % 2], p) for i, p in enumerate(padded)]
        inner = [interior(v, *s, b) for v, s, b in zip(views, sizes, borders, strict=True)]
        around = [
            border_views(view, *size, border)
            for view, size, border in zip(views, sizes, borders, strict=True)
        ]
        self._entry, self._around_entry, self._exit = inner[0], around[0], inner[-1]
        self.layers = [
            Layer(spec, how.algorithm, conv, x, y, beside, self._stages(spec, conv, x, y, params))
            for spec, how, conv, x, y, beside in zip(
                blocks, choices, convolutions, views[:-1], inner[1:], around[1:], strict=True
            )
        ]
        self._head = self._head_stages(params["linear.weight"], params["linear.bias"])

    def run(self, x: Array, tap: Tap | None = None) -> Array:
        """Logits of `x`, (N, C, H, W) of the plan's shape; `tap` sees every layer, NHWC views."""
        with self.team.session():
            self.team.call()
            _clear(self._around_entry)
            self.team.run(Stage(1, lambda worker, item: self._enter(x)))
            for layer in self.layers:
                _clear(layer.beside)
                for stage in layer.stages:
                    self.team.run(stage)
                if tap is not None:
                    tap(layer.spec.name, layer.y)
            for stage in self._head:
                self.team.run(stage)
            return self._logits.copy()

    def follow(self) -> None:
        """Do this process's part of a `run` that another one was asked for."""
        for _ in self.parts():
            pass

    def parts(self) -> Iterator[None]:
        """The same, stage by stage."""
        for stage in chain(
            [Stage(1, _not_here)], *(layer.stages for layer in self.layers), self._head
        ):
            self.team.run(stage)
            yield

    @property
    def scratch_bytes(self) -> int:
        """Two activation buffers and scratch: what a forward holds besides the weights."""
        own = 0 if self.team.seat is None else self._own.nbytes * self.team.processes
        return own + self.arena.nbytes + sum(buffer.nbytes for buffer in self.buffers)

    def _allocate(
        self, convolutions: list[Staged], padded: list[tuple[int, ...]], classes: int, dtype: Any
    ) -> None:
        """Two buffers, the arena, features and logits: what all workers see, in one piece.

        A process has scratch of its own beside the arena; threads have theirs in it, since shared
        and private layers take turns.
        """
        images, features = padded[-1][0], padded[-1][3]
        threads = self.team.seat is None
        own = [conv.scratch for conv in convolutions if not (conv.shared or threads)]
        common = [conv.scratch for conv in convolutions if conv.shared or threads]
        sizes = [
            *(max(math.prod(p) for p in padded[first::2]) for first in (0, 1)),
            images * features,
            images * classes,
            max(common, default=0),
        ]
        line = 64 // dtype.itemsize  # numbers in a cache line
        ends = list(accumulate(-(-size // line) * line for size in sizes))
        common_memory = self.team.allocate(ends[-1], dtype)
        first, second, pooled, logits, arena = (
            common_memory[end - -(-size // line) * line :][:size]
            for size, end in zip(sizes, ends, strict=True)
        )
        self.buffers, self.arena = [first, second], arena
        self._pooled, self._logits = (
            carve(pooled, (images, features)),
            carve(logits, (images, classes)),
        )
        self._own = arena if threads else memory.empty((max(own, default=0),), dtype)

    def _stages(
        self,
        spec: BlockSpec,
        convolution: Staged,
        x: Array,
        y: Array,
        params: Mapping[str, Array],
    ) -> list[Stage]:
        bias = params[f"{spec.name}.fused.bias"]
        rectified = spec.se != "before_relu"
        arena = self.arena if convolution.shared else self._own
        stages = list(convolution.stages(x, y, bias, arena, relu=rectified))
        if spec.se != "none":
            weights = {
                part: params[f"{spec.name}.se.{part}"]
                for part in ("down.weight", "down.bias", "up.weight", "up.bias")
            }
            stages.append(
                Stage(len(y), lambda worker, n: squeeze_excite(y[n], weights, relu=not rectified))
            )
        return stages

    def _head_stages(self, weight: Array, bias: Array) -> list[Stage]:
        """Global average, then the linear layer, each worker some of the classes."""
        # no `self` in the stages: a plan ends with its last user, not when cycles are collected
        features, pooled, logits = self._exit, self._pooled, self._logits
        shares = self.team.threads

        def average(worker: int, n: int) -> None:
            np.mean(features[n], axis=(0, 1), out=pooled[n])

        def classify(worker: int, item: int) -> None:
            some = portion(len(weight), item, shares)
            part = slice(some.start, some.stop)
            np.add(pooled @ weight[part].T, bias[part], out=logits[:, part])

        return [Stage(len(pooled), average), Stage(shares, classify)]

    def _enter(self, x: Array) -> None:
        for image, entry in zip(x, self._entry, strict=True):
            for channel, plane in enumerate(image):  # a quarter of the time of a transposed copy
                entry[:, :, channel] = plane


def _not_here(worker: int, item: int) -> None:
    raise AssertionError("the images are with the caller")


def pack_convolutions(
    blocks: tuple[BlockSpec, ...],
    params: Mapping[str, Array],
    shapes: list[ConvShape],
    choices: list[Choice],
    team: Team,
    packed: Packed,
) -> list[Staged]:
    """All layers' convolutions, packed by as many threads as this process has."""
    found: dict[int, Staged] = {}

    def pack(worker: int, i: int) -> None:
        name = blocks[i].name
        weight = params[f"{name}.fused.weight"]
        found[i] = make_convolution(
            shapes[i],
            weight,
            choices[i].algorithm,
            team.threads,
            packed,
            name,
            seat=team.seat,
            streamed=choices[i].streamed,
        )

    with team.session():
        team.here(Stage(len(blocks), pack))
    return [found[i] for i in range(len(blocks))]


def _clear(views: list[Array]) -> None:
    for view in views:
        view.fill(0)


def squeeze_excite(y: Array, weights: Mapping[str, Array], *, relu: bool) -> None:
    """Scale the channels of one image (H, W, C) by their gate, in place; then ReLU if asked."""
    y *= gate_of(y.mean(axis=(0, 1))[:, None], weights)[:, 0]
    if relu:
        np.maximum(y, 0, out=y)


def gate_of(squeezed: Array, weights: Mapping[str, Array]) -> Array:
    """What squeeze-and-excitation scales channels by: means and gates (C, N) of N images."""
    down, up = (weights[f"{name}.weight"][:, :, 0, 0] for name in ("down", "up"))
    middle = np.maximum(down @ squeezed + weights["down.bias"][:, None], 0)
    logits = up @ middle + weights["up.bias"][:, None]
    gates: Array = 0.5 * (1 + np.tanh(0.5 * logits))  # the sigmoid, without overflow
    return gates


def _padded_shapes(
    convolutions: list[Staged], shapes: list[ConvShape], shape: tuple[int, ...]
) -> list[tuple[int, ...]]:
    """Every layer's input: the image, its border, what the last tiles read beyond; the exit."""
    height, width = shape[2:]
    found = []
    for conv, each in zip(convolutions, shapes, strict=True):
        wanted = conv.padded
        size = (max(wanted[0], height + 2 * each.border), max(wanted[1], width + 2 * each.border))
        found.append((each.images, *size, each.channels))
        height, width = each.height, each.width
    return [*found, (shape[0], height, width, shapes[-1].outputs)]
