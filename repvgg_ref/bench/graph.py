"""A comparison network on the fused chain's own convolutions: weights packed once, buffers reused.

A residual network is no chain: a shortcut keeps a layer's input alive until the addition (section
3.1 of arXiv 2101.03697). So buffers are handed out by need, one more than a chain has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.cpu.convolution.algorithms import (
    ALGORITHMS,
    Algorithm,
    applies,
    make_convolution,
)
from repvgg_ref.cpu.convolution.cost import cheapest
from repvgg_ref.cpu.convolution.layout import border_views, carve, interior
from repvgg_ref.cpu.convolution.schedule import Convolution, ConvShape, Packed
from repvgg_ref.cpu.workers.pool import Stage, pool
from repvgg_ref.models.comparison import INPUT, Conv, MaxPool, Network, extents


class _Buffer(NamedTuple):
    """A layer's output: `view` with its border of zeros, `inner` the image in it."""

    view: Array
    inner: Array
    border: int
    around: list[Array]


class Graph:
    """`network` for one batch shape; `run` may be called any number of times.

    Parameters
    ----------
    params : mapping
        As `comparison.network_shapes` names them, float32.
    shape : (N, 3, H, W)
    algorithm : "auto" or one of `algorithms.ALGORITHMS`
        One that does not fit a layer yields to direct there.
    """

    def __init__(
        self,
        network: Network,
        params: Mapping[str, Array],
        shape: tuple[int, int, int, int],
        *,
        threads: int,
        algorithm: str = "auto",
    ) -> None:
        self.network, self.shape, self._params, self._pool = network, shape, params, pool(threads)
        images, _, height, width = shape
        self._sizes = extents(network, height, width)
        packed: Packed = {}
        self._convolutions: dict[str, Convolution] = {}
        for layer in network.layers:
            if isinstance(layer, Conv):
                conv = self._conv_shape(layer, images)
                self._convolutions[layer.name] = make_convolution(
                    conv,
                    params[f"{layer.name}.weight"],
                    _choice(algorithm, conv),
                    threads,
                    packed,
                    layer.name,
                )
        self._buffers = self._allocate(images)
        arena = np.empty(max(c.scratch for c in self._convolutions.values()), np.float32)
        self._work = [(layer.name, self._stages(layer, arena)) for layer in network.layers]

    def run(self, x: Array) -> Array:
        """Logits of `x`, an array (N, 3, H, W) of the graph's shape."""
        with self._pool.session():
            entry = self._buffers[INPUT]
            _clear(entry)
            self._pool.run(
                Stage(len(x), lambda _, n: np.copyto(entry.inner[n], x[n].transpose(1, 2, 0)))
            )
            for name, stages in self._work:
                _clear(self._buffers[name])
                for stage in stages:
                    self._pool.run(stage)
            return self._head()

    @property
    def buffer_numbers(self) -> int:
        """How many numbers all buffers hold together."""
        return sum(memory.size for memory in self._memory)

    def _conv_shape(self, layer: Conv, images: int) -> ConvShape:
        height, width, outputs = self._sizes[layer.name]
        return ConvShape(
            images,
            height,
            width,
            layer.in_channels,
            outputs,
            kernel=layer.kernel,
            stride=layer.stride,
        )

    def _allocate(self, images: int) -> dict[str, _Buffer]:
        """A buffer for every output, in the memory of outputs that nobody needs any more."""
        padded, borders = self._demands(images)
        last_use = {INPUT: 0}
        for place, layer in enumerate(self.network.layers):
            last_use[layer.name] = place
            for source in _sources(layer):
                last_use[source] = place
        last_use[self.network.layers[-1].name] = len(self.network.layers)
        slots: list[int] = []  # how many numbers each holds
        free: list[int] = []
        taken: dict[str, int] = {}
        for place, name in enumerate([INPUT, *(layer.name for layer in self.network.layers)]):
            numbers = math.prod(padded[name])
            slot = min(free, key=lambda k: abs(slots[k] - numbers), default=len(slots))
            if slot == len(slots):
                slots.append(numbers)
            else:
                free.remove(slot)
                slots[slot] = max(slots[slot], numbers)
            taken[name] = slot
            # Layer number place - 1 has just written `name`; what was read last by it is free.
            free += [taken[n] for n, last in last_use.items() if last == place - 1 and n in taken]
        self._memory = [np.zeros(size, np.float32) for size in slots]
        found = {}
        for name, (height, width, _) in self._sizes.items():
            view, border = carve(self._memory[taken[name]], padded[name]), borders[name]
            inner = interior(view, height, width, border)
            found[name] = _Buffer(view, inner, border, border_views(view, height, width, border))
        return found

    def _demands(self, images: int) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
        """Each output's padded shape and border, so that every reader finds its own in it."""
        borders = dict.fromkeys(self._sizes, 0)
        for layer in self.network.layers:
            borders[layer.source] = max(borders[layer.source], _border(layer))
        padded: dict[str, tuple[int, ...]] = {
            name: (images, height + 2 * borders[name], width + 2 * borders[name], channels)
            for name, (height, width, channels) in self._sizes.items()
        }
        for layer in self.network.layers:
            if isinstance(layer, Conv):
                offset = borders[layer.source] - layer.kernel // 2
                least = self._convolutions[layer.name].padded
                _, height, width, channels = padded[layer.source]
                height, width = (
                    max(size, offset + n) for size, n in zip((height, width), least, strict=True)
                )
                padded[layer.source] = images, height, width, channels
        return padded, borders

    def _stages(self, layer: Conv | MaxPool, arena: Array) -> list[Stage]:
        source, y = self._buffers[layer.source], self._buffers[layer.name].inner
        offset = source.border - _border(layer)
        x = source.view[:, offset:, offset:]
        if isinstance(layer, MaxPool):
            return [Stage(len(y), lambda _, n: _max_pool(x[n], y[n], layer))]
        bias = self._params[f"{layer.name}.bias"]
        rectified = layer.relu and layer.add is None
        stages = list(self._convolutions[layer.name].stages(x, y, bias, arena, relu=rectified))
        if layer.add is not None:
            shortcut = self._buffers[layer.add].inner
            stages.append(Stage(len(y), lambda _, n: _add_relu(y[n], shortcut[n])))
        return stages

    def _head(self) -> Array:
        last = self._buffers[self.network.layers[-1].name].inner
        x: Array
        if self.network.averaged:
            x = last.mean(axis=(1, 2))
        else:
            x = last.transpose(0, 3, 1, 2).reshape(len(last), -1)  # (N, H, W, C) -> (N, C H W)
        for index in range(len(self.network.head)):
            x = self._linear(x, f"fc{index}")
            if index < len(self.network.head) - 1:
                np.maximum(x, 0, out=x)
        return x

    def _linear(self, x: Array, name: str) -> Array:
        """``x W^T + b``, the outputs shared out among the threads: the weights are what is read."""
        weight, bias = self._params[f"{name}.weight"], self._params[f"{name}.bias"]
        y = np.empty((len(x), len(weight)), x.dtype)
        few = -(-len(weight) // (4 * self._pool.threads))

        def part(worker: int, item: int) -> None:
            some = slice(item * few, (item + 1) * few)
            y[:, some] = x @ weight[some].T + bias[some]

        self._pool.run(Stage(-(-len(weight) // few), part))
        return y


def _choice(algorithm: str, shape: ConvShape) -> Algorithm:
    asked = next((each for each in ALGORITHMS if each == algorithm), None)
    if asked is None:
        return cheapest(shape, 4)
    return asked if applies(asked, shape) else "direct"


def _sources(layer: Conv | MaxPool) -> list[str]:
    added = layer.add if isinstance(layer, Conv) else None
    return [layer.source] if added is None else [layer.source, added]


def _border(layer: Conv | MaxPool) -> int:
    return layer.kernel // 2 if isinstance(layer, Conv) else layer.padding


def _clear(buffer: _Buffer) -> None:
    for view in buffer.around:
        view.fill(0)


def _max_pool(x: Array, y: Array, layer: MaxPool) -> None:
    """One image: the largest of the K x K shifted views."""
    height, width, _ = y.shape
    reach = [(size - 1) * layer.stride + 1 for size in (height, width)]
    views = [
        x[i : i + reach[0] : layer.stride, j : j + reach[1] : layer.stride]
        for i in range(layer.kernel)
        for j in range(layer.kernel)
    ]
    np.maximum(views[0], views[1], out=y)
    for view in views[2:]:
        np.maximum(y, view, out=y)


def _add_relu(y: Array, shortcut: Array) -> None:
    np.add(y, shortcut, out=y)
    np.maximum(y, 0, out=y)
