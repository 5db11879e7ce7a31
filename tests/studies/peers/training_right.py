# mypy: allow-subclassing-any, allow-untyped-calls, disable-error-code="no-any-return"
"""Correct ports of a training step: what may differ is how they round and in which order they sum.

Each is a function from a model and its right steps to a dump. What they differ from the float64
steps by calibrates the yardstick of training dumps (`training_study`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import NUMPY
from repvgg_ref.models.network import Model
from repvgg_ref.ops import REFERENCE, Ops
from repvgg_ref.oracle.training.run import right_setup, run
from repvgg_ref.oracle.training.steps import TrainingSteps
from tests.peers.torch_training import Port, _norm_with, _set, _statistics, dump_of

Dump = dict[str, Array]
RightPort = Callable[[Model, TrainingSteps], Dump]


def in_torch(*plants: Callable[[Port], None], dtype: Any = torch.float32) -> RightPort:
    """The torch port with harmless changes."""

    def plant(port: Port) -> None:
        for each in plants:
            each(port)

    return lambda model, steps: dump_of(model, steps, dtype, plant)


def _threads(count: int, port: RightPort) -> RightPort:
    def with_threads(model: Model, steps: TrainingSteps) -> Dump:
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return port(model, steps)
        finally:
            torch.set_num_threads(before)

    return with_threads


def _without_mkldnn(port: RightPort) -> RightPort:
    def plain(model: Model, steps: TrainingSteps) -> Dump:
        with torch.backends.mkldnn.flags(enabled=False):
            return port(model, steps)

    return plain


def _rounded(port: RightPort) -> RightPort:
    """Computed in float64, stored in float32."""

    def rounded(model: Model, steps: TrainingSteps) -> Dump:
        dump = port(model, steps)
        return {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in dump.items()}

    return rounded


def ours(ops: Ops) -> RightPort:
    """The package's own steps by another table of operators, in float32."""

    def port(model: Model, steps: TrainingSteps) -> Dump:
        setup = right_setup(model, steps.x, steps.labels, steps.recipe)
        single = {
            n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in setup.params.items()
        }
        x = steps.x.astype(np.float32)
        found = run(replace(setup, params=single, x=x, ops=ops, base=ops))
        return {n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in found.items()}

    return port


# ---------------------------------------------------------------- other orders of summation


def _channels_last(port: Port) -> None:
    port.network = port.network.to(memory_format=torch.channels_last)
    loss = port.loss
    port.loss = lambda network, x, labels, s: loss(
        network, x.contiguous(memory_format=torch.channels_last), labels, s
    )


def _images_reversed(port: Port) -> None:
    loss = port.loss
    port.loss = lambda network, x, labels, s: loss(network, x.flip(0), labels.flip(0), s)


def _put_back(port: RightPort) -> RightPort:
    def in_order(model: Model, steps: TrainingSteps) -> Dump:
        dump = port(model, steps)
        return dump | {"logits": dump["logits"][::-1]}

    return in_order


def _convolving(convolve: Callable[..., Any]) -> Callable[[Port], None]:
    """Every convolution computed by `convolve(x, weight, stride, padding, dilation, groups)`."""

    def plant(port: Port) -> None:
        for module in port.network.modules():
            if isinstance(module, torch.nn.Conv2d) and module.bias is None:

                def forward(x: Any, conv: Any = module) -> Any:
                    how = conv.stride, conv.padding, conv.dilation, conv.groups
                    return convolve(x, conv.weight, *how)

                module.forward = forward

    return plant


