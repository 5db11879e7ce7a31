"""Blocks and inputs that try to break a bound: random ones, and the worst known of each term."""

from __future__ import annotations

from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, identity_kernel
from repvgg_ref.blocks.spec import BlockSpec, SqueezeExcitation
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import correct_program

DATA = ("normal", "positive", "cancelling", "wide", "subnormal", "large", "constant")
STATISTICS = ("usual", "tiny var", "no var", "gamma 0", "large mean", "opposed branches")


def random_block(
    rng: np.random.Generator,
    *,
    data: str,
    statistics: str = "usual",
    se: SqueezeExcitation = "none",
    stride: int = 1,
    dilation: int = 1,
    groups: int = 1,
    deploy: bool = False,
    channels: int = 4,
    size: int = 5,
    smallest: float = 2.0**-140,
) -> tuple[BlockProgram, Array]:
    """A right program and a float32 input; `smallest` is what "subnormal" data is made of."""
    spec = BlockSpec(
        "block",
        channels,
        channels,
        stride,
        groups,
        dilation,
        se,
        2 if se != "none" else 0,
    )
    x = fill(rng, (2, channels, size, size + 1), data, smallest)
    branches = {
        name: _branch(rng, spec, name, data if data != "subnormal" else "normal", statistics)
        for name in ("branch_3x3", "branch_1x1", "branch_identity")[: 3 if stride == 1 else 2]
    }
    if statistics == "opposed branches" and stride == 1:
        branches = _oppose(branches)
    params = {
        "block.se.down.weight": fill(rng, (2, channels, 1, 1), "normal"),
        "block.se.down.bias": fill(rng, (2,), "normal"),
        "block.se.up.weight": fill(rng, (channels, 2, 1, 1), "normal"),
        "block.se.up.bias": fill(rng, (channels,), "normal"),
        "block.fused.weight": fill(rng, (channels, channels // groups, 3, 3), data, smallest),
        "block.fused.bias": fill(rng, (channels,), "normal"),
    }
    return correct_program(spec, params, 1e-5, {} if deploy else branches), x


def fill(
    rng: np.random.Generator, shape: tuple[int, ...], data: str, smallest: float = 2.0**-140
) -> Array:
    """float32 values in float64."""
    x = rng.normal(size=shape)
    if data == "positive":
        x = np.abs(x) + 1
    elif data == "cancelling":
        x = np.where(rng.random(shape) < 0.5, -1e4, 1e4) + x
    elif data == "wide":
        x = x * np.exp(5 * rng.normal(size=shape))
    elif data == "subnormal":
        x = x * smallest * rng.integers(1, 50, size=shape)
    elif data == "large":
        x = x * 200
    elif data == "constant":
        x = np.full(shape, rng.uniform(1, 2))
    return x.astype(np.float32).astype(np.float64)


def _branch(
    rng: np.random.Generator, spec: BlockSpec, name: str, data: str, statistics: str
) -> Branch:
    o, reach = spec.out_channels, 3 if name == "branch_3x3" else 1
    weight = fill(rng, (o, spec.in_channels // spec.groups, reach, reach), data)
    gamma, beta, mean, var = (
        fill(rng, (o,), kind) for kind in ("normal", "normal", "normal", "positive")
    )
    if statistics == "tiny var":
        var = 10.0 ** rng.uniform(-9, -4, size=o)
    elif statistics == "no var":
        var = np.zeros(o)
    elif statistics == "gamma 0":
        gamma = np.where(rng.random(o) < 0.7, 0.0, gamma)
    elif statistics == "large mean":
        mean = mean * 100
        beta = gamma * mean / np.sqrt(var)
    fields = [f.astype(np.float32).astype(np.float64) for f in (gamma, beta, mean, var)]
    if name == "branch_identity":
        weight = identity_kernel(o, spec.groups, np.float64)
    return Branch(weight, *fields)


def _oppose(branches: dict[str, Branch]) -> dict[str, Branch]:
    """The 3x3 branch's centre and offset are taken back by the 1x1 branch."""
    dense = branches["branch_3x3"]
    opposed = Branch(
        dense.weight[:, :, 1:2, 1:2],
        -dense.gamma,
        -dense.beta,
        dense.running_mean,
        dense.running_var,
    )
    return {**branches, "branch_1x1": opposed}


def deploy_block(weight: Any, bias: Any, **spec: Any) -> BlockProgram:
    """A fused block of given numbers."""
    weight = np.asarray(weight, np.float64)
    block = BlockSpec("block", weight.shape[1], weight.shape[0], spec.pop("stride", 1), **spec)
    params = {"block.fused.weight": weight, "block.fused.bias": np.asarray(bias, np.float64)}
    return correct_program(block, params, 1e-5, {})
