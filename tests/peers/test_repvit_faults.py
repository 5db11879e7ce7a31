# mypy: allow-subclassing-any
"""Faults of RepViT ports in torch, as people write them: all are wrong, placed and named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import repvgg_ref as rr

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402, N812 - as everybody calls it
from torch import nn  # noqa: E402

from tests.peers.test_repvit_torch import pictures, port_of, tiny  # noqa: E402

pytestmark = pytest.mark.peers

Fault = Callable[[Any], Any]
SLOPE = (2 / torch.pi) ** 0.5


class Function(nn.Module):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


class OtherGate(nn.Module):
    """A gate with other functions within and behind its convolutions, or another product."""

    def __init__(
        self,
        gate: Any,
        within: Fault = torch.relu,
        behind: Fault = torch.sigmoid,
        product: Callable[[Any, Any], Any] = torch.mul,
    ) -> None:
        super().__init__()
        self.fc1, self.fc2 = gate.fc1, gate.fc2
        self.within, self.behind, self.product = within, behind, product

    def forward(self, x: Any) -> Any:
        squeezed = x.mean((2, 3), keepdim=True)
        return self.product(x, self.behind(self.fc2(self.within(self.fc1(squeezed)))))


class OtherMixer(nn.Module):
    def __init__(self, mixer: Any, forward: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.conv, self.conv1, self.bn, self.other = mixer.conv, mixer.conv1, mixer.bn, forward

    def forward(self, x: Any) -> Any:
        return self.other(self, x)


GELUS: dict[str, tuple[str, Fault]] = {
    "slope 1.7": ("gelu-approximated", lambda x: x * torch.sigmoid(1.7 * x)),
    "no cubic term": ("gelu-approximated", lambda x: 0.5 * x * (1 + torch.tanh(SLOPE * x))),
    "ELU": ("activation-between", F.elu),
    "Mish": ("activation-between", F.mish),
    "leaky": ("activation-between", F.leaky_relu),
    "half": ("gelu-formula", lambda x: 0.5 * F.gelu(x)),
    "twice": ("gelu-formula", lambda x: F.gelu(F.gelu(x))),
    "no root": ("gelu-formula", lambda x: 0.5 * x * (1 + torch.erf(x))),
    "no half": ("gelu-formula", lambda x: x * torch.erf(x / 2**0.5)),
}
GATES: dict[str, tuple[str, dict[str, Any]]] = {
    "slope 0.2": ("gate-activation", {"behind": lambda x: torch.clamp(0.2 * x + 0.5, 0, 1)}),
    "tanh": ("gate-activation", {"behind": torch.tanh}),
    "ReLU": ("gate-activation", {"behind": torch.relu}),
    "softmax": ("gate-activation", {"behind": lambda x: torch.softmax(x, 1)}),
    "none": ("gate-activation", {"behind": lambda x: x}),
    "SiLU within": ("gate-activation", {"within": F.silu}),
    "GELU within": ("gate-activation", {"within": F.gelu}),
    "leaky within": ("gate-activation", {"within": F.leaky_relu}),
    "1 +": ("gate-added", {"product": lambda x, gate: x * (1 + gate)}),
    "1 -": ("gate-added", {"product": lambda x, gate: x * (1 - gate)}),
    "doubled": ("gate-added", {"behind": lambda x: 2 * torch.sigmoid(x)}),
    "rolled": ("gate-added", {"product": lambda x, gate: x * torch.roll(gate, 1, 1)}),
    "first image": ("gate-added", {"product": lambda x, gate: x * gate[:1]}),
}
MIXERS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "ReLU": ("activation-added", lambda m, x: F.relu(m.bn(m.conv(x) + m.conv1(x) + x))),
    "GELU": ("activation-added", lambda m, x: F.gelu(m.bn(m.conv(x) + m.conv1(x) + x))),
    "identity behind": ("identity-always-on", lambda m, x: m.bn(m.conv(x) + m.conv1(x)) + x),
    "no bias": (
        "branch-bias-dropped",
        lambda m, x: m.bn(
            m.conv(x) + F.conv2d(x, m.conv1.weight, None, groups=len(m.conv1.weight)) + x
        ),
    ),
}


def requires(port: Any, layer: str, bug: str) -> None:
    report = rr.verify(tiny(), port, inputs=pictures())
    assert (report.verdict, report.first_bad_layer) == ("disagree", layer)
    assert report.diagnosis[0].bug == bug


@pytest.mark.slow
@pytest.mark.parametrize("name", GELUS)
def test_other_functions_where_gelu_belongs(name: str) -> None:
    port = port_of(tiny())
    bug, function = GELUS[name]
    port.features[2].channel_mixer.m[1] = Function(function)
    requires(port, "block2.gelu", bug)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", GATES)
def test_other_gates(name: str) -> None:
    port = port_of(tiny())
    bug, how = GATES[name]
    port.features[1].token_mixer[1] = OtherGate(port.features[1].token_mixer[1], **how)
    requires(port, "block1.gate", bug)


@pytest.mark.slow
@pytest.mark.parametrize("name", MIXERS)
def test_other_token_mixers(name: str) -> None:
    port = port_of(tiny())
    bug, forward = MIXERS[name]
    port.features[1].token_mixer[0] = OtherMixer(port.features[1].token_mixer[0], forward)
    requires(port, "block1.token", bug)


@pytest.mark.slow
def test_the_heads_own_bias() -> None:
    port = port_of(tiny())
    port.classifier["classifier"].l.bias.data.zero_()
    requires(port, "linear", "head-bias")


@pytest.mark.slow
@pytest.mark.parametrize("way", ["erf", "erfc", "gate"])
def test_other_ways_to_the_same_agree(way: str) -> None:
    port = port_of(tiny())
    root = 0.5**0.5
    ways: dict[str, Fault] = {
        "erf": lambda x: x * 0.5 * (1 + torch.erf(x * root)),
        "erfc": lambda x: x * 0.5 * torch.erfc(-x * root),
        "gate": F.gelu,
    }
    port.features[2].channel_mixer.m[1] = Function(ways[way])
    port.features[1].token_mixer[1] = OtherGate(port.features[1].token_mixer[1])
    report = rr.verify(tiny(), port, inputs=pictures())
    assert report.verdict == "agree", report.reason
