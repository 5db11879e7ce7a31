"""A bug in all places of an operation, which a port hides: named once, at the first of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.models.dense import AdaptiveAvgPool, ResizeAs, Zoom
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs import NODE_BUGS
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.graphs.judge import judge_graph
from repvgg_ref.oracle.graphs.port import GraphPort
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.node import NodeProgram
from repvgg_ref.oracle.programs.program import batch_output
from tests.oracle.graphs.ports import MODEL, RIGHT, X, hiding, port

_WALKED = GraphPort(Programs(MODEL), RIGHT, X, PRECISIONS["fp32"])
_WALKED.along()
_FLOORS = ["ppm.1.resize", "ppm.2.resize", "ppm.3.resize"]
_POOLS = ["ppm.0.pool", "ppm.1.pool", "ppm.2.pool", "ppm.3.pool"]


def _given(program: NodeProgram, xs: list[Array]) -> Array:
    return replace(program, xs=tuple(xs)).y


def wrong_everywhere(bug: str, label: str, *kinds: type, but: str = "") -> dict[str, Array]:
    """A port all of whose nodes of these operations (but one) have a bug, if they can have it."""
    wrong: dict[str, Callable[[list[Array]], Array]] = {}
    for node in MODEL.arch.evaluated:
        if isinstance(node.op, kinds) and node.name != but:
            for mutant in planted(NODE_BUGS, _WALKED.whole(node), node.name):
                if (mutant.bug.name, mutant.variant.label) == (bug, label):
                    wrong[node.name] = partial(_given, mutant.variant.program)
    assert len(wrong) > 1
    return port(wrong)


def without(outputs: dict[str, Array], places: list[str]) -> dict[str, Array]:
    return {name: y for name, y in outputs.items() if name not in places}


@pytest.mark.few(1)
@pytest.mark.parametrize("shown", ["blocks", "all but the floors", "logits", "all"])
@pytest.mark.parametrize(
    ("bug", "label", "kinds", "places"),
    [
        ("corners-not-aligned", "half-pixel", (ResizeAs,), _FLOORS),
        ("corners-not-aligned", "asymmetric", (ResizeAs, Zoom), [*_FLOORS, "logits"]),
        ("resize-cubic", "half-pixel", (ResizeAs,), _FLOORS),
        ("pool-max", "", (AdaptiveAvgPool,), _POOLS),
    ],
)
def test_it_is_named(
    bug: str, label: str, kinds: tuple[type, ...], places: list[str], shown: str
) -> None:
    outputs = wrong_everywhere(bug, label, *kinds)
    seen = {
        "blocks": hiding(outputs),
        "all but the floors": without(outputs, places[:-1] if "logits" in places else places),
        "logits": {"logits": outputs["logits"]},
        "all": outputs,
    }[shown]
    report = rr.verify(MODEL, seen, inputs=X)
    assert report.verdict == "disagree"
    (finding,) = report.diagnosis
    assert finding.bug == bug
    if finding.layer == "all":
        assert f"in all {len(places)} layers" in finding.says
    else:
        assert finding.layer == places[0]
        assert all(place in finding.says for place in places[1:])


def test_all_floors_but_not_the_logits_are_not_all_layers() -> None:
    """What is resized last is right, and would show it."""
    outputs = wrong_everywhere("corners-not-aligned", "half-pixel", ResizeAs)
    (finding,) = rr.verify(MODEL, outputs, inputs=X).diagnosis
    assert finding.layer == "ppm.1.resize"
    assert finding.says.endswith("(also in ppm.2.resize, ppm.3.resize)")


def test_a_hidden_bug_in_most_places_is_not_in_all() -> None:
    """The mean of all pixels is right, and lies hidden before a block that shows it."""
    outputs = wrong_everywhere("pool-max", "", AdaptiveAvgPool, but="ppm.0.pool")
    (finding,) = rr.verify(MODEL, hiding(outputs), inputs=X).diagnosis
    assert finding.layer == "ppm.1.pool"
    assert finding.says.endswith("(also in ppm.2.pool, ppm.3.pool)")


@pytest.mark.parametrize("right", ["", "ppm.2.pool"])
def test_hidden_each_before_a_block_that_shows_it_it_is_in_all_only_if_it_is(right: str) -> None:
    outputs = wrong_everywhere("pool-max", "", AdaptiveAvgPool, but=right)
    (finding,) = rr.verify(MODEL, without(outputs, _POOLS), inputs=X).diagnosis
    assert (finding.bug, finding.layer) == ("pool-max", "ppm.0.pool" if right else "all")
    assert finding.says.endswith(
        "(also in ppm.1.pool, ppm.3.pool)" if right else "(in all 4 layers that show it)"
    )


def _auxiliary(of: str) -> Array:
    """Float64 logits of the auxiliary head on the right port's own features."""
    return GraphPort.with_auxiliary(_WALKED, of, lambda: RIGHT[of])["the auxiliary head's output"]


