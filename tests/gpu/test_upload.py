"""Batches arrive whole and in order, and their bytes become the network's input."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from repvgg_ref.arrays import Array, to_numpy
from tests.gpu.conftest import UnderTest


def batches(count: int, last: int = 4) -> Iterator[tuple[Array, Array]]:
    rng = np.random.default_rng(0)
    for number in range(count):
        size = last if number == count - 1 else 4
        yield rng.integers(0, 256, (size, 3, 5, 3)).astype(np.uint8), np.full(size, number)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 9])
@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_batches_arrive_whole_and_in_order(count: int, ahead: int, device: UnderTest) -> None:
    from repvgg_ref.gpu.upload import upload

    seen = 0
    for (images, labels), (wanted, number) in zip(
        upload(batches(count, last=2), ahead=ahead), batches(count, last=2), strict=True
    ):
        np.testing.assert_array_equal(to_numpy(images), wanted)
        np.testing.assert_array_equal(to_numpy(labels), number)
        seen += 1
    assert seen == count


def test_an_ended_loop_leaves_nothing_behind(device: UnderTest) -> None:
    from repvgg_ref.gpu.upload import upload

    for images, _ in upload(batches(9)):
        assert images.shape == (4, 3, 5, 3)
        break


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_bytes_become_standardised_images(dtype: type, device: UnderTest) -> None:
    from repvgg_ref.gpu.upload import standardise

    (pixels, _), *_ = batches(1)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    found = standardise(
        device.cupy.asarray(pixels),
        device.cupy.asarray(mean),
        device.cupy.asarray(std),
        scale=1 / 255,
        dtype=dtype,
    )
    wanted = ((pixels / 255 - mean) / std).transpose(0, 3, 1, 2)
    assert found.shape == (4, 3, 3, 5)
    assert found.dtype == dtype
    error = np.abs(to_numpy(found).astype(np.float64) - wanted).max()
    assert error <= 4 * float(np.finfo(dtype).eps)
