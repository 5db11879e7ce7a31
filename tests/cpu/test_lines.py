"""Kernels of one row or one column: output and gradients are the reference's."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest

from repvgg_ref.cpu.training import lines, passes
from repvgg_ref.cpu.training.lines import Line
from repvgg_ref.ops import REFERENCE


@pytest.mark.parametrize("kernel", [(3, 1), (1, 3), (5, 1), (1, 7)], ids=str)
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("pixels", [1, 20, 1000])
def test_it_is_the_reference(kernel: tuple[int, int], dilation: int, pixels: int) -> None:
    """Pieces of a row, of some rows of two images, and of all images; reaches beyond an image."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((3, 4, 5, 6)), rng.standard_normal((7, 4, *kernel))
    top, left = (dilation * (k // 2) for k in kernel)
    rows, columns = (dilation if k > 1 else 1 for k in kernel)
    y, cache = REFERENCE.conv2d_forward(
        x, weight, None, stride=1, padding=(top, left), dilation=(rows, columns), groups=1
    )
    grad = rng.standard_normal(y.shape)
    wanted = REFERENCE.conv2d_backward(grad, cache)
    nhwc = [np.ascontiguousarray(each.transpose(0, 2, 3, 1)) for each in (x, grad)]
    line = Line(nhwc[0], weight, dilation)
    with mock.patch.multiple(passes, PIECE_PIXELS=pixels, PIECE_NUMBERS=1):
        found = [lines.convolve(line), lines.input_gradient(nhwc[1], line)]
        of_weight = lines.weight_gradient(nhwc[1], line)
    for got, want in zip(found, (y, wanted.grad_x), strict=True):
        assert not np.abs(got.transpose(0, 3, 1, 2) - want).max() > 1e-12
    assert not np.abs(of_weight - wanted.grad_weight).max() > 1e-11
