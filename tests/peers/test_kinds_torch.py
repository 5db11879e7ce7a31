# mypy: allow-subclassing-any
"""Blocks other than RepVGG's own against torch modules with their published names, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from tests.models.small import batch, distinct_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


class Asymmetric(torch.nn.Module):  # type: ignore[name-defined]
    """Three convolutions, three batch norms, added up: the training form of ACNet's block."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__()
        for name, kernel, padding in (
            ("square", (3, 3), (1, 1)),
            ("ver", (3, 1), (1, 0)),
            ("hor", (1, 3), (0, 1)),
        ):
            conv = torch.nn.Conv2d(
                spec.in_channels,
                spec.out_channels,
                kernel,
                spec.stride,
                padding,
                groups=spec.groups,
                bias=False,
            )
            self.add_module(f"{name}_conv", conv)
            self.add_module(f"{name}_bn", torch.nn.BatchNorm2d(spec.out_channels, eps=eps))

    def forward(self, x: Any) -> Any:
        return (
            self.square_bn(self.square_conv(x))
            + self.ver_bn(self.ver_conv(x))
            + self.hor_bn(self.hor_conv(x))
        )


def _convs(spec: BlockSpec) -> list[Any]:
    settings: dict[str, Any] = {"groups": spec.groups, "bias": False}
    sizes = spec.in_channels, spec.out_channels
    return [torch.nn.Conv2d(*sizes, k, spec.stride, k // 2, **settings) for k in (3, 1)]


class IdentityWithoutNorm(torch.nn.Module):  # type: ignore[name-defined]
    """``BN(W3 x) + BN(W1 x) + x`` (the paper's Table 7)."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__()
        self.adds = spec.can_add_input
        for name, conv in zip(("rbr_dense", "rbr_1x1"), _convs(spec), strict=True):
            branch = torch.nn.Module()
            branch.conv, branch.bn = conv, torch.nn.BatchNorm2d(spec.out_channels, eps=eps)
            self.add_module(name, branch)

    def forward(self, x: Any) -> Any:
        y = sum(b.bn(b.conv(x)) for b in (self.rbr_dense, self.rbr_1x1))
        return y + x if self.adds else y


class PostAdditionNorm(torch.nn.Module):  # type: ignore[name-defined]
    """``BN(W3 x + W1 x + x)`` (the paper's Table 7)."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__()
        self.adds = spec.can_add_input
        for name, conv in zip(("rbr_dense", "rbr_1x1"), _convs(spec), strict=True):
            self.add_module(name, torch.nn.Module())
            getattr(self, name).conv = conv
        self.bn = torch.nn.BatchNorm2d(spec.out_channels, eps=eps)

    def forward(self, x: Any) -> Any:
        y = self.rbr_dense.conv(x) + self.rbr_1x1.conv(x)
        return self.bn(y + x if self.adds else y)


BLOCKS: dict[str, Callable[[BlockSpec, float], Any]] = {
    "acb": Asymmetric,
    "identity-without-bn": IdentityWithoutNorm,
    "post-addition-bn": PostAdditionNorm,
}


def network(model: Any) -> Any:
    """A torch network of the model's blocks, which takes its state dict as it is."""
    root = torch.nn.Module()
    for spec in model.arch.blocks:
        stage, _, index = spec.name.partition(".")
        if index and not hasattr(root, stage):
            root.add_module(stage, torch.nn.Module())
        parent = getattr(root, stage) if index else root
        parent.add_module(index or stage, BLOCKS[spec.kind](spec, model.eps))
    root.linear = torch.nn.Linear(model.arch.features, model.arch.num_classes)
    root.to(torch.float64)
    state = {name: torch.tensor(np.asarray(a)) for name, a in model.state_dict().items()}
    root.load_state_dict(state, strict=True)
    return root


def logits(root: Any, model: Any, x: Any) -> Any:
    for spec in model.arch.blocks:
        x = torch.relu(root.get_submodule(spec.name)(x))
    return root.linear(x.mean((2, 3)))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("name", BLOCKS)
def test_loss_gradients_and_statistics_are_torchs(name: str, groups: int) -> None:
    arch = plain_architecture(
        depths=[2, 2], channels=[4, 8, 8], groups=groups, num_classes=5, in_channels=2, kind=name
    )
    model = distinct_model(arch)
    x, labels = batch(arch, count=3)
    ours = model.loss_and_grads(x, labels, backend="reference")
    root = network(model).train()
    loss = torch.nn.functional.cross_entropy(
        logits(root, model, torch.tensor(x)), torch.tensor(labels)
    )
    loss.backward()
    assert float(ours.loss) == pytest.approx(loss.item(), rel=1e-12)
    theirs = {n: p.grad.numpy() for n, p in root.named_parameters()}
    assert theirs.keys() == ours.grads.keys()
    for key, grad in theirs.items():
        assert not np.abs(ours.grads[key] - grad).max() > 1e-10 * max(1e-3, np.abs(grad).max())
    for key, value in root.named_buffers():
        assert not np.abs(ours.stats[key] - value.numpy()).max() > 1e-12


@pytest.mark.parametrize("name", BLOCKS)
def test_evaluation_is_torchs(name: str) -> None:
    arch = plain_architecture(
        depths=[2, 2], channels=[4, 8, 8], num_classes=5, in_channels=2, kind=name
    )
    model = distinguishing_model(arch, seed=4)
    x, _ = batch(arch)
    with torch.no_grad():
        want = logits(network(model).eval(), model, torch.tensor(x)).numpy()
    assert not np.abs(model.forward(x) - want).max() > 1e-9 * np.abs(want).max()