def test_auxiliary_logits_that_are_added_are_told_with_their_factor() -> None:
    outputs = port({"cls.4": lambda xs: RIGHT["cls.4"] + 0.4 * _auxiliary("cls.4")})
    report = rr.verify(MODEL, outputs, inputs=X)
    assert report.first_bad_layer == "cls.4"
    (finding,) = report.diagnosis
    assert finding.bug == "another-output"
    assert "plus 0.4 times the auxiliary head's" in finding.says


@pytest.mark.parametrize(
    ("added", "bug", "says"),
    [
        (0.0, None, ""),
        (0.25, "another-output", "plus 0.25 times the auxiliary head's"),
        (None, "unknown", "the logits are not the network's"),
    ],
)
def test_logits_that_cannot_be_compared_are_placed_all_the_same(
    added: float | None, bug: str | None, says: str
) -> None:
    """A graph in which no pyramid is found shows its backbone and its logits alone."""
    shown = {n: y for n, y in RIGHT.items() if n.startswith("stage") or n == "logits"}
    if added is None:
        shown["logits"] = RIGHT["logits"][:, ::-1]
    else:
        shown["logits"] = RIGHT["logits"] + added * _auxiliary("logits")
    outputs = Outputs(shown, problem="no pyramid")
    report = judge_graph(Programs(MODEL), outputs, X, PRECISIONS["fp32"], "candidate")
    assert (report.verdict, report.first_bad_layer) == ("disagree", "logits" if bug else None)
    assert [f.bug for f in report.diagnosis] == ([bug] if bug else [])
    assert says in report.reason


@pytest.mark.parametrize("name", ["ppm.1", "ppm.3"])
@pytest.mark.parametrize("of", ["outputs", "weights"])
def test_a_channel_that_is_scaled_behind_a_hidden_pool_is_told(name: str, of: str) -> None:
    program = _WALKED.programs[name].as_one_convolution()
    factor = np.ones((len(program.fused.bias), 1, 1, 1))
    factor[1] = 1.003
    bias = factor.ravel() if of == "outputs" else 1.0
    fused = FusedConv(program.fused.weight * factor, program.fused.bias * bias)
    wrong = replace(program, fused=fused)
    outputs = port({name: lambda xs: batch_output(wrong, np.asarray(xs[0], np.float64))})
    (finding,) = rr.verify(MODEL, without(outputs, _POOLS), inputs=X).diagnosis
    assert (finding.bug, finding.layer) == ("channel-scaled", name)
    assert finding.estimate == pytest.approx(0.003, rel=1e-2)
    assert f"the {of} of channel 1 are 1.003" in finding.says


def test_a_channel_that_is_shifted_is_not_scaled() -> None:
    shifted = RIGHT["ppm.3"].copy()
    shifted[:, 1] += 0.01 * np.abs(RIGHT["ppm.3"]).max() * (shifted[:, 1] > 0)
    outputs = port({"ppm.3": lambda xs: shifted})
    (finding,) = rr.verify(MODEL, without(outputs, _POOLS), inputs=X).diagnosis
    assert finding.bug != "channel-scaled"
