"""Squeeze-and-excitation: a scalar loop over the paper's equations, symmetries, gradients."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.errors import InexactError, ShapeError
from repvgg_ref.ops import REFERENCE, Ops
from tests.gradcheck import assert_gradients
from tests.ops.cases import ImageCase, image_law
from tests.ops.exact import assert_within


def arrays(case: ImageCase) -> list[Array]:
    """`x` and the four parameters; `case.classes` channels in the middle."""
    C, Cm = case.channels, case.classes
    x, *parameters = case.floats(case.shape, (Cm, C, 1, 1), (Cm,), (C, Cm, 1, 1), (C,))
    return [x / case.scale, *parameters]


def gate(case: ImageCase, image: Array) -> list[float]:
    """Equations 2 and 3, one number at a time."""
    _, down_weight, down_bias, up_weight, up_bias = arrays(case)
    squeezed = [math.fsum(channel.flat) / channel.size for channel in image]
    middle = [
        max(0.0, math.fsum(w * z for w, z in zip(row, squeezed, strict=True)) + b)
        for row, b in zip(down_weight[:, :, 0, 0], down_bias, strict=True)
    ]
    logits = [
        math.fsum(w * z for w, z in zip(row, middle, strict=True)) + b
        for row, b in zip(up_weight[:, :, 0, 0], up_bias, strict=True)
    ]
    return [1 / (1 + math.exp(-min(700, max(-700, logit)))) for logit in logits]


@image_law
def test_equals_the_papers_equations(ops: Ops, case: ImageCase) -> None:
    x, *parameters = arrays(case)
    y, _ = ops.squeeze_excitation_forward(x, *parameters)
    wanted = [[g * c for g, c in zip(gate(case, image), image, strict=True)] for image in x]
    assert_within(y, np.array(wanted), 1e-12)


@image_law
def test_backward_equals_finite_differences(ops: Ops, case: ImageCase) -> None:
    inputs = arrays(replace(case, scale=min(case.scale, 1.0)))  # a saturated gate has no slope
    x, down_weight, down_bias, *_ = inputs
    middle = x.mean(axis=(2, 3)) @ down_weight[:, :, 0, 0].T + down_bias
    if not (abs(middle) > 1e-4 * min(case.scale, 1.0)).all():
        return  # a finite difference would step over the kink of the ReLU
    assert_gradients(
        ops.squeeze_excitation_forward,
        ops.squeeze_excitation_backward,
        *inputs,
        seed=case.seed,
        tolerance=1e-6,
    )


@image_law
def test_a_batch_of_two_is_two_batches_of_one(ops: Ops, case: ImageCase) -> None:
    x, *parameters = arrays(case)
    y, _ = ops.squeeze_excitation_forward(x, *parameters)
    single = [ops.squeeze_excitation_forward(image[None], *parameters)[0] for image in x]
    assert_within(y, np.concatenate(single), 1e-13)


@image_law
def test_pixels_have_no_order(ops: Ops, case: ImageCase) -> None:
    """Pooling over width twice, as one port did, would see the image turn by 90 degrees."""
    x, *parameters = arrays(case)
    y, _ = ops.squeeze_excitation_forward(x, *parameters)
    turned, _ = ops.squeeze_excitation_forward(np.rot90(x, axes=(2, 3)), *parameters)
    assert_within(turned, np.rot90(y, axes=(2, 3)), 1e-13)


def test_an_open_gate_keeps_x_and_a_closed_one_gives_zero() -> None:
    case = ImageCase()
    x, down_weight, down_bias, up_weight, _ = arrays(case)
    opened, closed = (
        REFERENCE.squeeze_excitation_forward(
            x, down_weight, down_bias, up_weight, np.full(case.channels, up_bias)
        )[0]
        for up_bias in (1e4, -1e4)
    )
    assert (opened == x).all()
    assert not closed.any()


def test_rationals_are_refused_with_the_reason() -> None:
    x = np.full((1, 1, 1, 1), Fraction(1, 2))
    with pytest.raises(InexactError, match="exponential of a rational is irrational"):
        REFERENCE.squeeze_excitation_forward(x, x, x[0, 0, 0], x, x[0, 0, 0])


def test_what_does_not_fit_is_named() -> None:
    x, down, up = np.ones((2, 4, 3, 5)), np.ones((2, 4, 1, 1)), np.ones((4, 2, 1, 1))
    two, four = np.ones(2), np.ones(4)
    forward = REFERENCE.squeeze_excitation_forward
    wrong: dict[str, Callable[[], object]] = {
        "x.ndim (=3)": lambda: forward(x[0], down, two, up, four),
        "down_weight.shape (=(4, 2, 1, 1)) must equal (Cm, C, 1, 1) (=(2, 4, 1, 1))": lambda: (
            forward(x, up, two, up, four)
        ),
        "up_weight.shape (=(2, 4, 1, 1)) must equal (C, Cm, 1, 1)": lambda: forward(
            x, down, two, down, four
        ),
        "up_bias.shape (=(2,)) must equal (C,) (=(4,))": lambda: forward(x, down, two, up, two),
        "grad_y.shape": lambda: REFERENCE.squeeze_excitation_backward(
            x[:1], forward(x, down, two, up, four)[1]
        ),
    }
    for message, call in wrong.items():
        with pytest.raises(ShapeError, match=re.escape(f"squeeze_excitation: {message}")):
            call()
