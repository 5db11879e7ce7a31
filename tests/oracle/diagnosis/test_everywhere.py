"""A cause that stands in all layers is one finding, in "all"; in all but one it is not."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.network import fuse
from repvgg_ref.oracle.bugs import LAYER_BUGS
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.diagnosis.static_check import check_weights
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.verification import judge
from tests.models.small import SMALL

MODEL = distinguishing_model(SMALL["plain"])
PROGRAMS = Programs(MODEL)
X = distinguishing_inputs(MODEL.arch, height=28, width=24)
BLOCKS = MODEL.arch.layer_names[:-1]
WITH_IDENTITY = [name for name in BLOCKS if len(PROGRAMS[name].branches) == 3]


def _outputs(bug: str, where: Collection[str]) -> dict[str, Array]:
    """A float32 port with a bug in some blocks, wherever it can be there."""
    bugs = [each for each in LAYER_BUGS if each.name == bug]
    outputs, x = {}, X
    for name, program in PROGRAMS.items():
        wrong = program
        if name in where:
            made = planted(bugs, site_of(PROGRAMS, name, x), name)
            wrong = next((mutant.variant.program for mutant in made), program)
        x = outputs[name] = layer_output(wrong, x.astype(float)).astype(np.float32)
    return outputs


def _judged(bug: str, where: Collection[str]) -> Report:
    return judge(MODEL, Outputs(_outputs(bug, where)), X)


@pytest.mark.parametrize(
    ("bug", "first"),
    [
        ("eps-value", "stage0"),
        ("eps-outside-root", "stage0"),
        ("identity-missing", WITH_IDENTITY[0]),
        ("weights-bf16", "stage0"),
    ],
)
def test_a_cause_in_all_blocks_is_one_finding(bug: str, first: str) -> None:
    """The head is right, and blocks without identity cannot miss it."""
    report = _judged(bug, BLOCKS)
    assert [(f.bug, f.layer) for f in report.diagnosis] == [(bug, "all")]
    assert report.first_bad_layer == first
    assert report.to_json()["diagnosis"][0]["layer"] == "all"
    assert report.diagnosis[0].says in report.reason


@pytest.mark.parametrize("bug", ["eps-value", "identity-missing"])
def test_a_cause_in_all_but_one_stands_where_it_is(bug: str) -> None:
    able = BLOCKS if bug == "eps-value" else WITH_IDENTITY
    report = _judged(bug, able[:-1])
    assert report.diagnosis[0].bug == bug
    assert report.diagnosis[0].layer == report.first_bad_layer == able[0]
    others = able[1:-1]
    assert ("also in" in report.diagnosis[0].says) == bool(others)
    assert all(name in report.diagnosis[0].says for name in others[:3])


def test_two_numbers_are_two_causes() -> None:
    """Another eps in the last block than in the others."""
    outputs, x = _outputs("eps-value", BLOCKS[:-1]), X
    x = outputs[BLOCKS[-2]]
    last = replace(PROGRAMS[BLOCKS[-1]], eps=3e-3)
    outputs[BLOCKS[-1]] = layer_output(last, x.astype(float)).astype(np.float32)
    head = layer_output(PROGRAMS["linear"], outputs[BLOCKS[-1]].astype(float))
    report = judge(MODEL, Outputs(outputs | {"linear": head.astype(np.float32)}), X)
    assert report.diagnosis[0].bug == "eps-value"
    assert report.diagnosis[0].layer == "stage0"


@pytest.mark.parametrize("right", [None, BLOCKS[-1]])
def test_weight_files_say_so_too(right: str | None, tmp_path: Path) -> None:
    wrong, state = fuse(replace(MODEL, eps=1e-3)).params, fuse(MODEL).params
    port = {k: state[k] if right and k.startswith(right) else v for k, v in wrong.items()}
    save(replace(fuse(MODEL), params=port), tmp_path / "port.npz")
    report = check_weights(MODEL, tmp_path / "port.npz")
    place = "all" if right is None else "stage0"
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("eps-value", place)]
    assert report.first_bad_layer == "stage0"


@pytest.mark.slow
def test_two_causes_in_all_blocks_are_told_although_the_first_alone_is_searched_for_pairs() -> None:
    """More layers are bad than are searched: the others are held against the first one's two."""
    names = ("mean-sign", "bias-twice")
    outputs, x = {}, X
    for name, program in PROGRAMS.items():
        wrong = program
        for bug in names if name in BLOCKS else ():
            site = replace(site_of(PROGRAMS, name, x), program=wrong)
            bugs = [each for each in LAYER_BUGS if each.name == bug]
            wrong = next(planted(bugs, site, name)).variant.program
        x = outputs[name] = layer_output(wrong, x.astype(float)).astype(np.float32)
    report = judge(MODEL, Outputs(outputs), X)
    assert sum(not layer.ok for layer in report.layers) > 3
    assert {f.bug for f in report.diagnosis} == set(names)
    assert all("also in" in f.says or f.layer == "all" for f in report.diagnosis)
