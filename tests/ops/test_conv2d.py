"""Convolution: laws and the textbook loop exactly in rationals; gradients by finite differences."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.ops import REFERENCE, Ops
from tests.gradcheck import assert_gradients
from tests.ops.cases import ConvCase, conv_law
from tests.ops.exact import assert_exact, floats, frozen, rationals


def cotangent(case: ConvCase, y: Array) -> Array:
    return rationals(np.random.default_rng([case.seed, 1]), *y.shape)


def textbook(x: Array, weight: Array, bias: Array, case: ConvCase) -> Array:
    """The defining sum, one product at a time, no padding made."""
    N, _, H, W = x.shape
    outputs, inputs_per_group, Kh, Kw = weight.shape
    (sh, sw), (ph, pw), (dh, dw) = case.stride, case.padding, case.dilation
    Ho = (H + 2 * ph - dh * (Kh - 1) - 1) // sh + 1
    Wo = (W + 2 * pw - dw * (Kw - 1) - 1) // sw + 1
    y = np.empty((N, outputs, Ho, Wo), dtype=object)
    for n, o, h, w in np.ndindex(*y.shape):
        first = o // case.outputs_per_group * inputs_per_group
        total = bias[o]
        for c, i, j in product(range(inputs_per_group), range(Kh), range(Kw)):
            row, column = h * sh + i * dh - ph, w * sw + j * dw - pw
            if 0 <= row < H and 0 <= column < W:
                total += weight[o, c, i, j] * x[n, first + c, row, column]
        y[n, o, h, w] = total
    return y


@conv_law
def test_equals_the_textbook_loop(ops: Ops, case: ConvCase) -> None:
    x, weight, bias = case.arrays()
    y, _ = ops.conv2d_forward(x, weight, bias, **case.settings)
    assert_exact(y, textbook(x, weight, bias, case))


@conv_law
def test_backward_is_the_adjoint(ops: Ops, case: ConvCase) -> None:
    """<conv(x, w), g> = <x, grad_x> = <w, grad_w>; the bias adds <b, grad_b>."""
    x, weight, bias = case.arrays()
    y, cache = ops.conv2d_forward(x, weight, bias, **case.settings)
    grad_y = cotangent(case, y)
    grads = ops.conv2d_backward(grad_y, cache)
    assert grads.grad_bias is not None
    through_bias = (bias * grads.grad_bias).sum()
    inner = (y * grad_y).sum() - through_bias
    assert through_bias == (np.broadcast_to(bias[:, None, None], y.shape) * grad_y).sum()
    assert inner == (x * grads.grad_x).sum()
    assert inner == (weight * grads.grad_weight).sum()


@conv_law
def test_backward_equals_finite_differences(ops: Ops, case: ConvCase) -> None:
    assert_gradients(
        lambda x, weight, bias: ops.conv2d_forward(x, weight, bias, **case.settings),
        ops.conv2d_backward,
        *case.arrays(floats),
        seed=case.seed,
    )


@conv_law
def test_a_batch_of_two_is_two_batches_of_one(ops: Ops, case: ConvCase) -> None:
    x, weight, bias = case.arrays()
    x = frozen(np.concatenate([x, x[::-1] * 2]))
    y, cache = ops.conv2d_forward(x, weight, bias, **case.settings)
    grad_y = cotangent(case, y)
    grads = ops.conv2d_backward(grad_y, cache)
    singles = [ops.conv2d_forward(image[None], weight, bias, **case.settings) for image in x]
    single_grads = [
        ops.conv2d_backward(g[None], cache) for g, (_, cache) in zip(grad_y, singles, strict=True)
    ]
    assert_exact(y, np.concatenate([single for single, _ in singles]))
    assert_exact(grads.grad_x, np.concatenate([single.grad_x for single in single_grads]))
    for name in ("grad_weight", "grad_bias"):
        singly = [getattr(single, name) for single in single_grads]
        assert_exact(getattr(grads, name), np.sum(singly, axis=0))


@conv_law
def test_groups_are_a_block_diagonal_kernel(ops: Ops, case: ConvCase) -> None:
    x, weight, bias = case.arrays()
    dense = np.zeros((len(weight), x.shape[1], *case.kernel), dtype=object)
    blocks = [
        np.s_[
            g * case.outputs_per_group : (g + 1) * case.outputs_per_group,
            g * case.inputs_per_group : (g + 1) * case.inputs_per_group,
        ]
        for g in range(case.groups)
    ]
    for rows, columns in blocks:
        dense[rows, columns] = weight[rows]
    y, cache = ops.conv2d_forward(x, weight, bias, **case.settings)
    wanted, dense_cache = ops.conv2d_forward(x, dense, bias, **(case.settings | {"groups": 1}))
    assert_exact(y, wanted)
    grad_y = cotangent(case, y)
    grads, dense_grads = (ops.conv2d_backward(grad_y, c) for c in (cache, dense_cache))
    assert_exact(grads.grad_x, dense_grads.grad_x)
    assert_exact(
        grads.grad_weight, np.concatenate([dense_grads.grad_weight[block] for block in blocks])
    )


@conv_law
def test_channels_have_no_order(ops: Ops, case: ConvCase) -> None:
    """Reordering groups, or inputs and outputs inside a group, reorders the outputs."""
    x, weight, bias = case.arrays()
    rng = np.random.default_rng(case.seed)
    groups = rng.permutation(case.groups)
    inputs, outputs = (
        (groups[:, None] * size + rng.permuted(np.tile(np.arange(size), (case.groups, 1)), axis=1))
        for size in (case.inputs_per_group, case.outputs_per_group)
    )
    order_inside = inputs % case.inputs_per_group  # (G, C/G)
    reordered = np.stack([weight[o][order_inside[g]] for g, row in enumerate(outputs) for o in row])
    y, _ = ops.conv2d_forward(x, weight, bias, **case.settings)
    moved, _ = ops.conv2d_forward(
        x[:, inputs.ravel()], reordered, bias[outputs.ravel()], **case.settings
    )
    assert_exact(moved, y[:, outputs.ravel()])


@conv_law
def test_is_linear_in_x_and_in_weight(ops: Ops, case: ConvCase) -> None:
    def conv(x: Array, weight: Array) -> Array:
        return ops.conv2d_forward(x, weight, None, **case.settings)[0]

    x, weight, _ = case.arrays()
    rng = np.random.default_rng([case.seed, 1])
    x2, weight2 = rationals(rng, *x.shape), rationals(rng, *weight.shape)
    assert_exact(conv(3 * x - x2, weight), 3 * conv(x, weight) - conv(x2, weight))
    assert_exact(conv(x, weight + 2 * weight2), conv(x, weight) + 2 * conv(x, weight2))


@conv_law
def test_no_bias_is_a_zero_bias_without_gradient(ops: Ops, case: ConvCase) -> None:
    x, weight, bias = case.arrays()
    y, cache = ops.conv2d_forward(x, weight, None, **case.settings)
    assert_exact(y, ops.conv2d_forward(x, weight, bias * 0, **case.settings)[0])
    assert ops.conv2d_backward(cotangent(case, y), cache).grad_bias is None


def test_an_int_stands_for_both_directions() -> None:
    x, weight, bias = ConvCase().arrays()
    one = REFERENCE.conv2d_forward(x, weight, bias, stride=2, padding=1, dilation=1, groups=1)[0]
    both = REFERENCE.conv2d_forward(
        x, weight, bias, stride=(2, 2), padding=(1, 1), dilation=(1, 1), groups=1
    )[0]
    assert_exact(one, both)


def test_an_empty_batch_gives_an_empty_batch() -> None:
    x, weight, bias = np.zeros((0, 2, 5, 5)), np.ones((3, 2, 3, 3)), np.ones(3)
    y, cache = REFERENCE.conv2d_forward(x, weight, bias, stride=1, padding=1, dilation=1, groups=1)
    grads = REFERENCE.conv2d_backward(y, cache)
    assert y.shape == (0, 3, 5, 5)
    assert grads.grad_x.shape == x.shape
    assert not grads.grad_weight.any()


def test_the_columns_of_a_1x1_kernel_are_a_view() -> None:
    """So a 1x1 convolution is one matrix product and no copy, without a special case."""
    from repvgg_ref.ops.conv2d import _windows

    x, weight = np.ones((2, 4, 5, 6)), np.ones((3, 4, 1, 1))
    _, cache = REFERENCE.conv2d_forward(x, weight, None, stride=1, padding=0, dilation=1, groups=1)
    assert np.shares_memory(_windows(cache).reshape(2, 1, 4, 30), x)


def call(**changes: Any) -> Callable[[], object]:
    """A call that is right but for `changes`."""
    arrays = {"x": np.ones((2, 4, 5, 6)), "weight": np.ones((6, 2, 3, 3)), "bias": np.ones(6)}
    settings = {"stride": 1, "padding": 1, "dilation": 1, "groups": 2}
    arrays.update({name: changes.pop(name) for name in arrays if name in changes})
    return lambda: REFERENCE.conv2d_forward(
        *arrays.values(),
        **(settings | changes),
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (call(x=np.ones((2, 6, 5, 6))), "weight.shape[1] (=2) must equal C / groups (=3)"),
        (call(x=np.ones((4, 5, 6))), "x.ndim (=3) must equal len((N, C, H, W)) (=4)"),
        (call(weight=np.ones((6, 2, 3))), "weight.ndim (=3) must equal len((O, C/G, Kh, Kw)) (=4)"),
        (call(groups=3), "C % groups (=1) must equal no remainder (=0)"),
        (call(weight=np.ones((5, 2, 3, 3)), bias=None), "O % groups (=1) must equal no remainder"),
        (call(groups=0), "groups (=0) must be at least 1"),
        (call(bias=np.ones((6, 1))), "bias.shape (=(6, 1)) must equal (O,) (=(6,))"),
        (call(stride=0), "stride (=0) must be an int or a (height, width) pair, at least 1"),
        (call(padding=(-1, 0)), "padding (=(-1, 0)) must be an int or a (height, width) pair"),
        (call(dilation=(1, 1, 1)), "dilation (=(1, 1, 1)) must be an int or a (height, width)"),
        (call(dilation=4), "no output pixel: the kernel covers 9 x 9 pixels, x with its padding"),
        (call(padding=0, x=np.ones((1, 4, 2, 9))), "no output pixel: the kernel covers 3 x 3"),
        (call(weight=np.ones((6, 2, 0, 3))), "no output pixel: the kernel covers 0 x 3 pixels"),
    ],
)
def test_what_does_not_fit_is_named(wrong: Callable[[], object], message: str) -> None:
    with pytest.raises(ShapeError, match=re.escape(f"conv2d: {message}")):
        wrong()


def test_a_gradient_of_another_shape_is_refused() -> None:
    y, cache = REFERENCE.conv2d_forward(
        *ConvCase().arrays(), stride=1, padding=1, dilation=1, groups=1
    )
    with pytest.raises(ShapeError, match=r"conv2d: grad_y\.shape"):
        REFERENCE.conv2d_backward(y[:, :, 1:], cache)
