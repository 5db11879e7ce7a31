"""Batch norm: the paper's equations exactly in rationals; running statistics by `statistics`."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.errors import InexactError, ShapeError
from repvgg_ref.ops import REFERENCE, Ops
from tests.gradcheck import assert_gradients
from tests.ops.cases import ImageCase, image_law
from tests.ops.exact import assert_exact, frozen, rationals

EPS = 1e-3


def per_channel(x: Array) -> list[list[Fraction]]:
    """The values of each channel."""
    return [list(channel.flat) for channel in x.swapaxes(0, 1)]


def exact_batch(case: ImageCase) -> tuple[Array, Array, Array, Fraction]:
    """`x`, `gamma`, `beta` and an `eps` that makes every ``var + eps`` a square.

    All channels hold the same values in different orders and with different means, so that they
    share a variance.
    """
    values, gamma, beta, means = case.rationals(
        (case.images * case.height * case.width,), *[(case.channels,)] * 3
    )
    rng = np.random.default_rng(case.seed)
    channels = [rng.permutation(values) + mean for mean in means]
    N, C, H, W = case.shape
    # C x (N*H*W,) -> (C, N, H, W) -> (N, C, H, W)
    x = frozen(np.stack(channels).reshape(C, N, H, W).swapaxes(0, 1))
    var = statistics.pvariance(map(Fraction, values))
    return x, gamma, beta, (int(var) + 2) ** 2 - var


def columns(vector: Array) -> Array:
    return vector[:, None, None]


def std_of(cache: Any, eps: Fraction) -> int:
    """The deviation that all channels of `exact_batch` share: a whole number, on purpose."""
    return math.isqrt(int(cache.var[0] + eps))


@image_law
def test_training_equals_algorithm_1(ops: Ops, case: ImageCase) -> None:
    x, gamma, beta, eps = exact_batch(case)
    y, cache = ops.batch_norm_train_forward(x, gamma, beta, eps=eps)
    means = [statistics.mean(map(Fraction, values)) for values in per_channel(x)]
    variances = [statistics.pvariance(map(Fraction, values)) for values in per_channel(x)]
    assert_exact(cache.mean, np.array(means, dtype=object))
    assert_exact(cache.var, np.array(variances, dtype=object))
    assert_exact(
        y, columns(gamma) * (x - columns(np.array(means))) / std_of(cache, eps) + columns(beta)
    )


@image_law
def test_training_backward_equals_the_papers_six_equations(ops: Ops, case: ImageCase) -> None:
    """arXiv 1502.03167, section 3, term by term."""
    x, gamma, beta, eps = exact_batch(case)
    _, cache = ops.batch_norm_train_forward(x, gamma, beta, eps=eps)
    grad_y = rationals(np.random.default_rng([case.seed, 1]), *x.shape)
    grads = ops.batch_norm_train_backward(grad_y, cache)
    m = Fraction(case.images * case.height * case.width)
    axes = (0, 2, 3)
    centred = x - columns(x.sum(axis=axes) / m)
    inv_std = 1 / Fraction(std_of(cache, eps))
    x_hat = centred * inv_std
    grad_x_hat = grad_y * columns(gamma)
    grad_var = (grad_x_hat * centred).sum(axis=axes) * Fraction(-1, 2) * inv_std**3
    grad_mean = -inv_std * grad_x_hat.sum(axis=axes) + grad_var * (-2 * centred).sum(axis=axes) / m
    grad_x = grad_x_hat * inv_std + columns(grad_var) * 2 * centred / m + columns(grad_mean) / m
    assert_exact(grads.grad_x, grad_x)
    assert_exact(grads.grad_gamma, (grad_y * x_hat).sum(axis=axes))
    assert_exact(grads.grad_beta, grad_y.sum(axis=axes))


@image_law
def test_training_forgets_scale_and_shift(ops: Ops, case: ImageCase) -> None:
    """BN(a x + b) with a^2 eps is BN(x) with eps, for a > 0."""
    x, gamma, beta, eps = exact_batch(case)
    a, b = Fraction(3, 2), rationals(np.random.default_rng([case.seed, 1]), case.channels)
    y, _ = ops.batch_norm_train_forward(x, gamma, beta, eps=eps)
    moved, _ = ops.batch_norm_train_forward(a * x + columns(b), gamma, beta, eps=a * a * eps)
    assert_exact(moved, y)


@image_law
def test_training_backward_is_blind_to_shifts(ops: Ops, case: ImageCase) -> None:
    """The loss does not change when a channel is shifted, so its gradient sums to zero."""
    x, gamma, beta, eps = exact_batch(case)
    y, cache = ops.batch_norm_train_forward(x, gamma, beta, eps=eps)
    grads = ops.batch_norm_train_backward(y * y, cache)
    assert_exact(grads.grad_x.sum(axis=(0, 2, 3)), np.zeros(case.channels, dtype=object))


@image_law
def test_images_have_no_order(ops: Ops, case: ImageCase) -> None:
    x, gamma, beta, eps = exact_batch(case)
    y, cache = ops.batch_norm_train_forward(x, gamma, beta, eps=eps)
    turned, turned_cache = ops.batch_norm_train_forward(x[::-1], gamma, beta, eps=eps)
    assert_exact(turned, y[::-1])
    assert_exact(
        ops.batch_norm_train_backward((y * y)[::-1], turned_cache).grad_x,
        ops.batch_norm_train_backward(y * y, cache).grad_x[::-1],
    )


@image_law
def test_evaluation_with_the_batchs_statistics_is_training(ops: Ops, case: ImageCase) -> None:
    x, gamma, beta, eps = exact_batch(case)
    y, cache = ops.batch_norm_train_forward(x, gamma, beta, eps=eps)
    evaluated, _ = ops.batch_norm_eval_forward(x, gamma, beta, cache.mean, cache.var, eps=eps)
    assert_exact(evaluated, y)


@image_law
def test_evaluation_is_a_scale_and_a_shift(ops: Ops, case: ImageCase) -> None:
    """y = gamma (x - mean) / sqrt(var + eps) + beta with roots that are squared on purpose."""
    C = (case.channels,)
    x, gamma, beta, mean, root = case.rationals(case.shape, C, C, C, C)
    std: Array = Fraction(1) + np.abs(root)
    eps = Fraction(1, 1000)
    y, cache = ops.batch_norm_eval_forward(x, gamma, beta, mean, std * std - eps, eps=eps)
    assert_exact(y, columns(gamma) * (x - columns(mean)) / columns(std) + columns(beta))
    grads = ops.batch_norm_eval_backward(y, cache)
    assert_exact(grads.grad_x, columns(gamma) * y / columns(std))
    x_hat = (x - columns(mean)) / columns(std)
    assert_exact(grads.grad_gamma, (y * x_hat).sum(axis=(0, 2, 3)))
    assert_exact(grads.grad_beta, y.sum(axis=(0, 2, 3)))


@image_law
def test_evaluation_sees_each_image_alone(ops: Ops, case: ImageCase) -> None:
    C = (case.channels,)
    x, gamma, beta, mean, root = case.rationals(case.shape, C, C, C, C)
    statistics_and_eps = gamma, beta, mean, root * root

    def evaluate(x: Array) -> Array:
        return ops.batch_norm_eval_forward(x, *statistics_and_eps, eps=Fraction(0))[0]

    if (root != 0).all():
        assert_exact(evaluate(x), np.concatenate([evaluate(image[None]) for image in x]))


@image_law
def test_backward_equals_finite_differences(ops: Ops, case: ImageCase) -> None:
    C = (case.channels,)
    x, gamma, beta, mean, root = case.floats(case.shape, C, C, C, C)
    x = frozen(x / case.scale)  # the scale goes to the parameters: differences need a mild x
    assert_gradients(
        lambda *arrays: ops.batch_norm_train_forward(*arrays, eps=EPS),
        ops.batch_norm_train_backward,
        *(x, gamma, beta),
        seed=case.seed,
        tolerance=1e-6,
    )
    assert_gradients(
        lambda x, gamma, beta: ops.batch_norm_eval_forward(
            x, gamma, beta, mean, root * root, eps=EPS
        ),
        ops.batch_norm_eval_backward,
        *(x, gamma, beta),
        seed=case.seed,
    )


@image_law
def test_running_statistics_are_weighted_sample_statistics(ops: Ops, case: ImageCase) -> None:
    """The mean enters as it is, the variance with n - 1: Python's `statistics` says both."""
    x, gamma, beta, eps = exact_batch(case)
    _, cache = ops.batch_norm_train_forward(x, gamma, beta, eps=eps)
    C = (case.channels,)
    old_mean, old_var = case.rationals(C, C)
    momentum = Fraction(1, 10)
    running = ops.update_running_stats(
        old_mean, old_var, cache.mean, cache.var, momentum=momentum, count=x.size // case.channels
    )
    means = np.array([statistics.mean(map(Fraction, values)) for values in per_channel(x)])
    sample = np.array([statistics.variance(map(Fraction, values)) for values in per_channel(x)])
    assert_exact(running.running_mean, old_mean * Fraction(9, 10) + means * momentum)
    assert_exact(running.running_var, old_var * Fraction(9, 10) + sample * momentum)


