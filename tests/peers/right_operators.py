"""Operators as they are rightly computed elsewhere: frameworks, formats, algorithms, orders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from repvgg_ref.arrays import Array
from tests.peers.right_convolutions import (
    FORMATS,
    POINTS,
    directed,
    fourier,
    half_sums,
    im2col,
    loops,
    numpy_conv_backward,
    onnxruntime_conv,
    openvino_conv,
    rectified,
    split_k,
    tensors,
    tf32,
    torch_channels_last,
    torch_conv,
    torch_conv_backward,
    torch_grad_functions,
    torch_native,
    turned_backward,
    winograd,
)


class Right(NamedTuple):
    """One right port; `precision` is what it is held to."""

    operator: str
    name: str
    port: Callable[..., Any]
    precision: str = "auto"


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
        start = np.zeros(len(flat), f)
        mean: Array = start
        rest: Array = start
        for k in range(flat.shape[1]):
            delta = flat[:, k] - mean
            mean = mean + delta / f(k + 1)
            rest = rest + delta * (flat[:, k] - mean)
        return mean, rest / n
    mean = np.asarray(flat.sum(axis=1) / n)
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
    yield Right("conv2d-backward", "FFT", part(turned_backward, fourier))
    for m in POINTS:
        fast = part(turned_backward, part(winograd, m))
        yield Right("conv2d-backward", f"Winograd F({m})", fast)
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
