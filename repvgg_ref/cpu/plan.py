"""The fused network as a plan: a chain of convolutions between two buffers.

Section 3.1 of arXiv 2101.03697: a plain topology frees a layer's input as soon as its output is
there. So two buffers do for all layers, each layer reading one and writing the other. An output
is written straight into the middle of the next layer's padded input; only borders are zeroed.
One arena of scratch serves every layer, so that it stays warm in cache.

What binds, on two quiet AVX-512 cores at 224 x 224 (BLAS peaks at 203 GFLOP/s a core; figures and
peers in tests/bench/results). B1, batch 16: 29 ms an image, 812 GFLOP/s as if in direct form.
Products at stride 1 are 4 to 5 times fewer and run at 120-170 GFLOP/s a core, because transformed
weights (9 times larger under F(7, 3): 85 MB for 512 channels) come from memory once a layer; they
are half of the time. Transforms, at 35-45 GFLOP/s on 4 to 9 rows, are a fifth, the rest is stride 2
and the first layer, 1 to 1.4 times fewer products. A0, batch 16: 93 ms, where one core takes 157:
layers of 192 channels lose 15 % to their three stages (70 microseconds each, see `pool`) and to
12 MB of weights. Batch 1 is bound by the weights outright: 49 rows of pixels meet each, so that
products run at 80-100 GFLOP/s however they are cut; `cost` prefers F(2, 3), 1.8 times the weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu import memory
from repvgg_ref.cpu.cost import Algorithm, tile_of
from repvgg_ref.cpu.layout import border_views, carve, interior
from repvgg_ref.cpu.pool import Pool, Stage
from repvgg_ref.cpu.schedule import (
    Convolution,
    ConvShape,
    DirectConvolution,
    Packed,
    WinogradConvolution,
)
from repvgg_ref.cpu.schedule_stride_2 import Stride2Convolution

Tap = Callable[[str, Array], None]
Choose = Callable[[str, ConvShape], Algorithm]


class Layer(NamedTuple):
    """One block bound to its buffers: `x` padded, `y` the middle of the next one's input."""

    spec: BlockSpec
    algorithm: Algorithm
    convolution: Convolution
    x: Array
    y: Array
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

    Parameters
    ----------
    blocks, params
        The architecture's blocks and the deploy form's arrays, all of `dtype`.
    shape : (N, C, H, W)
    choose : function of a layer's name and shape
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
        pool: Pool,
        choose: Choose,
        packed: Packed,
    ) -> None:
        self.shape, self._params, self._pool = shape, params, pool
        images, _, height, width = shape
        shapes = conv_shapes(blocks, images, height, width)
        names = [spec.name for spec in blocks]
        algorithms = [choose(name, each) for name, each in zip(names, shapes, strict=True)]
        convolutions: dict[int, Convolution] = {}

        def pack(worker: int, i: int) -> None:
            weight = params[f"{names[i]}.fused.weight"]
            convolutions[i] = make_convolution(
                shapes[i], weight, algorithms[i], pool.threads, packed, names[i]
            )

        with pool.session():
            pool.run(Stage(len(blocks), pack))
        chain = [convolutions[i] for i in range(len(blocks))]
        sizes = [(height, width), *((each.height, each.width) for each in shapes)]
        padded = [
            _padded_shape(conv, each, size)
            for conv, each, size in zip(chain, shapes, sizes, strict=False)
        ]
        padded.append((images, *sizes[-1], shapes[-1].outputs))
        borders = [each.border for each in shapes] + [0]
        self.buffers = [
            memory.empty((max(math.prod(p) for p in padded[first::2]),), dtype) for first in (0, 1)
        ]
        _clear(self.buffers)
        self.arena = memory.empty((max(conv.scratch for conv in chain),), dtype)
        views = [carve(self.buffers[i % 2], p) for i, p in enumerate(padded)]
        inner = [interior(v, *s, b) for v, s, b in zip(views, sizes, borders, strict=True)]
        self._entry, self._exit = inner[0], inner[-1]
        self._borders = [
            border_views(view, *size, border)
            for view, size, border in zip(views, sizes, borders, strict=True)
        ]
        self.layers = [
            self._layer(*parts)
            for parts in zip(blocks, algorithms, chain, views[:-1], inner[1:], strict=True)
        ]

    def run(self, x: Array, tap: Tap | None = None) -> Array:
        """Logits of `x`, (N, C, H, W) of the plan's shape; `tap` sees every layer, NHWC views."""
        with self._pool.session():
            _clear(self._borders[0])
            self._pool.run(Stage(len(x), lambda worker, n: self._enter(x, n)))
            for layer, beside in zip(self.layers, self._borders[1:], strict=True):
                _clear(beside)
                for stage in layer.stages:
                    self._pool.run(stage)
                if tap is not None:
                    tap(layer.spec.name, layer.y)
            pooled = np.empty((len(x), self._exit.shape[3]), self._exit.dtype)
            self._pool.run(Stage(len(x), lambda worker, n: self._average(pooled, n)))
            logits: Array = pooled @ self._params["linear.weight"].T
            logits += self._params["linear.bias"]
            return logits

    @property
    def scratch_bytes(self) -> int:
        """Two activation buffers and the arena: what a forward holds besides the weights."""
        return self.arena.nbytes + sum(buffer.nbytes for buffer in self.buffers)

    def _layer(
        self, spec: BlockSpec, algorithm: Algorithm, convolution: Convolution, x: Array, y: Array
    ) -> Layer:
        bias = self._params[f"{spec.name}.fused.bias"]
        rectified = spec.se != "before_relu"
        stages = list(convolution.stages(x, y, bias, self.arena, relu=rectified))
        if spec.se != "none":
            weights = {
                part: self._params[f"{spec.name}.se.{part}"]
                for part in ("down.weight", "down.bias", "up.weight", "up.bias")
            }
            stages.append(
                Stage(len(y), lambda worker, n: squeeze_excite(y[n], weights, relu=not rectified))
            )
        return Layer(spec, algorithm, convolution, x, y, stages)

    def _enter(self, x: Array, n: int) -> None:
        for channel, plane in enumerate(x[n]):  # a quarter of the time of one transposed copy
            self._entry[n, :, :, channel] = plane

    def _average(self, pooled: Array, n: int) -> None:
        np.mean(self._exit[n], axis=(0, 1), out=pooled[n])


