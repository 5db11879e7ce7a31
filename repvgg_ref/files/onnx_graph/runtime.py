"""Does the fused convolution compute what the nodes it replaces do? Asked of ONNX Runtime.

The nodes of a part and the convolution stand side by side in one small graph, get the same images,
and must agree at every pixel, corners included. Neither is exact: with n the roundings that a term
meets on its way (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), each is off
by at most n u S, S being the sum of the magnitudes of all terms at that pixel, so

    |y_fused - y_nodes| <= (n_fused + n_nodes + 2) u S (1 + n u)

S is itself a convolution, of the magnitudes of the kernel's terms with those of the image, and
computed beside them.
"""

from __future__ import annotations

import zlib
from importlib.util import find_spec
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.form import Pair
from repvgg_ref.blocks.fusion import row_chunks
from repvgg_ref.blocks.linear import Conv, Norm
from repvgg_ref.blocks.run import Reader
from repvgg_ref.blocks.selfcheck import BlockCheck, SelfCheckError
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.onnx_graph.packages import first_line, require
from repvgg_ref.files.onnx_graph.part import Part
from repvgg_ref.files.onnx_graph.rewrite import Made, eps_of, geometry, with_zeros
from repvgg_ref.files.onnx_graph.view import View

_NORM_ROUNDINGS = (
    8  # four of the slope, the difference, product, sum; runtimes fold in other orders
)
_X, _SIZE, _FUSED = "repvgg_ref.x", "repvgg_ref.size", "repvgg_ref.fused"
_SAFE = 1.001  # S itself is rounded


class RuntimeLacks(ReportedError):  # noqa: N818 - it is an outcome: the check was not made
    """ONNX Runtime cannot run the nodes of a part."""


def is_installed() -> bool:
    """Whether there is an ONNX Runtime."""
    return find_spec("onnxruntime") is not None


def check_part(made: Made, view: View, arrays: dict[str, Array], model: Any) -> BlockCheck:
    """Run a part and its convolution on the same images.

    Returns
    -------
    BlockCheck
        At the pixel that used most of its bound.

    Raises
    ------
    RuntimeLacks
        If ONNX Runtime has no such operators for this type, or there are no pixels.
    SelfCheckError
        If they differ in size.
    """
    part = made.part
    dtype = made.weight.dtype
    worst: BlockCheck | None = None
    graph = _graph(made, view, arrays, model)
    session = _session(graph)
    for size in _sizes(part, view):
        x = _images(part, size, dtype)
        want, got, magnitudes = _run(session, x)
        if want.shape != got.shape:
            raise SelfCheckError(
                f"{part.output}: the fused convolution makes images of another size",
                got=got.shape,
                wanted=want.shape,
                advice="this is a bug in repvgg-ref: please report it",
            )
        if not want.size:
            raise RuntimeLacks("nothing is left of images of this size")
        bound = _bound(made, magnitudes, dtype)
        with np.errstate(invalid="ignore"):  # infinity less infinity: the nodes overflow themselves
            error = np.abs(got.astype(np.float64) - want.astype(np.float64))
        error[~np.isfinite(want)] = 0
        at = np.unravel_index(np.argmax(error / bound), error.shape)
        found = BlockCheck(part.output, float(error[at]), float(bound[at]))
        if worst is None or not found.used <= worst.used:
            worst = found
    assert worst is not None, "there is at least one size"
    return worst


def _bound(made: Made, magnitudes: Array, dtype: Any) -> Array:
    kind = np.finfo(dtype)
    unit = float(kind.eps) / 2
    count = roundings(made.part.linear) + made.weight[0].size + 3
    smallest = float(kind.smallest_subnormal) * count
    share = count * unit * (1 + count * unit) * _SAFE
    bound: Array = share * magnitudes.astype(np.float64) + smallest
    return bound


def roundings(linear: Any) -> int:
    """How many roundings a term meets at most, node by node."""
    if isinstance(linear, Conv):
        return linear.in_channels // linear.groups * prod(linear.kernel) + 1
    if isinstance(linear, Norm):
        return _NORM_ROUNDINGS
    parts = [roundings(part) for part in getattr(linear, "parts", ())]
    if not parts:
        return 1
    if hasattr(linear, "alike") and linear.alike:  # a sum: terms are added one after another
        return max(parts) + len(parts)
    return sum(parts)


