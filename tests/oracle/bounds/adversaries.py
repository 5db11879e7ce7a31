"""For every term of a bound, a right candidate that needs it: the worst cases known.

Each adversary returns what a right candidate computed, with what `block_bound` or `head_bound` is
called on. A bound that forgets a term, or makes it too small, is broken by one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch
from repvgg_ref.blocks.spec import BlockSpec, SqueezeExcitation
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import correct_program
from tests.oracle.bounds.arithmetic import ARITHMETICS, FLOAT32, Candidate
from tests.oracle.bounds.cases import deploy_block, random_block
from tests.oracle.bounds.test_block import reference
from tests.oracle.bounds.winograd import winograd_block


class Attack(NamedTuple):
    """`program` is None for a head: then `weight` and `bias` are its."""

    program: BlockProgram | None
    x: Array
    y: Array
    y_hat: Array
    precision: str
    algorithm: str = "direct"
    weight: Array | None = None
    bias: Array | None = None
    exact_data: bool = False  # inputs and weights are numbers of the format: nothing to round


def _block(program: BlockProgram, x: Array, arithmetic: str, form: str, order: str) -> Attack:
    a = ARITHMETICS[arithmetic]
    y_hat = Candidate(form, a, order)(program, x)
    return Attack(program, x, reference(program, x), y_hat, a.precision)


def _pixels(values: Array) -> Array:
    """A 1-channel image with `values` two pixels apart, zeros between: windows do not mix."""
    x = np.zeros((1, 1, 1, 2 * len(values)))
    x[0, 0, 0, ::2] = values
    return x


def _centre(*taps: float) -> Array:
    """Kernels (O, 1, 3, 3) with one tap, in the middle."""
    weight = np.zeros((len(taps), 1, 3, 3))
    weight[:, 0, 1, 1] = taps
    return weight


def ladder() -> Attack:
    """float32: 1, then 63 * 9 terms that each round the sum up by nearly half an ulp."""
    weight = np.ones((1, 64, 3, 3))
    x = np.full((1, 64, 3, 3), 2.0**-24 * 1.001)
    x[0, 0] = 1e-12
    x[0, 0, 0, 0] = 1.0
    return _block(deploy_block(weight, [0.0]), x, "fp32", "rounded once", "sequential")


def bias_ladder() -> Attack:
    """The accumulator starts from the bias, which so meets every addition."""
    weight = np.ones((1, 64, 3, 3))
    term = float(np.float32(2.0**-24 * 1.001))
    x = np.full((1, 64, 3, 3), term)
    program = deploy_block(weight, [1.0])
    total = np.float32(1)
    for _ in range(64 * 9):
        total = total + np.float32(term)
    y_hat = reference(program, x)
    y_hat[0, 0, 1, 1] = total  # the one pixel that sees all of it
    return Attack(program, x, reference(program, x), y_hat, "fp32", exact_data=True)


def cut_ladder() -> Attack:
    """A matrix unit cuts every addend of a block: 1, then terms just below what it keeps."""
    weight = np.ones((1, 64, 3, 3))
    x = np.full((1, 64, 3, 3), np.float64(np.float32(2.0**-23 * 0.99)))
    x[0, 0] = 0
    x[0, 0, 0, 0] = 1.0
    x = ARITHMETICS["tf32"].read(x)
    attack = _block(deploy_block(weight, [0.0]), x, "tf32", "rounded once", "blocked")
    return attack._replace(exact_data=True)


def cut_inputs() -> Attack:
    """TF32 by cutting: both factors lose almost 2**-10 of themselves."""
    value = float(np.float32(1 + 2.0**-10 - 2.0**-23))
    x = _pixels(np.array([value, value]))
    return _block(deploy_block(_centre(value), [0.0]), x, "tf32-cut", "rounded once", "sequential")


def _four_roundings(arithmetic: str, u: float) -> Attack:
    """Input, weight, product and biased sum: four roundings upwards, many tries at once.

    Factors a little above the middle of two numbers round up by u; a product of ``1 + 2 u a`` and
    ``1 + 2 u b`` does if ``4 u^2 a b`` is a little above u.
    """
    rng = np.random.default_rng(3)
    near = 1 + u * (2 * rng.integers(1, 1 / u**0.5, size=400) - 0.999)
    taps = 1 + u * (2 * rng.integers(1, 1 / u**0.5, size=30) - 0.999)
    bias = u * (2 * rng.integers(1, 4, size=30) - 0.999)
    return _block(
        deploy_block(_centre(*taps), bias), _pixels(near), arithmetic, "rounded once", "sequential"
    )


def four_roundings_bf16() -> Attack:
    return _four_roundings("bf16", 2.0**-8)


def four_roundings_fp16() -> Attack:
    return _four_roundings("fp16", 2.0**-11)


def opposed_branches() -> Attack:
    """Centre taps of two branches cancel to nothing, and so do the branches' sums over channels.

    Folding in float32 leaves errors relative to the taps before they cancelled; the channels are
    chosen such that they add up.
    """
    rng = np.random.default_rng(5)
    gamma, var, eps = np.array([[0.9], [1.0]]), np.array([[1.3], [1.0]]), 1e-5
    t = gamma / np.sqrt(var + eps)
    t_hat = FLOAT32(FLOAT32(gamma) * FLOAT32(1 / FLOAT32(np.sqrt(FLOAT32(FLOAT32(var) + eps)))))
    dense = FLOAT32(rng.uniform(1, 1.001, size=1000))
    pointwise = FLOAT32(-dense * t[0] / t[1])
    error = FLOAT32(FLOAT32(dense * t_hat[0]) + FLOAT32(pointwise * t_hat[1]))
    error -= dense * t[0] + pointwise * t[1]
    ends = np.argsort(error - np.median(error))
    chosen = np.concatenate([ends[:32], ends[-32:]])
    x = np.where(np.arange(64) < 32, -1.0, 1.0).reshape(1, 64, 1, 1)
    weight = np.zeros((1, 64, 3, 3))
    weight[0, :, 1, 1] = dense[chosen]
    none = np.zeros(1)
    branches = {
        "branch_3x3": Branch(weight, FLOAT32(gamma[0]), none, none, FLOAT32(var[0])),
        "branch_1x1": Branch(pointwise[chosen].reshape(1, 64, 1, 1), gamma[1], none, none, var[1]),
    }
    program = correct_program(BlockSpec("block", 64, 1, 1), {}, eps, branches)
    if reference(program, x)[0, 0, 0, 0] < 0:  # ReLU would hide it
        x = -x
    return _block(program, x, "fp32", "fused by itself", "pairwise")


def opposed_offsets() -> Attack:
    """mean * t against beta: the bias is small, its parts are not."""
    t = 1 / np.sqrt(1 + 1e-5)
    mean = np.full(64, 1e4 / 3)
    branch = _one_branch(1e-3, gamma=np.ones(64), beta=mean * t, mean=mean, var=np.ones(64))
    return _block(branch, _pixels(np.ones(3)), "fp32", "branches", "sequential")


def coarse_statistics() -> Attack:
    """float16 holds neither such a variance nor such an eps: t is wrong by 0.4, all taps alike."""
    program = _one_branch(1.0, gamma=[1e-3], beta=[0.0], mean=[0.0], var=[2.9e-8], eps=8.9e-8)
    return _block(program, _pixels(np.ones(3)), "fp16", "branches", "sequential")


def coarse_gamma() -> Attack:
    """A gamma below half of float16's smallest number is 0."""
    program = _one_branch(1.0, gamma=[2.9e-8], beta=[0.0], mean=[0.0], var=[1e-5])
    return _block(program, _pixels(np.full(3, 1e4)), "fp16", "branches", "sequential")


