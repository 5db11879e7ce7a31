"""What is wrong inside a branch, in torch: another eps of one norm, an identity left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model

torch = pytest.importorskip("torch")
from tests.peers.torch_blocks import Network  # noqa: E402  (it imports torch)

pytestmark = pytest.mark.peers
LAYER = "stage1.1"


def made(kind: str) -> tuple[Model, Any]:
    arch = plain_architecture(depths=[2], channels=[4, 6], num_classes=3, kind=kind)
    model = distinguishing_model(arch, seed=2)
    return model, Network(model).eval().float()


def port(network: Any) -> Any:
    """What a port shows: each block's output behind its ReLU, and the logits."""

    def layers(x: Any) -> dict[str, Any]:
        y, found = torch.tensor(x), {}
        with torch.no_grad():
            for name in network.names:
                y = torch.relu(network.get_submodule(name)(y))
                found[name] = y.numpy()
            return {**found, "linear": network.linear(y.mean((2, 3))).numpy()}

    return layers


@pytest.mark.parametrize("kind", ["qarepvgg", "dbb"])
def test_a_right_port_agrees(kind: str) -> None:
    model, network = made(kind)
    assert rr.verify(model, port(network)).verdict == "agree"


@pytest.mark.parametrize(
    ("kind", "theirs", "ours"),
    [
        ("qarepvgg", "rbr_dense.bn", "branch_3x3.bn"),
        ("qarepvgg", "bn", "bn"),
        ("dbb", "dbb_1x1_kxk.bn1.bn", "sequence.inner.bn"),
        ("dbb", "dbb_avg.avgbn", "average.bn"),
    ],
)
def test_another_eps_of_one_norm_is_named_with_the_norm(kind: str, theirs: str, ours: str) -> None:
    model, network = made(kind)
    network.get_submodule(f"{LAYER}.{theirs}").eps = 1e-3
    (found,) = rr.verify(model, port(network)).diagnosis
    assert (found.bug, found.layer) == ("eps-value", LAYER)
    assert f"(in {ours} alone)" in found.says
    assert found.estimate == pytest.approx(1e-3, rel=0.02)


def test_an_identity_inside_a_branch_that_is_left_out_is_named() -> None:
    model, network = made("dbb")
    first = network.get_submodule(f"{LAYER}.dbb_1x1_kxk.idconv1")
    first.forward = lambda x: first._conv_forward(x, first.weight, None)
    (found,) = rr.verify(model, port(network)).diagnosis
    assert (found.bug, found.layer) == ("identity-missing", LAYER)
    assert found.says == "the identity branch is left out inside sequence"


def test_a_block_in_training_mode_is_named_with_norms_inside_and_behind() -> None:
    """All norms of one block see the batch; of others none does."""
    model, network = made("qarepvgg")
    block = network.get_submodule(LAYER).train()
    for module in block.modules():
        module.momentum = 0.0  # a probe asks twice
    x = np.random.default_rng(0).standard_normal((3, 3, 24, 20)).astype(np.float32)
    report = rr.verify(model, port(network)(x), inputs=x)
    (found,) = report.diagnosis
    assert (found.bug, found.layer) == ("train-mode-batch-norm", LAYER)