def _tap_by_tap(x: Any, w: Any, stride: Any, padding: Any, dilation: Any, groups: int) -> Any:
    """One 1x1 convolution a tap, added one after the other."""
    x = functional.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    ho = (x.shape[2] - dilation[0] * (w.shape[2] - 1) - 1) // stride[0] + 1
    wo = (x.shape[3] - dilation[1] * (w.shape[3] - 1) - 1) // stride[1] + 1
    total: Any = 0
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            top, left = i * dilation[0], j * dilation[1]
            rows = slice(top, top + (ho - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (wo - 1) * stride[1] + 1, stride[1])
            tap = w[:, :, i : i + 1, j : j + 1]
            total = total + functional.conv2d(x[:, :, rows, columns], tap, groups=groups)
    return total


def _channel_by_channel(x: Any, w: Any, stride: Any, pad: Any, dilation: Any, groups: int) -> Any:
    """One input channel after the other, each sum rounded."""
    per = w.shape[1]
    total: Any = 0
    for c in range(per):
        total = total + functional.conv2d(
            x[:, c::per], w[:, c : c + 1], None, stride, pad, dilation, groups
        )
    return total


def _shuffled(x: Any, w: Any, stride: Any, pad: Any, dilation: Any, groups: int) -> Any:
    """im2col and a product whose inner index is in another order."""
    n, o = x.shape[0], w.shape[0]
    kh, kw = w.shape[2:]
    columns = functional.unfold(x, (kh, kw), dilation, pad, stride)
    k = columns.shape[1] // groups
    order = torch.randperm(k, generator=torch.Generator().manual_seed(0))
    columns = columns.reshape(n, groups, k, -1)[:, :, order]
    kernel = w.reshape(groups, o // groups, k)[:, :, order]
    y = torch.matmul(kernel, columns)
    ho = (x.shape[2] + 2 * pad[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    return y.reshape(n, o, ho, -1)


def _by_fft(x: Any, w: Any, stride: Any, pad: Any, dilation: Any, groups: int) -> Any:
    """The whole plane by a fast Fourier transform; for dense kernels without dilation."""
    if groups > 1 or dilation[0] > 1:
        return functional.conv2d(x, w, None, stride, pad, dilation, groups)
    x = functional.pad(x, (pad[1], pad[1], pad[0], pad[0]))
    size = x.shape[2:]
    spectrum = torch.einsum(
        "nchw,ochw->nohw", torch.fft.rfft2(x), torch.fft.rfft2(w, s=size).conj()
    )
    full = torch.fft.irfft2(spectrum, s=size)
    return full[
        :, :, : size[0] - w.shape[2] + 1 : stride[0], : size[1] - w.shape[3] + 1 : stride[1]
    ]


def _by_winograd(x: Any, w: Any, stride: Any, pad: Any, dilation: Any, groups: int) -> Any:
    """F(4x4, 3x3) where it applies (stride 1, dense)."""
    if w.shape[2] != 3 or stride[0] > 1 or groups > 1 or dilation[0] > 1:
        return functional.conv2d(x, w, None, stride, pad, dilation, groups)
    bt = x.new_tensor(
        [[4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
         [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1]]
    )  # fmt: skip
    g = x.new_tensor(
        [[1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
         [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1]]
    )  # fmt: skip
    at = x.new_tensor([[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0],
                       [0, 1, -1, 8, -8, 1]])  # fmt: skip
    height, width = x.shape[2:]
    high, wide = -(-height // 4), -(-width // 4)
    x = functional.pad(x, (1, 4 * wide - width + 1, 1, 4 * high - height + 1))
    tiles = x.unfold(2, 6, 4).unfold(3, 6, 4)
    v = torch.einsum("ai,nchwij,bj->nchwab", bt, tiles, bt)
    u = torch.einsum("ai,ocij,bj->ocab", g, w, g)
    y = torch.einsum("ai,nohwij,bj->nohwab", at, torch.einsum("ocab,nchwab->nohwab", u, v), at)
    n, o = y.shape[:2]
    return y.permute(0, 1, 2, 4, 3, 5).reshape(n, o, 4 * high, 4 * wide)[:, :, :height, :width]


# ------------------------------------------------------------------------- other formulas


def _two_pass(x: Any, bn: Any) -> Any:
    mean, var = _statistics(x)
    return (x - mean) / torch.sqrt(var + bn.eps)


def _rsqrt(x: Any, bn: Any) -> Any:
    mean, var = _statistics(x)
    return (x - mean) * torch.rsqrt(var + bn.eps)


def _one_pass(x: Any, bn: Any) -> Any:
    """Variance as the mean of squares minus the square of the mean: fast kernels do it."""
    mean = x.mean(dim=(0, 2, 3), keepdim=True)
    var = (x * x).mean(dim=(0, 2, 3), keepdim=True) - mean * mean
    return (x - mean) * torch.rsqrt(var + bn.eps)


def _own_loss(network: Any, x: Any, labels: Any, smoothing: float) -> Any:
    """Exponentials and logarithm written out; auxiliary heads weigh a tenth."""

    def one(logits: Any) -> Any:
        classes = logits.shape[1]
        target = functional.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        e = torch.exp(logits - logits.max(dim=1, keepdim=True).values)
        return -(target * torch.log(e / e.sum(dim=1, keepdim=True))).sum(dim=1).mean()

    outputs = network.outputs(x)
    main = one(outputs.pop("main"))
    return main + sum(0.1 * one(logits) for logits in outputs.values())


class _OwnSgd(torch.optim.SGD):
    """``w - (lr v)`` where torch computes ``w + (-lr) v`` with one rounding."""

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    d = p.grad + p * group["weight_decay"]
                    v = self.state[p].get("v")
                    v = d if v is None else v * group["momentum"] + d
                    self.state[p]["v"] = v
                    step = d + group["momentum"] * v if group["nesterov"] else v
                    p.copy_(p - step * group["lr"])


def _own_sgd(network: Any, recipe: Any) -> Any:
    groups = [
        {"params": [p], "weight_decay": recipe.weight_decay if p.ndim > 1 else 0.0}
        for p in network.parameters()
    ]
    return _OwnSgd(groups, lr=recipe.lrs[0], momentum=recipe.momentum, nesterov=recipe.nesterov)


def _foreach(how: dict[str, bool]) -> Callable[[Port], None]:
    def plant(port: Port) -> None:
        from tests.peers.torch_training import _sgd

        port.optimizer = lambda network, recipe: _sgd(network, recipe, **how)

    return plant


RIGHT: dict[str, RightPort] = {
    "torch": _threads(1, in_torch()),
    "torch, two threads": _threads(2, in_torch()),
    "torch, channels last": _without_mkldnn(in_torch(_channels_last)),
    "torch without oneDNN": _without_mkldnn(in_torch()),
    "torch, float64": in_torch(dtype=torch.float64),
    "torch, float64 rounded": _rounded(in_torch(dtype=torch.float64)),
    "images reversed": _put_back(in_torch(_images_reversed)),
    "tap by tap": in_torch(_convolving(_tap_by_tap)),
    "channel by channel": in_torch(_convolving(_channel_by_channel)),
    "inner index shuffled": in_torch(_convolving(_shuffled)),
    "fast Fourier transform": in_torch(_convolving(_by_fft)),
    "Winograd F(4)": in_torch(_convolving(_by_winograd)),
    "batch norm in two passes": in_torch(_norm_with(_two_pass)),
    "batch norm with rsqrt": in_torch(_norm_with(_rsqrt)),
    "batch norm in one pass": in_torch(_norm_with(_one_pass)),
    "own loss": in_torch(_set(loss=_own_loss)),
    "own SGD": in_torch(_set(optimizer=_own_sgd)),
    "SGD, foreach": in_torch(_foreach({"foreach": True})),
    "SGD, fused": in_torch(_foreach({"fused": True})),
    "tap by tap, one pass, own loss, own SGD": in_torch(
        _convolving(_tap_by_tap),
        _norm_with(_one_pass),
        _set(loss=_own_loss, optimizer=_own_sgd),
    ),
    "ours, reference": ours(REFERENCE),
    "ours, fast": ours(NUMPY),
}
