"""How operators that move values, choose among them or clamp them are read."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.blocks.form import Pair, ungrouped
from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.oracle.candidates.onnx_blocked import block_size
from repvgg_ref.oracle.candidates.onnx_reading import (
    CHANNELS,
    NCHW,
    RELU,
    Clamp,
    Operand,
    Reader,
    Reading,
    Rules,
    total,
)

LAYOUT = Rules()
_BLOCKED = (*NCHW, 4)  # the last axis lies within the channels
_FLOATS = frozenset({1, 10, 11, 16})  # TensorProto.DataType


@LAYOUT.rule("Identity", "Dropout", "ReorderInput")
def _same(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    return operands[0]


@LAYOUT.rule("Cast", "CastLike")
def _cast(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    return operands[0] if setting(node, "to", 1) in _FLOATS else None


@LAYOUT.rule("ReorderOutput")
def _reordered(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    x = operands[0]
    if setting(node, "channels_last", 0):
        x = replace(x, axes=(0, 2, 3, 1))
    count = setting(node, "channels")
    return x.rows(np.arange(count)) if count < len(x.form.bias) else x


@LAYOUT.rule("Transpose")
def _transposed(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    (x,) = operands
    perm = setting(node, "perm", range(len(x.axes))[::-1])
    return replace(x, axes=tuple(x.axes[axis] for axis in perm))


@LAYOUT.rule("Flatten", "Reshape", "Squeeze", "Unsqueeze")
def _reshaped(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    """Pooled: (N, C) whatever ones come and go. Else rows and columns may become one axis.

    ONNX Runtime lays a blocked tensor out as (N, C/B, H, W, B), to add two, and back.
    """
    x = operands[0]
    if x.pooled:
        return replace(x, axes=(0, CHANNELS))
    shape = operands[1] if len(operands) > 1 else None
    if node.op_type != "Reshape" or not isinstance(shape, np.ndarray):
        return None
    if x.axes == NCHW and len(shape) == 3:
        return replace(x, axes=NCHW[:3])
    if x.axes == NCHW and len(shape) == 5 and shape[4] == block_size():
        return replace(x, axes=_BLOCKED)
    return replace(x, axes=NCHW) if x.axes == _BLOCKED and len(shape) == 4 else None


@LAYOUT.rule("Pad")
def _padded(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    x = operands[0]
    pads = setting(node, "pads") or operands[1].tolist()
    fill = operands[2] if len(operands) > 2 else setting(node, "value", 0.0)
    if setting(node, "mode", "constant") != "constant" or len(pads) != 8 or len(operands) > 3:
        return None
    if fill is not None and np.any(np.asarray(fill) != 0):
        return None
    begin = dict(zip(x.axes, pads[:4], strict=True))
    end = dict(zip(x.axes, pads[4:], strict=True))
    sides = (begin[2], begin[3], end[2], end[3])
    if any(begin[a] or end[a] for a in (0, 1)) or min(sides) < 0:
        return None
    return replace(x, border=tuple(a + b for a, b in zip(x.border, sides, strict=True)))


@LAYOUT.linear("Split")
def _split(node: Any, operands: list[Operand], reader: Reader) -> Any:
    x, *given = operands
    if x.axes[setting(node, "axis", 0)] != CHANNELS:
        return None
    channels, parts = len(x.form.bias), len(node.output)
    sizes = given[0].tolist() if given else setting(node, "split") or [channels // parts] * parts
    return tuple(x.rows(rows) for rows in np.split(np.arange(channels), np.cumsum(sizes)[:-1]))


@LAYOUT.linear("Concat")
def _joined(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    first = operands[0]
    if first.axes[setting(node, "axis")] != CHANNELS:
        return None
    counts = [len(each.form.bias) for each in operands]
    ends = np.cumsum(counts)
    return total(
        [
            replace(x, form=ungrouped(x.form, 1).placed(slice(end - n, end), int(ends[-1])))
            for x, n, end in zip(operands, counts, ends, strict=True)
        ]
    )


@LAYOUT.linear("Gather")
def _gathered(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    x, indices = operands
    if x.axes[setting(node, "axis", 0)] != CHANNELS or indices.ndim != 1:
        return None
    channels = np.arange(len(x.form.bias))
    chosen = channels[indices]
    return x if np.array_equal(chosen, channels) else x.rows(chosen).named(node)


@LAYOUT.rule("Slice")
def _sliced(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    """Some channels, or every second row and column."""
    x, *given = operands
    if given:
        starts, ends, axes, steps = (*(each.tolist() for each in given), None, None)[:4]
    else:
        starts, ends, axes, steps = *(setting(node, n) for n in ("starts", "ends", "axes")), None
    axes = axes or list(range(len(starts)))
    cuts = {
        x.axes[axis]: slice(start, end, step)
        for axis, start, end, step in zip(
            axes, starts, ends, steps or [1] * len(starts), strict=True
        )
    }
    if set(cuts) == {CHANNELS} and x.is_linear:
        channels = np.arange(len(x.form.bias))
        chosen = channels[cuts[CHANNELS]]
        return x if np.array_equal(chosen, channels) else x.rows(chosen).named(node)
    if set(cuts) <= {2, 3} and all(cut.start == 0 and cut.stop > 1 << 20 for cut in cuts.values()):
        rows, columns = (cuts[a].step if a in cuts else 1 for a in (2, 3))
        return _thinned(x, (rows, columns))
    return None


def _thinned(x: Reading, stride: Pair) -> Reading | None:
    """Every so many rows and columns. What looks at a pixel alone does not mind; a gate does."""
    if any(not isinstance(each, Clamp) for each in x.after) or any(x.border):
        return None
    rows, columns = (s * more for s, more in zip(x.form.stride, stride, strict=True))
    return replace(x, form=x.form._replace(stride=(rows, columns)))


@LAYOUT.linear("GlobalAveragePool")
def _pooled(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    x = operands[0]
    return None if any(x.border) else replace(x, pooled=True)


@LAYOUT.linear("ReduceMean")
def _mean(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    x, *given = operands
    axes = setting(node, "axes") or (given[0].reshape(-1).tolist() if given else ())
    places = {axis % len(x.axes) for axis in axes}
    over = {x.axes[place] for place in places}
    if not over or over != set(x.axes) - {0, CHANNELS} or any(x.border):
        return None
    kept = x.axes
    if not setting(node, "keepdims", 1):
        kept = tuple(a for place, a in enumerate(x.axes) if place not in places)
    return replace(x, pooled=True, axes=kept)


@LAYOUT.rule("AveragePool", "MaxPool", "NhwcMaxPool")
def _window(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    """A window of one pixel takes every so many; a mean over more is taken for the global one."""
    x = operands[0]
    plain = not any(setting(node, "pads", (0,))) and x.axes == NCHW
    if all(n == 1 for n in setting(node, "kernel_shape")):
        return _thinned(x, tuple(setting(node, "strides", (1, 1)))) if plain else None
    mean = node.op_type == "AveragePool" and plain and x.is_linear and not any(x.border)
    return replace(x, pooled=True) if mean else None


@LAYOUT.rule("Relu")
def _relu(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    return operands[0].then(RELU)


@LAYOUT.rule("Clip")
def _clip(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    x, *given = operands
    names = [name for name in node.input[1:] if name]
    if len(names) > sum(each is not None for each in given):
        return None  # an end that is computed
    low, high = (*given, None, None)[:2]
    if not names:
        low, high = setting(node, "min"), setting(node, "max")
    return x.then(Clamp.between(low, high))


@LAYOUT.rule("Max", "Min")
def _extreme(node: Any, operands: list[Operand], reader: Reader) -> Operand:
    x, end = operands if isinstance(operands[0], Reading) else operands[::-1]
    if isinstance(end, Reading) or end.size != 1:
        return None
    return x.then(Clamp.between(*((end, None) if node.op_type == "Max" else (None, end))))
