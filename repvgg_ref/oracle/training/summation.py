"""Training steps on a machine that adds up one term after the other.

Sums over the pixels of a batch are long: a port that keeps one float32 total a channel is correct,
and its rounding errors grow with the square root of the number of terms. Disturbing every element
for itself, as `noise` does, never shows that, since such errors cancel in the sum.

A total of n terms passes through n partial sums, and each is rounded. With the terms' sum S and sum
of squares Q their squares add up to about ``S^2 n / 3 + Q n / 2`` (a drift, and a random walk about
it), so the error's deviation is that number's root times that of one rounding.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.ops import Ops
from repvgg_ref.oracle.training.run import Setup

_ONE_ROUNDING = 0.5  # standard deviation, in unit roundoffs of the partial sum


def adding_in_sequence(setup: Setup, u: float, rng: np.random.Generator) -> Setup:
    """The setup with the errors of long sums, u the unit roundoff."""
    slips = _Slips(u, rng)
    return replace(setup, base=slips.of(setup.base), ops=slips.of(setup.ops))


class _Slips:
    """Random errors of sums, drawn operator by operator."""

    def __init__(self, u: float, rng: np.random.Generator) -> None:
        self._u, self._rng = u, rng

    def of(self, ops: Ops) -> Ops:
        """The table whose long sums slip."""
        return replace(
            ops,
            batch_norm_train_forward=self._norm(ops),
            batch_norm_train_backward=self._norm_backward(ops),
            conv2d_backward=self._conv_backward(ops),
            global_avg_pool_forward=self._pool(ops),
        )

    def _slip(self, total: Array, squares: Array, count: float) -> Array:
        """The error of sums of `count` terms with these sums and sums of squares."""
        size = np.sqrt(total**2 * count / 3 + squares * count / 2)
        return np.asarray(_ONE_ROUNDING * self._u * size * self._rng.standard_normal(size.shape))

    def _norm(self, ops: Ops) -> Any:
        def forward(x: Array, gamma: Array, beta: Array, *, eps: Any) -> tuple[Array, Any]:
            _, cache = ops.batch_norm_train_forward(x, gamma, beta, eps=eps)
            found: Any = cache
            n = x.size / x.shape[1]
            off = self._slip(found.mean * n, found.var * n, n) / n
            wider = self._slip(found.var * n, 2 * found.var**2 * n, n) / n
            std = 1 / found.inv_std
            inv_std = found.inv_std * (1 - wider / (2 * std**2))
            x_hat = (found.x_hat * std[:, None, None] - off[:, None, None]) * inv_std[:, None, None]
            y = gamma[:, None, None] * x_hat + beta[:, None, None]
            return y, found._replace(
                x_hat=x_hat, inv_std=inv_std, mean=found.mean + off, var=found.var + wider
            )

        return forward

    def _norm_backward(self, ops: Ops) -> Any:
        def backward(grad_y: Array, cache: Any) -> Any:
            grads = ops.batch_norm_train_backward(grad_y, cache)
            n = grad_y.size / grad_y.shape[1]
            axes = (0, 2, 3)
            products = ((grad_y * cache.x_hat) ** 2).sum(axes)
            off_gamma = self._slip(grads.grad_gamma, products, n)
            off_beta = self._slip(grads.grad_beta, (grad_y**2).sum(axes), n)
            slope = (cache.gamma * cache.inv_std / n)[:, None, None]
            through = off_beta[:, None, None] + off_gamma[:, None, None] * cache.x_hat
            return grads._replace(
                grad_x=grads.grad_x - slope * through,
                grad_gamma=grads.grad_gamma + off_gamma,
                grad_beta=grads.grad_beta + off_beta,
            )

        return backward

    def _conv_backward(self, ops: Ops) -> Any:
        def backward(grad_y: Array, cache: Any) -> Any:
            grads = ops.conv2d_backward(grad_y, cache)
            n = grad_y.size / grad_y.shape[1]
            # (O,) mean squares of the gradients times that of all inputs: each product's, about
            square = (grad_y**2).mean(axis=(0, 2, 3)) * float((cache.x**2).mean())
            squares = np.broadcast_to(square[:, None, None, None] * n, grads.grad_weight.shape)
            slip = self._slip(grads.grad_weight, squares, n)
            return grads._replace(grad_weight=grads.grad_weight + slip)

        return backward

    def _pool(self, ops: Ops) -> Any:
        def forward(x: Array) -> tuple[Array, Any]:
            y, cache = ops.global_avg_pool_forward(x)
            n = x.shape[2] * x.shape[3]
            return y + self._slip(y * n, (x**2).sum(axis=(2, 3)), n) / n, cache

        return forward
