# mypy: disable-error-code="no-any-return"
"""How far a float32 runtime may be from the float64 three-branch network, layer by layer.

End to end a worst-case bound is useless (propagated through A0 it reaches 1e20), so each layer is
judged on the runtime's *own* input to it: the witness is the training-time block in float64 on that
input, and the runtime's output may differ by

    gamma_n (|W| * |x| + |b|),   n = 9 C/G + 2,   gamma_n = n u / (1 - n u),   u = 2**-24

for any order of summation (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1):
one unit for the rounding of the fused kernel, one for the bias, the rest for the sums. ReLU moves
nothing apart. Squeeze-and-excitation carries that error through mean, two layers and a sigmoid of
slope at most 1/4, each with its own gamma; a runtime's sigmoid may be off by 16 u.

The logits are judged by what such errors are expected to do. Summing n products of zero mean and
root mean square r, partial sums grow as a random walk; roundings of relative variance u^2 / 3 at
each step add up to a standard deviation of u r n / sqrt(6) = u R sqrt(n / 6), R^2 the sum of the
squared products (Higham & Mary, SIAM J. Sci. Comput. 41, 2019, with the constants of a sequential
sum; blocked sums do better). Noise of that size in every layer of the float64 network shows what
float32 costs its logits (`noisy_logits`), in this network and on this input.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import conv2d

from repvgg_ref.blocks.spec import BlockSpec

_U = 2.0**-24
_SIGMOID = 16 * _U


def gamma(n: int) -> float:
    """Higham's ``n u / (1 - n u)``."""
    return n * _U / (1 - n * _U)


def block_bound(spec: BlockSpec, fused: Any, x: Any) -> Any:
    """The bound of one block's output; `fused` is the deploy block in float64."""
    conv = fused.rbr_reparam
    geometry = conv.stride, conv.padding, conv.dilation, conv.groups
    terms = conv2d(x.abs(), conv.weight.abs(), conv.bias.abs(), *geometry)
    bound = gamma(9 * spec.in_channels // spec.groups + 2) * terms
    if spec.se == "none":
        return bound
    y = conv(x)
    if spec.se == "before_relu":
        return _squeeze_bound(fused.se, y, bound)
    return _squeeze_bound(fused.post_se, torch.relu(y), bound)


def _squeeze_bound(squeeze: Any, x: Any, x_bound: Any) -> Any:
    """The bound of ``x * sigmoid(up(relu(down(mean(x)))))`` where x is known to `x_bound`."""
    pooled, bound = _mean_bound(x, x_bound)
    hidden, bound = _linear_bound(squeeze.down, pooled, bound)
    gate, bound = _linear_bound(squeeze.up, torch.relu(hidden), bound)
    gate, bound = torch.sigmoid(gate), bound / 4 + _SIGMOID
    return gate * x_bound + x.abs() * bound + x_bound * bound + gamma(1) * (x * gate).abs()


def _mean_bound(x: Any, x_bound: Any) -> tuple[Any, Any]:
    over, count = (2, 3), x.shape[2] * x.shape[3]
    sums = x_bound.mean(over, keepdim=True) + gamma(count + 1) * x.abs().mean(over, keepdim=True)
    return x.mean(over, keepdim=True), sums


def _linear_bound(layer: Any, x: Any, x_bound: Any) -> tuple[Any, Any]:
    """A 1x1 convolution of an input that is known to `x_bound`."""
    kernel, bias = layer.weight.abs(), layer.bias.abs()
    rounding = gamma(layer.weight.shape[1] + 1) * conv2d(x.abs(), kernel, bias)
    return layer(x), conv2d(x_bound, kernel) + rounding


def logits_bound(network: Any, x: Any) -> Any:
    """The bound of pool and linear layer on the last block's output."""
    pooled, bound = _mean_bound(x, torch.zeros_like(x))
    weight, bias = network.linear.weight.abs(), network.linear.bias.abs()
    pooled, bound = pooled.flatten(1), bound.flatten(1)
    return bound @ weight.T + gamma(weight.shape[1] + 1) * (pooled.abs() @ weight.T + bias)


def blocks(arch: Any, train: Any, deploy: Any) -> Iterator[tuple[BlockSpec, Any, Any]]:
    """Each block's description, its three branches, and its fused form."""
    for spec, path in zip(arch.blocks, train.paths, strict=True):
        yield spec, train.get_submodule(path), deploy.get_submodule(path)


def noisy_logits(arch: Any, train: Any, deploy: Any, x: Any, seed: int) -> Any:
    """The float64 network's logits when every convolution and the head round as expected."""
    generator = torch.Generator().manual_seed(seed)

    def noise(squares: Any, n: int) -> Any:
        size = _U * (squares * n / 6).sqrt()
        return size * torch.randn(size.shape, dtype=size.dtype, generator=generator)

    for spec, three, one in blocks(arch, train, deploy):
        conv = one.rbr_reparam
        geometry = conv.stride, conv.padding, conv.dilation, conv.groups
        squares = conv2d(x.square(), conv.weight.square(), conv.bias.square(), *geometry)
        branches = [b for name, b in three.named_children() if name.startswith("rbr_")]
        total = sum(b(x) for b in branches) + noise(squares, 9 * spec.in_channels // spec.groups)
        x = three.post_se(torch.relu(three.se(total)))
    pooled = x.mean((2, 3))
    weight, bias = train.linear.weight, train.linear.bias
    squares = pooled.square() @ weight.square().T + bias.square()
    return train.linear(pooled) + noise(squares, weight.shape[1])
