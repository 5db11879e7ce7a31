"""A known bug beside one of no library is named; one of no library alone gets no known name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.comparison import compare
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs import LAYER_BUGS, Bug, Mutant, Site, Variant
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.diagnosis.diagnose import _starts
from repvgg_ref.oracle.diagnosis.explain import Case
from repvgg_ref.oracle.diagnosis.ranking import Trial
from repvgg_ref.oracle.diagnosis.regression import Fit
from repvgg_ref.oracle.diagnosis.small import ESTIMATED
from repvgg_ref.oracle.operators.bugs import CALL_BUGS
from repvgg_ref.oracle.programs.program import batch_output
from repvgg_ref.oracle.report import Finding
from tests.studies.oracle.false_names import asked_of
from tests.studies.oracle.matrix_study import Port, findings_of
from tests.studies.oracle.more_strangers import CURVES, GATES
from tests.studies.oracle.networks import network_and_inputs
from tests.studies.oracle.strangers import BLOCK

LIBRARY = {bug.name: bug for bug in LAYER_BUGS}
ESTIMATES = {"outputs-scaled", "bias-scaled"}  # which say the same of a stranger

# A known bug, a stranger, and what is said of it: one of each constructor.
PAIRS = [
    ("branch-1x1-missing", "one kernel is 0", "right to rounding"),
    ("kernel-flipped", "clipped at 3", "the activation is another function"),
    ("branch-doubled", "softplus", "the activation is another function"),
    ("mean-ignored", "absolute value", "the activation is another function"),
    ("identity-missing", "bias rolled", "each channel is scaled and shifted"),
    ("identity-missing", "bias plus 0.1", "a constant is added"),
    ("branch-doubled", "weights times 0.995", "all products are scaled by one factor"),
    ("default-batch-norm", "input turned by 180 degrees", "turned by 180 degrees"),
    ("kernel-flipped", "output channels of the kernel rolled", "output channels are exchanged"),
    ("branch-doubled", "kernel rolled by a row", "kernel rolled by +1 along its rows"),
    ("branch-1x1-missing", "blurred", "mixed with its eight neighbours"),
]

ALONE = {
    "leaky 0.2": "the activation is another function",
    "kernel rolled by a row": "the kernel rolled by +1 along its rows",
    "input turned by 180 degrees": "turned by 180 degrees",
    "shifted by a pixel": "mixed with its eight neighbours",
    "weights times 0.995": "all products are scaled by one factor",
    "bias rolled": "each channel is scaled and shifted",
    "weights noisy, 1e-2": "its weights err",
    "two groups": "in every channel",
    "output plus 0.01": "",
}


@pytest.fixture(scope="module")
def port() -> Port:
    return Port(*network_and_inputs("plain", 2, (32, 28)))


def spoilt(port: Port, layer: str, known: str, stranger: str = "") -> Array:
    """A layer's output with one bug, or with two."""
    x, program = port.inputs[layer], port.programs[layer]
    right = batch_output(program, x)
    if known:
        program = next(iter(LIBRARY[known].mutate(Site(program, x)))).program
    wrong = batch_output(BLOCK[stranger](program) if stranger else program, x)
    noise: Array = np.where(wrong == 0, 0.0, port.outputs[layer] - right)
    return np.asarray((wrong + noise).astype(np.float32))


def told(port: Port, stranger: str, known: str = "") -> list[Finding]:
    """What the oracle says of the second block of the first stage with one bug, or with both."""
    layer = port.names[2]
    return findings_of(port, layer, spoilt(port, layer, known, stranger))


def test_pairs_are_told_in_later_layers_than_the_first_bad_one(port: Port) -> None:
    """Two that are no neighbours, so that each has the right port's input."""
    wrong = {
        port.names[0]: spoilt(port, port.names[0], "bias-dropped"),
        port.names[2]: spoilt(port, port.names[2], "branch-1x1-missing", "one kernel is 0"),
    }
    compared = {
        name: compare(port.programs[name], port.inputs[name], y.astype(float), PRECISIONS["fp32"])
        for name, y in wrong.items()
    }
    case = Case(port.programs, compared, port.x, Outputs(port.outputs | wrong), PRECISIONS["fp32"])
    assert [[f.bug for f in case.findings(name)] for name in wrong] == [
        ["bias-dropped"],
        ["branch-1x1-missing", "unknown"],
    ]


