"""Softmax cross-entropy on the device; nothing here waits, a wrong label raises a flag."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ReportedError, ShapeError
from repvgg_ref.gpu.kernels.launch import empty, launch, real_dtype, require_arrays

_FILE = "cross_entropy.cu"
_THREADS = 128  # of a row


class CrossEntropy(NamedTuple):
    """`losses` (N,) and `probabilities` (N, classes) of float32 (float64); `bad_label` (1,) int32.

    A row whose label is no class has the loss NaN, and raises `bad_label` to 1.
    """

    losses: Array
    probabilities: Array
    bad_label: Array


def softmax_cross_entropy_forward(
    logits: Array, labels: Array, *, label_smoothing: float
) -> CrossEntropy:
    """Loss of every row, ``-sum over k of q[k] * log softmax(logits)[k]``.

    ``q = (1 - label_smoothing) * target + label_smoothing / classes`` (Szegedy et al.,
    arXiv 1512.00567, section 7).

    Parameters
    ----------
    logits : (N, classes) array
    labels : (N,) int64 array, or (N, classes) soft targets of float32 (float64)
    label_smoothing : float in [0, 1]
    """
    operator = "softmax_cross_entropy"
    N, classes, real = _checked(operator, logits, labels, label_smoothing)
    require_arrays(operator, (N, classes), logits.dtype, logits=logits)
    losses = empty((N,), real)
    probabilities = empty((N, classes), real)
    import cupy

    bad_label = cupy.zeros((1,), np.int32)
    launch(
        _FILE,
        "softmax_cross_entropy_forward",
        logits.dtype,
        (N,),
        (_THREADS,),
        (
            logits,
            *_targets(labels),
            np.float64(label_smoothing),
            losses,
            probabilities,
            bad_label,
            np.int32(classes),
        ),
    )
    return CrossEntropy(losses, probabilities, bad_label)


def softmax_cross_entropy_backward(
    probabilities: Array,
    labels: Array,
    *,
    label_smoothing: float,
    scale: float,
    dtype: Any,
) -> Array:
    """``scale * (sum over k of q[k] * softmax - q)``; NaN in the row of a label that is no class.

    Parameters
    ----------
    probabilities : (N, classes) array, from the forward pass
    labels, label_smoothing : as there
    scale : float
        1 / N for the mean over the batch, times the loss scale if there is one.
    dtype : of the gradient, that of the logits

    Returns
    -------
    (N, classes) array
    """
    operator = "softmax_cross_entropy"
    N, classes, real = _checked(operator, probabilities, labels, label_smoothing)
    if real != real_dtype(dtype):
        raise ShapeError(
            f"{operator}: probabilities must be {real_dtype(dtype)} for {np.dtype(dtype)}",
            got=real,
            wanted=real_dtype(dtype),
        )
    require_arrays(operator, (N, classes), real, probabilities=probabilities)
    grad_logits = empty((N, classes), dtype)
    launch(
        _FILE,
        "softmax_cross_entropy_backward",
        dtype,
        (N,),
        (_THREADS,),
        (
            probabilities,
            *_targets(labels),
            np.float64(label_smoothing),
            np.float64(scale),
            grad_logits,
            np.int32(classes),
        ),
    )
    return grad_logits


def _targets(labels: Array) -> tuple[Array | None, Array | None]:
    return (labels, None) if labels.ndim == 1 else (None, labels)


def _checked(
    operator: str, logits: Array, labels: Array, label_smoothing: float
) -> tuple[int, int, Any]:
    if logits.ndim != 2 or logits.size == 0:
        raise ShapeError(f"{operator}: logits.shape (={logits.shape}) must be (N, classes), not 0")
    N, classes = logits.shape
    real = real_dtype(logits.dtype)
    if not 0 <= label_smoothing <= 1:
        raise ReportedError(f"{operator}: label_smoothing (={label_smoothing}) must lie in [0, 1]")
    if labels.ndim == 1:
        require_arrays(operator, (N,), np.int64, labels=labels)
    else:
        require_arrays(operator, (N, classes), real, labels=labels)
    return N, classes, real
