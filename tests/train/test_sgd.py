"""The optimiser's step: worked by hand, and its laws."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.train.sgd import Factors, SgdStep, sgd_step


def plain(_: str) -> Factors:
    return Factors()


def step(
    params: dict[str, Array],
    grads: dict[str, Array],
    velocities: dict[str, Array] | None = None,
    *,
    factors: Callable[[str], Factors] = plain,
    **changed: Any,
) -> SgdStep:
    settings: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    return sgd_step(params, grads, velocities or {}, factors=factors, **settings | changed)


def exact(*values: int) -> Array:
    return np.array([Fraction(value) for value in values], object)


@pytest.mark.parametrize(
    ("nesterov", "first", "second"),
    [
        # d1 = 2 + 4/2 = 4, v1 = 4, p1 = 4 - 4/2 = 2; d2 = 2 + 2/2 = 3, v2 = 4/4 + 3 = 4, p2 = 0
        (False, 2, 0),
        # p1 = 4 - (4 + 4/4)/2 = 3/2; d2 = 2 + 3/4, v2 = 1 + d2, p2 = 3/2 - (d2 + v2/4)/2
        (True, Fraction(3, 2), Fraction(3, 2) - (Fraction(11, 4) + Fraction(15, 16)) / 2),
    ],
)
def test_two_steps_equal_the_equations_worked_by_hand(
    nesterov: bool, first: Fraction, second: Fraction
) -> None:
    settings: dict[str, Any] = {
        "lr": Fraction(1, 2),
        "momentum": Fraction(1, 4),
        "weight_decay": Fraction(1, 2),
        "nesterov": nesterov,
        "factors": lambda name: Factors(1, 1),
    }
    one = step({"w": exact(4)}, {"w": exact(2)}, **settings)
    two = step(one.params, {"w": exact(2)}, one.velocities, **settings)
    assert one.params["w"][0] == first
    assert two.params["w"][0] == second


def test_nothing_given_is_modified_and_nothing_returned_is_shared() -> None:
    arrays = [{"w": np.arange(3.0) + n} for n in range(3)]
    for mapping in arrays:
        mapping["w"].flags.writeable = False
    result = step(*arrays, weight_decay=0.1, nesterov=True)
    assert [m["w"][0] for m in arrays] == [0.0, 1.0, 2.0]
    for new in (result.params["w"], result.velocities["w"]):
        assert not any(np.shares_memory(new, mapping["w"]) for mapping in arrays)


def test_an_array_without_a_gradient_is_passed_on() -> None:
    running = np.ones(2)
    result = step({"w": np.ones(2), "running_mean": running}, {"w": np.ones(2)})
    assert result.params["running_mean"] is running
    assert list(result.velocities) == ["w"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_stays(dtype: Any) -> None:
    w = np.ones(2, dtype)
    result = step({"w": w}, {"w": w}, {"w": w}, weight_decay=1e-4, nesterov=True)
    assert result.params["w"].dtype == result.velocities["w"].dtype == dtype


def test_no_velocity_is_the_velocity_zero() -> None:
    w, grad = np.arange(3.0), np.ones(3)
    for nesterov in (False, True):
        fresh = step({"w": w}, {"w": grad}, nesterov=nesterov)
        zeros = step({"w": w}, {"w": grad}, {"w": np.zeros(3)}, nesterov=nesterov)
        assert np.array_equal(fresh.params["w"], zeros.params["w"])


def test_factors_scale_rate_and_decay_of_one_array() -> None:
    w = np.full(2, 10.0)

    def factors(name: str) -> Factors:
        return Factors(lr=2.0, decay=0.0) if name == "bias" else Factors()

    grads = {"weight": np.ones(2), "bias": np.ones(2)}
    result = step({"weight": w, "bias": w}, grads, factors=factors, weight_decay=0.5)
    assert np.array_equal(result.params["weight"], np.full(2, 10 - 0.1 * (1 + 5)))
    assert np.array_equal(result.params["bias"], np.full(2, 10 - 0.2 * 1))


@pytest.mark.parametrize("grad", [{"w": np.ones(3)}, {"v": np.ones(2)}])
def test_a_gradient_that_fits_no_parameter_is_named(grad: dict[str, Array]) -> None:
    with pytest.raises(ShapeError, match=f"the gradient of {next(iter(grad))}"):
        step({"w": np.ones(2)}, grad)