def tiny_inputs() -> Attack:
    """Inputs that become 0, times a large weight."""
    x = _pixels(np.array([2.0**-25 * 0.99, 2.0**-25]))
    return _block(deploy_block(_centre(2.0**12), [0.0]), x, "fp16", "rounded once", "sequential")


def tiny_weights() -> Attack:
    """Weights that become 0, times a large input."""
    program = deploy_block(_centre(2.0**-25 * 0.99), [0.0])
    return _block(program, _pixels(np.full(3, 2.0**12)), "fp16", "rounded once", "sequential")


def tiny_products() -> Attack:
    """Products that a float32 register flushes to zero, each almost 2**-126."""
    weight = np.full((1, 16, 3, 3), 2.0**-63)
    x = np.full((1, 16, 3, 3), 2.0**-63 * 0.999)
    program = deploy_block(weight, [0.0])
    return _block(program, x, "fp32-flushed", "rounded once", "sequential")


def tiny_before_scale() -> Attack:
    """A convolution's output and a mean that underflow in memory, before a large t."""
    mean = [2.0**-24 * 0.6]
    program = _one_branch(2.0**-13, gamma=[-100.0], beta=[0.0], mean=mean, var=[1e-5], eps=1e-5)
    x = _pixels(np.array([2.0**-13 * 1.4, 2.0**-13]))
    return _block(program, x, "fp16", "branches", "sequential")


