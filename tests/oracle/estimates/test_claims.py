"""What a right layer is said to show is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.arithmetic import tiles
from repvgg_ref.oracle.arithmetic.noise import noise_unit, noise_variance
from repvgg_ref.oracle.arithmetic.operands import Seen
from repvgg_ref.oracle.arithmetic.port import direct_nuisance
from repvgg_ref.oracle.arithmetic.sample import Sample
from repvgg_ref.oracle.arithmetic.tiles import Layer, TileNoise
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.estimates.estimate import Claim, Estimate, alarms, needed_for
from repvgg_ref.oracle.estimates.layer import LayerEstimates
from repvgg_ref.oracle.estimates.port import PortEstimates, estimate_port
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.layers import Programs
from tests.studies.oracle.arithmetics import run
from tests.studies.oracle.false_alarms import seen_of
from tests.studies.oracle.networks import network_and_inputs

_MORE = 1.5  # times the claim
_CHANNELS = 16


def ordinary_model(seed: int) -> Model:
    """A stem and two layers behind gates, their weights as a framework draws them."""
    arch = plain_architecture(
        depths=[2], channels=[_CHANNELS, _CHANNELS], se="before_relu", num_classes=4
    )
    model, rng = distinguishing_model(arch), np.random.default_rng(seed)
    drawn: dict[str, Callable[[tuple[int, ...]], Array]] = {
        "conv.weight": lambda shape: rng.normal(0, np.prod(shape[1:]) ** -0.5, shape),
        "gamma": lambda shape: rng.uniform(0.5, 1.5, shape),
        "beta": lambda shape: rng.normal(0, 0.3, shape),
        "running_mean": lambda shape: rng.normal(0, 0.3, shape),
        "running_var": lambda shape: rng.uniform(0.4, 1.6, shape),
    }
    for name, value in model.params.items():
        for part, draw in drawn.items():
            if name.endswith(part) and ".se." not in name:
                model.params[name] = draw(value.shape).astype(value.dtype)
    return model


@pytest.fixture(scope="module")
def seen() -> dict[str, Seen]:
    """The layers of a right port."""
    model = ordinary_model(12)
    x = np.random.default_rng(11).normal(size=(3, 3, 40, 40)).astype(np.float32)
    programs = Programs(model)
    return seen_of(programs, x, run(programs, x, "blocked"))


@pytest.fixture(scope="module")
def right(seen: dict[str, Seen]) -> PortEstimates:
    return estimate_port(seen, PRECISIONS["fp32"])


def is_seen(right: PortEstimates, name: str, error: Array, kind: str = "") -> bool:
    """Whether a layer off by `error` (O, P) has an alarm, of a kind if one is given."""
    sample, unit = right.samples[name], right.arithmetic.unit
    wrong = replace(sample, residual=sample.residual + error)
    nuisance = direct_nuisance(wrong, right.arithmetic.directed, unit)
    mine = LayerEstimates(wrong, nuisance).all(claims=False)
    others = [e for n, listed in right.estimates.items() if n != name for e in listed]
    return any(e in mine and kind in e.kind for e in alarms([*others, *mine]))


@pytest.mark.parametrize("sign", [1, -1])
def test_a_bias_behind_a_gate_is_seen_as_claimed(right: PortEstimates, sign: int) -> None:
    """Noise is fitted with the fault in it: that has to be in the claim."""
    claimed = right.detects("stage0")["bias"]
    assert claimed is not None
    layer = LayerEstimates(right.samples["stage0"], right.arithmetic.nuisances["stage0"])
    alone = next(e for e in layer.all(claims=False) if (e.kind, e.where) == ("bias", ""))
    assert claimed > 1.05 * alone.smallest(sum(map(len, right.estimates.values())))
    error = sign * _MORE * claimed * right.samples["stage0"].bias[:, None]
    assert is_seen(right, "stage0", np.where(right.samples["stage0"].active, error, 0.0), "bias")


def test_a_fault_of_biases_is_no_noise_and_errors_at_random_are(right: PortEstimates) -> None:
    """Else a layer that is wrong by thousands of roundings has only large roundings."""
    sample, nuisance = right.samples["stage1.1"], right.arithmetic.nuisances["stage1.1"]
    unit = nuisance.unit
    wrong = replace(sample, residual=sample.residual + 1e-3 * sample.bias[:, None])

    def size(of: Sample, most: float) -> float:
        found = noise_variance(of, unit, most) / noise_unit(of, unit)
        return float(found[of.active].mean())

    few = wrong.at(np.flatnonzero((wrong.rows < 2) & (wrong.across < 2)))  # of each gate
    assert size(few, np.inf) > 1e4 * nuisance.level
    assert size(few, nuisance.level) == pytest.approx(4 * nuisance.level)
    noise = 1e-3 * sample.y * np.random.default_rng(0).normal(size=sample.y.shape)
    by_chance = replace(sample, residual=sample.residual + noise)
    assert size(by_chance, nuisance.level) == pytest.approx(size(by_chance, np.inf), rel=0.2)


def test_a_claim_of_some_size_is_of_that_size() -> None:
    claim = Claim(1e-7, 0.3, 0.02, 2.0)
    needed, tolerance = needed_for("layer"), 1e-7
    assert claim.of_size(4e-6, needed, tolerance).smallest(needed, tolerance) == pytest.approx(4e-6)


def test_biases_of_few_outputs_behind_gates_are_seen_as_claimed() -> None:
    """Four pixels a gate: the fault is taken for noise until it is larger than any."""
    model, x = network_and_inputs("se-16", 17001, (48, 40), 3)
    programs, name = Programs(model), "stage4.0"
    seen = seen_of(programs, x, run(programs, x, "chain"))
    port = estimate_port(seen, PRECISIONS["fp32"])
    claimed, sample = port.detects(name)["bias"], port.samples[name]
    assert claimed is not None
    assert claimed < 1e-5
    for fault in (_MORE * claimed, -_MORE * claimed, -1e-2):
        error = np.where(sample.active, fault * sample.bias[:, None], 0.0)
        assert is_seen(port, name, error, "bias")


def test_three_channels_in_four_show_what_is_claimed_of_a_weight(right: PortEstimates) -> None:
    """Relative to the channel's largest weight."""
    sample, name = right.samples["stage0"], "stage0"
    claimed = right.detects(name)["tap"]
    assert claimed is not None
    seen = []
    for o in range(0, _CHANNELS, 2):
        error = np.zeros(sample.y.shape)
        k = np.abs(sample.weight[o]).argmax()
        error[o] = _MORE * claimed * sample.weight[o, k] * sample.columns[0, k]
        seen.append(is_seen(right, name, np.where(sample.active, error, 0.0)))
    assert np.mean(seen) >= 0.75


