"""Operators as they are rightly computed elsewhere: frameworks, formats, algorithms, orders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from repvgg_ref.arrays import Array
from repvgg_ref.exact.cook_toom import cook_toom
from repvgg_ref.exact.points import Point

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Right(NamedTuple):
    """One right port; `precision` is what it is held to."""

    operator: str
    name: str
    port: Callable[..., Any]
    precision: str = "auto"


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
    return y.reshape(len(x), len(w), *out_size(x, w, s)) + b[:, None, None]


def half_sums(x: Array, w: Array, b: Array, **s: Any) -> Array:
    return loops(*(a.astype(np.float16) for a in (x, w, b)), **s)


def tf32(x: Array, w: Array, b: Array, **s: Any) -> Array:
    return im2col(np.float32, *(_cut(a, 13) for a in (x, w)), b, **s)


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
    return (y[:, :, :ho:sh, :wo:sw] + b[:, None, None]).astype(np.float32)


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
    return y.reshape(len(x), len(w), rows * m, cols * m)[:, :, :ho, :wo] + b[:, None, None]


def onnxruntime_conv(relu: bool, x: Array, w: Array, b: Array, **s: Any) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    session = onnxruntime.InferenceSession(
        _conv_graph(relu, x, w, b, s), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"x": x})[0])


def openvino_conv(relu: bool, x: Array, w: Array, b: Array, **s: Any) -> Array:
    import openvino

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


def fourier_backward(grad: Array, x: Array, w: Array, **s: Any) -> tuple[Array, Array, Array]:
    """grad_x of stride 1 by FFT, the rest by columns."""
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
        gx = fourier(grad, np.ascontiguousarray(turned), zero, **{**s, "padding": pads})
    return gx, gw, gb


# Linear layers.


def torch_linear(dtype: torch.dtype, x: Array, w: Array, b: Array) -> torch.Tensor:
    return F.linear(*tensors(dtype, x, w, b))


def linear_loops(x: Array, w: Array, b: Array) -> Array:
    y = np.zeros((len(x), len(w)), np.float32)
    for k in range(x.shape[1]):
        y += x[:, k, None] * w[None, :, k]
    return y + b


def torch_linear_backward(dtype: torch.dtype, grad: Array, x: Array, w: Array) -> tuple[Any, ...]:
    g, image, weight = tensors(dtype, grad, x, w)
    return g @ weight, g.T @ image, g.sum(0)


# Batch norm.


def torch_norm(
    dtype: torch.dtype, x: Array, ga: Array, be: Array, m: Array, v: Array, **s: Any
) -> Any:
    mean, var = tensors(torch.float32, m.copy(), v.copy())
    image = tensors(dtype, x)[0]
    gamma, beta = tensors(torch.float32, ga, be)
    y = F.batch_norm(image, mean, var, gamma, beta, s["training"], s["momentum"], s["eps"])
    return {"y": y, "running_mean": mean, "running_var": var} if s["training"] else y


def numpy_norm(way: str, x: Array, ga: Array, be: Array, m: Array, v: Array, **s: Any) -> Any:
    """Two passes, one pass, or Welford's; eps and sums in float32."""
    f = np.float32
    n = x[:, 0].size
    mean, var = m, v
    if s["training"]:
        mean, var = moments(way, x)
    inv = f(1) / np.sqrt(var + f(s["eps"]))
    on = np.s_[:, None, None]
    if way == "folded":
        y = x * (ga * inv)[on] + (be - mean * ga * inv)[on]
    else:
        y = (x - mean[on]) * inv[on] * ga[on] + be[on]
    if not s["training"]:
        return y
    momentum, factor = f(s["momentum"]), f(n / (n - 1))
    new_mean = (f(1) - momentum) * m + momentum * mean
    return y, new_mean, v + momentum * (var * factor - v)


