"""What the wrong steps are, where a name alone would not tell."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs.base import Bug, Site, planted
from repvgg_ref.oracle.training.bugs import TRAINING_BUGS
from repvgg_ref.oracle.training.recipe import Recipe
from repvgg_ref.oracle.training.run import Setup, right_setup, run
from tests.models.small import SMALL, batch, distinct_model


def wrong_setups(name: str, setup: Setup) -> list[Setup]:
    found = [bug for bug in TRAINING_BUGS if bug.name == name]
    return [mutant.variant.program for mutant in planted(found, Site(setup, setup.x))]


@cache
def plus() -> tuple[Setup, dict[str, Array]]:
    """A network with every kind of layer, and its right first step."""
    arch = SMALL["plus"]
    setup = right_setup(distinct_model(arch), *batch(arch, count=2), Recipe((0.01, 0.005)))
    return setup, run(setup, first_only=True)


def test_in_evaluation_mode_no_batch_norm_sees_the_batch() -> None:
    """Nor do those of auxiliary heads; what is not updated is still reported."""
    arch = SMALL["plus"]
    setup = right_setup(distinct_model(arch), *batch(arch), Recipe((0.01,)))
    right, found = run(setup), run(wrong_setups("bn-evaluation-mode", setup)[0])
    assert any(name.startswith("batch_mean/stage1_aux") for name in right)
    assert not any(name.startswith("batch_") for name in found)
    assert {n for n in right if n.startswith("stat/")} <= found.keys()


def test_without_heads_the_loss_is_the_main_one_and_theirs_weighs_what_is_said() -> None:
    arch = SMALL["plus"]
    setup = right_setup(distinct_model(arch), *batch(arch), Recipe((0.01,)))
    right = float(run(setup, first_only=True)["loss"])
    main, one, *_ = (
        float(run(s, first_only=True)["loss"]) for s in wrong_setups("aux-heads", setup)
    )
    heads = (right - main) / 0.1
    assert heads > 0
    assert not (abs(one - main - heads) > 1e-12 * one)


@pytest.mark.few(16)
@pytest.mark.parametrize("bug", TRAINING_BUGS, ids=lambda bug: bug.name)
def test_an_optimizers_bug_shows_after_the_first_step_and_no_other_does(bug: Bug[Setup]) -> None:
    """The diagnosis leaves out a family that cannot be."""
    setup, right = plus()
    for mutant in planted([bug], Site(setup, setup.x)):
        found = run(mutant.variant.program, first_only=True)
        same = found.keys() == right.keys() and all(
            np.array_equal(array, right[name]) for name, array in found.items()
        )
        assert same == (bug.family == "optimizer"), mutant.says