def _squeeze(se: SqueezeExcitation) -> Attack:
    """SE of one channel at the steepest point of the sigmoid: the gate's error times a large z."""
    spec = BlockSpec("block", 1, 1, 1, se=se, se_channels=1)
    u = 2.0**-11
    x = 64 * (1 + u * (1 + np.random.default_rng(11).uniform(0, 3, size=(200, 1, 1, 1))))
    params: dict[str, Any] = {
        "block.fused.weight": _centre(1 + u * 1.01),
        "block.fused.bias": np.zeros(1),
        "block.se.down.weight": np.full((1, 1, 1, 1), 1 + u * 1.01),
        "block.se.down.bias": np.full(1, 0.0),
        "block.se.up.weight": np.full((1, 1, 1, 1), 1 + u * 1.01),
        "block.se.up.bias": np.full(1, -64.0),
    }
    program = correct_program(spec, params, 1e-5, {})
    return _block(program, x, "fp16", "rounded once", "sequential")


def squeeze_before_relu() -> Attack:
    return _squeeze("before_relu")


def squeeze_after_relu() -> Attack:
    return _squeeze("after_relu")


def _winograd(m: int) -> Attack:
    rng = np.random.default_rng(m)
    program, x = random_block(rng, data="normal", deploy=True, channels=1, size=24)
    x[..., ::2] *= 1e4
    y_hat = winograd_block(program, x, m, ARITHMETICS["fp32"])
    return Attack(program, x, reference(program, x), y_hat, "fp32", f"winograd{m}")


def winograd4() -> Attack:
    return _winograd(4)


def winograd6() -> Attack:
    return _winograd(6)


def winograd_underflow() -> Attack:
    """Weights that float16 holds, but not once they are transformed; large inputs."""
    program = deploy_block(_centre(2.0**-16), [0.0])
    x = np.random.default_rng(4).uniform(1e4, 6e4, size=(1, 1, 8, 8))
    x = np.rint(x / 32) * 32
    y_hat = winograd_block(program, x, 4, ARITHMETICS["fp16"])
    return Attack(program, x, reference(program, x), y_hat, "fp16", "winograd4")


def pool_ladder() -> Attack:
    """The pool's sum rounds up at every step, as in `ladder`."""
    x = np.full((1, 1, 1, 512), np.float64(np.float32(2.0**-24 * 1.001)))
    x[0, 0, 0, 0] = 1.0
    return _head(x, np.ones((1, 1)), "fp32")


def dense_ladder() -> Attack:
    """The linear layer's sum does, over channels."""
    x = np.full((1, 512, 1, 1), np.float64(np.float32(2.0**-24 * 1.001)))
    x[0, 0] = 1.0
    return _head(x, np.ones((1, 512)), "fp32")


def dense_roundings() -> Attack:
    """Features and weights of a 16-bit head, all rounded upwards."""
    rng = np.random.default_rng(7)
    u = 2.0**-8
    x = 1 + u * (1 + rng.uniform(0, 0.02, size=(20, 1, 1, 1)))
    weight = 1 + u * (1 + rng.uniform(0, 0.02, size=(400, 1)))
    return _head(x, weight, "bf16", u * rng.uniform(0, 8, size=400))


def _head(x: Array, weight: Array, arithmetic: str, bias: Array | None = None) -> Attack:
    a = ARITHMETICS[arithmetic]
    bias = np.zeros(len(weight)) if bias is None else bias
    y_hat = Candidate("rounded once", a, "sequential").head(x, weight, bias)
    y = x.mean(axis=(2, 3)) @ weight.T + bias
    return Attack(None, x, y, y_hat, a.precision, weight=weight, bias=bias)


def _one_branch(
    tap: float, *, gamma: Any, beta: Any, mean: Any, var: Any, eps: float = 1e-5
) -> BlockProgram:
    """A 3x3 branch alone, one tap in the middle, one input channel."""
    o = len(gamma)
    branch = Branch(
        np.repeat(_centre(tap), o, axis=0),
        *(np.asarray(v, np.float64) for v in (gamma, beta, mean, var)),
    )
    spec = BlockSpec("block", 1, o, 1, kind="plain")
    return correct_program(spec, {}, eps, {"branch_3x3": branch})


ADVERSARIES: tuple[Callable[[], Attack], ...] = (
    ladder,
    bias_ladder,
    cut_ladder,
    cut_inputs,
    four_roundings_bf16,
    four_roundings_fp16,
    opposed_branches,
    opposed_offsets,
    coarse_statistics,
    coarse_gamma,
    tiny_inputs,
    tiny_weights,
    tiny_products,
    tiny_before_scale,
    squeeze_before_relu,
    squeeze_after_relu,
    winograd4,
    winograd6,
    winograd_underflow,
    pool_ladder,
    dense_ladder,
    dense_roundings,
)
