"""The paper's claims on speed: their factors are the paper's own, and verdicts follow ours."""

from __future__ import annotations

import pytest

from repvgg_ref.bench.claims import CLAIMS, Claim, judged
from repvgg_ref.bench.density import KERNELS, measured_density
from repvgg_ref.bench.table4 import LARGER, PAPER, heats
from repvgg_ref.models.cost import cost
from repvgg_ref.models.registry import network


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.faster)
def test_factors_are_those_of_the_papers_table(claim: Claim) -> None:
    faster, slower = PAPER[claim.faster], PAPER[claim.slower]
    if faster and slower:
        assert 0 <= faster / slower - claim.paper < 0.01


def test_vgg_has_the_flops_that_the_paper_says_at_the_sizes_that_are_raced() -> None:
    side = LARGER["EfficientNet-B3"]
    small = cost(network("EfficientNet-B3"), height=side, width=side).macs
    assert int(10 * cost(network("VGG-16")).macs / small) == 84


def test_networks_that_a_claim_compares_take_turns_in_one_heat() -> None:
    found = heats(list(PAPER))
    assert sorted(name for heat in found for name in heat) == sorted(PAPER)
    assert max(map(len, found)) == 2  # what fits into a common machine's memory
    assert {(claim.faster, claim.slower) for claim in CLAIMS} <= set(found)
    assert heats(["VGG-16", "RepVGG-A0", "ResNet-18"]) == [("RepVGG-A0", "ResNet-18"), ("VGG-16",)]


@pytest.mark.parametrize(
    ("times", "here", "holds"),
    [
        ([2.0, 2.0, 9.0], 2.0, "yes"),
        ([1.5, 1.2, 1.9], 1.5, "direction"),
        ([0.5, 0.9, 3.0], 0.9, "no"),
    ],
)
def test_a_claim_is_judged_by_the_median_of_the_rounds(
    times: list[float], here: float, holds: str
) -> None:
    (found,) = judged({"RepVGG-A2": [1.0, 1.0, 1.0], "ResNet-50": times}, {})
    assert (found.here, found.holds, found.paper) == (here, holds, 1.83)


def test_the_density_of_3x3_is_held_against_the_best_of_the_others() -> None:
    (found,) = judged({}, {1: 10.0, 3: 30.0, 5: 20.0, 7: 5.0})
    assert (found.faster, found.here, found.holds) == ("3x3", 1.5, "direction")


def test_density_is_measured_for_every_kernel() -> None:
    found = measured_density(rounds=1, threads=1)
    assert tuple(found) == KERNELS
    assert min(found.values()) > 0
