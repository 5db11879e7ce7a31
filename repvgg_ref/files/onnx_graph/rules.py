"""What each operator of an ONNX graph does to the readings of its inputs.

A rule takes the reader and a node and enters readings of the node's outputs; it raises `LeftError`
where the operator, as it is set here, is not linear, or no number a channel.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.constructors import Bias, Scale
from repvgg_ref.blocks.form import Pair
from repvgg_ref.blocks.linear import Norm
from repvgg_ref.blocks.sided import Quotient, SidedConv
from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.files.onnx_graph.reader import LinearReader, Rule
from repvgg_ref.files.onnx_graph.reading import LeftError, Reading

RULES: dict[str, Rule] = {}
_SQUARE = 2  # axes of an image


def rule(*operators: str) -> Callable[[Rule], Rule]:
    """Enter a rule for `operators`."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(operators, function))
        return function

    return enter


@rule("Identity")
def _same(reader: LinearReader, at: int) -> None:
    node = reader.view.nodes[at]
    reader.follow(at, node.input[0], lambda reading: reading.passed(at))


@rule("Dropout")
def _dropped(reader: LinearReader, at: int) -> None:
    node, view = reader.view.nodes[at], reader.view
    if any(view.readers[name] or name in view.outputs for name in node.output[1:]):
        raise LeftError("its mask is read")
    training = node.input[2] if len(node.input) > 2 else ""
    mode = view.constant(training) if training else np.zeros((), bool)
    if mode is None or mode.any():
        raise LeftError("it may be in training mode")
    _same(reader, at)


@rule("Cast")
def _cast(reader: LinearReader, at: int) -> None:
    node = reader.view.nodes[at]
    before, after = reader.view.dtype(node.input[0]), reader.view.dtype(node.output[0])
    if not before or before != after:
        raise LeftError(f"it rounds, or widens: {before or 'an unknown type'} to {after or '?'}")
    _same(reader, at)


@rule("Conv")
def _convolved(reader: LinearReader, at: int) -> None:
    node, view = reader.view.nodes[at], reader.view
    weight = view.constant(node.input[1])
    if weight is None:
        raise LeftError("its kernel is no constant, or a quantised one")
    if weight.ndim != 2 + _SQUARE:
        raise LeftError(f"its kernel has {weight.ndim - 2} axes, not 2")
    reader.require_float(view.stored_as(node.input[1]) or str(weight.dtype))
    name, bias = node.output[0], None
    if len(node.input) > 2 and node.input[2]:
        bias = view.constant(node.input[2])
        if bias is None:
            raise LeftError("its bias is no constant")
        reader.keep(f"{name}.bias", bias)
    reader.keep(f"{name}.weight", weight)
    groups, kernel = setting(node, "group", 1), (weight.shape[2], weight.shape[3])
    window = _window(reader, node, kernel)
    conv = SidedConv(
        name, weight.shape[1] * groups, weight.shape[0], kernel, *window.geometry(), groups,
        bias is not None, ends=window.ends,
    )  # fmt: skip
    reader.follow(at, node.input[0], reader.through(at, conv, sized=window.sized))


@rule("AveragePool")
def _averaged(reader: LinearReader, at: int) -> None:
    node, view = reader.view.nodes[at], reader.view
    kernel = tuple(setting(node, "kernel_shape", ()))
    if len(kernel) != _SQUARE:
        raise LeftError(f"its window has {len(kernel)} axes, not 2")
    window = _window(reader, node, (kernel[0], kernel[1]))
    if setting(node, "ceil_mode", 0) and window.stride != (1, 1):
        raise LeftError("it rounds sizes up: the divisor depends on the place")
    counted = setting(node, "count_include_pad", 0)
    if not counted and max(*window.padding, *window.ends) > 0:
        raise LeftError("it does not count its padding: the divisor depends on the place")
    channels = reader.channels(node.input[0])
    if channels is None:
        raise LeftError("how many channels it has is not known")
    reader.require_float(view.dtype(node.input[0]))
    name = node.output[0]
    reader.keep(f"{name}.weight", np.ones((channels, 1, *kernel), np.float32))
    reader.keep(f"{name}.window", np.full((), prod(kernel), np.float64))
    conv = SidedConv(
        name, channels, channels, (kernel[0], kernel[1]), *window.geometry(), channels,
        ends=window.ends,
    )  # fmt: skip
    pooled = reader.through(at, conv, sized=window.sized)
    reader.follow(at, node.input[0], lambda r: pooled(r).then(Quotient(f"{name}.window", ()), at))


