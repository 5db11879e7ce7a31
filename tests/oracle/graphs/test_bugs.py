"""Every known bug in every place of a PSPNet: caught, placed and named, shown or hidden."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.pspnet import pspnet
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs import NODE_BUGS, pyramid, resizing
from repvgg_ref.oracle.bugs.base import Mutant, library, planted
from repvgg_ref.oracle.bugs.harness import mutants, output_of
from repvgg_ref.oracle.graphs.port import GraphPort
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.layers import Programs
from tests.models.segmenters import CHANNELS, CLASSES, DEPTHS
from tests.oracle.graphs.ports import BETWEEN, BLOCKS, MODEL, RIGHT, X, hiding, port

_WALKED = GraphPort(Programs(MODEL), RIGHT, X, PRECISIONS["fp32"])
_WALKED.along()
_REPORTS = [each.report for each in _WALKED.comparisons.values()]
_NODES = {node.name: node for node in MODEL.arch.evaluated}
_LARGE = 1e-4  # of an output: what is smaller only the statistics of a chain's layers would find

Planted = tuple[str, Mutant[Any]]
MUTANTS: list[Planted] = [
    (name, mutant)
    for name in BETWEEN
    for mutant in planted(NODE_BUGS, _WALKED.whole(_NODES[name], RIGHT[name]), name)
]


def case(mutant: Planted) -> str:
    return f"{mutant[0]}-{mutant[1].bug.name}-{mutant[1].variant.label}"


def _given(y: Any, xs: Any) -> Any:
    return y


def require_named(report: rr.Report, bug: str, layer: str) -> None:
    assert report.verdict == "disagree", report.reason
    best = report.diagnosis[0]
    assert bug in (best.bug, *best.equivalents), report.diagnosis
    assert best.is_in(layer)


def test_the_right_port_agrees() -> None:
    assert all(report.ok for report in _REPORTS)
    assert rr.verify(MODEL, hiding(RIGHT), inputs=X).verdict == "agree"


def test_every_bug_is_planted_somewhere() -> None:
    """But for the one that is read off a candidate's output, which has a test of its own."""
    names = {mutant.bug.name for _, mutant in MUTANTS}
    assert names == {bug.name for bug in library(resizing, pyramid)} - {"dropout-left-on"}
    assert not any("{" in mutant.says for _, mutant in MUTANTS)


@pytest.mark.few(10)
@pytest.mark.parametrize("mutant", MUTANTS, ids=map(case, MUTANTS))
@pytest.mark.parametrize("hidden", [False, True], ids=["shown", "hidden"])
def test_bugs_between_blocks_are_placed_and_named(mutant: Planted, hidden: bool) -> None:
    name, wrong = mutant
    outputs = port({name: lambda xs: wrong.variant.program.y})
    if hidden and len(outputs) < len(RIGHT):
        pytest.skip("no port can go on from an output of this size and hide it")
    report = rr.verify(MODEL, hiding(outputs) if hidden else outputs, inputs=X)
    require_named(report, wrong.bug.name, name)
    if not hidden:
        assert report.first_bad_layer == name


@pytest.mark.few(1)
@pytest.mark.parametrize("name", BLOCKS)
def test_bugs_of_blocks_are_placed_and_named(name: str) -> None:
    """One in twelve of the library's, others in each block."""
    below = _NODES[name].inputs[0]
    x = np.asarray(X if below == "input" else RIGHT[below], np.float64)
    rolled = {name: np.roll(RIGHT[name], 1, axis=1)}
    tried = 0
    for number, (_, mutant) in enumerate(
        mutants(_WALKED.programs, {name: x}, [name], outputs=rolled), start=BLOCKS.index(name)
    ):
        y = output_of(mutant.variant.program, x) if number % 12 == 0 else None
        if y is None:
            continue
        if (
            y.shape == RIGHT[name].shape
            and np.abs(y - RIGHT[name]).max() < _LARGE * np.abs(y).max()
        ):
            continue
        report = rr.verify(MODEL, port({name: partial(_given, y)}), inputs=X)
        require_named(report, mutant.bug.name, name)
        assert report.first_bad_layer == name
        tried += 1
    assert tried


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("ppm.1.resize", lambda y: y * (1 + 0.01 * np.cos(np.arange(y.shape[3])))),
        ("ppm.3.pool", lambda y: y + 0.01 * np.sign(y)),
        ("ppm", lambda y: np.where(y > 1, np.sqrt(np.abs(y)), y)),
        ("cls.0", lambda y: y + 0.01 * y * y),
        ("logits", lambda y: y + 0.01 * np.abs(y)),
    ],
)
def test_what_is_in_no_library_is_unknown_and_placed(name: str, wrong: Any) -> None:
    report = rr.verify(MODEL, port({name: lambda xs: wrong(RIGHT[name])}), inputs=X)
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("unknown", name)]


def test_dropout_left_on_is_read_off_the_logits_of_a_port_that_hides_it() -> None:
    kept = np.random.default_rng(0).random((len(X), RIGHT["cls.0"].shape[1])) > 0.3
    drop = {"cls.dropout": lambda xs: xs[0] * (kept / 0.9)[:, :, None, None]}
    for outputs in (port(drop), hiding(port(drop))):
        report = rr.verify(MODEL, outputs, inputs=X)
        require_named(report, "dropout-left-on", "cls.dropout")
        assert report.diagnosis[0].estimate == pytest.approx((~kept).mean())


def test_a_wide_head_is_looked_at_in_part_and_loses_no_bug() -> None:
    """Of more than 64 channels 32 tell whether a hidden bug is worth computing all of them."""
    chain = plain_architecture(depths=DEPTHS, channels=CHANNELS, num_classes=3)
    wide = distinguishing_model(pspnet(chain, num_classes=CLASSES, head=80, aux_head=7))
    last = {"ppm": lambda xs: np.concatenate([*xs[1:], xs[0]], axis=1)}
    for wrong, bug in ((last, "concat-order"), ({}, "")):
        outputs = hiding(port(wrong, rr.fuse(wide)))
        report = rr.verify(wide, outputs, inputs=X)
        assert [finding.bug for finding in report.diagnosis] == ([bug] if bug else [])


def test_one_bug_with_two_numbers_is_two_causes() -> None:
    """Stages that exchange their dilations: neither number is said of both."""
    programs = {name: _WALKED.programs[name] for name in BLOCKS}
    exchanged = {name: {2: 4, 4: 2}.get(program.dilation) for name, program in programs.items()}
    wrong = {
        name: partial(
            lambda program, xs: np.asarray(output_of(program, xs[0])),
            replace(programs[name], dilation=dilation, pads=(dilation,) * 4),
        )
        for name, dilation in exchanged.items()
        if dilation is not None
    }
    report = rr.verify(MODEL, port(wrong), inputs=X)
    told = [(each.estimate, each.layer) for each in report.diagnosis]
    assert told == [(4.0, "stage3.0"), (2.0, "stage4.0")]
    assert {each.bug for each in report.diagnosis} == {"dilation-other"}
