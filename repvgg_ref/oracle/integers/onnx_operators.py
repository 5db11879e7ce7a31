"""What each operator of a quantised graph does to what is known of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.files.onnx_graph.constants import setting
from repvgg_ref.integer.layers import Quantization
from repvgg_ref.oracle.candidates.onnx_reading import RELU, Clamp
from repvgg_ref.oracle.integers.onnx_arrays import StatedBias, Weights
from repvgg_ref.oracle.integers.onnx_layers import convolution, linear, pooled
from repvgg_ref.oracle.integers.onnx_settings import called, not_understood
from repvgg_ref.oracle.integers.onnx_shapes import SHAPING, reshaped
from repvgg_ref.oracle.integers.onnx_walk import (
    Numbers,
    Open,
    Real,
    Walk,
    called_after,
    is_same,
    shown,
)
from weights_io import sanitize

_MOST_INPUTS = {"QLinearConv": 9, "QGemm": 9, "QLinearMatMul": 8, "QLinearAdd": 8} | dict.fromkeys(
    ("QLinearGlobalAveragePool", "QLinearAveragePool"), 5
)
# They read their input as the numbers of a layer.
_READING = frozenset({"QuantizeLinear", "Conv", "Gemm", "MatMul", "GlobalAveragePool"}) | frozenset(
    {"AveragePool", "ReduceMean"}
)
TWICE = "what its weights give is rounded before its bias is added"
_INT8 = 3  # TensorProto.DataType


def read_node(walk: Walk, node: Any) -> None:
    """Follow one node that depends on the image.

    Of real numbers what no rule knows is remembered; of 8-bit ones it is refused.
    """
    rule = _RULES.get(node.op_type)
    if node.op_type in _READING:
        for each in node.input:
            if _is_odd(walk, each):
                walk.require_untouched(walk.real[each])  # type: ignore[arg-type]
    if rule is None or not_understood(node) or any(_is_odd(walk, each) for each in node.input):
        if any(each in walk.numbers for each in node.input):
            walk.require_understood(node, 0)
        _put_odd(walk, node)
        return
    walk.require_understood(node, _MOST_INPUTS.get(node.op_type, 3))
    rule(walk, node)


def _is_odd(walk: Walk, tensor: str) -> bool:
    real = walk.real.get(tensor)
    return isinstance(real, Real) and bool(real.odd)


def _put_odd(walk: Walk, node: Any) -> None:
    """Remember that an operator, the first of them, is not understood."""
    odd = next((walk.real[each] for each in node.input if _is_odd(walk, each)), None)
    name = odd.odd if isinstance(odd, Real) else not_understood(node) or called(node)
    shape = next(walk.real[each].shape for each in node.input if each in walk.real)
    walk.real |= {each: Real("", shape, odd=name) for each in node.output if each}


def _given(node: Any, place: int) -> str:
    """The name of an input; "" if it is left out."""
    return str(node.input[place]) if len(node.input) > place else ""


def _quantize(walk: Walk, node: Any) -> None:
    tensor, made = node.input[0], node.output[0]
    dtype = np.int8 if setting(node, "output_dtype", 0) == _INT8 else np.uint8
    found = walk.quantization(node.input[1], _given(node, 2), dtype)
    if setting(node, "output_dtype", 0) and found.dtype != dtype:
        raise walk.failure(f"{called(node)}: output_dtype is not its zero point's type")
    behind = walk.real.get(tensor)
    if isinstance(behind, Open):
        walk.close(behind, found, made)
        return
    if behind is None:
        raise walk.failure("a real tensor of unknown origin", got=sanitize(tensor))
    if not behind.numbers:
        walk.numbers[made] = Numbers(found, 0, behind.shape)
    elif behind.added is not None:
        _add_to_last(walk, behind, found, made)
    else:
        _same_again(walk, behind, found, made)


def _same_again(walk: Walk, behind: Real, found: Quantization, made: str) -> None:
    """Numbers that were taken apart, and are put together as they were."""
    same = walk.require_same(behind.numbers, found)
    if behind.relu and not walk.layers:
        raise walk.failure("Relu of the image", got=sanitize(made))
    if behind.relu:  # the pair clips at the zero point
        walk.layers[-1] = replace(walk.layers[-1], relu=True)
    walk.numbers[made] = replace(same, shape=behind.shape)
    walk.renamed(behind.numbers, made)


def _add_to_last(walk: Walk, behind: Real, found: Quantization, made: str) -> None:
    """A bias behind the rounded product of the last layer, which becomes one with it."""
    last, bias = walk.layers[-1], behind.added
    assert bias is not None
    assert last.weight_scale is not None
    walk.read_by_layer(behind.numbers)
    unit = float(last.input.scale) * last.weight_scale.astype(np.float64)
    walk.layers[-1] = replace(last, output=found, bias=bias.in_units(unit))
    walk.stated[last.name], walk.doubts[last.name] = bias, TWICE
    walk.numbers[made] = Numbers(found, len(walk.layers), behind.shape)
    walk.tensors[last.name] = made
    name = called_after(made, {k: v for k, v in walk.tensors.items() if k != last.name})
    walk.rename_last(name)


def _dequantize(walk: Walk, node: Any) -> None:
    x = node.input[0]
    if x not in walk.numbers:
        raise walk.failure("numbers of unknown origin", got=sanitize(x))
    held = walk.numbers[x]
    said = walk.quantization(node.input[1], _given(node, 2), held.quantization.dtype)
    if not is_same(said, held.quantization):
        raise walk.failure(
            f"{called(node)}: takes numbers for others than they are",
            got=shown(said),
            wanted=shown(held.quantization),
        )
    walk.real[node.output[0]] = Real(x, held.shape)


def _conv(walk: Walk, node: Any) -> None:
    x, _ = walk.source(node.input[0])
    weights = walk.weights(node.input[1])
    walk.real[node.output[0]] = convolution(walk, node, x, weights, _given(node, 2))


def _gemm(walk: Walk, node: Any) -> None:
    x, _ = walk.source(node.input[0])
    transposed = node.op_type == "MatMul" or not setting(node, "transB", 0)
    weights = walk.weights(node.input[1], transposed=transposed)
    walk.real[node.output[0]] = linear(walk, node, x, weights, _given(node, 2))


def _add(walk: Walk, node: Any) -> None:
    """A bias that is added behind a product, rounded already or not."""
    x, other = _one_real(walk, node)
    layer = walk.real.get(x)
    if isinstance(layer, Open) and layer.takes_bias and layer.kind == "linear":
        outputs = len(layer.weight) if layer.weight is not None else 0
        walk.real[node.output[0]] = layer.biased(walk.stated_bias(other, outputs))
    elif isinstance(layer, Real) and _can_take_bias(walk, layer):
        bias = walk.stated_bias(other, walk.channels)
        walk.real[node.output[0]] = replace(layer, added=bias)
    else:
        _put_odd(walk, node)


def _can_take_bias(walk: Walk, x: Real) -> bool:
    """Whether what is added to these numbers is the last layer's bias."""
    if x.relu or x.added or not walk.layers or x.numbers not in walk.numbers:
        return False
    last = walk.layers[-1]
    newest = walk.numbers[x.numbers].layers == len(walk.layers)
    return newest and last.kind == "linear" and not last.relu and not np.any(last.bias)


