"""The paper's Tables 4 and 5 digit for digit, and every architecture's counts exactly."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repvgg_ref.blocks.spec import SqueezeExcitation
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.architectures import NAMES, architecture, plain_architecture
from repvgg_ref.models.cost import cost

# Table 4 (120 epochs) and Table 5 (200 epochs) of arXiv 2101.03697: parameters in millions as the
# paper prints them (truncated: 8.309 is 8.30), FLOPs and Winograd multiplications in billions.
PRINTED = {
    "RepVGG-A0": ("8.30", "1.4", "0.7"),
    "RepVGG-A1": ("12.78", "2.4", "1.3"),
    "RepVGG-B0": ("14.33", "3.1", "1.6"),
    "RepVGG-A2": ("25.49", "5.1", "2.7"),
    "RepVGG-B1g4": ("36.12", "7.3", "3.9"),
    "RepVGG-B1g2": ("41.36", "8.8", "4.6"),
    "RepVGG-B1": ("51.82", "11.8", "5.9"),
    "RepVGG-B2g4": ("55.77", "11.3", "6.0"),
    "RepVGG-B2": ("80.31", "18.4", "9.1"),
    "RepVGG-B3g4": ("75.62", "16.1", "8.4"),
    "RepVGG-B3": ("110.96", "26.2", "12.9"),
}

# Deploy parameters, train parameters, multiply-accumulates and Winograd multiplications (10**9,
# rounded to three decimals) of all official models, counted in the official code.
COUNTED = {
    "RepVGG-A0": (8_309_384, 9_108_968, "1.361", "0.747"),
    "RepVGG-A1": (12_789_864, 14_092_264, "2.364", "1.272"),
    "RepVGG-A2": (25_499_944, 28_210_600, "5.117", "2.660"),
    "RepVGG-B0": (14_339_048, 15_817_960, "3.058", "1.580"),
    "RepVGG-B1": (51_829_480, 57_415_016, "11.815", "5.907"),
    "RepVGG-B1g2": (41_360_104, 45_782_376, "8.810", "4.571"),
    "RepVGG-B1g4": (36_125_416, 39_966_056, "7.307", "3.903"),
    "RepVGG-B2": (80_315_112, 89_022_376, "18.377", "9.144"),
    "RepVGG-B2g2": (63_956_712, 70_846_376, "13.680", "7.057"),
    "RepVGG-B2g4": (55_777_512, 61_758_376, "11.332", "6.013"),
    "RepVGG-B3": (110_960_872, 123_085_288, "26.209", "12.914"),
    "RepVGG-B3g2": (87_404_776, 96_911_848, "19.446", "9.909"),
    "RepVGG-B3g4": (75_626_728, 83_825_128, "16.064", "8.406"),
}


@pytest.mark.parametrize("name", PRINTED)
def test_the_papers_columns_are_reproduced_digit_for_digit(name: str) -> None:
    counted = cost(architecture(name))
    hundredths = counted.params_deploy // 10_000  # truncated, as in the paper
    params = f"{hundredths // 100}.{hundredths % 100:02}"
    printed = (params, f"{counted.macs / 1e9:.1f}", f"{float(counted.wino_muls) / 1e9:.1f}")
    assert printed == PRINTED[name]


@pytest.mark.parametrize("name", COUNTED)
def test_every_count_is_exact(name: str) -> None:
    counted = cost(architecture(name))
    macs, wino = f"{counted.macs / 1e9:.3f}", f"{float(counted.wino_muls) / 1e9:.3f}"
    assert (counted.params_deploy, counted.params_train, macs, wino) == COUNTED[name]
    assert counted.wino_muls.denominator == 1


def test_d2se_counts_its_squeeze_and_excitation() -> None:
    arch = architecture("RepVGG-D2se")
    counted = cost(arch)
    assert (counted.params_deploy, counted.params_train) == (120_387_572, 133_334_836)
    assert f"{counted.macs / 1e9:.2f}" == "32.83"
    assert f"{float(counted.wino_muls) / 1e9:.2f}" == "15.57"
    excitation = sum(2 * block.out_channels * block.se_channels for block in arch.blocks)
    without = replace(arch, blocks=tuple(replace(b, se="none", se_channels=0) for b in arch.blocks))
    assert counted.macs - cost(without).macs == excitation


def test_plus_counts_its_auxiliary_heads_in_training_only() -> None:
    arch = architecture("RepVGGplus-L2pse")
    counted = cost(arch)
    assert (counted.params_deploy, counted.params_train) == (127_151_960, 146_062_864)
    without = cost(replace(arch, aux_heads=()))
    assert (without.params_deploy, without.params_train) == (127_151_960, 140_099_224)


def test_one_multiplication_at_a_time_agrees_with_the_formula() -> None:
    """A0 written out by hand, layer by layer."""
    stage0 = 112**2 * 3 * 48 * 9
    first = [56**2 * 48 * 48 * 9, 28**2 * 48 * 96 * 9, 14**2 * 96 * 192 * 9, 7**2 * 192 * 1280 * 9]
    later = [1 * 56**2 * 48**2 * 9, 3 * 28**2 * 96**2 * 9, 13 * 14**2 * 192**2 * 9]
    head = 1280 * 1000
    counted = cost(architecture("RepVGG-A0"))
    assert counted.macs == stage0 + sum(first) + sum(later) + head
    assert counted.wino_muls == stage0 + sum(first) + sum(later) * 4 // 9 + head


def test_every_official_model_is_in_a_table() -> None:
    assert set(COUNTED) | {"RepVGG-D2se", "RepVGGplus-L2pse"} == set(NAMES)


def test_cost_follows_the_images_extents() -> None:
    arch = architecture("RepVGG-A0")
    conv = [cost(arch, height=h, width=w).macs - 1_280_000 for h, w in ((64, 96), (64, 64))]
    assert conv[0] * 2 == conv[1] * 3
    assert cost(arch, height=63, width=63).macs == cost(arch, height=64, width=64).macs


@pytest.mark.parametrize(("se", "least"), [("before_relu", 16), ("after_relu", 4)])
def test_squeeze_and_excitation_needs_a_hidden_channel(se: SqueezeExcitation, least: int) -> None:
    built = plain_architecture(depths=[1], channels=[least] * 2, se=se, num_classes=2)
    assert all(spec.se_channels == 1 for spec in built.blocks)
    with pytest.raises(ShapeError, match="hidden channels") as caught:
        plain_architecture(depths=[1], channels=[least, least - 1], se=se, num_classes=2)
    assert f"{least - 1} channels" in str(caught.value)
    assert f"at least {least}" in str(caught.value)
