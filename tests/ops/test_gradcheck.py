"""The checker is checked: right gradients pass, planted wrong ones fail."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from tests.gradcheck import assert_gradients

X, Y = np.linspace(1, 2, 12).reshape(3, 4), np.linspace(-1, 1, 12).reshape(3, 4)


def product(x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return x * y, (x, y)


def product_backward(grad_y: Array, cache: tuple[Array, Array]) -> tuple[Array, Array]:
    x, y = cache
    return grad_y * y, grad_y * x


def test_a_right_gradient_passes() -> None:
    assert_gradients(product, product_backward, X, Y, seed=0)


def one_element_off(grad: Array) -> Array:
    grad[1, 2] += 1e-3
    return grad


@pytest.mark.parametrize(
    "spoil",
    [
        lambda grad: -grad,
        lambda grad: grad * (1 + 1e-5),
        lambda grad: grad * 0,
        lambda grad: grad * np.nan,
        lambda grad: grad[:, ::-1],
        lambda grad: grad[:1],
        lambda grad: None,
        one_element_off,
    ],
    ids=["sign", "scale", "zero", "nan", "order", "shape", "none", "one element"],
)
@pytest.mark.parametrize("position", [0, 1])
def test_a_planted_wrong_gradient_fails(
    spoil: Callable[[Array], Array | None], position: int
) -> None:
    def wrong(grad_y: Array, cache: tuple[Array, Array]) -> tuple[Array | None, ...]:
        grads: list[Array | None] = [*product_backward(grad_y, cache)]
        grads[position] = spoil(grads[position])  # type: ignore[arg-type]
        return tuple(grads)

    with pytest.raises(AssertionError, match=f"input {position}"):
        assert_gradients(product, wrong, X, Y, seed=0)
