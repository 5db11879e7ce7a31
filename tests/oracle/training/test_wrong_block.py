"""Bugs of branches follow from a block's expression, whatever kind of block it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import KINDS, block, conv, conv_bn, identity
from repvgg_ref.blocks.linear import Chain, Norm, Sum
from repvgg_ref.blocks.run import Linear
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import Architecture, plain_architecture
from repvgg_ref.oracle.bugs.base import Site, Variant
from repvgg_ref.oracle.training.bugs import TRAINING_BUGS
from repvgg_ref.oracle.training.bugs.wrong_block import (
    Detached,
    Untrained,
    branches,
    with_branch,
    with_sum,
)
from repvgg_ref.oracle.training.judge import judge_training
from repvgg_ref.oracle.training.recipe import Recipe
from repvgg_ref.oracle.training.run import Setup, right_setup, run
from repvgg_ref.oracle.training.steps import training_steps
from tests.models.small import batch, distinct_model

LAYER = "stage1.1"
MISSING = ("identity-gradient-missing", "branch-1x1-gradient-missing", "branch-gradient-missing")
BUGS = (*MISSING, "branch-not-trained", "relu-mask-wrong")


def asymmetric(spec: BlockSpec) -> Linear:
    """A square kernel, a flat one and a high one."""
    kernels = {"square": (3, 3), "flat": (1, 3), "high": (3, 1)}
    return Sum(*(conv_bn(spec, f"branch_3x3.{name}", *size) for name, size in kernels.items()))


def normed_after(spec: BlockSpec) -> Linear:
    """``BN(W3 x + W1 x + x)``: one batch norm for all branches."""
    parts = [conv(spec, "branch_3x3.conv", 3), conv(spec, "branch_1x1.conv", 1)]
    same = [identity(spec)] if spec.can_add_input else []
    return Chain(Sum(*parts, *same), Norm("branch_identity.bn", spec.out_channels))


@pytest.fixture(autouse=True)
def more_kinds() -> Iterator[None]:
    block("asymmetric-test", "", {})(asymmetric)
    block("normed-after-test", "", {})(normed_after)
    yield
    del KINDS["asymmetric-test"], KINDS["normed-after-test"]


EVERY_KIND = (  # of which a RepVGG is built, and two more
    *(name for name, each in KINDS.items() if each.keys),
    "asymmetric-test",
    "normed-after-test",
)


def architecture_of(kind: str) -> Architecture:
    return plain_architecture(depths=[3], channels=[4, 4], num_classes=3, in_channels=2, kind=kind)


def setup_of(kind: str, *, at: str | None = LAYER) -> Setup:
    arch = architecture_of(kind)
    setup = right_setup(distinct_model(arch), *batch(arch, count=2), Recipe((0.01,)))
    return replace(setup, at=None if at is None else frozenset({at}))


def variants(name: str, setup: Setup) -> list[Variant[Setup]]:
    found = next(bug for bug in TRAINING_BUGS if bug.name == name)
    return list(found.mutate(Site(setup, setup.x)))


def gradients(setup: Setup) -> dict[str, Array]:
    found = run(setup, first_only=True)
    return {n.removeprefix("grad/"): a for n, a in found.items() if n.startswith("grad/")}


@pytest.mark.parametrize(
    ("kind", "identities", "points", "others"),
    [
        ("repvgg", ["branch_identity"], ["branch_1x1"], ["branch_3x3"]),
        ("normed-after-test", ["branch_identity"], ["branch_1x1"], ["branch_3x3"]),
        ("asymmetric-test", [], [], [f"branch_3x3.{name}" for name in ("high", "flat", "square")]),
        ("identity-only", ["branch_identity"], [], ["branch_3x3"]),
        ("plain", [], [], ["branch_3x3"]),
    ],
)
def test_the_expression_is_asked_which_bugs_there_are(
    kind: str, identities: list[str], points: list[str], others: list[str]
) -> None:
    setup = setup_of(kind)
    found = {bug: [wrong.detail for wrong in variants(bug, setup)] for bug in BUGS}
    assert len(found["identity-gradient-missing"]) == len(identities)
    assert len(found["branch-1x1-gradient-missing"]) == len(points)
    assert found["branch-gradient-missing"] == others
    everything = [*identities, *points, *others]
    bare = identities if kind == "normed-after-test" else []
    assert found["branch-not-trained"] == [name for name in everything if name not in bare]
    assert found["relu-mask-wrong"][-len(everything) :] == [
        f"it passes where {name} is positive instead of the sum" for name in everything
    ]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_what_branches_send_back_adds_up(kind: str) -> None:
    setup = setup_of(kind)
    right = gradients(setup)
    missing = [gradients(wrong.program) for name in MISSING for wrong in variants(name, setup)]
    if kind == "dirac":  # one convolution, whose kernel is computed: nothing is added up
        assert not missing
        return
    assert missing, "no sum comes first in this kind of block"
    below = [name for name in right if name.startswith(("stage0.", "stage1.0."))]
    for name in right:
        if name not in below:  # the branch's own arrays, and all above, are trained as ever
            assert all(np.array_equal(right[name], without[name]) for without in missing), name
        else:
            sent = sum(right[name] - without[name] for without in missing)
            size = max(1.0, float(np.abs(right[name]).max()))
            assert not (np.abs(sent - right[name]).max() > 1e-10 * size), name


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_an_untrained_branch_keeps_its_arrays_and_nothing_else(kind: str) -> None:
    setup = setup_of(kind)
    right = gradients(setup)
    layer = next(node for node in setup.network.nodes if node.name == LAYER)
    owned = {
        name: {setup.names[f"{LAYER}.{part}"] for part in branch.shapes()}
        for name, branch in branches(layer.op).items()
    }
    for wrong in variants("branch-not-trained", setup):
        for name, grad in gradients(wrong.program).items():
            wanted = 0 * right[name] if name in owned[wrong.detail] else right[name]
            assert np.array_equal(grad, wanted), (wrong.detail, name)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_an_expression_that_is_not_changed_trains_bit_by_bit_as_the_block(kind: str) -> None:
    setup = setup_of(kind, at=None)
    right, same = run(setup), run(with_sum(setup, lambda total: total))
    assert right.keys() == same.keys()
    assert all(np.array_equal(right[name], same[name]) for name in right)


def test_two_bugs_of_branches_go_together() -> None:
    setup = setup_of("repvgg")
    both = with_branch(with_branch(setup, "branch_1x1", Detached), "branch_1x1", Untrained)
    alone = gradients(with_branch(setup, "branch_1x1", Detached))
    found = gradients(both)
    for name, grad in found.items():
        own = name.startswith(f"{LAYER}.rbr_1x1.")
        assert np.array_equal(grad, 0 * alone[name] if own else alone[name]), name


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["normed-after-test", "asymmetric-test"])
@pytest.mark.parametrize("bug", BUGS)
def test_a_bug_in_a_branch_of_another_kind_is_named(kind: str, bug: str) -> None:
    arch = architecture_of(kind)
    model = distinct_model(arch, dtype=np.float32)
    x, labels = batch(arch, count=2, dtype=np.float32)
    steps = training_steps(model, x, labels, steps=1)
    planted = right_setup(model, x, labels, steps.recipe)
    for wrong in variants(bug, planted):
        report = judge_training(steps, run(wrong.program), model=model)
        found = report.diagnosis[0]
        assert found.bug == bug, report.reason
        assert wrong.detail in found.says