def _one_real(walk: Walk, node: Any) -> tuple[str, str]:
    """The input that depends on the image, and the other one."""
    first, second = node.input
    return (first, second) if first in walk.real else (second, first)


def _relu(walk: Walk, node: Any) -> None:
    _clamped(walk, node, node.input[0])


def _clip(walk: Walk, node: Any) -> None:
    ends = [setting(node, "min"), setting(node, "max")]
    for i, name in enumerate((_given(node, 1), _given(node, 2))):
        ends[i] = walk.value(name) if name else ends[i]
    if Clamp.between(*ends) == RELU:
        _clamped(walk, node, node.input[0])
    else:
        _put_odd(walk, node)


def _clamped(walk: Walk, node: Any, x: str) -> None:
    behind = walk.real.get(x)
    if isinstance(behind, Open) and behind.kind != "pool":
        walk.real[node.output[0]] = replace(behind, relu=True)
    elif isinstance(behind, Real) and behind.numbers and behind.added is None:
        held = walk.numbers[behind.numbers].quantization
        lowest = int(held.zero_point) == np.iinfo(held.dtype).min  # nothing is below it
        walk.real[node.output[0]] = replace(behind, relu=behind.relu or not lowest)
    else:
        _put_odd(walk, node)


def _pool(walk: Walk, node: Any) -> None:
    x, _ = walk.source(node.input[0])
    walk.real[node.output[0]] = pooled(walk, node, x)


def _shape(walk: Walk, node: Any) -> None:
    x, y = node.input[0], node.output[0]
    held = walk.numbers.get(x) or walk.real[x]
    after = None
    if node.op_type != "Dropout" or _is_off(walk, node):
        after = reshaped(
            node, held.shape, walk.channels, _stated_axes(walk, node), _target(walk, node)
        )
    if after is None and x in walk.real:
        _put_odd(walk, node)
    elif after is None:
        raise walk.failure(
            f"{called(node)}: not known to leave every number in its place",
            wanted="Flatten, Reshape or Squeeze behind the pool, to (N, C)",
        )
    elif isinstance(held, Numbers):
        walk.numbers[y] = replace(held, shape=after)
        walk.renamed(x, y)
    else:
        walk.real[y] = replace(held, shape=after)


def _stated_axes(walk: Walk, node: Any) -> list[int] | None:
    return walk.axes(node) if node.op_type in ("Squeeze", "Unsqueeze") else None


def _target(walk: Walk, node: Any) -> Any:
    return walk.constants.value(node.input[1]) if node.op_type == "Reshape" else None