def test_a_float_eps_or_momentum_keeps_rationals_rational() -> None:
    """Each is taken at its exact binary value: 0.25 and 0.5 here."""
    x = np.array([Fraction(1), Fraction(-1), 0, 0], dtype=object).reshape(4, 1, 1, 1)
    one, zero = np.array([1], dtype=object), np.array([0], dtype=object)
    three_quarters = np.array([Fraction(3, 4)])
    y, _ = REFERENCE.batch_norm_eval_forward(x, one, zero, zero, three_quarters, eps=0.25)
    assert_exact(y, x)
    running = REFERENCE.update_running_stats(one, one, zero, one, momentum=0.5, count=2)
    assert_exact(running.running_mean, np.array([Fraction(1, 2)]))
    assert_exact(running.running_var, np.array([Fraction(3, 2)]))


def test_running_statistics_keep_the_dtype_of_the_state() -> None:
    """A float16 network's batch statistics come in float32."""
    old, batch = np.ones(3, np.float16), np.full(3, 0.5, np.float32)
    running = REFERENCE.update_running_stats(old, old, batch, batch, momentum=0.1, count=4)
    assert [array.dtype for array in running] == [np.float16, np.float16]


@pytest.mark.parametrize("count", [0, 1])
def test_one_value_has_no_unbiased_variance(count: int) -> None:
    ones = np.ones(3)
    with pytest.raises(ShapeError, match=rf"count \(={count}\) must be at least 2"):
        REFERENCE.update_running_stats(ones, ones, ones, ones, momentum=0.1, count=count)


