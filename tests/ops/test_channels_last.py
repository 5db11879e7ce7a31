"""Operators of segmentation under NHWC against the reference's, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.cpu import NUMPY
from repvgg_ref.ops import REFERENCE
from repvgg_ref.ops.channels_last import to_nchw, to_nhwc

RNG = np.random.default_rng(0)
KEPT = np.array([[True, False, True], [False, True, True]])
CASES: dict[str, tuple[Any, ...]] = {
    "bilinear_resize": ((), {"size": (11, 6)}),
    "adaptive_avg_pool": ((), {"size": (3, 2)}),
    "channel_dropout": ((KEPT,), {"rate": 0.25}),
}


def held(x: Any) -> Any:
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("name", CASES)
def test_images(name: str, dtype: Any) -> None:
    rest, settings = CASES[name]
    x = RNG.normal(size=(2, 3, 5, 7)).astype(dtype)
    wanted, theirs = getattr(REFERENCE, f"{name}_forward")(x, *rest, **settings)
    got, cache = getattr(NUMPY, f"{name}_forward")(held(to_nhwc(x, dtype)), *rest, **settings)
    assert got.dtype == dtype
    assert got.flags.c_contiguous
    atol = 4 * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(to_nchw(got), wanted, rtol=atol, atol=atol, equal_nan=False)
    grad = RNG.normal(size=wanted.shape).astype(dtype)
    back = getattr(NUMPY, f"{name}_backward")(held(to_nhwc(grad, dtype)), cache)
    exact = getattr(REFERENCE, f"{name}_backward")(grad, theirs)
    assert back.dtype == dtype
    np.testing.assert_allclose(to_nchw(back), exact, rtol=8 * atol, atol=8 * atol, equal_nan=False)


def test_parts_are_joined_and_parted() -> None:
    parts = [RNG.normal(size=(2, c, 3, 4)) for c in (1, 3, 2)]
    y, cache = NUMPY.concat_forward(*(held(to_nhwc(p, p.dtype)) for p in parts))
    np.testing.assert_array_equal(to_nchw(y), REFERENCE.concat_forward(*parts)[0])
    for back, part in zip(NUMPY.concat_backward(y, cache), parts, strict=True):
        np.testing.assert_array_equal(to_nchw(back), part)


def test_the_loss_of_pixels() -> None:
    logits, labels = RNG.normal(size=(2, 4, 3, 5)) * 9, RNG.integers(0, 4, (2, 3, 5))
    labels[0, 0] = 255
    wanted, theirs = REFERENCE.pixel_cross_entropy_forward(logits, labels, ignored=255)
    got, cache = NUMPY.pixel_cross_entropy_forward(
        held(to_nhwc(logits, logits.dtype)), labels, ignored=255
    )
    np.testing.assert_allclose(got, wanted, rtol=1e-14, equal_nan=False)
    back = NUMPY.pixel_cross_entropy_backward(cache)
    exact = REFERENCE.pixel_cross_entropy_backward(theirs)
    np.testing.assert_allclose(to_nchw(back), exact, rtol=1e-12, atol=1e-15, equal_nan=False)
