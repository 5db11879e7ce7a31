"""Planted bugs are found in their layer and called by their name; strange ones are "unknown"."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model, build, fuse
from repvgg_ref.oracle.bugs import LAYER_BUGS, Site
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.verification import judge, verify
from tests.models.small import SMALL
from tests.oracle.diagnosis.strange import STRANGE
from tests.studies.oracle.matrix_study import Port, ask, verify_from

KINDS = ("plain", "grouped", "se-before-relu", "plus")


@pytest.fixture(scope="module", params=KINDS)
def port(request: pytest.FixtureRequest) -> Port:
    model = distinguishing_model(SMALL[request.param])
    return Port(model, distinguishing_inputs(model.arch, height=28, width=24))


def _some(plants: list[tuple[str, str, Array]]) -> list[tuple[str, str, Array]]:
    """The first variant of each bug."""
    return list({bug: (bug, detail, wrong) for bug, detail, wrong in reversed(plants)}.values())


@pytest.mark.few(1)
@pytest.mark.parametrize("place", [-2, -1], ids=["last block", "head"])
def test_every_bug_is_detected_and_named(port: Port, place: int) -> None:
    layer = port.names[place]
    for bug, detail, wrong in _some(list(port.plants(layer))):
        detected, names, _ = ask(port, layer, wrong)
        assert detected, f"{bug} ({detail}) in {layer} passed"
        assert bug in names, f"{bug} ({detail}) in {layer} was called {names}"


@pytest.mark.few(1)
def test_the_first_bad_layer_is_the_planted_one(port: Port) -> None:
    rng = np.random.default_rng(0)
    for layer in port.names:
        plants = list(port.plants(layer))
        for at in rng.choice(len(plants), 2, replace=False):
            bug, detail, wrong = plants[at]
            assert verify_from(port, layer, wrong) == layer, f"{bug} ({detail}) in {layer}"


@pytest.mark.few(2)
def test_a_right_port_agrees_in_both_forms(port: Port) -> None:
    for model in (port.model, fuse(port.model)):
        outputs = model.forward(port.x, layers=True)
        report = verify(port.model, outputs | {"input": port.x})
        assert report.verdict == "agree", report.reason
        assert not report.diagnosis


def test_the_arithmetic_is_estimated_from_the_size_of_the_errors() -> None:
    model = distinguishing_model(SMALL["plain"])
    port = Port(model, distinguishing_inputs(model.arch, height=28, width=24))
    last = port.names[-2]
    wrong = {bug: wrong for bug, _, wrong in reversed(list(port.plants(last)))}
    for given, said in {
        "right": "look like fp32",
        "tf32-arithmetic": "look like tf32 or fp16",
        "bf16-arithmetic": "look like bf16",
    }.items():
        outputs = port.outputs | {last: wrong.get(given, port.outputs[last])}
        note = judge(model, Outputs(outputs), port.x).notes[0]
        assert note.startswith(f"the errors in {last} {said}: unit roundoff about 2^-")
    report = judge(model, Outputs(port.outputs | {last: wrong["identity-missing"]}), port.x)
    assert not any("look like" in note for note in report.notes)


# Strange bugs that are a number or two: they are estimated, and that explains them.
ESTIMATED = {
    "one bias": "bias-altered",
    "one tap of one filter": "taps-altered",
    "noise on the weights": "weights-rounded",
}


@pytest.mark.few(1)
@pytest.mark.parametrize("name", STRANGE)
def test_strange_bugs_are_detected_and_called_unknown(port: Port, name: str) -> None:
    layer = port.names[1]
    wrong = STRANGE[name](port.programs[layer], port.inputs[layer]).astype(np.float32)
    detected, names, _ = ask(port, layer, wrong)
    assert detected, f"{name} passed"
    assert names[0] in {"unknown", ESTIMATED.get(name)}, f"{name} was called {names}"


@pytest.mark.few(1)
def test_two_bugs_at_once_are_both_reported(port: Port) -> None:
    layer = port.names[1]
    library = {bug.name: bug for bug in LAYER_BUGS}
    site = Site(port.programs[layer], port.inputs[layer])
    first = next(library["mean-ignored"].mutate(site)).program
    both = next(library["padding-replicate"].mutate(Site(first, site.x))).program
    wrong = both.evaluate(site.x).reshape(port.outputs[layer].shape).astype(np.float32)
    report = judge(port.model, Outputs({**port.outputs, layer: wrong}), port.x)
    assert report.verdict == "disagree"
    assert {"mean-ignored", "padding-replicate"} <= {finding.bug for finding in report.diagnosis}


def test_a_layer_times_a_factor_next_to_1_is_not_called_eps_where_both_fit() -> None:
    model = build(SMALL["plain"], seed=0)  # all variances are 1: any factor is some eps
    params = dict(fuse(model).params)
    for part in ("weight", "bias"):
        array = params[f"stage1.0.fused.{part}"].astype(np.float64)
        params[f"stage1.0.fused.{part}"] = (array * (1 + 1e-6)).astype(np.float32)
    port = Model(model.arch, "deploy", params, model.eps)
    x = distinguishing_inputs(model.arch, height=48, width=40)
    report = verify(model, port.forward(x, layers=True), inputs=x)
    assert report.first_bad_layer == "stage1.0"
    assert report.diagnosis[0].bug == "outputs-scaled"
    assert report.diagnosis[0].equivalents == ("eps-value",)


@pytest.mark.few(2)
@pytest.mark.parametrize("name", [spec.name for spec in SMALL["plain"].blocks])
def test_a_layer_times_a_factor_next_to_1_is_wrong_whatever_comes_after_it(name: str) -> None:
    """Behind the last block a few logits, whose rounding hides whether they divide by it."""
    model = distinguishing_model(SMALL["plain"])
    params = dict(fuse(model).params)
    for part in ("weight", "bias"):
        array = params[f"{name}.fused.{part}"].astype(np.float64)
        params[f"{name}.fused.{part}"] = (array * (1 + 3e-6)).astype(np.float32)
    x = distinguishing_inputs(model.arch, height=48, width=40)
    outputs = Model(model.arch, "deploy", params, model.eps).forward(x, layers=True)
    report = verify(model, outputs, inputs=x)
    assert (report.verdict, report.first_bad_layer) == ("disagree", name)
    assert report.diagnosis[0].bug == "outputs-scaled"