def test_an_irrational_deviation_is_refused_by_its_value() -> None:
    x, one = np.array([0, 2], dtype=object).reshape(2, 1, 1, 1), np.array([1], dtype=object)
    with pytest.raises(InexactError, match="sqrt: 2 is not the square of a rational"):
        REFERENCE.batch_norm_train_forward(x, one, one, eps=1)


def test_what_does_not_fit_is_named() -> None:
    x, three, four = np.ones((2, 3, 4, 5)), np.ones(3), np.ones(4)
    train, evaluate = REFERENCE.batch_norm_train_forward, REFERENCE.batch_norm_eval_forward
    wrong: dict[str, Callable[[], object]] = {
        "x.ndim (=3) must equal len((N, C, H, W)) (=4)": lambda: train(x[0], three, three, eps=0),
        "gamma.shape (=(4,)) must equal (C,) (=(3,))": lambda: train(x, four, three, eps=0),
        "beta.shape (=(4,)) must equal (C,) (=(3,))": lambda: train(x, three, four, eps=0),
        "x.shape (=(0, 3, 4, 5)) leaves a channel": lambda: train(x[:0], three, three, eps=0),
        "mean.shape (=(4,))": lambda: evaluate(x, three, three, four, three, eps=0),
        "var.shape (=(4,))": lambda: evaluate(x, three, three, three, four, eps=0),
        "grad_y.shape (=(1, 3, 4, 5)) must equal y.shape (=(2, 3, 4, 5))": lambda: (
            REFERENCE.batch_norm_train_backward(x[:1], train(x, three, three, eps=1)[1])
        ),
    }
    for message, call in wrong.items():
        with pytest.raises(ShapeError, match=re.escape(f"batch_norm: {message}")):
            call()
    with pytest.raises(ShapeError, match=re.escape("var.shape (=(4,)) must equal running_mean.")):
        REFERENCE.update_running_stats(three, three, three, four, momentum=0.1, count=9)
