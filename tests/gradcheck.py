"""A backward pass against finite differences; NaN cannot pass, and nothing is returned to drop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array


def assert_gradients(
    forward: Callable[..., tuple[Array, Any]],
    backward: Callable[[Array, Any], Array | tuple[Array | None, ...]],
    *inputs: Array,
    seed: int,
    step: float = 1e-6,
    tolerance: float = 1e-7,
) -> None:
    """Raise `AssertionError` unless `backward` gives the gradient by each of `inputs`.

    The loss is ``sum(grad_y * y)`` for a random `grad_y`. Along a random direction d,
    ``sum(grad * d)`` must equal ``(loss(x + step d) - loss(x - step d)) / (2 step)`` within
    `tolerance` of the size of the terms: a single wrong element shows in any random direction.
    """
    rng = np.random.default_rng([seed, 1])  # not the stream that filled the inputs
    y, cache = forward(*inputs)
    grad_y = rng.standard_normal(y.shape)
    grads = backward(grad_y, cache)
    for index, grad in enumerate(grads if isinstance(grads, tuple) else (grads,)):
        x = inputs[index]
        assert grad is not None, f"input {index} has no gradient"
        assert grad.shape == x.shape, f"input {index}: gradient {grad.shape}, input {x.shape}"
        direction = rng.standard_normal(x.shape)
        losses = [
            (grad_y * forward(*inputs[:index], x + shift, *inputs[index + 1 :])[0]).sum()
            for shift in (step * direction, -step * direction)
        ]
        numeric = (losses[0] - losses[1]) / (2 * step)
        analytic = (grad * direction).sum()
        size = np.abs(grad * direction).sum() + np.abs(grad_y * y).sum() + abs(numeric)
        if not (abs(numeric - analytic) <= tolerance * size):
            raise AssertionError(
                f"input {index}: gradient along a direction: numeric {numeric}, analytic {analytic}"
            )