@pytest.mark.parametrize("estimate", [
    Estimate("taps", "", 0.1, 50.0, 2.5, "tap", typical=20.0, claim=Claim(50.0, 0.001)),
    Estimate("bias", "", 0.0, 1e-8, 1e-7, "layer", claim=Claim(1e-8, 0.01, 1.0)),
    Estimate("scale", "", 0.0, 0.1, 1e-7, "layer"),
])  # fmt: skip
def test_what_is_far_from_small_is_no_claim(right: PortEstimates, estimate: Estimate) -> None:
    port = replace(right, estimates={"stage0": [estimate]})
    assert port.detects("stage0") == {estimate.kind: None}


def test_products_in_tiles_are_regressed_where_an_algorithm_gains(
    seen: dict[str, Seen], right: PortEstimates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of algorithms that describe a layer worse than direct sums took nearly all the time."""
    asked: list[TileNoise] = []
    regressed = TileNoise.beta

    def counted(self: TileNoise, *given: Any) -> tuple[float, float]:
        asked.append(self)
        return regressed(self, *given)

    monkeypatch.setattr(TileNoise, "beta", counted)
    sample, weight = right.samples["stage1.1"], seen["stage1.1"].program.fused_kernel().weight
    tiles._fitting(Layer(sample, seen["stage1.1"].x, weight), right.arithmetic.unit)
    assert len(asked) < len(tiles.algorithms()) / 2
