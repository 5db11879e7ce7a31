"""Layers of a quantised graph whose outputs have no scale yet: convolution, linear, pool."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.integer.layers import Kind
from repvgg_ref.oracle.integers.onnx_arrays import Weights
from repvgg_ref.oracle.integers.onnx_settings import called
from repvgg_ref.oracle.integers.onnx_walk import Numbers, Open, Walk


def convolution(walk: Walk, node: Any, x: Numbers, weights: Weights, bias: str) -> Open:
    """A convolution; of one pixel, behind the pool, it is the linear layer."""
    weight = weights.numbers
    settings = walk.conv_settings(node, weight)
    if x.shape.kind == "flat":
        raise walk.failure(f"{called(node)}: convolves features without pixels")
    layer = _opened(walk, "conv", x, weights, settings)
    if x.shape.kind == "pooled" and settings["groups"] == 1 and weight.shape[2:] == (1, 1):
        if settings["padding"]:
            raise walk.failure(f"{called(node)}: padding around one pixel")
        layer = replace(layer, kind="linear", weight=weight[:, :, 0, 0], settings={})
    elif x.shape.kind == "pooled":
        raise walk.failure(f"{called(node)}: a convolution behind the pool")
    integers, stated = walk.bias(bias, len(weight), layer.unit)
    return replace(layer, bias=integers, stated=stated)


def linear(walk: Walk, node: Any, x: Numbers, weights: Weights, bias: str) -> Open:
    """A product with a matrix (O, C)."""
    weight = weights.numbers
    if weight.ndim != 2 or x.shape.kind != "flat":
        raise walk.failure(
            f"{called(node)}: no linear layer behind a pool",
            got=f"weights of shape {weight.shape}, {x.shape.kind} input",
            wanted="a matrix, and features (N, C)",
        )
    layer = _opened(walk, "linear", x, weights, {})
    integers, stated = walk.bias(bias, len(weight), layer.unit)
    return replace(layer, bias=integers, stated=stated)


def _opened(walk: Walk, kind: Kind, x: Numbers, weights: Weights, settings: dict[str, Any]) -> Open:
    """A layer without a bias."""
    return Open(
        kind,
        len(walk.layers),
        x.shape,
        x.quantization,
        weights.numbers,
        None,
        weights.scale,
        settings,
        weight_zero_point=weights.zero_point,
    )


def pooled(walk: Walk, node: Any, x: Numbers) -> Open:
    """The mean over all rows and columns, however it is written."""
    if x.shape.kind != "image":
        raise walk.failure(f"{called(node)}: pools what is no image")
    kept = True
    if node.op_type == "ReduceMean":
        axes = walk.axes(node)
        if axes is None or sorted(axis % 4 for axis in axes) != [2, 3]:
            raise walk.failure("a mean that is no pooling", got=f"{called(node)} over axes {axes}")
        kept = bool(setting(node, "keepdims", 1))
    elif node.op_type.endswith("AveragePool") and "Global" not in node.op_type:
        _require_whole(walk, node)
    shape = x.shape.of("pooled" if kept else "flat")
    return Open("pool", len(walk.layers), shape, x.quantization)


def _require_whole(walk: Walk, node: Any) -> None:
    """Refuse an average over windows that are not the whole image."""
    kernel, extent = setting(node, "kernel_shape"), walk.extent
    plain = not any(setting(node, "pads", [0])) and set(setting(node, "dilations", [1])) == {1}
    written = setting(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID", "")
    if extent is None or list(kernel) != list(extent) or not plain or not written:
        raise walk.failure(
            f"{called(node)}: not known to be the average over the whole image",
            got=f"windows of {list(kernel)}",
            wanted="GlobalAveragePool; or windows as large as the image, without padding, in a "
            "file that states its input's size" + (f": {list(extent)}" if extent else ""),
        )
