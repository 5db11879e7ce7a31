"""Operators of segmentation against torch in float64, forward and backward."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.ops.adaptive_avg_pool import adaptive_avg_pool_backward, adaptive_avg_pool_forward
from repvgg_ref.ops.bilinear_resize import bilinear_resize_backward, bilinear_resize_forward
from repvgg_ref.ops.pixel_cross_entropy import (
    pixel_cross_entropy_backward,
    pixel_cross_entropy_forward,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def close(found: Any, wanted: Any) -> None:
    wanted_y = wanted.detach().numpy()
    np.testing.assert_allclose(found, wanted_y, rtol=1e-12, atol=1e-13, equal_nan=False)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 6), (13, 17), (9, 4)])
@pytest.mark.parametrize("operator", ["resize", "pool"])
def test_resizing_and_pooling_are_torchs(operator: str, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 7, 10))
    tensor = torch.from_numpy(x).requires_grad_()
    if operator == "resize":
        y, cache = bilinear_resize_forward(x, size=size)
        theirs = torch.nn.functional.interpolate(
            tensor, size=size, mode="bilinear", align_corners=True
        )
    else:
        y, cache = adaptive_avg_pool_forward(x, size=size)
        theirs = torch.nn.functional.adaptive_avg_pool2d(tensor, size)
    close(y, theirs)
    grad = rng.normal(size=y.shape)
    theirs.backward(torch.from_numpy(grad))
    backward = bilinear_resize_backward if operator == "resize" else adaptive_avg_pool_backward
    close(backward(grad, cache), tensor.grad)


def test_the_loss_of_pixels_is_torchs() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(2, 5, 6, 7)) * 8
    labels = rng.integers(0, 5, (2, 6, 7))
    labels[rng.random(labels.shape) < 0.2] = 255
    tensor = torch.from_numpy(logits).requires_grad_()
    theirs = torch.nn.functional.cross_entropy(tensor, torch.from_numpy(labels), ignore_index=255)
    theirs.backward()
    loss, cache = pixel_cross_entropy_forward(logits, labels, ignored=255)
    close(loss, theirs)
    close(pixel_cross_entropy_backward(cache), tensor.grad)


def test_augmentations_are_torchs() -> None:
    """Scaling by its unaligned interpolation, the blur by its convolution of a mirrored image."""
    from PIL import Image

    from repvgg_ref.data.dense import labelled, parted
    from repvgg_ref.data.dense_transforms import blurred, scaled

    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (20, 26, 3), dtype=np.uint8), rng.integers(0, 9, (20, 26))
    picture = labelled(Image.fromarray(pixels), labels)
    x = torch.from_numpy(pixels.astype(np.float64)).permute(2, 0, 1)[None]
    for factor in (0.5, 2.0, 1.5):
        theirs = torch.nn.functional.interpolate(
            x, scale_factor=factor, mode="bilinear", recompute_scale_factor=False
        )
        ours = np.asarray(parted(scaled(picture, factor))[0])
        assert np.abs(ours - theirs[0].permute(1, 2, 0).numpy()).max() <= 1.01
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=torch.float64) / 16
    kernel = torch.outer(line, line)
    long = torch.nn.functional.pad(x, (2, 2, 2, 2), mode="reflect")
    theirs = torch.nn.functional.conv2d(long, kernel.expand(3, 1, 5, 5), groups=3)
    ours = np.asarray(parted(blurred(picture))[0])
    assert np.abs(ours - theirs[0].permute(1, 2, 0).numpy()).max() <= 0.51


def test_scores_follow_from_scikit_learns_confusion() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    from repvgg_ref.train.pixels import segmentation_scores

    rng = np.random.default_rng(2)
    labels, predicted = rng.integers(0, 4, (3, 9, 8)), rng.integers(0, 4, (3, 9, 8))
    labels[rng.random(labels.shape) < 0.2] = 255
    counted = labels != 255
    counts = metrics.confusion_matrix(labels[counted], predicted[counted])
    both = np.diag(counts)
    iou = both / (counts.sum(0) + counts.sum(1) - both)
    found = segmentation_scores(predicted, labels, 4)
    assert found["iou"] == pytest.approx(iou)
    assert found["miou"] == pytest.approx(iou.mean())
    assert found["macc"] == pytest.approx((both / counts.sum(1)).mean())
    assert found["allacc"] == pytest.approx(
        metrics.accuracy_score(labels[counted], predicted[counted])
    )
