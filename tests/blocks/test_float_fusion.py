"""Branch sum and fused output in floating point: both within a derived bound of each other.

Let T = sum over branches of (|W| * |x| + |mean|) |t| + |beta|, the magnitudes of all that is added
up for one output, k = 9 C/G + C/G + 1 the number of products, u the unit roundoff of the arithmetic
and gamma_n = n u / (1 - n u) (Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1).

* The branch sum rounds each product and addition (at most k of them in a row), then in batch norm
  x - mean, 1/sqrt(var + eps) (three roundings, one halved by the root), two products, + beta, then
  up to two additions of branches: error at most gamma_(k+9) T.
* The fused kernel is the exact one rounded once (u), its convolution adds at most 9 C/G products
  and one bias: gamma_(k+2) T.

So they differ by at most 2 gamma_(k+9) T. In float16 the operators compute in float32 and round
what they return once: 2 gamma_(k+9) T with float32's u, and for the roundings to float16 (kernel,
fused output; each branch's convolution and batch norm, two sums) 6 u16 T. Where numbers become
subnormal a rounding errs by up to half the smallest subnormal instead: of the kernel's taps, times
|x|, and of each of the eight results.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import branches_of
from repvgg_ref.blocks.fusion import fuse_block
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.ops import REFERENCE
from tests.blocks.exact_blocks import KIND, Case, block_shapes, branch_sum, convolve, geometry
from tests.examples import examples
from tests.random_networks import random_block

EPS = 1e-5


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@examples(60)
@given(
    case=st.builds(
        Case,
        stride=st.integers(1, 2),
        groups=st.sampled_from([1, 2, 4]),
        dilation=st.integers(1, 2),
        has_1x1=st.booleans(),
        has_identity=st.just(False),
        width=st.integers(1, 9),
        out_width=st.integers(1, 5),
        height=st.integers(1, 5),
        extra=st.integers(1, 3),
        seed=st.integers(0, 2**32 - 1),
    ),
    identity=st.booleans(),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
)
def test_branch_sum_and_fused_output_agree_within_the_bound(
    dtype: Any, case: Case, identity: bool, scale: float
) -> None:
    spec = _with_identity(case.spec) if identity and case.stride == 1 else case.spec
    stored = random_block(block_shapes(spec), case.seed)
    params = {name: array.astype(dtype) for name, array in stored.items()}
    x = (scale * np.random.default_rng(case.seed).normal(size=case.image)).astype(dtype)

    fused = fuse_block(spec, params, eps=EPS, dtype=dtype)
    error = np.abs(convolve(spec, fused, x).astype(np.float64) - branch_sum(spec, params, x, EPS))
    bound = _bound(spec, params, x, np.finfo(dtype))
    if not (error <= bound).all():
        raise AssertionError(f"error up to {np.max(error / bound):.3g} of the bound")


def _with_identity(spec: BlockSpec) -> BlockSpec:
    return replace(spec, out_channels=spec.in_channels, kind=KIND["1x1" in spec.kind, True])


def _bound(spec: BlockSpec, params: Mapping[str, Array], x: Array, kind: Any) -> Array:
    """The module docstring's bound, for every output element."""
    x = np.abs(x.astype(np.float64))
    taps: Any = 0
    terms: Any = 0
    branches = branches_of(spec, {n: np.asarray(a, np.float64) for n, a in params.items()}, 1e-5)
    for wide in branches.values():
        assert wide.running_mean is not None
        assert wide.beta is not None
        t = np.abs(wide.scale(EPS))[:, None, None]
        seen = _conv(spec, x, np.abs(wide.weight))
        terms = terms + (seen + np.abs(wide.running_mean)[:, None, None]) * t
        terms = terms + np.abs(wide.beta)[:, None, None]
        taps = taps + _conv(spec, x, np.ones_like(wide.weight))
    k = 10 * (spec.in_channels // spec.groups) + 10
    half = kind.bits == 16
    u = 2.0**-24 if half else float(kind.eps) / 2
    relative = 2 * k * u / (1 - k * u) + (6 * float(kind.eps) / 2 if half else 0)
    result: Array = relative * terms + float(kind.smallest_subnormal) / 2 * (taps + 8)
    return result


def _conv(spec: BlockSpec, x: Array, weight: Array) -> Array:
    padding = spec.dilation * (weight.shape[2] // 2)
    settings = geometry(spec) | {"padding": padding}
    return REFERENCE.conv2d_forward(x, weight, None, **settings)[0]