def _is_off(walk: Walk, node: Any) -> bool:
    """Whether a Dropout does nothing, as in inference."""
    return not _given(node, 2) or not walk.value(node.input[2]).any()


def _sides(walk: Walk, node: Any, before: int, after: int) -> tuple[Numbers, Quantization]:
    """What a node on integers says of its input, checked, and of its output."""
    said = walk.quantization(node.input[before], node.input[before + 1])
    found = walk.quantization(node.input[after], node.input[after + 1])
    return walk.require_same(node.input[0], said), found


def _zero(walk: Walk, node: Any, place: int) -> Array | None:
    name = _given(node, place)
    return walk.value(name) if name else None


def _qlinear_conv(walk: Walk, node: Any) -> None:
    x, y = _sides(walk, node, 1, 6)
    zero = _zero(walk, node, 5)
    weights = walk.signed(walk.value(node.input[3]), walk.scale(node.input[4]), zero)
    layer = convolution(walk, node, x, weights, "")
    walk.close(_with_integers(walk, layer, _given(node, 8)), y, node.output[0])


def _qgemm(walk: Walk, node: Any) -> None:
    x, y = _sides(walk, node, 1, 7)
    weights = _matrix(walk, node, transposed=not setting(node, "transB", 0))
    layer = linear(walk, node, x, weights, "")
    walk.close(_with_integers(walk, layer, _given(node, 6)), y, node.output[0])


def _qlinear_matmul(walk: Walk, node: Any) -> None:
    x, y = _sides(walk, node, 1, 6)
    layer = linear(walk, node, x, _matrix(walk, node, transposed=True), "")
    walk.close(layer, y, node.output[0])


def _matrix(walk: Walk, node: Any, *, transposed: bool) -> Weights:
    stored = walk.value(node.input[3])
    scale, zero = walk.scale(node.input[4]), _zero(walk, node, 5)
    walk.require_alike(node, scale, zero)
    return walk.signed(stored.T if transposed else stored, scale, zero)


def _with_integers(walk: Walk, layer: Open, name: str) -> Open:
    """With the int32 bias of an operator on integers, which is in units of both scales."""
    if not name:
        return layer
    assert layer.weight is not None
    numbers = walk.integer_bias(name, len(layer.weight))
    return replace(layer, bias=numbers)


def _qlinear_add(walk: Walk, node: Any) -> None:
    """A constant of 8 bits, added to numbers: the bias of a product."""
    first, second, (ys, yz) = list(node.input[:3]), list(node.input[3:6]), node.input[6:8]
    (x, xs, xz), (b, bs, bz) = (first, second) if first[0] in walk.numbers else (second, first)
    held = walk.require_same(x, walk.quantization(xs, xz))
    real = Real(x, held.shape)
    if not _can_take_bias(walk, real):
        raise walk.failure(f"{called(node)}: adds to what is no product without a bias")
    zero = walk.value(bz) if bz else None
    bias: StatedBias = walk.dequantized_bias(b, walk.value(b), walk.scale(bs), zero, walk.channels)
    _add_to_last(walk, replace(real, added=bias), walk.quantization(ys, yz), node.output[0])


def _qlinear_pool(walk: Walk, node: Any) -> None:
    x, y = _sides(walk, node, 1, 3)
    walk.close(pooled(walk, node, x), y, node.output[0])


def _max(walk: Walk, node: Any) -> None:
    """ReLU on numbers: the larger of them and the zero point."""
    first, second = node.input
    x, other = (first, second) if first in walk.numbers else (second, first)
    held = walk.numbers.get(x)
    if held is None:
        _put_odd(walk, node)
        return
    end = walk.value(other)
    zero = held.quantization.zero_point
    if end.size != 1 or end.reshape(()) != zero or not walk.layers:
        raise walk.failure(f"{called(node)}: no ReLU", got=str(end)[:40], wanted=f"{int(zero)}")
    walk.read_by_layer(x)
    last = walk.layers[-1]
    walk.layers[-1] = replace(last, relu=True)
    walk.numbers[node.output[0]] = held
    walk.tensors[last.name] = node.output[0]
    others = {k: v for k, v in walk.tensors.items() if k != last.name}
    walk.rename_last(called_after(node.output[0], others))


_RULES: Mapping[str, Callable[[Walk, Any], None]] = {
    "QuantizeLinear": _quantize,
    "DequantizeLinear": _dequantize,
    "Conv": _conv,
    "Gemm": _gemm,
    "MatMul": _gemm,
    "Add": _add,
    "Relu": _relu,
    "Clip": _clip,
    "GlobalAveragePool": _pool,
    "AveragePool": _pool,
    "ReduceMean": _pool,
    "QLinearConv": _qlinear_conv,
    "QGemm": _qgemm,
    "QLinearMatMul": _qlinear_matmul,
    "QLinearAdd": _qlinear_add,
    "QLinearGlobalAveragePool": _qlinear_pool,
    "QLinearAveragePool": _qlinear_pool,
    "Max": _max,
} | dict.fromkeys(SHAPING, _shape)
