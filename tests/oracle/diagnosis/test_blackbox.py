"""Logits only: right ports agree with a stated power, bugs are placed and named, others are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bugs.harness import mutants
from repvgg_ref.oracle.candidates import CandidateFailure, Outputs
from repvgg_ref.oracle.diagnosis import blackbox
from repvgg_ref.oracle.diagnosis.alternatives import alternatives
from repvgg_ref.oracle.power import Place
from repvgg_ref.oracle.programs.activation import log_softmax, softmax
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.programs.program import batch_output
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.verification import verify
from tests.oracle.diagnosis.test_differences import chain_of
from tests.studies.oracle import logits_study
from tests.studies.oracle.logits_study import FP32, Network, library_spoil, remembered
from tests.studies.oracle.strangers import BLOCK, HEAD

KINDS = ("plain", "grouped", "se-before-relu")
_ROUNDING = 2.0**-24


def right(*_: Any) -> None:
    """A port without a bug."""


@pytest.fixture(scope="module", params=KINDS)
def network(request: pytest.FixtureRequest) -> Network:
    chain = chain_of(request.param)
    return Network(chain.programs.model, chain.inputs[chain.names[0]].astype(np.float32))


def judged(network: Network, spoil: Any, *, again: bool = False) -> Report:
    logits_study.use(network)
    return network.judged(spoil, again=again)


@pytest.mark.few(1)
def test_a_right_port_that_can_be_called_agrees_and_the_report_says_how_surely(
    network: Network,
) -> None:
    report = judged(network, right, again=True)
    assert report.verdict == "agree", report.reason
    power = json.loads(json.dumps(report.to_json()))["power"]
    assert power["share"] >= 0.9
    assert power["kappa"] < power["allowed"]
    assert set(power["errors"]) == set(network.chain.blocks)
    assert all(0 < size < 1e-2 for size in power["errors"].values())
    assert {"bug", "tried", "seen", "smallest", "hidden"} == set(power["bugs"][0])
    assert any("would have shown" in note for note in report.notes)


@pytest.mark.few(1)
@pytest.mark.parametrize("again", [False, True])
def test_library_bugs_are_placed_and_named(network: Network, again: bool) -> None:
    layer = network.chain.blocks[1]
    for place in (
        Place("branch-1x1-missing", "", layer),
        Place("mean-sign", "every branch", network.chain.blocks[-1]),
        Place("bias-twice", "", None),
        Place("head-bias", "left out", "linear"),
    ):
        report = judged(network, library_spoil(place), again=again)
        assert report.verdict == "disagree", place
        assert report.diagnosis[0].layer == (place.layer or "all")
        names = (report.diagnosis[0].bug, *report.diagnosis[0].equivalents)
        assert place.bug in names, (place, names)


@pytest.mark.few(1)
def test_another_eps_is_measured(network: Network) -> None:
    """One that the library does not try."""
    model = network.model
    other = Model(model.arch, model.form, model.params, 5e-4)
    y_hat = other.forward(network.x)
    report = blackbox.judge_logits(
        network.chain.programs,
        Outputs({"linear": y_hat}),
        network.x,
        FP32,
        "port",
        library=remembered,
    )
    assert report.diagnosis[0].bug == "eps-value"
    assert report.diagnosis[0].layer == "all"
    assert report.first_bad_layer == "stage0"
    assert report.diagnosis[0].estimate == pytest.approx(5e-4, rel=1e-2)


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", [*BLOCK, *HEAD])
def test_strange_bugs_disagree_and_are_unknown(network: Network, kind: str) -> None:
    """Where they change the logits by more than any rounding; what changes nothing agrees."""
    layer = "linear" if kind in HEAD else network.chain.blocks[1]
    change = (BLOCK | HEAD)[kind]  # type: ignore[operator]
    chain, program = network.chain, network.chain.programs[layer]
    wrong = batch_output(change(program), chain.inputs[layer])
    logits = wrong if kind in HEAD else chain.logits_after(layer, wrong)
    apart = np.abs(logits - chain.logits).max() / np.abs(chain.logits).max()

    def spoil(name: str, program: Any, _x: Array) -> Any:
        return change(program) if name == layer else None

    report = judged(network, spoil)
    if apart < _ROUNDING:
        assert report.verdict == "agree"
        return
    assert report.verdict == "disagree" or (report.verdict == "cannot-judge" and apart < 1e-4)
    assert report.verdict == "cannot-judge" or report.diagnosis[0].bug == "unknown"


@pytest.mark.few(1)
def test_what_is_below_the_stated_power_is_not_called_wrong(network: Network) -> None:
    """And what is ten times above is."""
    power = judged(network, right, again=True).power
    assert power is not None
    layer = network.chain.blocks[1]
    verdicts = []
    for times in (0.02, 10):
        size = times * power.errors[layer]

        def noisy(y: Array, size: float = size) -> Array:
            factors = np.random.default_rng(7).normal(size=(1, y.shape[1], 1, 1))
            return y * (1 + size * factors)

        def spoil(name: str, program: Any, _x: Array, noisy: Any = noisy) -> Any:
            return replace(program, output_map=noisy) if name == layer else None

        verdicts.append(judged(network, spoil, again=True).verdict)
    assert verdicts[0] == "agree"
    assert verdicts[1] != "agree"


@pytest.mark.few(1)
def test_an_image_that_shows_nothing_is_no_pass(network: Network) -> None:
    blank = Network(network.model, np.zeros_like(network.x))
    report = judged(blank, right)
    assert report.verdict == "cannot-judge"
    assert report.power is not None
    assert "could hide" in report.reason
    hidden = {bug.bug: bug.hidden for bug in report.power.bugs}
    assert network.chain.names[0] in hidden["kernel-flipped"]


@pytest.mark.few(1)
def test_a_port_that_takes_one_extent_only_is_judged_on_it(network: Network) -> None:
    def fixed(x: Array) -> Array:
        if x.shape != network.x.shape:
            raise CandidateFailure("another shape")
        return network.logits(x, right)

    outputs = Outputs({"linear": fixed(network.x)})
    report = blackbox.judge_logits(
        network.chain.programs, outputs, network.x, FP32, "port", again=fixed, library=remembered
    )
    assert report.verdict in ("agree", "cannot-judge")
    assert not report.diagnosis


def test_wrong_shapes_and_nan_disagree(network: Network) -> None:
    y = network.chain.logits
    for wrong in (y[:, :-1], np.where(np.arange(y.size).reshape(y.shape) == 1, np.nan, y)):
        report = blackbox.judge_logits(
            network.chain.programs,
            Outputs({"linear": wrong}),
            network.x,
            FP32,
            "port",
            library=remembered,
        )
        assert report.verdict == "disagree"
        assert report.diagnosis[0].bug == (
            "wrong-shape" if wrong.shape != y.shape else "not-finite"
        )
        assert report.diagnosis[0].layer == report.first_bad_layer


def test_verify_calls_a_candidate_again() -> None:
    chain = chain_of("plain")
    network, calls = Network(chain.programs.model, chain.inputs["stage0"].astype(np.float32)), []

    def port(x: Array) -> Array:
        calls.append(x.shape)
        return network.logits(x, right)

    report = verify(network.model, port, inputs=distinguishing_inputs(network.model.arch))
    assert report.verdict == "agree", report.reason
    assert len(set(calls)) > 1


ALL_CHANGES: dict[str, tuple[Callable[[Array], Array], tuple[str, ...]]] = {
    "softmax": (softmax, ("head-output", "head-classes-permuted")),
    "log-softmax": (log_softmax, ("head-output", "head-classes-permuted")),
    "nothing": (np.asarray, ("head-classes-permuted",)),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", ALL_CHANGES)
def test_classes_in_any_order_are_told_beside_what_else_is_done_to_the_logits(
    network: Network, name: str
) -> None:
    change, bugs = ALL_CHANGES[name]
    order = np.arange(network.chain.logits.shape[1])
    order[:2] = 1, 0  # none of those that the library tries

    def spoil(layer: str, program: Any, _x: Array) -> Any:
        if layer != "linear":
            return None
        return replace(program, output_map=lambda y: change(y)[:, order])

    report = judged(network, spoil)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "linear")
    assert tuple(finding.bug for finding in report.diagnosis) == bugs
    assert "1 at the place of 0" in report.reason


@pytest.mark.few(2)
@pytest.mark.parametrize("kind", ["absolute value", "logits negated", "bias rolled"])
def test_what_is_not_placed_is_in_no_layer_anywhere_in_the_report(
    network: Network, kind: str
) -> None:
    layer = "linear" if kind in HEAD else network.chain.blocks[1]
    change = (BLOCK | HEAD)[kind]  # type: ignore[operator]
    report = judged(network, lambda name, p, _x: change(p) if name == layer else None)
    assert report.verdict == "disagree"
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("unknown", None)]
    assert report.first_bad_layer is None
    assert report.to_json()["first_bad_layer"] is None


@pytest.mark.few(1)
def test_a_bug_that_one_block_alone_can_have_is_in_that_block(network: Network) -> None:
    """An identity that is nowhere else, say: "in every layer" would begin in another one."""
    programs = network.chain.programs
    places: dict[tuple[str, str], list[str]] = {}
    for site, mutant in mutants(programs, network.chain.inputs, network.chain.blocks):
        if mutant.variant.parameter is None and mutant.bug.scope == "any":
            places.setdefault((mutant.bug.name, mutant.variant.detail), []).append(
                site.program.name
            )
    alone = [(*key, where[0]) for key, where in places.items() if len(where) == 1]
    found = alternatives(network.chain, "fp32", wanted=[Place(b, d, None) for b, d, _ in alone])
    assert not [each for each in found if each.mutant.layer is None]


@pytest.mark.few(1)
def test_a_bug_in_all_blocks_begins_where_this_setting_of_it_can_be(network: Network) -> None:
    able = [n for n in network.chain.blocks if len(network.chain.programs[n].branches) == 3]
    report = judged(network, library_spoil(Place("mean-sign", "branch_identity", None)))
    assert report.diagnosis[0].bug == "mean-sign"
    assert report.first_bad_layer == able[0]