@rule("BatchNormalization")
def _normalised(reader: LinearReader, at: int) -> None:
    node, view = reader.view.nodes[at], reader.view
    if setting(node, "training_mode", 0) or any(node.output[1:]):
        raise LeftError("it is in training mode: its statistics are the batch's")
    if not setting(node, "spatial", 1):
        raise LeftError("it has a number for each pixel")
    name, vectors = node.output[0], [view.constant(each) for each in node.input[1:5]]
    channels = {None if v is None or v.ndim != 1 else len(v) for v in vectors}
    (count,) = channels if len(channels) == 1 and len(vectors) == len(_VECTORS) else (None,)
    if count is None:
        raise LeftError("its numbers are no constants, one a channel")
    reader.require_float(view.dtype(name) or view.stored_as(node.input[1]))
    for part, vector in zip(_VECTORS, vectors, strict=True):
        reader.keep(f"{name}.{part}", vector)
    norm = Norm(name, count, float(setting(node, "epsilon", 1e-5)))
    reader.require_channels(node.input[0], count)
    reader.follow(at, node.input[0], lambda reading: reading.then(norm, at, count))


_VECTORS = ("gamma", "beta", "running_mean", "running_var")


@rule("Mul")
def _multiplied(reader: LinearReader, at: int) -> None:
    name = reader.view.nodes[at].output[0]
    x, factor = _with_constant(reader, at)
    _by_channel(reader, at, x, Scale, f"{name}.factor", factor)


@rule("Div")
def _divided(reader: LinearReader, at: int) -> None:
    node = reader.view.nodes[at]
    divisor = reader.view.constant(node.input[1])
    if divisor is None:
        raise LeftError(f"its divisor {node.input[1]} is computed")
    if not divisor.all():
        raise LeftError("it divides by zero")
    _by_channel(reader, at, node.input[0], Quotient, f"{node.output[0]}.divisor", divisor)


@rule("Neg")
def _negated(reader: LinearReader, at: int) -> None:
    node = reader.view.nodes[at]
    reader.follow(at, node.input[0], lambda reading: reading.then(reader.minus, at))


@rule("Add", "Sum")
def _added(reader: LinearReader, at: int) -> None:
    node, view = reader.view.nodes[at], reader.view
    fixed = [view.constant(name) for name in node.input]
    if all(each is None for each in fixed):
        reader.combine(at, [(name, 1) for name in node.input])
        return
    if len(node.input) > 2:
        raise LeftError("constants among more than two terms are not read")
    x, shift = _with_constant(reader, at)
    _by_channel(reader, at, x, Bias, f"{node.output[0]}.shift", shift)


@rule("Sub")
def _subtracted(reader: LinearReader, at: int) -> None:
    node, view = reader.view.nodes[at], reader.view
    first, second = (view.constant(name) for name in node.input)
    name = f"{node.output[0]}.shift"
    if second is not None:
        _by_channel(reader, at, node.input[0], Bias, name, -second.astype(np.float64))
    elif first is not None:
        _by_channel(reader, at, node.input[1], Bias, name, first, negated=True)
    else:
        reader.combine(at, [(node.input[0], 1), (node.input[1], -1)])


@rule("Pad")
def _padded(reader: LinearReader, at: int) -> None:
    node, view = reader.view.nodes[at], reader.view
    if setting(node, "mode", "constant") != "constant":
        raise LeftError(f"its border is no constant: {setting(node, 'mode')}")
    pads = _numbers(reader, at, 1, "pads")
    value = setting(node, "value", 0.0)
    if len(node.input) > 2 and node.input[2]:
        given = view.constant(node.input[2])
        value = None if given is None else given.reshape(-1)[0]
    if value is None or value != 0:
        raise LeftError(f"its border is {value}, not what is zero continued")
    axes = _numbers(reader, at, 3, "axes") if len(node.input) > 3 and node.input[3] else range(4)
    around = [[0, 0] for _ in range(4)]
    for place, axis in enumerate(axes):
        around[axis] = [pads[place], pads[place + len(axes)]]
    if len(pads) != 2 * len(axes) or any(map(any, around[:2])):
        raise LeftError("it pads more than the two axes of images")
    _framed(reader, at, (around[2], around[3]), (1, 1), sized=False)


