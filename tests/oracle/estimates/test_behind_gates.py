"""Faults that an error of squeeze-and-excitation's gates could pass for, and errors that may."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.port import direct_nuisance
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.estimates.estimate import FALSE_ALARM, Claim, Estimate, alarms
from repvgg_ref.oracle.estimates.layer import LayerEstimates
from repvgg_ref.oracle.estimates.port import PortEstimates, estimate_port
from repvgg_ref.oracle.programs.activation import SqueezeExcitationParams, sigmoid
from repvgg_ref.oracle.programs.layers import Programs
from tests.studies.oracle.arithmetics import run
from tests.studies.oracle.false_alarms import seen_of
from tests.studies.oracle.networks import network_and_inputs

Ports = Callable[[str], tuple[Programs, PortEstimates]]

_LAYER = {"se-before-relu": "stage1.1", "plus": "stage2.1"}


@pytest.fixture(scope="module")
def ports() -> Ports:
    """Right ports of small gated networks by name, estimated once."""
    known: dict[str, tuple[Programs, PortEstimates]] = {}

    def port(network: str) -> tuple[Programs, PortEstimates]:
        if network not in known:
            model, x = network_and_inputs(network, 7, (33, 40))
            programs = Programs(model)
            seen = seen_of(programs, x, run(programs, x, "blocked"))
            known[network] = programs, estimate_port(seen, PRECISIONS["fp32"])
        return known[network]

    return port


def found(right: PortEstimates, name: str, factor: Array) -> list[Estimate]:
    """The alarms of a layer whose outputs are multiplied by a factor (O, P), beside its port's."""
    sample = right.samples[name]
    y_hat = (sample.y + sample.residual) * factor
    faulty = sample.beside(sample.y, y_hat, right.arithmetic.unit)
    nuisance = direct_nuisance(faulty, right.arithmetic.directed, right.arithmetic.unit)
    mine = LayerEstimates(faulty, nuisance).all(claims=False)
    others = [e for n, listed in right.estimates.items() if n != name for e in listed]
    return [e for e in alarms([*others, *mine]) if e in mine]


@pytest.mark.parametrize("network", _LAYER)
@pytest.mark.parametrize("kind", ["layer", "channel", "image"])
def test_a_factor_behind_a_gate_is_seen(network: str, kind: str, ports: Ports) -> None:
    _, right = ports(network)
    name = _LAYER[network]
    assert not right.alarms
    sample = right.samples[name]
    factor = np.ones(sample.y.shape)
    second = (slice(None), sample.images == 1)
    where: dict[str, Any] = {"layer": slice(None), "channel": 3, "image": second}
    factor[where[kind]] += 5e-6
    kinds = {(e.kind, e.where) for e in found(right, name, factor)}
    named = {"layer": ("scale", ""), "channel": ("scale", "channel 3"),
             "image": ("contrast", "image 1")}  # fmt: skip
    assert named[kind] in kinds


def test_a_gate_with_other_means_is_no_fault(ports: Ports) -> None:
    """Means off by 2e-5, as long chains of additions make them, turn each gate another way.

    Factors no larger, but of other channels, are a fault.
    """
    programs, right = ports("plus")
    name = _LAYER["plus"]
    sample, se = right.samples[name], programs[name].se
    images = np.arange(sample.images.max() + 1)[:, None] == sample.images  # (N, P)
    means = (sample.y[:, None] * images).sum(axis=2) / images.sum(axis=1)  # behind ReLU, (O, N)
    ratio = gate(se, means * (1 + 2e-5)) / gate(se, means)
    assert np.abs(ratio - 1).max() > 3e-6
    assert not found(right, name, ratio[:, sample.images])
    assert found(right, name, ratio[::-1, sample.images])


def gate(se: SqueezeExcitationParams, means: Array) -> Array:
    """(O, N) -> (O, N)."""
    hidden = np.maximum(se.down_weight @ means + se.down_bias[:, None], 0)
    return sigmoid(se.up_weight @ hidden + se.up_bias[:, None])


def test_what_hidden_units_could_do_alone_is_told_by_nothing(ports: Ports) -> None:
    """Hidden units that move all gates alike: no estimate of the scale, and no claim."""
    _, right = ports("plus")
    sample = right.samples[_LAYER["plus"]]
    assert sample.gates is not None
    moves = np.ones((*sample.gates.factor.shape, 1))
    blind = replace(sample, gates=replace(sample.gates, moves=moves))
    made = LayerEstimates(blind, right.arithmetic.nuisances[sample.name])
    assert made.gated is not None
    assert made.gated.whole() is None
    assert all(estimate.sensitivity != "scale" for estimate in made.all())


@pytest.mark.parametrize("shown", [1.0, 0.3])
@pytest.mark.parametrize("growth", [0.0, 0.02])
def test_the_smallest_error_is_an_alarm_just_so(shown: float, growth: float) -> None:
    claim = Claim(3e-8, shown, growth)
    right = Estimate("scale", "", 0.0, 3e-8, 1.2e-7, "layer", claim=claim)
    size = right.smallest(1000)
    value, error = shown * size, math.hypot(3e-8, growth * size)
    needed = -NormalDist().inv_cdf(FALSE_ALARM / 1000 / 2)
    assert replace(right, value=value, error=error).deviation == pytest.approx(needed)
    assert math.isinf(replace(right, claim=Claim(3e-8, shown, 0.3 * shown)).smallest(1000))


def test_the_smallest_error_of_all_taps_is_an_alarm_just_so() -> None:
    right = Estimate("taps", "", 0.1, 0.05, 2.5, "tap", typical=0.2, claim=Claim(0.05, 0.7))
    value = 0.7 * right.smallest(1000)
    needed = -NormalDist().inv_cdf(FALSE_ALARM / 1000 / 2)
    fault = replace(right, value=value, error=math.hypot(0.05, 0.2 * value))
    assert fault.deviation == pytest.approx(needed)