def _sizes(part: Part, view: View) -> list[Pair]:
    """Of images on which every border shows, one of odd and one of even extents."""
    if part.reading.of_this_size:
        fixed = view.size(part.reading.source)
        assert fixed is not None, "a part of one size has that size"
        return [fixed]
    rows, columns = (
        step * (taps - 1) + 1 + 2 * stride
        for _, step, taps, stride in zip(*part.conv.lattice, part.conv.stride, strict=True)
    )
    return [(rows + 1, columns + 2), (rows + 2, columns + 3)]


def _images(part: Part, size: Pair, dtype: Any) -> Array:
    rng = np.random.default_rng(zlib.crc32(part.output.encode()))
    return rng.normal(size=(2, part.conv.in_channels, *size)).astype(dtype)


def _graph(made: Made, view: View, arrays: dict[str, Array], model: Any) -> Any:
    """The part's nodes, its convolution, and the sum of magnitudes, of one input."""
    helper = require("onnx.helper")
    part, dtype = made.part, made.weight.dtype
    # sums of magnitudes in half precision would overflow
    single = np.dtype(np.float32) if dtype == np.float16 else dtype
    nodes, constants = _own_nodes(part, view)
    kernel, bias = (each.astype(single) for each in _magnitudes(part, arrays))
    nodes += [
        _conv(part, _X, _FUSED, part.groups),
        helper.make_node("Cast", [_X], [f"{_SIZE}.x"], to=helper.np_dtype_to_tensor_dtype(single)),
        helper.make_node("Abs", [f"{_SIZE}.x"], [f"{_SIZE}.abs"]),
        _conv(part, f"{_SIZE}.abs", _SIZE, part.conv.groups),
    ]
    constants |= {f"{_FUSED}.w": made.weight, f"{_FUSED}.b": made.fused.bias}
    constants |= {f"{_SIZE}.w": kernel, f"{_SIZE}.b": bias}

    def info(name: str, kind: Any, shape: Any = None) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(kind), shape)

    graph = helper.make_graph(
        nodes,
        "part",
        [info(_X, dtype, [None, part.conv.in_channels, None, None])],
        [info(part.output, dtype), info(_FUSED, dtype), info(_SIZE, single)],
        [_tensor(name, array) for name, array in constants.items()],
    )
    return helper.make_model(
        graph, opset_imports=model.opset_import, ir_version=max(4, model.ir_version)
    )


def _own_nodes(part: Part, view: View) -> tuple[list[Any], dict[str, Array]]:
    """The nodes of a part, read from the check's input, and the constants that they read."""
    nodes, constants = [], {}
    for i in sorted(part.reading.nodes):
        node = type(view.nodes[i])()
        node.CopyFrom(view.nodes[i])
        for place, name in enumerate(node.input):
            if name == part.reading.source:
                node.input[place] = _X
            elif name and (value := view.constant(name)) is not None:
                constants[name] = value
        nodes.append(node)
    return nodes, constants


def _conv(part: Part, x: str, y: str, groups: int) -> Any:
    names = [x, f"{y}.w", f"{y}.b"]
    return require("onnx.helper").make_node("Conv", names, [y], group=groups, **geometry(part))


def _tensor(name: str, array: Array) -> Any:
    return require("onnx.numpy_helper").from_array(np.ascontiguousarray(array), name)


def _magnitudes(part: Part, arrays: dict[str, Array]) -> tuple[Array, Array]:
    """The sums of the magnitudes of what makes up kernel and bias."""
    read = Reader(arrays, min(eps_of(part.linear), default=0.0))
    kernels, biases = [], []
    for rows in row_chunks(part.linear):
        form = part.linear.form(read, rows)
        kernels.append(form.dense(sizes=True))
        biases.append(form.bias_size)
    kernel = np.concatenate(kernels)
    return with_zeros(kernel, part), np.concatenate(biases)


def _session(model: Any) -> Any:
    runtime = require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 4  # only fatal messages: what fails is told here
    # the nodes themselves are asked, not what the runtime would make of them
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return runtime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # its classes are not public
        raise RuntimeLacks("ONNX Runtime cannot open it", got=first_line(error)) from None


def _run(session: Any, x: Array) -> list[Array]:
    try:
        return [np.asarray(each) for each in session.run(None, {_X: x})]
    except Exception as error:
        raise RuntimeLacks("ONNX Runtime cannot run it", got=first_line(error)) from None