def _framed(
    reader: LinearReader, at: int, around: tuple[list[int], list[int]], step: Pair, *, sized: bool
) -> None:
    """Zeros around an image, or less of it; every `step`-th pixel."""
    node = reader.view.nodes[at]
    channels = reader.channels(node.input[0])
    if channels is None:
        raise LeftError("how many channels it has is not known")
    name = node.output[0]
    reader.keep(f"{name}.weight", np.ones((channels, 1, 1, 1), np.float32))
    (top, bottom), (left, right) = around
    conv = SidedConv(
        name, channels, channels, (1, 1), step, (top, left), (1, 1), channels,
        ends=(bottom, right),
    )  # fmt: skip
    reader.follow(at, node.input[0], reader.through(at, conv, sized=sized))


@rule("Concat")
def _concatenated(reader: LinearReader, at: int) -> None:
    node = reader.view.nodes[at]
    if setting(node, "axis", 1) not in (1, -3):
        raise LeftError("it is not along the channels")
    reader.combine(at, [(name, 1) for name in node.input], stack=True)


@rule("Split")
def _split(reader: LinearReader, at: int) -> None:
    node = reader.view.nodes[at]
    channels = reader.channels(node.input[0])
    if setting(node, "axis", 0) not in (1, -3) or channels is None:
        raise LeftError("it is not along channels of a known number")
    sizes = _numbers(reader, at, 1, "split", required=False)
    if not sizes:
        each = -(-channels // len(node.output))
        sizes = [min(each, channels - k * each) for k in range(len(node.output))]
    ends = np.cumsum(sizes).tolist()
    if len(sizes) != len(node.output) or ends[-1] != channels or min(sizes) < 1:
        raise LeftError("its parts are not those of the channels")
    for name, size, end in zip(node.output, sizes, ends, strict=True):
        reader.slice(at, node.input[0], name, channels, end - size, end)


@rule("Slice")
def _sliced(reader: LinearReader, at: int) -> None:
    node, view = reader.view.nodes[at], reader.view
    starts, ends = (_numbers(reader, at, k, n) for k, n in ((1, "starts"), (2, "ends")))
    axes = _numbers(reader, at, 3, "axes", required=False) or list(range(len(starts)))
    steps = _numbers(reader, at, 4, "steps", required=False) or [1] * len(starts)
    axes = [axis % 4 for axis in axes]
    channels = reader.channels(node.input[0])
    if min(axes) < 1 or channels is None or min(steps) < 1 or len({*axes}) < len(axes):
        raise LeftError("it cuts more than channels and images of a known number of channels")
    if axes == [1]:
        if steps != [1]:
            raise LeftError("it takes every other channel")
        start, stop, _ = slice(starts[0], ends[0]).indices(channels)
        reader.slice(at, node.input[0], node.output[0], channels, start, stop)
        return
    if 1 in axes:
        raise LeftError("it cuts channels and images at once")
    around, step, size = [[0, 0], [0, 0]], [1, 1], view.size(node.input[0])
    for axis, start, stop, every in zip(axes, starts, ends, steps, strict=True):
        here, extent = axis - 2, None if size is None else size[axis - 2]
        if extent is not None:
            start, stop, _ = slice(start, stop).indices(extent)
            if stop <= start:
                raise LeftError("nothing is left of the image")
            around[here] = [-start, stop - extent]
        elif start < 0 or 0 <= stop < _END:
            raise LeftError("what it cuts off depends on the image's size")
        else:
            around[here] = [-start, min(stop, 0) if stop < _END else 0]
        step[here] = every
    _framed(reader, at, (around[0], around[1]), (step[0], step[1]), sized=size is not None)


_END = 2**31 - 1


class _Window:
    """How a window moves: stride, padding on both ends, dilation."""

    def __init__(self, stride: Pair, padding: Pair, ends: Pair, dilation: Pair, *, sized: bool):
        self.stride, self.padding, self.ends, self.dilation = stride, padding, ends, dilation
        self.sized = sized

    def geometry(self) -> tuple[Pair, Pair, Pair]:
        """In the order of `Conv`."""
        return self.stride, self.padding, self.dilation


def _window(reader: LinearReader, node: Any, kernel: Pair) -> _Window:
    stride, dilation = (
        (int(found[0]), int(found[1]))
        for found in (setting(node, "strides", (1, 1)), setting(node, "dilations", (1, 1)))
    )
    if min(*stride, *dilation) < 1:
        raise LeftError(f"its strides {stride} or dilations {dilation} are not positive")
    kind, spans = setting(node, "auto_pad", "NOTSET"), [
        d * (k - 1) for d, k in zip(dilation, kernel, strict=True)
    ]  # fmt: skip
    if kind in ("NOTSET", ""):
        top, left, bottom, right = setting(node, "pads", (0, 0, 0, 0))
        return _Window(stride, (top, left), (bottom, right), dilation, sized=False)
    if kind == "VALID":
        return _Window(stride, (0, 0), (0, 0), dilation, sized=False)
    size, fixed = reader.view.size(node.input[0]), stride == (1, 1)
    if not fixed and size is None:
        raise LeftError(f"its border ({kind}) depends on the image's size, which is open")
    totals = [
        span
        if fixed or size is None
        else max(0, (-(-size[a] // stride[a]) - 1) * stride[a] + span + 1 - size[a])
        for a, span in enumerate(spans)
    ]
    less, more = [n // 2 for n in totals], [n - n // 2 for n in totals]
    begin, end = (more, less) if kind == "SAME_LOWER" else (less, more)
    return _Window(stride, (begin[0], begin[1]), (end[0], end[1]), dilation, sized=not fixed)


def _with_constant(reader: LinearReader, at: int) -> tuple[str, Array]:
    """The one input that is computed, and the other, a constant."""
    node, view = reader.view.nodes[at], reader.view
    for x, other in (node.input, reversed(node.input)):
        constant = view.constant(other)
        if constant is not None:
            return x, constant
    raise LeftError(f"neither {node.input[0]} nor {node.input[1]} is a constant")


def _by_channel(
    reader: LinearReader,
    at: int,
    x: str,
    kind: Any,
    name: str,
    constant: Array,
    *,
    negated: bool = False,
) -> None:
    """A constant that meets every channel with a number of its own, or all with one."""
    channels = reader.channels(x)
    values = np.asarray(constant)
    shape = (*(1,) * (4 - values.ndim), *values.shape)
    if len(shape) != 4 or any(n != 1 for axis, n in enumerate(shape) if axis != 1):
        raise LeftError(f"its constant is of shape {values.shape}: no number a channel")
    if shape[1] not in (1, channels):
        raise LeftError(f"its constant has {shape[1]} channels, its input {channels or 'unknown'}")
    if not np.isfinite(values).all():
        raise LeftError("its constant holds NaN or infinity")
    flat = values.reshape(-1) if values.size > 1 else values.reshape(())
    reader.keep(name, flat)
    part = kind(name, flat.shape)

    def step(reading: Reading) -> Reading:
        start = reading.then(reader.minus, at, channels) if negated else reading
        return start.then(part, at, channels)

    reader.follow(at, x, step)


def _numbers(
    reader: LinearReader, at: int, place: int, name: str, *, required: bool = True
) -> list[int]:
    """Integers that newer opsets take as an input, and older ones as an attribute."""
    node = reader.view.nodes[at]
    if len(node.input) > place and node.input[place]:
        found = reader.view.constant(node.input[place])
        if found is None:
            raise LeftError(f"its {name} are computed")
        return [int(n) for n in found.reshape(-1)]
    given = setting(node, name)
    if given is None and required:
        raise LeftError(f"it has no {name}")
    return [int(n) for n in given or ()]


@rule("ScatterND")
def _written_over(reader: LinearReader, at: int) -> None:
    raise LeftError(
        "it writes over part of an image, as torch exports the padded batch norm of a diverse"
        " branch block: convert that network's checkpoint, which says what it is"
    )
