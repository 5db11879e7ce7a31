"""A chain with depthwise layers, such as MobileOne, in HCWN: rows of a channel lie together.

The chain's own layout, NHWC (`plan`), suits products over channels. A depthwise layer has none:
there NumPy multiplies and adds tap by tap, 17 passes over memory. In HCWN it is a product as well,

    y[h, c, :] = w[c, 1 x K K] x~[h, c, K K x (Wo N)]

where x~ holds each input row K times, shifted by one tap each: the K * K rows that an output row
needs lie one after the other, and those of the next overlap with them. So nothing is copied K * K
times. A pointwise layer is a product of (O, C) with (C, Wo N) for each row, and takes the model's
own weights as they are: nothing is packed. All else is passes over rows of all channels, which are
one-dimensional.

Images are the innermost axis: rows of 7 pixels of 16 images are as long as BLAS likes them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import is_fusible
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.cpu.convolution import gemm
from repvgg_ref.cpu.convolution.depthwise import is_depthwise
from repvgg_ref.cpu.convolution.direct import Window, seen, window_of
from repvgg_ref.cpu.convolution.layout import carve
from repvgg_ref.cpu.convolution.schedule import ConvShape, add, rectified
from repvgg_ref.cpu.engine import Plans
from repvgg_ref.cpu.graph import GraphEngine, GraphPlan, conv_shape, is_known, is_square
from repvgg_ref.cpu.plan import Tap, gate_of
from repvgg_ref.cpu.workers import memory
from repvgg_ref.cpu.workers.pool import Pool, Stage, Step, pool, portion, prepared
from repvgg_ref.models.graph import Network, extents
from repvgg_ref.models.layers import Linear

FEWEST_IMAGES = 4
BLOCK_NUMBERS = 120_000  # of scratch: 480 KB of float32, in second-level cache
ROWS = 7  # of a depthwise block: fewer share less of x~, more leave it few channels
_HIGH = 32  # outputs of a block that is multiplied in place
LONG_ROW = 100  # numbers; shorter ones are computed two at a time, since calls bind


def is_planar(network: Network) -> bool:
    """Whether it is a chain with depthwise layers, and nothing but what this layout knows."""
    blocks = network.blocks
    return (
        network.is_chain
        and isinstance(network.head.op, Linear)
        and any(_is_deep(spec) for spec in blocks)
        and all(
            is_fusible(spec)
            and is_square(spec)
            and spec.activation == "relu"
            and (_is_deep(spec) or spec.groups == 1)
            for spec in blocks
        )
    )


def _is_deep(spec: BlockSpec) -> bool:
    return spec.groups == spec.in_channels == spec.out_channels > 1 and spec.dilation == 1


class _Layer(NamedTuple):
    """One block: its output, (Ho, O, Wo, N), and how it is made."""

    name: str
    y: Array
    stages: list[Stage]


class PlanarEngine(Plans["PlanarPlan | GraphPlan"]):
    """Evaluates a fused network that `is_planar`; arguments as for `Plans`.

    All layers are direct, and no weights are packed: an algorithm or a budget changes nothing. A
    few images make rows too short for that, and are left to a `GraphEngine` that knows the network.
    """

    def __init__(self, network: Network, params: Mapping[str, Array], **settings: Any) -> None:
        super().__init__(params, **settings)
        self._network = network
        self._of_few = GraphEngine(network, params, **settings) if is_known(network) else None

    def _make(self, shape: tuple[int, ...]) -> PlanarPlan | GraphPlan:
        if self._of_few is not None and shape[0] < FEWEST_IMAGES:
            return self._of_few.plan(shape)
        return PlanarPlan(self._network, self._params, shape, self._dtype, pool(self._threads))


class PlanarPlan:
    """The fused chain for one batch of `shape`, (N, C, H, W); `run` may be called again.

    Layers take turns with two buffers, as in `plan`; borders are in scratch only.
    """

    def __init__(
        self,
        network: Network,
        params: Mapping[str, Array],
        shape: tuple[int, ...],
        dtype: Any,
        team: Pool,
    ) -> None:
        self.team, blocks = team, network.blocks
        images, channels, height, width = shape
        found = extents(network, height, width)
        shapes = [conv_shape(spec, images, found[spec.name]) for spec in blocks]
        sizes = [(height, channels, width, images)]
        sizes += [(each.height, each.outputs, each.width, images) for each in shapes]
        buffers = [
            memory.empty((max(math.prod(size) for size in sizes[first::2]),), dtype)
            for first in (0, 1)
        ]
        views = [carve(buffers[i % 2], size) for i, size in enumerate(sizes)]
        scratch = {each: _scratch(each, team.threads, dtype) for each in shapes}
        self._entry, self._layers = views[0], list[_Layer]()
        for spec, each, x, y in zip(blocks, shapes, views, views[1:], strict=False):
            weight, bias = (params[f"{spec.name}.fused.{part}"] for part in ("weight", "bias"))
            row = np.repeat(bias, each.width * images).reshape(len(bias), -1)
            relu = spec.se != "before_relu"
            work = _Convolution(each, x, y, weight, row, scratch[each], relu)
            stages = [work.stage(team.threads)]
            if spec.se != "none":
                stages += _gate_stages(spec, y, params, team.threads)
            self._layers.append(_Layer(spec.name, y, stages))
        self._logits = np.empty((images, len(params["linear.bias"])), dtype)
        self._head = _head_stages(views[-1], params, self._logits, team.threads)

    def run(self, x: Array, tap: Tap | None = None) -> Array:
        """Logits of `x`, (N, C, H, W) of the plan's shape; `tap` sees every layer, NHWC views."""
        entry = self._entry
        with self.team.session():
            self.team.run(Stage(x.shape[2], lambda worker, row: _enter(x[:, :, row], entry[row])))
            for name, y, stages in self._layers:
                for stage in stages:
                    self.team.run(stage)
                if tap is not None:
                    tap(name, y.transpose(3, 0, 2, 1))
            for stage in self._head:
                self.team.run(stage)
            return self._logits.copy()


