"""Convolutions as they are rightly computed elsewhere: frameworks, formats, algorithms, orders."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from repvgg_ref.arrays import Array
from repvgg_ref.exact.cook_toom import cook_toom
from repvgg_ref.exact.points import Point

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pair(value: Any) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def tensors(dtype: torch.dtype, *arrays: Array) -> list[torch.Tensor]:
    return [torch.from_numpy(np.ascontiguousarray(a)).to(dtype) for a in arrays]


# Convolutions.


def torch_conv(dtype: torch.dtype, x: Array, w: Array, b: Array, **s: Any) -> torch.Tensor:
    return F.conv2d(*tensors(dtype, x, w, b), **s)


def torch_channels_last(x: Array, w: Array, b: Array, **s: Any) -> torch.Tensor:
    image, *rest = tensors(torch.float32, x, w, b)
    return F.conv2d(image.to(memory_format=torch.channels_last), *rest, **s)


def torch_native(x: Array, w: Array, b: Array, **s: Any) -> torch.Tensor:
    with torch.backends.mkldnn.flags(enabled=False):
        return F.conv2d(*tensors(torch.float32, x, w, b), **s)


def columns(x: Array, w: Array, s: dict[str, Any]) -> Array:
    """(N, G, C/G * Kh * Kw, Ho * Wo), the dtype of x."""
    (ph, pw), (dh, dw), (sh, sw) = pair(s["padding"]), pair(s["dilation"]), pair(s["stride"])
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    kh, kw = w.shape[2:]
    span = ((kh - 1) * dh + 1, (kw - 1) * dw + 1)
    v = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(2, 3))
    v = v[:, :, ::sh, ::sw, ::dh, ::dw].transpose(0, 1, 4, 5, 2, 3)
    n, g = len(x), s["groups"]
    return np.ascontiguousarray(v).reshape(n, g, -1, v.shape[4] * v.shape[5])


def out_size(x: Array, w: Array, s: dict[str, Any]) -> tuple[int, int]:
    sizes = []
    for axis in (0, 1):
        p, d, t = (pair(s[k])[axis] for k in ("padding", "dilation", "stride"))
        sizes.append((x.shape[2 + axis] + 2 * p - d * (w.shape[2 + axis] - 1) - 1) // t + 1)
    return sizes[0], sizes[1]


Add = Callable[[Array, Array], Array]


def summed(x: Array, w: Array, b: Array, add: Add, order: int, s: dict[str, Any]) -> Array:
    """One product after another, in an order, by an adder of one's own."""
    c, g = columns(x, w, s), s["groups"]
    rows = w.reshape(g, len(w) // g, -1)
    y = np.zeros((len(x), g, len(w) // g, c.shape[3]), x.dtype)
    for k in range(c.shape[2])[::order]:
        y = add(y, rows[None, :, :, k, None] * c[:, :, None, k])
    y = y.reshape(len(x), len(w), *out_size(x, w, s))
    return add(y, np.broadcast_to(b[:, None, None], y.shape))


def loops(x: Array, w: Array, b: Array, *, order: int = 1, **s: Any) -> Array:
    return summed(x, w, b, np.add, order, s)


def toward(direction: str) -> Add:
    """float32 addition that rounds to one side."""

    def add(a: Array, b: Array) -> Array:
        exact = a.astype(np.float64) + b.astype(np.float64)
        near = exact.astype(np.float32)
        if direction == "zero":
            over = np.abs(near.astype(np.float64)) > np.abs(exact)
            return np.where(over, np.nextafter(near, np.float32(0)), near)
        over = near.astype(np.float64) > exact
        return np.where(over, np.nextafter(near, np.float32(-np.inf)), near)

    return add


def directed(direction: str, x: Array, w: Array, b: Array, **s: Any) -> Array:
    return summed(x, w, b, toward(direction), 1, s)


def im2col(dtype: Any, x: Array, w: Array, b: Array, **s: Any) -> Array:
    x, w, b = (a.astype(dtype) for a in (x, w, b))
    c, g = columns(x, w, s), s["groups"]
    y = w.reshape(g, len(w) // g, -1) @ c
    return y.reshape(len(x), len(w), *out_size(x, w, s)) + b[:, None, None]


def split_k(x: Array, w: Array, b: Array, **s: Any) -> Array:
    c, g = columns(x, w, s), s["groups"]
    rows = w.reshape(g, len(w) // g, -1)
    middle = c.shape[2] // 2
    y = rows[..., :middle] @ c[:, :, :middle] + rows[..., middle:] @ c[:, :, middle:]
    return np.asarray(y.reshape(len(x), len(w), *out_size(x, w, s)) + b[:, None, None])


def half_sums(x: Array, w: Array, b: Array, **s: Any) -> Array:
    return loops(*(a.astype(np.float16) for a in (x, w, b)), **s)


def tf32(x: Array, w: Array, b: Array, **s: Any) -> Array:
    return im2col(np.float32, _cut(x, 13), _cut(w, 13), b, **s)


def _cut(a: Array, bits: int) -> Array:
    """To nearest, ties away, as cvt.rna does."""
    whole = a.view(np.uint32) + np.uint32(1 << (bits - 1))
    return (whole & np.uint32(0xFFFFFFFF << bits & 0xFFFFFFFF)).view(np.float32)


def fourier(x: Array, w: Array, b: Array, **s: Any) -> Array:
    """By float32 FFT, then every stride-th pixel."""
    import scipy.fft

    (ph, pw), (dh, dw), (sh, sw) = pair(s["padding"]), pair(s["dilation"]), pair(s["stride"])
    padded = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    kernel = np.zeros(
        (*w.shape[:2], (w.shape[2] - 1) * dh + 1, (w.shape[3] - 1) * dw + 1), np.float32
    )
    kernel[:, :, ::dh, ::dw] = w
    size = padded.shape[2:]
    g = s["groups"]
    fx = scipy.fft.rfft2(padded, size).reshape(len(x), g, 1, -1, size[0], size[1] // 2 + 1)
    fw = np.conj(scipy.fft.rfft2(kernel, size)).reshape(
        1, g, len(w) // g, -1, size[0], size[1] // 2 + 1
    )
    y = scipy.fft.irfft2((fx * fw).sum(axis=3), size).reshape(len(x), len(w), *size)
    ho, wo = (n - k + 1 for n, k in zip(size, kernel.shape[2:], strict=True))
    return np.asarray(y[:, :, :ho:sh, :wo:sw] + b[:, None, None], np.float32)


POINTS: dict[int, tuple[Point, ...]] = {
    2: (0, 1, -1, float("inf")),
    4: (0, 1, -1, 2, -2, float("inf")),
    6: (0, 1, -1, 2, -2, 0.5, -0.5, float("inf")),
}


def winograd(m: int, x: Array, w: Array, b: Array, **s: Any) -> Array:
    """F(m x m, 3 x 3) in float32 where it applies, sums elsewhere."""
    if pair(s["stride"]) != (1, 1) or pair(s["dilation"]) != (1, 1) or w.shape[2:] != (3, 3):
        return im2col(np.float32, x, w, b, **s)
    filters = cook_toom(POINTS[m])
    a, bt, gt = (np.array(rows, dtype=float).astype(np.float32) for rows in filters)
    (ph, pw), g, (ho, wo) = pair(s["padding"]), s["groups"], out_size(x, w, s)
    t, rows, cols = m + 2, -(-ho // m), -(-wo // m)
    padded = np.zeros((*x.shape[:2], rows * m + 2, cols * m + 2), np.float32)
    inner = np.pad(x, ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    padded[:, :, : inner.shape[2], : inner.shape[3]] = inner
    d = np.lib.stride_tricks.sliding_window_view(padded, (t, t), axis=(2, 3))[:, :, ::m, ::m]
    v = bt.T @ d @ bt  # (N, C, rows, cols, t, t)
    u = gt @ w @ gt.T  # (O, C/G, t, t)
    v = v.reshape(len(x), g, -1, *v.shape[2:])
    u = u.reshape(g, len(w) // g, *u.shape[1:])
    p = np.einsum("gocij,ngcrsij->ngorsij", u, v, optimize=False)
    y = a.T @ p @ a
    y = y.reshape(len(x), len(w), rows, cols, m, m).transpose(0, 1, 2, 4, 3, 5)
    y = y.reshape(len(x), len(w), rows * m, cols * m)[:, :, :ho, :wo]
    return np.asarray(y + b[:, None, None])


def onnxruntime_conv(relu: bool, x: Array, w: Array, b: Array, **s: Any) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(
        _conv_graph(relu, x, w, b, s), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def openvino_conv(relu: bool, x: Array, w: Array, b: Array, **s: Any) -> Array:
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    model = core.read_model(_conv_graph(relu, x, w, b, s))
    hint = {"INFERENCE_PRECISION_HINT": "f32"}
    return np.array(core.compile_model(model, "CPU", hint)([x])[0])


def _conv_graph(relu: bool, x: Array, w: Array, b: Array, s: dict[str, Any]) -> bytes:
    from onnx import TensorProto, helper, numpy_helper

    node = helper.make_node(
        "Conv",
        ["x", "w", "b"],
        ["z" if relu else "y"],
        strides=pair(s["stride"]),
        pads=pair(s["padding"]) * 2,
        dilations=pair(s["dilation"]),
        group=s["groups"],
    )
    nodes = [node, helper.make_node("Relu", ["z"], ["y"])] if relu else [node]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def rectified(port: Callable[..., Any]) -> Callable[..., Any]:
    """The port with a ReLU behind it."""

    def run(*arrays: Array, **s: Any) -> Any:
        y = port(*arrays, **s)
        return torch.relu(y) if isinstance(y, torch.Tensor) else np.maximum(y, 0)

    return run


def torch_conv_backward(
    dtype: torch.dtype, grad: Array, x: Array, w: Array, b: Array | None = None, **s: Any
) -> list[torch.Tensor]:
    """By autograd; with a bias, behind a ReLU."""
    image, weight, g = tensors(dtype, x, w, grad)
    bias = torch.zeros(len(w), dtype=dtype) if b is None else tensors(dtype, b)[0]
    leaves = [image, weight, bias]
    for leaf in leaves:
        leaf.requires_grad_()
    y = F.conv2d(image, weight, bias, **s)
    (y if b is None else torch.relu(y)).backward(g)
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


def numpy_conv_backward(grad: Array, x: Array, w: Array, **s: Any) -> tuple[Array, Array, Array]:
    """By columns in float32, scattered back tap by tap."""
    c, g = columns(x, w, s), s["groups"]
    rows = w.reshape(g, len(w) // g, -1)
    gr = grad.reshape(len(x), g, len(w) // g, -1)
    gw = np.zeros_like(rows)
    for n in range(len(x)):
        gw += gr[n] @ c[n].transpose(0, 2, 1)
    gc = rows.transpose(0, 2, 1) @ gr
    (ph, pw), (dh, dw), (sh, sw) = pair(s["padding"]), pair(s["dilation"]), pair(s["stride"])
    kh, kw = w.shape[2:]
    ho, wo = grad.shape[2:]
    gc = gc.reshape(len(x), -1, kh, kw, ho, wo)
    padded = np.zeros((*x.shape[:2], x.shape[2] + 2 * ph, x.shape[3] + 2 * pw), x.dtype)
    for i in range(kh):
        for j in range(kw):
            at_rows = slice(i * dh, i * dh + sh * (ho - 1) + 1, sh)
            padded[:, :, at_rows, j * dw : j * dw + sw * (wo - 1) + 1 : sw] += gc[:, :, i, j]
    gx = padded[:, :, ph : ph + x.shape[2], pw : pw + x.shape[3]]
    return gx, gw.reshape(w.shape), grad.sum(axis=(0, 2, 3))


def torch_grad_functions(grad: Array, x: Array, w: Array, **s: Any) -> tuple[Any, ...]:
    image, weight, g = tensors(torch.float32, x, w, grad)
    return (
        torch.nn.grad.conv2d_input(image.shape, weight, g, **s),
        torch.nn.grad.conv2d_weight(image, weight.shape, g, **s),
        g.sum((0, 2, 3)),
    )


def turned_backward(
    port: Callable[..., Any], grad: Array, x: Array, w: Array, **s: Any
) -> tuple[Array, Array, Array]:
    """grad_x of stride 1 by a forward convolution with the kernel turned, the rest by columns."""
    gx, gw, gb = numpy_conv_backward(grad, x, w, **s)
    if pair(s["stride"]) == (1, 1):
        g = s["groups"]
        turned = w[:, :, ::-1, ::-1].reshape(g, len(w) // g, *w.shape[1:]).swapaxes(1, 2)
        turned = turned.reshape(-1, len(w) // g, *w.shape[2:])
        pads = tuple(
            d * (k - 1) - p
            for d, k, p in zip(pair(s["dilation"]), w.shape[2:], pair(s["padding"]), strict=True)
        )
        zero = np.zeros(len(turned), np.float32)
        gx = port(grad, np.ascontiguousarray(turned), zero, **{**s, "padding": pads})
    return gx, gw, gb
