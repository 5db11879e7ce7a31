"""Which parameters decay, and which learn faster."""

from __future__ import annotations

from dataclasses import replace

import pytest

from repvgg_ref.blocks.catalogue import KINDS
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import build
from repvgg_ref.train.custom_l2 import custom_l2
from repvgg_ref.train.decay import (
    DECAY_RULES,
    decay_kernels,
    factors_of,
    official_first,
    segmentation,
)
from repvgg_ref.train.sgd import Factors
from tests.models.small import SMALL


def test_the_paper_decays_kernels_and_nothing_else() -> None:
    arch = plain_architecture(
        depths=[2], channels=[16, 16], se="before_relu", num_classes=2, in_channels=1
    )
    state = build(arch).state_dict()
    decayed = {name for name in state if decay_kernels(name).decay}
    assert decayed == {name for name, array in state.items() if array.ndim > 1}
    assert {decay_kernels(name).lr for name in state} == {1.0}


@pytest.mark.parametrize("block", [name for name, kind in KINDS.items() if kind.keys])
def test_no_block_s_batch_norms_decay(block: str) -> None:
    arch = plain_architecture(depths=[2], channels=[4, 4], kind=block, num_classes=2)
    model = build(replace(arch, blocks=tuple(replace(b, copies=2) for b in arch.blocks)))
    official = dict(zip(model.params, model.state_dict(), strict=True))
    decayed = {ours for ours, theirs in official.items() if decay_kernels(theirs).decay}
    assert decayed == {name for name, array in model.params.items() if array.ndim > 1}


def test_factors_and_norms_of_a_dirac_block_never_decay() -> None:
    """The paper (section 4.2) decays neither a nor b; PSPNet's trainer everything."""
    for field in ("conv.alpha", "conv.beta", "bn.weight", "bn.bias"):
        for rule in DECAY_RULES.values():
            assert rule(f"stage1.1.{field}").decay == float(rule is segmentation)
            assert rule("stage1.1.conv.weight").decay == 1.0


def test_the_first_official_trainer_goes_by_words_in_the_name() -> None:
    assert official_first("stage0.rbr_dense.conv.weight") == Factors(1.0, 1.0)
    assert official_first("stage0.rbr_dense.bn.weight") == Factors(1.0, 0.0)
    assert official_first("stage1.1.rbr_identity.weight") == Factors(1.0, 1.0)
    assert official_first("stage1.1.rbr_identity.bias") == Factors(2.0, 0.0)
    assert official_first("linear.bias") == Factors(2.0, 0.0)


@pytest.mark.parametrize("rule", DECAY_RULES)
@pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL.keys())
def test_what_the_custom_l2_decays_does_not_decay_twice(arch: Network, rule: str) -> None:
    """Of every official name: the penalty's own kernels lose their decay, nothing else changes."""
    model = build(arch)
    penalty = custom_l2(arch, model.params, eps=model.eps, weight_decay=0.1)
    official = dict(zip(model.params, model.state_dict(), strict=True))
    penalised = {official[name] for name in penalty.grads}
    assert penalised
    for name in official.values():
        plain, replaced = factors_of(name, rule=rule), factors_of(name, rule=rule, custom_l2=True)
        assert plain == DECAY_RULES[rule](name)
        assert replaced == (plain._replace(decay=0.0) if name in penalised else plain), name
