"""What the wrong steps are, where a name alone would not tell."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.baselines import resnet
from repvgg_ref.models.graph import Network
from repvgg_ref.models.residual_reorg import residual_reorg
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


CHAIN = plain_architecture(depths=[2, 1], channels=[4, 4, 4], num_classes=3, kind="plain")
NETWORKS: dict[str, Network] = {
    "residual-reorg": residual_reorg(CHAIN),
    "resnet": resnet("small", depths=(1,), bottleneck=False, num_classes=3),
    **{
        kind: replace(CHAIN, blocks=tuple(replace(spec, kind=kind) for spec in CHAIN.blocks))
        for kind in ("dirac", "dbb", "qarepvgg", "post-addition-bn", "mobileone")
    },
}


@pytest.mark.parametrize("name", NETWORKS)
def test_kernels_decay_whatever_their_norms_are_called(name: str) -> None:
    """An array of two dimensions or more is a kernel: ``bn1.weight``, ``downsample.1`` are none."""
    model = rr.build(NETWORKS[name])
    x, labels = batch(model.arch, count=2)
    setup = right_setup(model, x, labels, Recipe((0.01,)))
    kernels = {n for n, array in model.state_dict().items() if array.ndim > 1}
    trained = {n.removeprefix("grad/") for n in run(setup, first_only=True) if n[:5] == "grad/"}
    assert {n for n in trained if setup.factors_in_use(n).decay} == kernels
    assert {setup.factors_in_use(n).lr for n in trained} == {1.0}
    other = setup.factors_by("official-first")
    norms = {official for ours, official in setup.names.items() if ours.endswith(".beta")}
    if name in ("residual-reorg", "resnet"):
        assert {(other(n).lr, other(n).decay) for n in norms} == {(2.0, 0.0)}
        assert not {n for n in trained - kernels if other(n).decay}


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
