"""Softmax cross-entropy with label smoothing, for class labels and for soft targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array, array_module, refuse_exact
from repvgg_ref.errors import ReportedError, ShapeError, require_equal
from repvgg_ref.ops.half import widen


class SoftmaxCrossEntropyCache(NamedTuple):
    """The softmax and the smoothed targets, (N, classes); float32 for float16 logits."""

    probabilities: Array
    targets: Array
    dtype: np.dtype[Any]


def softmax_cross_entropy_forward(
    logits: Array, labels: Array, *, label_smoothing: float
) -> tuple[Array, SoftmaxCrossEntropyCache]:
    """Cross-entropy between the targets and the softmax of `logits`, averaged over N.

    ``loss = -1/N * sum over n, k of q[n, k] * log softmax(logits[n])[k]``,
    ``q = (1 - label_smoothing) * target + label_smoothing / classes``
    (Szegedy et al., arXiv 1512.00567, section 7).

    Parameters
    ----------
    logits : (N, classes) array, floating
    labels : (N,) integer array, or (N, classes) floating array of soft targets (mixup)
    label_smoothing : float in [0, 1]

    Returns
    -------
    loss : () array, dtype of `logits`
    cache : for `softmax_cross_entropy_backward`

    Raises
    ------
    ShapeError
        If the shapes do not fit together, or `logits` is empty.
    ReportedError
        If a label is no class (the message names it), or `label_smoothing` is outside [0, 1].
    InexactError
        If `logits` holds exact rationals.
    """
    refuse_exact("softmax_cross_entropy", logits, "the exponential of a rational is irrational")
    require_equal("softmax_cross_entropy", "logits.ndim", logits.ndim, "len((N, classes))", 2)
    if logits.size == 0:
        raise ShapeError(f"softmax_cross_entropy: logits.shape (={logits.shape}) has no element")
    xp = array_module(logits)
    wide = widen(logits)
    targets = _smoothed_targets(wide, labels, label_smoothing)
    shifted = wide - wide.max(axis=1, keepdims=True)  # so that exp cannot overflow
    # (N, classes) = (N, classes) - (N, 1)
    log_probabilities = shifted - xp.log(xp.exp(shifted).sum(axis=1, keepdims=True))
    loss = -(targets * log_probabilities).sum() / len(logits)
    cache = SoftmaxCrossEntropyCache(xp.exp(log_probabilities), targets, logits.dtype)
    return xp.asarray(loss, dtype=logits.dtype), cache


def softmax_cross_entropy_backward(cache: SoftmaxCrossEntropyCache) -> Array:
    """Gradient of the loss with respect to the logits.

    ``grad_logits = (sum over k of q[n, k] * softmax(logits) - q) / N``; the sum is 1 unless soft
    targets say otherwise (derivative of the loss of arXiv 1512.00567, section 7).

    Parameters
    ----------
    cache : from `softmax_cross_entropy_forward`

    Returns
    -------
    grad_logits : (N, classes) array, dtype of ``logits``
    """
    probabilities, targets, dtype = cache
    mass = targets.sum(axis=1, keepdims=True)  # (N, classes) -> (N, 1)
    grad_logits: Array = (mass * probabilities - targets) / len(targets)
    return grad_logits.astype(dtype, copy=False)


def _smoothed_targets(logits: Array, labels: Array, label_smoothing: float) -> Array:
    """Return q, (N, classes), dtype of `logits`."""
    if not 0 <= label_smoothing <= 1:
        raise ReportedError(
            f"softmax_cross_entropy: label_smoothing (={label_smoothing}) must lie in [0, 1]"
        )
    classes = logits.shape[1]
    targets = _one_hot(logits, labels) if labels.ndim == 1 else labels
    require_equal(
        "softmax_cross_entropy", "labels.shape", targets.shape, "logits.shape", logits.shape
    )
    smoothed: Array = (1 - label_smoothing) * targets + label_smoothing / classes
    return smoothed.astype(logits.dtype, copy=False)


def _one_hot(logits: Array, labels: Array) -> Array:
    """Return 1 at each label, 0 elsewhere: (N,) -> (N, classes)."""
    operator = "softmax_cross_entropy"
    N, classes = logits.shape
    require_equal(operator, "labels.shape", labels.shape, "(N,)", (N,))
    if labels.dtype.kind not in "iu":
        raise ReportedError(
            f"{operator}: labels of shape (N,) must be integers",
            got=labels.dtype,
            advice="soft targets have shape (N, classes)",
        )
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        index = int(wrong.argmax())
        raise ReportedError(
            f"{operator}: labels[{index}] (={labels[index]}) is not in 0 ... {classes - 1}"
        )
    xp = array_module(logits)
    one_hot: Array = (labels[:, None] == xp.arange(classes)).astype(logits.dtype)
    return one_hot