def moments(way: str, x: Array) -> tuple[Array, Array]:
    f, flat = np.float32, x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
    n = f(flat.shape[1])
    if way == "welford":
        mean, rest = np.zeros(len(flat), f), np.zeros(len(flat), f)
        for k in range(flat.shape[1]):
            delta = flat[:, k] - mean
            mean = mean + delta / f(k + 1)
            rest = rest + delta * (flat[:, k] - mean)
        return mean, rest / n
    mean = flat.sum(axis=1) / n
    if way == "one pass":
        return mean, np.maximum((flat * flat).sum(axis=1) / n - mean * mean, f(0))
    centred = flat - mean[:, None]
    return mean, (centred * centred).sum(axis=1) / n


def torch_norm_backward(
    dtype: torch.dtype, grad: Array, x: Array, ga: Array, m: Array, v: Array, **s: Any
) -> list[Any]:
    image = tensors(dtype, x)[0].requires_grad_()
    gamma, mean, var = tensors(torch.float32, ga, m.copy(), v.copy())
    beta = torch.zeros_like(gamma).requires_grad_()
    gamma.requires_grad_()
    y = F.batch_norm(image, mean, var, gamma, beta, s["training"], 0.1, s["eps"])
    y.backward(tensors(dtype, grad)[0])
    return [image.grad, gamma.grad, beta.grad]


def numpy_norm_backward(
    grad: Array, x: Array, ga: Array, m: Array, v: Array, *, sums: bool = False, **s: Any
) -> tuple[Array, Array, Array]:
    f, on, axes = np.float32, np.s_[:, None, None], (0, 2, 3)
    mean, var = moments("two passes", x) if s["training"] else (m, v)
    inv = f(1) / np.sqrt(var + f(s["eps"]))
    beta = grad.sum(axis=axes)
    if sums:  # as cuDNN's and many kernels: sum of g x first
        gamma = inv * ((grad * x).sum(axis=axes) - mean * beta)
    else:
        gamma = (grad * ((x - mean[on]) * inv[on])).sum(axis=axes)
    if not s["training"]:
        return grad * (ga * inv)[on], gamma, beta
    n = f(x[:, 0].size)
    x_hat = (x - mean[on]) * inv[on]
    return (ga * inv / n)[on] * (n * grad - beta[on] - x_hat * gamma[on]), gamma, beta


# Blocks.


