"""How far logits behind a batch norm of features may be from the reference.

A right candidate normalises the pooled features and multiplies them, or has taken the norm into
matrix and bias, in its own arithmetic. With v the pooled features, t the norm's factor:

    M = |W| (|t| (|v| + |mean|) + |beta|) + |b|

bounds the magnitudes of all products of either way, of which none meets more than C + `_OTHER`
additions, one reading of each of its factors, and `_WRITES` writes to memory (`bounds.block`).
"""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.scale import scale_error
from repvgg_ref.oracle.bounds.squeeze_excitation import Interval, pooled, theta
from repvgg_ref.oracle.programs.head import HeadNorm

_OTHER = 8  # batch norm apart in four steps, or weight times t and the bias's two; the sum's end
_WRITES = 6  # batch norm's four, the product, the sum
_LAMBDA = 12.0  # larger than any layer's here: the likely half of an interval is not used


def norm_head_bound(norm: HeadNorm, x: Array, y: Array, precision: Precision) -> Array:
    """The certified bound of every logit, float64 (N, classes).

    Parameters
    ----------
    norm : HeadNorm
        The right one, with the linear layer's own arrays.
    x : array (N, C, H, W)
        The candidate's input of its pool.
    y : array (N, classes)
        The reference's logits for it.
    """
    return np.stack([_of_image(norm, image, precision) for image in np.asarray(x, np.float64)])


def _of_image(norm: HeadNorm, image: Array, p: Precision) -> Array:
    flat = image.reshape(len(image), -1)  # (C, H, W) -> (C, H * W)
    v = pooled(Interval(flat, np.zeros_like(flat), np.zeros_like(flat)), p, _LAMBDA)
    t, weight = norm.scale, np.abs(norm.weight)
    sizes = np.abs(t) * (np.abs(v.value) + v.certified + np.abs(norm.mean))  # (C,)
    magnitude = weight @ (sizes + np.abs(norm.beta)) + np.abs(norm.bias)  # (classes,)
    relative = (
        (1 + theta(p.u_input, 1))
        * (1 + theta(p.u_weight, 1))
        * (1 + theta(p.u_store, _WRITES))
        * (1 + theta(p.u_accumulate, len(t) + _OTHER))
    ) - 1
    wrong = scale_error(norm.gamma, norm.var + norm.eps, t, p)
    grown = (1 + relative) * (weight @ (wrong * sizes + np.abs(t) * v.certified))
    steps = len(t) + _OTHER
    underflow = p.tiny * (weight.sum(axis=1) + sizes.sum() + np.abs(t).sum() + steps)
    return np.asarray(relative * magnitude + grown + 2 * (1 + relative) * underflow)
