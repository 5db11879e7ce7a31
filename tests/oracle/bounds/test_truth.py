"""The truth is rational: float32 sums are within the bound of it, not just of float64."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.block import Algorithm, block_bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.programs.block import BlockProgram
from tests.examples import examples
from tests.oracle.bounds.arithmetic import ARITHMETICS, ORDERS, Candidate
from tests.oracle.bounds.cases import deploy_block, random_block
from tests.oracle.bounds.test_block import FORMS, reference


def _exactly(program: BlockProgram, x: Array) -> list[Fraction]:
    """A deploy block's single output pixel per channel, before rounding anything."""
    weight, bias = program.fused_kernel()
    return [
        max(
            Fraction(0),
            Fraction(float(b))
            + sum(
                (
                    Fraction(float(w)) * Fraction(float(v))
                    for w, v in zip(kernel[:, 1, 1], x[0, :, 0, 0], strict=True)
                ),
                start=Fraction(0),
            ),
        )
        for kernel, b in zip(weight, bias, strict=True)
    ]


@examples(60)
@given(
    seed=st.integers(0, 2**32 - 1),
    big=st.sampled_from([1e3, 1e8, 1e15]),
    order=st.sampled_from(sorted(ORDERS)),
)
def test_cancellation_to_nothing_against_rationals(seed: int, big: float, order: str) -> None:
    """Terms of +-1e8 and more that sum to about 0: no digit of the result need be right."""
    rng = np.random.default_rng(seed)
    half = rng.normal(size=16) * big
    x = np.concatenate([half, -half])[rng.permutation(32)].reshape(1, 32, 1, 1)
    x = x.astype(np.float32).astype(np.float64)
    weight = np.zeros((3, 32, 3, 3))
    weight[:, :, 1, 1] = 1 + rng.choice([0, 2.0**-23], size=(3, 32))
    program = deploy_block(weight, rng.normal(size=3).astype(np.float32))
    y = reference(program, x)
    y_hat = Candidate("rounded once", ARITHMETICS["fp32"], order)(program, x)
    bound = block_bound(program, x, y, PRECISIONS["fp32"]).certified
    for o, exact in enumerate(_exactly(program, x)):
        error = abs(Fraction(float(y_hat[0, o, 0, 0])) - exact)
        assert error <= Fraction(float(bound[0, o, 0, 0]))


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("form", FORMS)
def test_the_likely_bound_holds_for_random_data(name: str, form: str) -> None:
    """No element of 20 layers outside it, as promised: 1 layer in 1000 has one."""
    a = ARITHMETICS[name]
    for seed in range(20):
        rng = np.random.default_rng(seed)
        program, x = random_block(rng, data="normal", channels=16, groups=2)
        y = reference(program, x)
        y_hat = Candidate(form, a, "pairwise")(program, x)
        assert (
            np.abs(y_hat - y) <= block_bound(program, x, y, PRECISIONS[a.precision]).likely
        ).all()


def test_the_likely_bound_is_the_tighter_one_by_far_for_many_channels() -> None:
    """Hoeffding's lam grows with the root of a logarithm, the terms with themselves."""
    rng = np.random.default_rng(0)
    program, x = random_block(rng, data="normal", channels=256, size=3)
    y = reference(program, x)
    for name, least in (("fp32", 5), ("tf32", 2.5), ("bf16", 1.8), ("fp16", 1.8)):
        bound = block_bound(program, x, y, PRECISIONS[name])
        assert np.median((bound.certified / bound.likely)[y > 0]) > least, name


def test_a_precision_too_coarse_for_the_statistics_cannot_certify() -> None:
    """var + eps of 1e-9 is 0 in float16: nothing bounds the scale, and the bound says so."""
    program, x = random_block(np.random.default_rng(0), data="normal", statistics="no var")
    program = replace(program, eps=1e-9)
    y = reference(program, x)
    assert (block_bound(program, x, y, PRECISIONS["fp16"]).certified > 1e100).all()
    assert (block_bound(program, x, y, PRECISIONS["fp32"]).certified < 1e10).all()


@pytest.mark.parametrize("algorithm", ["direct", "winograd2", "winograd4", "winograd6"])
def test_scaling_the_input_scales_the_bound(algorithm: Algorithm) -> None:
    """A law of positive homogeneity, biases and means aside."""
    rng = np.random.default_rng(3)
    program = deploy_block(rng.normal(size=(4, 4, 3, 3)), np.zeros(4))
    x = rng.normal(size=(1, 4, 7, 6))
    one, two = (
        block_bound(program, v, reference(program, v), PRECISIONS["bf16"], algorithm=algorithm)
        for v in (x, 2.0**10 * x)
    )
    assert np.allclose(2.0**10 * one.certified, two.certified, rtol=1e-12, atol=1e-30)
    assert np.allclose(2.0**10 * one.likely, two.likely, rtol=1e-12, atol=1e-30)
