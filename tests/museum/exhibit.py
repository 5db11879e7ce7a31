"""What every exhibit of the museum is: a reference, a port with one real bug, and its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle import Report, verify
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from tests.random_networks import random_model

PLAIN = plain_architecture(depths=(2, 2), channels=(8, 16, 24), num_classes=10)
GROUPED = plain_architecture(depths=(3, 2), channels=(16, 16, 32), groups=4, num_classes=10)
SQUEEZED = plain_architecture(
    depths=(2, 1), channels=(16, 32, 48), se="before_relu", num_classes=10
)


@dataclass(frozen=True)
class Exhibit:
    """One bug as somebody's port has it.

    Attributes
    ----------
    port : callable
        Images (N, C, H, W) -> every layer's output by name.
    bug, layer : str
        What the oracle must call it, and where it must first see it.
    """

    title: str
    model: Model
    port: Callable[[Array], Mapping[str, Any]]
    bug: str
    layer: str = "stage0"
    images: Mapping[str, int] = field(default_factory=lambda: {"height": 64, "width": 48})

    @property
    def x(self) -> Array:
        """The batch that both are given: of this size, unless it is the bug's."""
        return distinguishing_inputs(self.model.arch, **self.images)

    def seen_by_layers(self) -> Report:
        """The oracle's report on the port's layer outputs."""
        return verify(self.model, self.port, inputs=self.x)

    def seen_by_logits(self) -> Report:
        """The same with nothing but logits to go by."""
        return verify(self.model, lambda x: {"linear": self.port(x)["linear"]}, inputs=self.x)

    def check(self) -> Report:
        """Assert that the oracle names the bug and the layer; return its report."""
        report = self.seen_by_layers()
        assert report.verdict == "disagree", report.reason
        assert report.first_bad_layer == self.layer, report.reason
        top = report.diagnosis[0]
        assert self.bug in (top.bug, *top.equivalents), f"called {top.bug}: {top.says}"
        return report


def torch_port(network: Any) -> Callable[[Array], dict[str, Any]]:
    """Every layer's output of one of our torch witnesses, as a port."""
    import torch

    def run(x: Array) -> dict[str, Any]:
        with torch.no_grad():
            return {name: y.clone() for name, y in network.layers(torch.from_numpy(x))}

    return run


def train_form(model: Model, *, eps: float = 1e-5) -> Any:
    """The port before its bug: three branches, in evaluation mode."""
    from tests.peers.torch_repvgg import build_torch, to_torch

    network = build_torch(model.arch, eps=eps)
    network.load_state_dict(to_torch(model.state_dict()))
    return network.eval()


def deploy_form(model: Model) -> Any:
    """The port before its bug, fused."""
    from tests.peers.torch_repvgg import build_torch, to_torch

    network = build_torch(model.arch, deploy=True)
    network.load_state_dict(to_torch(fuse(model).state_dict()))
    return network.eval()


def blocks(network: Any) -> list[Any]:
    """Its blocks in order."""
    return [network.get_submodule(path) for path in network.paths]


def trained(arch: Network, seed: int = 0) -> Model:
    """A reference whose batch norms have seen something."""
    return random_model(arch, seed)
