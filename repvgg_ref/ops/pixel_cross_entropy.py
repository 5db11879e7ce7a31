"""Softmax cross-entropy of every pixel, but for those whose label is to be ignored."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, array_module, refuse_exact
from repvgg_ref.errors import ReportedError, ShapeError, require_equal
from repvgg_ref.ops.half import widen


class PixelCrossEntropyCache(NamedTuple):
    """Softmax (N, classes, H, W), classes (N, 1, H, W) and each pixel's weight, 0 or 1 / count."""

    probabilities: Array
    classes: Array
    weights: Array
    dtype: np.dtype[Any]


def pixel_cross_entropy_forward(
    logits: Array, labels: Array, *, ignored: int
) -> tuple[Array, PixelCrossEntropyCache]:
    """Cross-entropy of each pixel's class, averaged over the pixels whose label counts.

    ``loss = -1/count * sum over counted n, h, w of log softmax(logits[n, :, h, w])[labels[n, h,
    w]]`` (PSPNet, arXiv 1612.01105, section 3.3). It is 0 where no label counts.

    Parameters
    ----------
    logits : (N, classes, H, W) array, floating
    labels : (N, H, W) integer array: a class, or `ignored`
    ignored : int, such as 255

    Returns
    -------
    loss : () array, dtype of `logits`
    cache : for `pixel_cross_entropy_backward`

    Raises
    ------
    ShapeError
        If the shapes do not fit together, or `logits` is empty.
    ReportedError
        If a label is neither a class nor `ignored` (the message names it).
    InexactError
        If `logits` holds exact rationals.
    """
    require_pixel_labels(logits.shape, labels, ignored=ignored)
    return counted_cross_entropy(logits, labels, ignored=ignored)


def counted_cross_entropy(
    logits: Array, labels: Array, *, ignored: int
) -> tuple[Array, PixelCrossEntropyCache]:
    """`pixel_cross_entropy_forward` of labels that are known to be right."""
    refuse_exact("pixel_cross_entropy", logits, "the exponential of a rational is irrational")
    xp = array_module(logits)
    wide = widen(logits)
    shifted = wide - wide.max(axis=1, keepdims=True)  # so that exp cannot overflow
    # (N, classes, H, W) = (N, classes, H, W) - (N, 1, H, W)
    log_probabilities = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    labels = labels[:, None]  # (N, H, W) -> (N, 1, H, W)
    counts = labels != ignored
    classes = xp.where(counts, labels, 0).astype(np.int64)
    weights = counts.astype(wide.dtype) / xp.maximum(counts.sum(), 1).astype(wide.dtype)
    of_labels = xp.take_along_axis(log_probabilities, classes, axis=1)
    loss = -xp.where(counts, weights * of_labels, 0).sum()
    cache = PixelCrossEntropyCache(xp.exp(log_probabilities), classes, weights, logits.dtype)
    return xp.asarray(loss, dtype=logits.dtype), cache


def pixel_cross_entropy_backward(cache: PixelCrossEntropyCache) -> Array:
    """Gradient of the loss with respect to the logits.

    ``grad_logits = (softmax(logits) - one_hot(labels)) / count`` where the label counts, else 0.

    Parameters
    ----------
    cache : from `pixel_cross_entropy_forward`

    Returns
    -------
    grad_logits : (N, classes, H, W) array, dtype of ``logits``
    """
    probabilities, classes, weights, dtype = cache
    xp = array_module(probabilities)
    every = xp.arange(probabilities.shape[1])[:, None, None]  # (classes, 1, 1)
    hot = classes == every  # (N, 1, H, W), (classes, 1, 1) -> (N, classes, H, W)
    grad_logits = xp.where(weights > 0, (probabilities - hot) * weights, 0)
    found: Array = grad_logits.astype(dtype, copy=False)
    return found


def require_pixel_labels(shape: tuple[int, ...], labels: Array, *, ignored: int) -> None:
    """Refuse labels that do not fit logits (N, classes, H, W), as the operator says."""
    operator = "pixel_cross_entropy"
    require_equal(operator, "logits.ndim", len(shape), "len((N, classes, H, W))", 4)
    wanted = (shape[0], *shape[2:])
    require_equal(operator, "labels.shape", labels.shape, "(N, H, W)", wanted)
    if min(shape) == 0:
        raise ShapeError(f"{operator}: logits.shape (={shape}) has no element")
    if labels.dtype.kind not in "iu":
        raise ReportedError(f"{operator}: labels must be integers", got=labels.dtype)
    wrong = (labels != ignored) & ((labels < 0) | (labels >= shape[1]))
    if wrong.any():
        place = np.unravel_index(int(wrong.argmax()), wrong.shape)
        where = ", ".join(str(int(n)) for n in place)
        raise ReportedError(
            f"{operator}: labels[{where}] (={labels[place]}) is neither a class, 0 ... "
            f"{shape[1] - 1}, nor {ignored}, which is ignored"
        )
