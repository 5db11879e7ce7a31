"""Every schedule against torch's own scheduler, step by step; poly against its formula too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest

from repvgg_ref.train.recipe import Recipe
from repvgg_ref.train.schedule import learning_rate

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.peers

STEPS_PER_EPOCH, EPOCHS = 7, 12
TOTAL = STEPS_PER_EPOCH * EPOCHS
LR = 0.3

schedulers = torch.optim.lr_scheduler


def of_torch(make: Callable[[Any], Any], steps: int = TOTAL) -> list[float]:
    """The rates that a torch scheduler sets, one a step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = make(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PolynomialLR warns of its own deprecated use
            scheduler.step()
    return rates


def ours(**settings: Any) -> list[float]:
    recipe = Recipe(epochs=EPOCHS, lr=LR, **settings)
    return [learning_rate(recipe, step, steps_per_epoch=STEPS_PER_EPOCH) for step in range(TOTAL)]


@pytest.mark.parametrize("final", [0.0, 0.01])
def test_cosine(final: float) -> None:
    theirs = of_torch(lambda o: schedulers.CosineAnnealingLR(o, TOTAL, eta_min=final))
    assert ours(schedule="cosine", final_lr=final) == pytest.approx(theirs, rel=1e-12, abs=1e-12)


def test_steps() -> None:
    marks = [3 * STEPS_PER_EPOCH, 8 * STEPS_PER_EPOCH]
    theirs = of_torch(lambda o: schedulers.MultiStepLR(o, marks, gamma=0.2))
    mine = ours(schedule="step", step_epochs=(3.0, 8.0), step_factor=0.2)
    assert mine == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize("power", [0.9, 2.0])
def test_poly(power: float) -> None:
    theirs = of_torch(lambda o: schedulers.PolynomialLR(o, TOTAL, power=power))
    mine = ours(schedule="poly", poly_power=power)
    assert mine == pytest.approx(theirs, rel=1e-9)
    assert mine == pytest.approx([LR * (1 - t / TOTAL) ** power for t in range(TOTAL)], rel=1e-12)


def test_constant() -> None:
    assert ours(schedule="constant") == of_torch(lambda o: schedulers.ConstantLR(o, factor=1.0))


@pytest.mark.parametrize("start", [0.1, 0.5])
def test_warm_up_takes_the_place_of_the_first_steps_and_shifts_nothing(start: float) -> None:
    warm = 2 * STEPS_PER_EPOCH
    rising = of_torch(lambda o: schedulers.LinearLR(o, start, total_iters=warm), warm)
    falling = of_torch(lambda o: schedulers.CosineAnnealingLR(o, TOTAL))
    mine = ours(schedule="cosine", warm_up_epochs=2.0, warm_up_start=start)
    assert mine == pytest.approx(rising + falling[warm:], rel=1e-9, abs=1e-12)
