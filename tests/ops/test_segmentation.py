"""Operators of segmentation: adjoints by the law <A x, g> = <x, A^T g>, exact where A is linear."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from repvgg_ref.errors import ReportedError
from repvgg_ref.ops.adaptive_avg_pool import adaptive_avg_pool_backward, adaptive_avg_pool_forward
from repvgg_ref.ops.bilinear_resize import bilinear_resize_backward, bilinear_resize_forward
from repvgg_ref.ops.channel_dropout import channel_dropout_backward, channel_dropout_forward
from repvgg_ref.ops.concat import concat_backward, concat_forward
from repvgg_ref.ops.pixel_cross_entropy import (
    pixel_cross_entropy_backward,
    pixel_cross_entropy_forward,
)


def rationals(seed: int, *shape: int) -> Any:
    numbers = np.random.default_rng(seed).integers(-9, 10, shape)
    return np.vectorize(lambda n: Fraction(int(n), 7), otypes=[object])(numbers)


LINEAR: dict[str, Any] = {
    "resize": (
        lambda x: bilinear_resize_forward(x, size=(7, 9)),
        bilinear_resize_backward,
        (2, 3, 4, 5),
    ),
    "shrink": (
        lambda x: bilinear_resize_forward(x, size=(2, 1)),
        bilinear_resize_backward,
        (1, 2, 5, 3),
    ),
    "pool": (
        lambda x: adaptive_avg_pool_forward(x, size=(3, 2)),
        adaptive_avg_pool_backward,
        (2, 2, 7, 5),
    ),
    "more than there are": (
        lambda x: adaptive_avg_pool_forward(x, size=(6, 6)),
        adaptive_avg_pool_backward,
        (1, 2, 4, 5),
    ),
    "dropout": (
        lambda x: channel_dropout_forward(
            x, np.array([[True, False], [False, True]]), rate=Fraction(1, 10)
        ),
        channel_dropout_backward,
        (2, 2, 3, 3),
    ),
}


@pytest.mark.parametrize("case", LINEAR)
def test_backward_is_the_adjoint_of_forward(case: str) -> None:
    forward, backward, shape = LINEAR[case]
    x = rationals(0, *shape)
    y, cache = forward(x)
    g = rationals(1, *y.shape)
    assert (y * g).sum() == (x * backward(g, cache)).sum()


def test_aligned_corners_keep_their_places_and_a_ramp_stays_one() -> None:
    x = np.arange(5.0)[None, None, :, None] + 10 * np.arange(4.0)
    y, _ = bilinear_resize_forward(x, size=(9, 7))
    np.testing.assert_allclose(
        y[0, 0], np.linspace(0, 4, 9)[:, None] + np.linspace(0, 30, 7), atol=1e-13
    )


def test_parts_come_back() -> None:
    parts = [rationals(seed, 2, channels, 3, 2) for seed, channels in enumerate((1, 3, 2))]
    y, cache = concat_forward(*parts)
    for back, part in zip(concat_backward(y, cache), parts, strict=True):
        assert (back == part).all()


def test_the_losss_gradient_is_its_difference_and_ignored_pixels_have_none() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 2, 2))
    labels = np.array([[[0, 255], [2, 1]], [[1, 1], [255, 0]]])
    _, cache = pixel_cross_entropy_forward(logits, labels, ignored=255)
    grad = pixel_cross_entropy_backward(cache)
    assert not grad[0, :, 0, 1].any()
    step = 1e-6
    for place in np.ndindex(*logits.shape):
        ends = []
        for sign in (1, -1):
            moved = logits.copy()
            moved[place] += sign * step
            ends.append(float(pixel_cross_entropy_forward(moved, labels, ignored=255)[0]))
        assert grad[place] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-9)


def test_labels_that_are_no_class_are_named() -> None:
    with pytest.raises(ReportedError, match=r"labels\[0, 1, 0\] \(=7\)"):
        pixel_cross_entropy_forward(np.zeros((1, 3, 2, 1)), np.array([[[0], [7]]]), ignored=255)


def test_no_label_that_counts_is_no_loss() -> None:
    loss, cache = pixel_cross_entropy_forward(
        np.ones((1, 3, 2, 2)), np.full((1, 2, 2), 255), ignored=255
    )
    assert float(loss) == 0
    assert not pixel_cross_entropy_backward(cache).any()
