"""Right ports in arithmetics that once were taken for faulty ones, rounding emulated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from repvgg_ref.oracle.arithmetic.directed import DIRECTIONS
from repvgg_ref.oracle.arithmetic.sample import sample_of
from repvgg_ref.oracle.arithmetic.tiles import TileNoise, algorithms
from repvgg_ref.oracle.blas import in_threads, pool_for_estimates
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.verification import judge
from tests.studies.oracle.arithmetics import run
from tests.studies.oracle.false_alarms import estimated, seen_of
from tests.studies.oracle.networks import network_and_inputs


@pytest.mark.parametrize("step", [1, 4])
def test_chopping_adders_are_found_behind_squeeze_and_excitation(step: int) -> None:
    """What they lose turns the gates, too; the loss, half an ulp an addition, is still measured."""
    model, x = network_and_inputs("se-16", 7, (33, 40))
    programs = Programs(model)
    found = estimated(programs, x, run(programs, x, f"chop-{step}"), "fp32")
    shares = dict(zip(DIRECTIONS, found.arithmetic.directed.coefficients, strict=True))
    assert shares[f"chopped-{step}"] == pytest.approx(0.5, abs=0.1)
    assert not found.alarms


@pytest.mark.parametrize("network", ["plain", "plain-16"])
def test_winograd_is_proved_by_small_layers_together(network: str) -> None:
    model, x = network_and_inputs(network, 5, (48, 40) if network == "plain" else (24, 24))
    programs = Programs(model)
    found = estimated(programs, x, run(programs, x, "F6"), "fp32")
    assert found.arithmetic.algorithms
    assert not found.alarms


def test_winograd_is_proved_by_the_likelihood_of_few_outputs() -> None:
    """Products within tiles scatter too much: 1.3 +- 0.6 where 1 is right and 0 is no tiles."""
    model, x = network_and_inputs("se-before-relu", 41004, (24, 24))
    programs = Programs(model)
    found = estimated(programs, x, run(programs, x, "F7"), "fp32")
    (seen,) = found.arithmetic.evidence.values()
    assert seen.beta < 3 * seen.beta_error
    assert found.arithmetic.algorithms["stage1.1"].m == 7
    assert not found.alarms


def test_covariance_is_likely_where_it_is_and_nowhere_else() -> None:
    model, x = network_and_inputs("se-before-relu", 41004, (24, 24))
    programs = Programs(model)
    seen = seen_of(programs, x, run(programs, x, "F7"))["stage1.1"]
    sample = sample_of(*seen, PRECISIONS["fp32"])
    algorithm = next(each for each in algorithms() if each.m == 7)
    kernel = seen.program.fused_kernel().weight
    noise = TileNoise(algorithm, seen.x, kernel, sample.groups)
    rng, variance = np.random.default_rng(0), noise.variance(sample)
    apart = rng.normal(size=sample.y.shape) * np.sqrt(variance)
    assert noise.tied(sample) > 50
    assert noise.tied(replace(sample, residual=apart)) < -50
    of_gates = apart + 1e-3 * sample.y + 0.1 * sample.y.mean()
    expected = noise.tied(replace(sample, residual=apart))
    assert noise.tied(replace(sample, residual=of_gates)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", ["F6", "F8"])
def test_winograd_in_layers_too_small_to_prove_it_is_not_judged(name: str) -> None:
    model, x = network_and_inputs("plus", 41005, (24, 24))
    outputs = run(Programs(model), x, name)
    report = judge(model, Outputs(outputs), x, precision="fp32")
    assert report.verdict == "cannot-judge"
    few, rough = "there are too few outputs to tell", "gates let be told only roughly"
    assert few in report.reason or rough in report.reason


def test_a_fault_in_a_layer_as_small_is_judged() -> None:
    """No algorithm errs so in one layer and like direct sums in the others."""
    model, x = network_and_inputs("plus", 41005, (24, 24))
    outputs = run(Programs(model), x, "blocked", {"stage2.1": lambda _p, _x, y: y * (1 + 1e-4)})
    report = judge(model, Outputs(outputs), x, precision="fp32")
    assert report.verdict == "disagree"
    assert report.first_bad_layer == "stage2.1"


def test_noise_of_no_known_kind_is_not_judged() -> None:
    """Strassen's algorithm is right, and is not modelled."""
    model, x = network_and_inputs("grouped-16", 20003, (33, 40))
    outputs = run(Programs(model), x, "strassen")
    report = judge(model, Outputs(outputs), x, precision="fp32")
    assert report.verdict == "cannot-judge"
    assert "no arithmetic known" in report.reason


def test_a_faulty_layer_among_right_ones_is_no_unknown_noise() -> None:
    model, x = network_and_inputs("grouped-16", 20003, (33, 40))
    outputs = run(Programs(model), x, "blocked", {"stage2.1": lambda _p, _x, y: y * (1 + 1e-5)})
    report = judge(model, Outputs(outputs), x, precision="fp32")
    assert report.verdict == "disagree"
    assert report.first_bad_layer == "stage2.1"


@pytest.mark.parametrize("name", ["sums-up", "sums-up-backward", "sums-down", "sums-down-backward"])
def test_sums_that_are_rounded_one_way_are_never_called_wrong(name: str) -> None:
    model, x = network_and_inputs("plain", 9, (24, 24))
    report = judge(model, Outputs(run(Programs(model), x, name)), x, precision="fp32")
    assert report.verdict != "disagree", report.reason


@pytest.mark.filterwarnings("error")
def test_nobody_is_warned_of_numbers_without_sense() -> None:
    """Squares of a port's 1e35 beside tiles of variance 0, in this thread and in the others."""

    def beside_nothing(square: float) -> float:
        return float((np.array([square]) / 1e-300)[0])

    assert in_threads(beside_nothing, [1e70, 1e-300]) == [np.inf, 1.0]
    with pool_for_estimates():
        assert beside_nothing(1e70) == np.inf
