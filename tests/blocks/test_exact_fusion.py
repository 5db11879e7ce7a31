"""Branch sum = fused output, compared with ``==``: the paper's section 3.3 as an identity."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.blocks.branches import identity_kernel
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.ops import REFERENCE
from tests.blocks.exact_blocks import (
    EPS,
    Case,
    block_shapes,
    branch_sum,
    exact_array,
    fused_exactly,
    fused_output,
)
from tests.examples import examples
from tests.ops.exact import assert_exact, rationals

# An identity branch needs stride 1; everything else combines freely.
COMBINATIONS = [
    Case(stride, groups, dilation, has_1x1, has_identity)
    for stride, groups, dilation, has_1x1, has_identity in product(
        (1, 2), (1, 2, 4), (1, 2), (True, False), (True, False)
    )
    if not (has_identity and stride == 2)
]


def _name(case: Case) -> str:
    branches = "+1x1" * case.has_1x1 + "+identity" * case.has_identity
    return f"stride{case.stride}-groups{case.groups}-dilation{case.dilation}-3x3{branches}"


@pytest.mark.parametrize("case", COMBINATIONS, ids=_name)
@examples(8)
@given(
    width=st.integers(1, 2),
    out_width=st.integers(1, 3),
    height=st.integers(1, 4),
    extra=st.integers(1, 2),
    seed=st.integers(0, 2**32 - 1),
)
def test_branch_sum_equals_fused_output(
    case: Case, width: int, out_width: int, height: int, extra: int, seed: int
) -> None:
    case = replace(case, width=width, out_width=out_width, height=height, extra=extra, seed=seed)
    params, x = case.exact()
    want = branch_sum(case.spec, params, x, EPS)
    assert_exact(fused_output(case.spec, params, x, EPS), want)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_identity_kernel_copies_its_input(groups: int) -> None:
    x = rationals(np.random.default_rng(0), 1, 8, 2, 3)
    y, _ = REFERENCE.conv2d_forward(
        x, identity_kernel(8, groups, object), None, stride=1, padding=0, dilation=1, groups=groups
    )
    assert_exact(y, x)


def test_grouped_fusion_is_the_blockwise_one() -> None:
    """Groups are independent blocks side by side."""
    case = Case(1, 2, 1, has_1x1=True, has_identity=True, width=3)
    params, _ = case.exact()
    whole = fused_exactly(case.spec, params, EPS)
    half = replace(case, groups=1)
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        part = {n: p[rows] if p.ndim else p for n, p in params.items()}
        fused = fused_exactly(half.spec, part, EPS)
        assert_exact(whole.weight[rows], fused.weight)
        assert_exact(whole.bias[rows], fused.bias)


def test_a_whole_network_in_rationals_gives_equal_logits() -> None:
    """ReLUs, pooling and the linear layer included; every second block has two groups."""
    arch = plain_architecture(
        depths=(2, 2), channels=(2, 2, 4), groups=2, num_classes=3, in_channels=2
    )
    rng = np.random.default_rng(7)
    params = {
        name: exact_array(name, shape, rng) for name, shape in param_shapes(arch, "train").items()
    }
    train = Model(arch, "train", params, eps=EPS)
    fused = {}
    for spec in arch.blocks:
        kernel = fused_exactly(spec, params, EPS)
        fused[f"{spec.name}.fused.weight"], fused[f"{spec.name}.fused.bias"] = kernel
    deploy = Model(
        arch, "deploy", fused | {n: params[n] for n in ("linear.weight", "linear.bias")}, eps=EPS
    )
    x = rationals(rng, 2, 2, 9, 5)
    want, got = train.forward(x, layers=True), deploy.forward(x, layers=True)
    assert list(got) == list(arch.layer_names)
    for layer in want:
        assert_exact(got[layer], want[layer])
    assert any(value for value in want["linear"].flat), "every ReLU is shut: nothing was compared"


def test_eps_sits_inside_the_root() -> None:
    """By hand: gamma 3, var 6/25, eps 1/100 give t = 3 / (1/2) = 6."""
    case = Case(1, 1, 1, has_1x1=False, has_identity=False)
    params = {
        name: np.full(shape, Fraction(1), dtype=object)
        for name, shape in block_shapes(case.spec).items()
    }
    params["stage0.branch_3x3.bn.gamma"][:] = Fraction(3)
    params["stage0.branch_3x3.bn.running_var"][:] = Fraction(6, 25)
    fused = fused_exactly(case.spec, params, EPS)
    assert set(fused.weight.flat) == {Fraction(6)}
    assert set(fused.bias.flat) == {Fraction(1 - 6)}