class _Convolution(NamedTuple):
    """One convolution from x (H, C, W, N) to y (Ho, O, Wo, N); `scratch`, one for each worker."""

    shape: ConvShape
    x: Array
    y: Array
    weight: Array
    bias: Array
    scratch: list[Array]
    relu: bool

    def stage(self, threads: int) -> Stage:
        """Blocks of output rows; of a depthwise layer, of some channels."""
        cut, height = _cut(self.shape), self.shape.height
        parts = _at_least(-(-height // cut.rows), threads, height // cut.unit)
        rows = _shares(height, parts, cut.unit)
        if not is_depthwise(self.shape):
            return prepared(len(rows), lambda worker, item: self._dense(worker, rows[item]))
        shares = -(-self.shape.channels // cut.channels)
        channels = [portion(self.shape.channels, k, shares) for k in range(shares)]
        items = list(product(rows, channels))
        return prepared(len(items), lambda worker, item: self._deep(worker, *items[item], cut.unit))

    def _dense(self, worker: int, rows: range) -> list[Step]:
        """``y[h] = W columns[h]``, columns being x itself for a pointwise layer."""
        shape, row = self.shape, self.shape.width * self.shape.images
        some = slice(rows.start, rows.stop)
        steps: list[Step] = []
        if shape.kernel == shape.stride == 1:
            columns = self.x[some].reshape(len(rows), shape.channels, row)
        else:
            held = self.scratch[worker][: len(rows)]
            for i in range(shape.kernel):
                low, high, first = seen(_window(shape), i, len(self.x), rows)
                steps += self._shifted(slice(None), held[:, i], low, high, first, shape.stride)
            columns = held.reshape(len(rows), -1, row)
        out = self.y[some]
        # (rows, O, Wo N) = (O, K K C) @ (rows, K K C, Wo N)
        weight = self.weight.transpose(0, 2, 3, 1).reshape(shape.outputs, -1)
        return [
            *steps,
            _product(weight, columns, out.reshape(len(rows), -1, row)),
            *_finish(out, self.bias.reshape(-1), relu=self.relu),
        ]

    def _deep(self, worker: int, rows: range, channels: range, unit: int) -> list[Step]:
        """``y[h, c] = w[c] x~[h, c]``, some rows of an image at once where they are short."""
        shape, count = self.shape, len(rows) // unit
        reach = (len(rows) - 1) * shape.stride + shape.kernel
        some, row = slice(channels.start, channels.stop), shape.width * shape.images
        held = self.scratch[worker][: len(channels), :reach]
        start = rows.start * shape.stride - shape.border
        low, high = max(0, -start), min(reach, len(self.x) - start)
        by_row = held.transpose(1, 2, 0, 3, 4)
        steps = self._shifted(some, by_row, low, high, start + low, 1)
        taps = _banded(self.weight[some, 0], unit, shape.stride)
        channel, of_row, shift, _, number = held.strides
        views = as_strided(
            held,
            (len(channels), count, taps.shape[-1], row),
            (channel, unit * shape.stride * of_row, shift, number),
        )
        out = self.y[rows.start : rows.stop, some]
        # (channels, count, unit, Wo N) = (channels, 1, unit, K..) @ (channels, count, K.., Wo N)
        target = out.reshape(count, unit, len(channels), row).transpose(2, 0, 1, 3)
        product = partial(np.matmul, taps, views, out=target)
        return [*steps, product, *_finish(out, self.bias[some].reshape(-1), relu=self.relu)]

    def _shifted(
        self, channels: slice, held: Array, low: int, high: int, first: int, step: int
    ) -> list[Step]:
        """Rows `low` to `high` of `held`, (rows, K, C, Wo, N): each tap's pixels; zeros beyond.

        They are every `step`-th row of x from `first` on.
        """
        window = _window(self.shape)
        beyond = (part for part in (held[:low], held[high:]) if part.size)
        steps: list[Step] = [partial(part.fill, 0) for part in beyond]
        rows = self.x[first::step, channels][: max(0, high - low)]
        for j in range(window.kernel):
            left, right, column = seen(window, j, self.x.shape[2], range(window.width))
            if left < right:
                met = rows[:, :, column :: window.stride][:, :, : right - left]
                steps.append(partial(np.copyto, held[low:high, j, :, left:right], met))
        return steps


class _Cut(NamedTuple):
    """How a layer is cut: rows of a block in multiples of `unit`, and channels, if depthwise."""

    rows: int
    channels: int
    unit: int


def _cut(shape: ConvShape) -> _Cut:
    """Blocks of which scratch and output stay in cache."""
    row = shape.width * shape.images
    if not is_depthwise(shape):
        taps = shape.kernel**2 * shape.channels
        return _Cut(max(1, BLOCK_NUMBERS // ((taps + shape.outputs) * row)), shape.channels, 1)
    unit = 2 if row < LONG_ROW and shape.height % 2 == 0 else 1
    a_row = (shape.stride * shape.kernel + 1) * row
    rows = min(shape.height, ROWS * unit, max(unit, BLOCK_NUMBERS // a_row // unit * unit))
    return _Cut(rows, max(1, BLOCK_NUMBERS // (a_row * rows)), unit)


def _scratch(shape: ConvShape, threads: int, dtype: Any) -> list[Array]:
    """Zeros for a block of the largest, one array for each worker; (0,) where x itself will do.

    Depthwise (channels, rows, K, Wo, N), else (rows, K, K, C, Wo, N): smaller blocks lie at the
    beginning, so that nobody writes where a tap meets the border on the left and on the right.
    """
    cut, row = _cut(shape), (shape.width, shape.images)
    size: tuple[int, ...] = (0,)
    if is_depthwise(shape):
        reach = (cut.rows - 1) * shape.stride + shape.kernel
        size = (cut.channels, reach, shape.kernel, *row)
    elif not (shape.kernel == shape.stride == 1):
        size = (cut.rows, shape.kernel, shape.kernel, shape.channels, *row)
    made = [memory.empty(size, dtype) for _ in range(threads)]
    for each in made:
        each.fill(0)
    return made


def _at_least(parts: int, threads: int, most: int) -> int:
    """`parts`, as many of them as keep all threads busy, but no more than `most`."""
    return min(most, -(-parts // threads) * threads)


def _shares(rows: int, parts: int, unit: int) -> list[range]:
    """`rows` in nearly equal parts, each a multiple of `unit`."""
    shares = (portion(rows // unit, k, parts) for k in range(parts))
    return [range(each.start * unit, each.stop * unit) for each in shares]


def _window(shape: ConvShape) -> Window:
    """The windows over x, which holds none of its border."""
    return window_of(shape, shape.border)


def _banded(weight: Array, unit: int, stride: int) -> Array:
    """(C, K, K) -> (C, 1, unit, K'): the taps of `unit` output rows over the input rows of all."""
    channels, kernel, _ = weight.shape
    taps = np.zeros((channels, 1, unit, (unit - 1) * stride + kernel, kernel), weight.dtype)
    for row in range(unit):
        taps[:, 0, row, row * stride : row * stride + kernel] = weight
    return taps.reshape(channels, 1, unit, -1)


def _product(weight: Array, columns: Array, out: Array) -> Step:
    """``out = weight @ columns``, (rows, O, Wo N), in blocks that BLAS multiplies in place if any.

    They are 32 outputs high, and as wide as divides a row into multiples of 32.
    """
    rows, inner, row = columns.shape
    most = gemm.IN_PLACE_LIMIT // (inner * _HIGH) if gemm.multiplies_in_place() else 0
    wide = next((n for n in range(min(most, row), 95, -1) if row % n == n % 32 == 0), 0)
    if not wide or len(weight) % _HIGH:
        return partial(np.matmul, weight, columns, out=out)
    # (rows, blocks, O / 32, 32, wide) = (O / 32, 32, K) @ (rows, blocks, 1, K, wide)
    left = columns.reshape(rows, inner, -1, wide).transpose(0, 2, 1, 3)[:, :, None]
    target = out.reshape(rows, -1, _HIGH, row // wide, wide).transpose(0, 3, 1, 2, 4)
    return partial(np.matmul, weight.reshape(-1, _HIGH, inner), left, out=target)


def _finish(y: Array, bias: Array, *, relu: bool) -> list[Step]:
    """Bias and ReLU for rows of y, (rows, channels, Wo, N), the bias being that of one row.

    One-dimensional, since NumPy takes twice as long or more over several dimensions.
    """
    steps: list[Step] = []
    for row in y:
        flat = row.reshape(-1)
        steps += add(flat, bias, flat, flat, relu=relu)
    return steps


def _gate_stages(
    spec: BlockSpec, y: Array, params: Mapping[str, Array], threads: int
) -> Iterator[Stage]:
    """Squeeze-and-excitation in place: means, every image's gate, products; then ReLU if asked."""
    parts = min(threads, y.shape[1])
    squeezed, gates = (np.empty((y.shape[1], 1, y.shape[3]), y.dtype) for _ in range(2))
    weights = {
        part: params[f"{spec.name}.se.{part}"]
        for part in ("down.weight", "down.bias", "up.weight", "up.bias")
    }

    def average(worker: int, item: int) -> list[Step]:
        mine = portion(y.shape[1], item, parts)
        some = slice(mine.start, mine.stop)
        return [partial(np.mean, y[:, some], axis=(0, 2), out=squeezed[some, 0])]

    def excite(worker: int, item: int) -> None:
        gates[:, 0] = gate_of(squeezed[:, 0], weights)

    def scale(worker: int, item: int) -> list[Step]:
        mine = portion(y.shape[1], item, parts)
        some = slice(mine.start, mine.stop)
        steps: list[Step] = [partial(np.multiply, y[:, some], gates[some], out=y[:, some])]
        if spec.se == "before_relu":
            steps.append(rectified(y[:, some], y[:, some]))
        return steps

    yield from (prepared(parts, average), Stage(1, excite), prepared(parts, scale))


def _head_stages(x: Array, params: Mapping[str, Array], logits: Array, threads: int) -> list[Stage]:
    """Global average, then the linear layer."""
    weight, bias = params["linear.weight"], params["linear.bias"]
    parts = min(threads, x.shape[1])
    pooled = np.empty((x.shape[1], x.shape[3]), x.dtype)

    def average(worker: int, item: int) -> list[Step]:
        mine = portion(x.shape[1], item, parts)
        some = slice(mine.start, mine.stop)
        return [partial(np.mean, x[:, some], axis=(0, 2), out=pooled[some])]

    def classify(worker: int, item: int) -> None:
        np.add((weight @ pooled).T, bias, out=logits)

    return [prepared(parts, average), Stage(1, classify)]


def _enter(rows: Array, entry: Array) -> None:
    """One row of all images: (N, C, W) into (C, W, N)."""
    np.copyto(entry, rows.transpose(1, 2, 0))
