"""One library: every bug is named once, says something, and applies somewhere."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import INPUT
from repvgg_ref.models.repvit import repvit
from repvgg_ref.oracle.bugs import BETWEEN_BUGS, HEAD_BUGS, LAYER_BUGS, NODE_BUGS, Bug
from repvgg_ref.oracle.bugs.harness import mutants, output_of
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import batch_output, layer_output
from repvgg_ref.oracle.training.bugs import TRAINING_BUGS
from tests.models.small import SMALL

# Branches that have no bug of their own.
ASYMMETRIC = plain_architecture(
    depths=[2, 1], channels=[4, 6, 8], num_classes=3, in_channels=2, kind="acb"
)

INSIDE = plain_architecture(depths=[1], channels=[4, 4], num_classes=3, kind="relu-in-branches")
NO_CHAIN = repvit("small", widths=(8, 12), depths=(1, 1), num_classes=3)

# They need a square image, a candidate's output, two layers of one shape, or a head that flattens.
_ELSEWHERE = {"height-width-swapped", "channels-permuted", "layers-swapped", "flatten-order"}


@pytest.mark.parametrize(
    "bugs",
    [LAYER_BUGS, BETWEEN_BUGS, HEAD_BUGS, NODE_BUGS, TRAINING_BUGS],
    ids=["blocks", "between", "head", "nodes", "training"],
)
def test_every_bug_has_one_name_and_something_to_say(bugs: tuple[Bug[Any], ...]) -> None:
    names = [bug.name for bug in bugs]
    assert len(set(names)) == len(names)
    assert all(bug.says and bug.advice for bug in bugs)
    assert all(bug.says.format(parameter=1.0, detail="here") for bug in bugs)


def test_the_harness_plants_every_bug_somewhere_and_names_the_place() -> None:
    seen = set()
    for arch in (*SMALL.values(), ASYMMETRIC, INSIDE, NO_CHAIN):
        programs, inputs = Programs(distinguishing_model(arch)), dict[str, Any]()
        known = {INPUT: distinguishing_inputs(arch, height=20, width=24).astype(np.float64)}
        for name, program in programs.items():
            inputs[name] = programs.input_of(name, known)
            known[name] = layer_output(program, inputs[name])
        for site, mutant in mutants(programs, inputs):
            assert mutant.layer == site.program.name
            assert "{" not in mutant.says
            seen.add(mutant.bug.name)
    everything = {bug.name for bugs in (LAYER_BUGS, BETWEEN_BUGS, HEAD_BUGS) for bug in bugs}
    assert seen >= everything - _ELSEWHERE


def test_what_a_precision_excuses_is_not_planted() -> None:
    arch = SMALL["plain"]
    programs = Programs(distinguishing_model(arch))
    x = distinguishing_inputs(arch, height=20, width=24).astype(np.float64)

    def planted(precision: str) -> set[str]:
        found = mutants(programs, {"stage0": x}, ["stage0"], precision=precision)
        return {mutant.bug.name for _, mutant in found}

    assert "weights-bf16" in planted("") - planted("bf16")


def test_a_right_program_gives_what_the_model_gives_in_both_ways_of_running_it() -> None:
    model = distinguishing_model(SMALL["plus"])
    x = distinguishing_inputs(model.arch, height=20, width=24)
    outputs = model.forward(x, layers=True)
    y = x.astype(np.float64)
    for name, program in Programs(model).items():
        whole, pieces = output_of(program, y), layer_output(program, y)
        assert whole is not None
        assert np.allclose(whole, pieces, rtol=1e-12, atol=1e-12)
        assert batch_output(program, y).shape == outputs[name].shape
        assert np.allclose(pieces, outputs[name], rtol=1e-3, atol=1e-3)
        y = pieces