def torch_block(
    x: torch.Tensor, p: dict[str, torch.Tensor], training: bool, **s: Any
) -> torch.Tensor:
    def norm(z: torch.Tensor, name: str) -> torch.Tensor:
        vectors = (p[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        mean, var, gamma, beta = vectors
        return F.batch_norm(z, mean.clone(), var.clone(), gamma, beta, training, 0.1, s["eps"])

    stride, groups = s["stride"], s["groups"]
    dense = F.conv2d(x, p["rbr_dense.conv.weight"], None, stride, 1, 1, groups)
    point = F.conv2d(x, p["rbr_1x1.conv.weight"], None, stride, 0, 1, groups)
    y = norm(dense, "rbr_dense.bn") + norm(point, "rbr_1x1.bn")
    return torch.relu(y + norm(x, "rbr_identity") if "rbr_identity.weight" in p else y)


def torch_block_port(dtype: torch.dtype, x: Array, params: dict[str, Array], **s: Any) -> Any:
    with torch.no_grad():
        tensor = {name: tensors(dtype, array)[0] for name, array in params.items()}
        return torch_block(tensors(dtype, x)[0], tensor, False, **s)


def torch_block_backward(grad: Array, x: Array, params: dict[str, Array], **s: Any) -> Any:
    p = {name: tensors(torch.float32, array)[0] for name, array in params.items()}
    trained = {n: a.requires_grad_() for n, a in p.items() if "running" not in n}
    image = tensors(torch.float32, x)[0].requires_grad_()
    torch_block(image, p, True, **s).backward(tensors(torch.float32, grad)[0])
    return {"grad_x": image.grad, **{f"grad_{n}": a.grad for n, a in trained.items()}}


def fused_block(conv: Callable[..., Any], x: Array, params: dict[str, Array], **s: Any) -> Any:
    """Fused in float32, then convolved by whatever convolves."""
    f = np.float32
    first = params["rbr_dense.conv.weight"]
    weight, bias = np.zeros_like(first), np.zeros(len(first), f)
    kernels = {"rbr_dense.bn": first, "rbr_1x1.bn": params["rbr_1x1.conv.weight"]}
    if "rbr_identity.weight" in params:
        identity = np.zeros((len(first), first.shape[1], 1, 1), f)
        identity[range(len(first)), np.arange(len(first)) % first.shape[1]] = 1
        kernels["rbr_identity"] = identity
    for name, kernel in kernels.items():
        t = params[f"{name}.weight"] / np.sqrt(params[f"{name}.running_var"] + f(s["eps"]))
        part = kernel * t[:, None, None, None]
        weight += np.pad(part, ((0, 0), (0, 0), (1, 1), (1, 1))) if part.shape[2] == 1 else part
        bias += params[f"{name}.bias"] - params[f"{name}.running_mean"] * t
    settings = {"stride": s["stride"], "padding": 1, "dilation": 1, "groups": s["groups"]}
    return rectified(conv)(x, weight, bias, **settings)


def right_operators() -> Iterator[Right]:
    """Every right port that can run here."""
    part = functools.partial
    convs: dict[str, tuple[Callable[..., Any], str]] = {
        **{f"torch {n}": (part(torch_conv, d), "auto") for n, d in FORMATS.items()},
        "torch channels last": (torch_channels_last, "auto"),
        "torch without oneDNN": (torch_native, "auto"),
        "loops": (loops, "auto"),
        "loops backwards": (part(loops, order=-1), "auto"),
        "im2col": (part(im2col, np.float32), "auto"),
        "im2col float64": (part(im2col, np.float64), "auto"),
        "split K": (split_k, "auto"),
        "FFT": (fourier, "auto"),
        **{f"Winograd F({m})": (part(winograd, m), "auto") for m in POINTS},
        "rounding toward zero": (part(directed, "zero"), "auto"),
        "rounding down": (part(directed, "down"), "auto"),
        "float16 sums": (half_sums, "fp16-acc16"),
        "TF32": (tf32, "tf32"),
    }
    for name, (port, precision) in convs.items():
        yield Right("conv2d", name, port, precision)
        yield Right("conv_bias_relu", name, rectified(port), precision)
    for name, maker in (("ONNX Runtime", onnxruntime_conv), ("OpenVINO", openvino_conv)):
        yield Right("conv2d", name, part(maker, False))
        yield Right("conv_bias_relu", name, part(maker, True))
    for name, dtype in FORMATS.items():
        yield Right("conv2d-backward", f"torch {name}", part(torch_conv_backward, dtype))
        yield Right("conv_bias_relu-backward", f"torch {name}", part(torch_conv_backward, dtype))
        yield Right("linear", f"torch {name}", part(torch_linear, dtype))
        yield Right("linear-backward", f"torch {name}", part(torch_linear_backward, dtype))
        yield Right("batch_norm", f"torch {name}", part(torch_norm, dtype))
        yield Right("batch_norm-backward", f"torch {name}", part(torch_norm_backward, dtype))
        yield Right("repvgg_block", f"torch {name}", part(torch_block_port, dtype))
    yield Right("conv2d-backward", "columns", numpy_conv_backward)
    yield Right("conv2d-backward", "torch.nn.grad", torch_grad_functions)
    yield Right("conv2d-backward", "FFT", fourier_backward)
    yield Right("linear", "loops", linear_loops)
    yield Right("linear", "NumPy", lambda x, w, b: x @ w.T + b)
    yield Right("linear-backward", "NumPy", lambda g, x, w: (g @ w, g.T @ x, g.sum(0)))
    for way in ("two passes", "one pass", "welford", "folded"):
        yield Right("batch_norm", way, part(numpy_norm, way))
    yield Right("batch_norm-backward", "three terms", numpy_norm_backward)
    yield Right("batch_norm-backward", "sums first", part(numpy_norm_backward, sums=True))
    yield Right("repvgg_block", "fused, im2col", part(fused_block, part(im2col, np.float32)))
    yield Right("repvgg_block", "fused, loops", part(fused_block, loops))
    yield Right(
        "repvgg_block", "fused, ONNX Runtime", part(fused_block, part(onnxruntime_conv, False))
    )
    yield Right("repvgg_block-backward", "torch fp32", torch_block_backward)