def _clear(views: list[Array]) -> None:
    for view in views:
        view.fill(0)


def make_convolution(
    shape: ConvShape,
    weight: Array,
    algorithm: Algorithm,
    threads: int,
    packed: Packed,
    name: str,
    pool: Pool | None = None,
) -> Convolution:
    """`algorithm` for `shape`, its weights packed or found in `packed` under the layer's name.

    With a `pool` its threads pack together; without one the caller is one of them.
    """
    if algorithm == "direct":
        return DirectConvolution(shape, weight, threads, packed, name)
    tiled = WinogradConvolution if shape.stride == 1 else Stride2Convolution
    return tiled(shape, weight, tile_of(algorithm), threads, packed, name, pool)


def squeeze_excite(y: Array, weights: Mapping[str, Array], *, relu: bool) -> None:
    """Scale the channels of one image (H, W, C) by their gate, in place; then ReLU if asked."""
    squeezed = y.mean(axis=(0, 1))
    middle = np.maximum(weights["down.weight"][:, :, 0, 0] @ squeezed + weights["down.bias"], 0)
    logits = weights["up.weight"][:, :, 0, 0] @ middle + weights["up.bias"]
    y *= 0.5 * (1 + np.tanh(0.5 * logits))  # the sigmoid, without overflow
    if relu:
        np.maximum(y, 0, out=y)


def _padded_shape(
    convolution: Convolution, shape: ConvShape, size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """The input buffer: the image, its border, and what the last tiles read beyond it."""
    height, width = (
        max(wanted, length + 2 * shape.border)
        for wanted, length in zip(convolution.padded, size, strict=True)
    )
    return shape.images, height, width, shape.channels
