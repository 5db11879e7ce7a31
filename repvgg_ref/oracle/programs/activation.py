"""What follows a block's convolution: squeeze-and-excitation and ReLU, or what is done instead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.ops.gelu import normal_cdf


class SqueezeExcitationParams(NamedTuple):
    """Weights (Cm, C), (C, Cm) and biases of an SE block, float64."""

    down_weight: Array
    down_bias: Array
    up_weight: Array
    up_bias: Array


def sigmoid(y: Array) -> Array:
    """``1 / (1 + exp(-y))`` without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(y / 2)))


def log_softmax(y: Array) -> Array:
    """``y - log sum exp y`` over the classes or channels, axis 1, without overflow."""
    return np.asarray(y - np.logaddexp.reduce(y, axis=1, keepdims=True))


def softmax(y: Array) -> Array:
    """Over the classes or channels, axis 1."""
    return np.asarray(np.exp(log_softmax(y)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": lambda y: np.maximum(y, 0),
    "relu6": lambda y: np.clip(y, 0, 6),
    "leaky": lambda y: np.maximum(y, 0.01 * y),
    "silu": lambda y: y * sigmoid(y),
    "hardswish": lambda y: y * np.clip(y / 6 + 0.5, 0, 1),
    "gelu": lambda y: y * normal_cdf(y),
    "gelu_tanh": lambda y: y * sigmoid(1.5957691216057308 * (y + 0.044715 * y**3)),  # 2 sqrt(2/pi)
    "gelu_quick": lambda y: y * sigmoid(1.702 * y),
    "mish": lambda y: y * np.tanh(np.logaddexp(0, y)),
    "elu": lambda y: np.where(y > 0, y, np.expm1(np.minimum(y, 0))),
}

# What may stand between the two layers of a gate, or behind them, by its kind.
_WITHIN: dict[str, Callable[[Array], Array]] = {
    "no-relu": lambda y: y,
    "silu-within": ACTIVATIONS["silu"],
    "gelu-within": ACTIVATIONS["gelu"],
    "leaky-within": ACTIVATIONS["leaky"],
}
_BEHIND: dict[str, Callable[[Array], Array]] = {
    "hard-sigmoid": lambda y: np.clip(y / 6 + 0.5, 0, 1),
    "hard-sigmoid-0.2": lambda y: np.clip(0.2 * y + 0.5, 0, 1),
    "no-sigmoid": lambda y: y,
    "tanh": np.tanh,
    "relu-behind": ACTIVATIONS["relu"],
    "softmax": softmax,
}


AS_IS_ABOVE_ZERO = frozenset({"none", "relu", "leaky"})
"""Activations that leave what is not negative as it is, bit by bit."""


def gate(se: SqueezeExcitationParams, y: Array, pool: Any, kind: str) -> Array:
    """SE's factor for `y` (N, C, H, W): (N, C, 1), or (N, C, P) if `pool` keeps an axis.

    Parameters
    ----------
    pool : axes to average over, or "max", "sum", "square"
    kind : "sigmoid", or what is done otherwise: a key of `_WITHIN` or `_BEHIND`
    """
    hidden = np.einsum("mc,nchw->nmhw", se.down_weight, _pooled(y, pool)) + _column(se.down_bias)
    hidden = _WITHIN.get(kind, ACTIVATIONS["relu"])(hidden)
    logit = np.einsum("cm,nmhw->nchw", se.up_weight, hidden) + _column(se.up_bias)
    factor = _BEHIND.get(kind, sigmoid)(logit)
    if factor.shape[2:] == (1, 1):
        return factor.reshape(*y.shape[:2], 1)
    return np.broadcast_to(factor, y.shape).reshape(*y.shape[:2], -1)


def _pooled(y: Array, pool: Any) -> Array:
    """The squeeze: (N, C, 1, 1), or with an axis left where a port forgets it."""
    if pool == "max":
        return np.asarray(y.max(axis=(2, 3), keepdims=True))
    if pool == "sum":
        return np.asarray(y.sum(axis=(2, 3), keepdims=True))
    if pool == "square":  # a W x W window, as if height were width
        side = min(y.shape[2:])
        return np.asarray(y[:, :, :side, :side].mean(axis=(2, 3), keepdims=True))
    return np.asarray(y.mean(axis=pool, keepdims=True))


def _column(vector: Array) -> Array:
    return vector[:, None, None]
