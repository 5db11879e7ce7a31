"""Resizing and adaptive pooling as nodes of ONNX, for images of any size.

ONNX has no adaptive pooling: each window is a slice whose ends are computed from the image's size,
and its mean, rows first and columns then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from repvgg_ref.errors import CheckpointError
from repvgg_ref.models.dense import AdaptiveAvgPool, ChannelDropout, Concat, ResizeAs, Zoom
from repvgg_ref.models.graph import Network

OLDEST_OPSET = 13  # whose Resize needs no region, and has sizes
_AXES_ARE_INPUTS = 18  # of ReduceMean, from this opset on

Nodes = Iterator[Any]
Make = Callable[..., Any]  # (operator, inputs, output, **attributes) -> node


def require_dense_opset(network: Network, opset: int) -> None:
    """Raise `CheckpointError` if a dense network cannot be said in this opset."""
    if network.is_dense and opset < OLDEST_OPSET:
        raise CheckpointError(
            f"{network.name} cannot be written in this ONNX opset",
            got=opset,
            wanted=f">= {OLDEST_OPSET}, whose Resize aligns corners by sizes",
        )


def dense_nodes(name: str, op: Any, inputs: Sequence[str], make: Make, opset: int) -> Nodes:
    """The nodes of an operation of `models.dense`; the last output is `name`."""
    if isinstance(op, AdaptiveAvgPool):
        yield from _pool(name, op.bins, inputs[0], make, opset)
    elif isinstance(op, ResizeAs):
        yield from _size(f"{name}.size", inputs[1], make)
        yield from _resize(name, inputs[0], make)
    elif isinstance(op, Zoom):
        yield from _size(f"{name}.from", inputs[0], make)
        yield from _constants(name, make, one=[1], factor=[op.factor])
        yield make("Sub", [f"{name}.from", f"{name}.one"], f"{name}.steps")
        yield make("Mul", [f"{name}.steps", f"{name}.factor"], f"{name}.pixels")
        yield make("Add", [f"{name}.pixels", f"{name}.one"], f"{name}.size")
        yield from _resize(name, inputs[0], make)
    elif isinstance(op, Concat):
        yield make("Concat", list(inputs), name, axis=1)
    else:
        assert isinstance(op, ChannelDropout)
        yield make("Identity", list(inputs), name)


def _resize(name: str, x: str, make: Make) -> Nodes:
    """`x` in the height and width of ``name.size``."""
    yield make("Shape", [x], f"{name}.shape")
    yield from _constants(name, make, start=[0], images=[2])
    yield make("Slice", [f"{name}.shape", f"{name}.start", f"{name}.images"], f"{name}.batch")
    yield make("Concat", [f"{name}.batch", f"{name}.size"], f"{name}.sizes", axis=0)
    aligned = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
    yield make("Resize", [x, "", "", f"{name}.sizes"], name, **aligned)


def _size(name: str, x: str, make: Make) -> Nodes:
    """Height and width of `x`, (2,)."""
    yield make("Shape", [x], f"{name}.shape")
    yield from _constants(name, make, first=[2], end=[4])
    yield make("Slice", [f"{name}.shape", f"{name}.first", f"{name}.end"], name)


def _pool(name: str, bins: int, x: str, make: Make, opset: int) -> Nodes:
    """Rows ``floor(i H / bins)`` up to ``ceil((i + 1) H / bins)``; then columns."""
    for axis, source, target in ((2, x, f"{name}.rows"), (3, f"{name}.rows", name)):
        at = f"{name}.axis{axis}"
        yield make("Shape", [source], f"{at}.shape")
        each = np.arange(bins)
        yield from _constants(
            at, make, axis=[axis], bins=[bins], before=[bins - 1], each=each, after=each + 1
        )
        yield make("Gather", [f"{at}.shape", f"{at}.axis"], f"{at}.pixels")
        yield make("Mul", [f"{at}.each", f"{at}.pixels"], f"{at}.first")
        yield make("Div", [f"{at}.first", f"{at}.bins"], f"{at}.starts")
        yield make("Mul", [f"{at}.after", f"{at}.pixels"], f"{at}.last")
        yield make("Add", [f"{at}.last", f"{at}.before"], f"{at}.rounded")
        yield make("Div", [f"{at}.rounded", f"{at}.bins"], f"{at}.ends")
        windows = [f"{at}.{i}" for i in range(bins)]
        for i, window in enumerate(windows):
            yield from _window(window, i, source, at, axis, make, opset)
        yield make("Concat", windows, target, axis=axis)


def _window(name: str, index: int, x: str, at: str, axis: int, make: Make, opset: int) -> Nodes:
    yield from _constants(name, make, index=[index])
    yield make("Gather", [f"{at}.starts", f"{name}.index"], f"{name}.start")
    yield make("Gather", [f"{at}.ends", f"{name}.index"], f"{name}.end")
    part = [x, f"{name}.start", f"{name}.end", f"{at}.axis"]
    yield make("Slice", part, f"{name}.part")
    if opset < _AXES_ARE_INPUTS:
        yield make("ReduceMean", [f"{name}.part"], name, axes=[axis], keepdims=1)
    else:
        yield make("ReduceMean", [f"{name}.part", f"{at}.axis"], name, keepdims=1)


def _constants(name: str, make: Make, **values: Any) -> Nodes:
    from onnx import numpy_helper

    for each, value in values.items():
        tensor = numpy_helper.from_array(np.asarray(value, np.int64), f"{name}.{each}.value")
        yield make("Constant", [], f"{name}.{each}", value=tensor)