# Of blocks with squeeze-and-excitation, in the order (network, stranger).
BEHIND_GATES = [
    (network, stranger)
    for network in ("se-before-relu", "plus")
    for stranger in ("abs", "sin", "relu squared", "mish", "relu rounded to tenths", "relu of -z")
] + [("plus", "gate by tanh"), ("se-before-relu", "twice the gate")]


@pytest.mark.few(1)
@pytest.mark.parametrize(("known", "stranger", "says"), PAIRS)
def test_both_are_told(port: Port, known: str, stranger: str, says: str) -> None:
    found = told(port, stranger, known)
    assert [each.bug for each in found] == [known, "unknown"]
    assert says in found[1].says
    assert found[0].says.startswith("two bugs at once, one of them: ")


@pytest.mark.few(1)
@pytest.mark.parametrize("stranger", ALONE)
def test_a_lone_stranger_is_described_and_gets_no_known_name(port: Port, stranger: str) -> None:
    found = told(port, stranger)
    assert {each.bug for each in found} <= {"unknown"} | ESTIMATES
    assert ALONE[stranger] in found[0].says


@pytest.mark.few(1)
@pytest.mark.parametrize(("network", "stranger"), BEHIND_GATES)
def test_no_stranger_behind_a_gate_gets_a_known_name(network: str, stranger: str) -> None:
    gated = Port(*network_and_inputs(network, 0, (32, 28)))
    found = asked_of(gated, gated.names[1], {**CURVES, **GATES}[stranger])
    assert found
    assert {each.bug for each in found} <= {"unknown"} | ESTIMATED


def test_every_number_has_admissible_values() -> None:
    """The values that are tried are among them; a name is no name with another, or twice over."""
    fit = Fit(1.0, 1e-3, 0.0, 1.0, 0.1)
    bugs: list[Bug[Any]] = [*LAYER_BUGS, *CALL_BUGS]
    for bug in bugs:
        assert not bug.continuous or np.isfinite(bug.admissible).all(), bug.name

    def trial(parameter: float | None, fit: Fit = fit) -> Trial:
        name = "eps-value" if parameter is not None else "relu-missing"
        return Trial(Mutant(LIBRARY[name], Variant(None, parameter)), None, fit, within=True)

    assert trial(None).named
    assert trial(1e-3).named
    assert trial(1.001e-2).named  # an interval of four standard errors
    for eps in (10.0, 0.02, -1e-3):
        assert not trial(eps).named
    for coefficient in (-1.0, 0.5, 2.0):
        assert not trial(None, replace(fit, coefficient=coefficient)).named
        assert not trial(1e-3, replace(fit, coefficient=coefficient)).named


def test_effects_that_add_up_are_tried_first(port: Port) -> None:
    """Neither of the two explains much alone: that they are two shows from their sum."""
    layer, fp32 = port.names[2], PRECISIONS["fp32"]
    x, program = port.inputs[layer], port.programs[layer]
    for name in ("identity-missing", "mean-ignored"):
        program = next(iter(LIBRARY[name].mutate(Site(program, x)))).program
    wrong = batch_output(program, x)
    compared = compare(port.programs[layer], x, wrong, fp32)
    case = Case(
        port.programs, {layer: compared}, port.x, Outputs(port.outputs | {layer: wrong}), fp32
    )
    evidence = case.evidence(layer)
    starts = {trial.mutant.bug.name for trial in _starts(evidence, list(evidence.trials()))}
    assert {"identity-missing", "mean-ignored"} <= starts
    assert {each.bug for each in case.findings(layer)} == {"identity-missing", "mean-ignored"}
