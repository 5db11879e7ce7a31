"""No right candidate breaks its certified bound, whatever its data, form, order and arithmetic."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds import linear_part
from repvgg_ref.oracle.bounds.block import Bound, block_bound, block_output, head_bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.program import all_pixels
from tests.examples import examples
from tests.oracle.bounds.arithmetic import ARITHMETICS, ORDERS, Candidate
from tests.oracle.bounds.cases import DATA, STATISTICS, fill, random_block

FORMS = ("rounded once", "fused by itself", "branches", "branches, scale and shift")


def reference(program: BlockProgram, x: Array) -> Array:
    """(N, O, Ho, Wo), float64."""
    return program.evaluate(x).reshape(len(x), -1, *program.output_size(*x.shape[2:]))


def used(y_hat: Array, y: Array, bound: Bound) -> float:
    """Largest part of the certified bound that any element uses; raises if it is broken."""
    error = np.abs(y_hat - y)
    if not (error <= bound.certified).all():  # NaN must fail
        at = np.unravel_index(np.argmax(error / bound.certified), error.shape)
        raise AssertionError(f"off by {error[at]} at {at}, bound {bound.certified[at]}")
    return float((error / bound.certified).max())


@examples(400)
@given(
    seed=st.integers(0, 2**32 - 1),
    data=st.sampled_from(DATA),
    statistics=st.sampled_from(STATISTICS),
    se=st.sampled_from(["none", "none", "before_relu", "after_relu"]),
    geometry=st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (2, 1, 4)]),
    form=st.sampled_from(FORMS),
    arithmetic=st.sampled_from(sorted(ARITHMETICS)),
    order=st.sampled_from(sorted(ORDERS)),
    deploy=st.booleans(),
)
def test_a_right_block_stays_within_its_bound(
    seed: int,
    data: str,
    statistics: str,
    se: Any,
    geometry: tuple[int, int, int],
    form: str,
    arithmetic: str,
    order: str,
    deploy: bool,
) -> None:
    stride, dilation, groups = geometry
    a = ARITHMETICS[arithmetic]
    program, x = random_block(
        np.random.default_rng(seed),
        data=data,
        statistics=statistics,
        se=se,
        stride=stride,
        dilation=dilation,
        groups=groups,
        deploy=deploy,
        smallest=2.0**-25 if a.precision.startswith("fp16") else 2.0**-140,
    )
    y = reference(program, x)
    with np.errstate(over="ignore"):  # exp(-logit) in a gate that is 0 then, as it should be
        y_hat = Candidate(form, a, order)(program, x)
    used(y_hat, y, block_bound(program, x, y, PRECISIONS[a.precision]))


@examples(100)
@given(
    seed=st.integers(0, 2**32 - 1),
    data=st.sampled_from(DATA),
    arithmetic=st.sampled_from(sorted(ARITHMETICS)),
    order=st.sampled_from(sorted(ORDERS)),
)
def test_a_right_head_stays_within_its_bound(
    seed: int, data: str, arithmetic: str, order: str
) -> None:
    rng = np.random.default_rng(seed)
    a = ARITHMETICS[arithmetic]
    x = a.write(fill(rng, (2, 12, 3, 4), data))
    weight, bias = fill(rng, (5, 12), data), fill(rng, (5,), "normal")
    logits = x.mean(axis=(2, 3)) @ weight.T + bias
    y_hat = Candidate("rounded once", a, order).head(x, weight, bias)
    used(y_hat, logits, head_bound(weight, bias, x, logits, PRECISIONS[a.precision]))


def test_nan_in_the_candidate_or_its_input_never_passes() -> None:
    program, x = random_block(np.random.default_rng(0), data="normal")
    y = reference(program, x)
    bound = block_bound(program, x, y, PRECISIONS["fp32"])
    wrong = y.copy()
    wrong[0, 0, 0, 0] = np.nan
    assert not (np.abs(wrong - y) <= bound.certified).all()
    x[0, 0, 2, 2] = np.nan
    y = reference(program, x)
    bound = block_bound(program, x, y, PRECISIONS["fp32"])
    assert not (np.abs(y - y) <= bound.certified).all()


def test_bounds_are_positive_and_the_likely_one_is_not_above_the_certified_one() -> None:
    rng = np.random.default_rng(1)
    for name, precision in PRECISIONS.items():
        for se in ("none", "before_relu", "after_relu"):
            program, x = random_block(rng, data="normal", se=se)
            bound = block_bound(program, x, reference(program, x), precision)
            assert (bound.likely > 0).all(), name
            assert (bound.likely <= bound.certified).all(), name


def test_a_mutant_gets_no_bound() -> None:
    program, x = random_block(np.random.default_rng(2), data="normal")
    y = reference(program, x)
    for mutant in (program.with_input(np.negative), program.with_kernel(lambda k: k)):
        with pytest.raises(ValueError, match="block"):
            block_bound(mutant, x, y, PRECISIONS["fp32"])


@pytest.mark.parametrize("se", ["none", "before_relu", "after_relu"])
@pytest.mark.parametrize("most", [1, 1 << 20])
def test_images_have_the_bounds_that_they_have_alone(
    se: Any, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the reference's output comes with them."""
    monkeypatch.setattr(linear_part, "_TOGETHER", most)
    rng = np.random.default_rng(3)
    program, x = random_block(rng, data=DATA[0], se=se, stride=2, groups=2)
    y, bound = block_output(program, x, PRECISIONS["fp32"])
    np.testing.assert_allclose(y, reference(program, x), rtol=1e-9, atol=1e-12)
    for image, certified in zip(x, bound.certified, strict=True):
        alone = block_output(program, image[None], PRECISIONS["fp32"])[1]
        np.testing.assert_allclose(certified, alone.certified[0], rtol=1e-9)


@pytest.mark.parametrize("geometry", [(1, 1, 1), (2, 1, 1), (1, 2, 1), (2, 2, 4)])
@pytest.mark.parametrize("pad_mode", ["zeros", "reflect", "none"])
def test_all_pixels_are_what_chosen_pixels_are(
    geometry: tuple[int, int, int], pad_mode: Any
) -> None:
    stride, dilation, groups = geometry
    program, x = random_block(
        np.random.default_rng(0),
        data="normal",
        stride=stride,
        dilation=dilation,
        groups=groups,
        size=7,
    )
    program = replace(program, pad_mode=pad_mode)
    pixels = all_pixels(*program.output_size(*x.shape[2:]))
    for each in (program, program.as_one_convolution()):
        assert np.array_equal(each.evaluate(x), each.evaluate(x, pixels))
