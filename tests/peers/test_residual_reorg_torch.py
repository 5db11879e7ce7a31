# mypy: allow-subclassing-any, disable-error-code="no-any-return"
"""Residual Reorg against torch in float64: loss, gradients, statistics, three steps, evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.baselines import resnet
from repvgg_ref.models.names import official_names, role_names
from repvgg_ref.models.network import Model, fold_norms
from repvgg_ref.models.residual_reorg import residual_reorg
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.train.decay import decay_kernels
from repvgg_ref.train.sgd import sgd_step
from tests.models.small import batch, distinct_model

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402  (torch may be absent)

from tests.peers.torch_baselines import RESNETS, Shortcut, build_torch, filled, projection  # noqa: E402  (it imports torch)

pytestmark = pytest.mark.peers


class Plain(nn.Module):
    """A layer under the official names of the 3x3 branch."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.rbr_dense = nn.Sequential()
        self.rbr_dense.add_module("conv", conv)
        self.rbr_dense.add_module("bn", nn.BatchNorm2d(outputs))

    def forward(self, x: Any) -> Any:
        return torch.relu(self.rbr_dense(x))


class Reorganised(nn.Module):
    """Stages of residual blocks between two layers; `depths` are blocks, the first has stride 2."""

    def __init__(
        self, widths: list[int], depths: list[int], *, inputs: int, classes: int, groups: int
    ) -> None:
        super().__init__()
        first, *middle, last = widths
        self.stage0 = Plain(inputs, first, 2)
        channels, layer = first, 0
        for stage, (width, depth) in enumerate(zip(middle, depths, strict=True), start=1):
            blocks: list[Any] = []
            for index in range(depth):
                convs: list[tuple[str, Any]] = []
                entry, stride = channels, 2 if index == 0 else 1
                for number in (1, 2):
                    layer += 1
                    g = 1 if layer % 2 else groups
                    step = stride if number == 1 else 1
                    conv = nn.Conv2d(channels, width, 3, step, 1, groups=g, bias=False)
                    convs += [(f"conv{number}", conv), (f"bn{number}", nn.BatchNorm2d(width))]
                    channels = width
                shortcut = projection(entry, width, stride)
                blocks.append(Shortcut(convs, shortcut))
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
        self.depth = len(middle)
        self.add_module(f"stage{self.depth + 1}", nn.Sequential(Plain(channels, last, 2)))
        self.linear = nn.Linear(last, classes)

    def forward(self, x: Any) -> Any:
        for stage in range(self.depth + 2):
            x = self.get_submodule(f"stage{stage}")(x)
        return self.linear(x.mean((2, 3)))


def made(groups: int) -> tuple[Model, Any]:
    chain = plain_architecture(
        depths=[2, 4, 1], channels=[4, 4, 6, 8], groups=groups, num_classes=5, in_channels=2
    )
    model = distinct_model(residual_reorg(chain))
    peer = Reorganised([4, 4, 6, 8], [1, 2], inputs=2, classes=5, groups=groups).double()
    state = {key: torch.tensor(np.asarray(array)) for key, array in model.state_dict().items()}
    peer.load_state_dict(state, strict=True)
    return model, peer


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_loss_gradients_and_statistics_are_torchs(groups: int, backend: str) -> None:
    """The loss to 1e-12, gradients to 1e-10, running statistics to 1e-12."""
    model, peer = made(groups)
    x, labels = batch(model.arch, count=3)
    with torch.no_grad():
        logits = peer.eval()(torch.tensor(x)).numpy()
    for each in (model, fold_norms(model)):
        got = each.forward(x, backend=backend)
        assert not np.abs(got - logits).max() > 1e-10 * np.abs(logits).max()
    ours = model.loss_and_grads(x, labels, backend=backend)
    loss = torch.nn.functional.cross_entropy(peer.train()(torch.tensor(x)), torch.tensor(labels))
    loss.backward()
    assert float(ours.loss) == pytest.approx(loss.item(), rel=1e-12)
    theirs = {name: array.grad.numpy() for name, array in peer.named_parameters()}
    assert theirs.keys() == ours.grads.keys()
    for key, grad in theirs.items():
        assert not np.abs(ours.grads[key] - grad).max() > 1e-10 * max(1e-3, np.abs(grad).max())
    for key, value in peer.named_buffers():
        assert not np.abs(ours.stats[key] - value.numpy()).max() > 1e-12, key


def test_three_steps_are_torchs() -> None:
    """SGD with momentum, decay on kernels alone: weights and statistics to 1e-10."""
    model, peer = made(2)
    groups = [
        {"params": [array], "weight_decay": 5e-3 * float(array.ndim > 1)}
        for array in peer.train().parameters()
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    velocities: dict[str, Array] = {}
    official, roles = official_names(model.arch, "train"), role_names(model.arch)
    role_of = {official[name]: role for name, role in roles.items()}
    for seed in range(3):
        x, labels = batch(model.arch, count=3, seed=seed)
        result = model.loss_and_grads(x, labels, backend="numpy")
        step = sgd_step(
            model.state_dict(),
            result.grads,
            velocities,
            lr=0.1,
            momentum=0.9,
            nesterov=False,
            weight_decay=5e-3,
            factors=lambda name: decay_kernels(role_of[name]),
        )
        model.load_state_dict(step.params | result.stats)
        velocities = step.velocities
        optimizer.zero_grad()
        logits = peer(torch.tensor(x))
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
        optimizer.step()
    ours = model.state_dict()
    for key, value in peer.state_dict().items():
        size = max(1.0, float(value.abs().max()))
        assert not np.abs(ours[key] - value.numpy()).max() > 1e-10 * size, key


@pytest.mark.parametrize("groups", [1, 2])
def test_a_module_is_judged_by_what_its_residual_blocks_give(groups: int) -> None:
    """Hooks hear its blocks, and norms that end a way through one: a convolution is no layer."""
    model, peer = made(groups)
    x = batch(model.arch, count=3)[0].astype(np.float32)
    peer = peer.float().eval()
    report = rr.verify(model, peer, inputs=x)
    assert report.verdict == "agree", report.reason
    heard = [layer.name for layer in report.layers]
    blocks = [(name, ("conv2", "add")) for name in ("stage1.0", "stage2.0", "stage2.1")]
    parts = [f"{name}.{part}" for name, own in blocks for part in own]
    for name in ("stage2.0", "stage1.0"):  # whose shortcut is a projection
        parts.insert(parts.index(f"{name}.conv2"), f"{name}.downsample")
    assert heard == ["stage0", *parts, "stage3.0", "linear"]
    with torch.no_grad():
        peer.get_submodule("stage2.1.conv1").weight *= 1.1
    assert rr.verify(model, peer, inputs=x).first_bad_layer == "stage2.1.conv2"


@pytest.mark.parametrize("name", ["ResNet-18", "ResNet-50"])
def test_the_papers_rivals_are_judged_as_modules(name: str) -> None:
    """Hooks hear residual blocks and their last norms; the stem and its pool are computed."""
    depths = (1, 2)
    _, _, published = RESNETS[name]
    arch = resnet("small", depths=depths, bottleneck=published["widening"] == 4, num_classes=3)
    model = distinguishing_model(arch, seed=3)
    peer = filled(build_torch(name, size=64, classes=3, depths=depths), model).eval()
    report = rr.verify(model, peer)
    assert report.verdict == "agree", report.reason
    last = "conv3" if name == "ResNet-50" else "conv2"
    parts = [f"layer{stage}.{part}" for stage in ("1.0", "2.0", "2.1") for part in (last, "add")]
    for stage in ("2.0", "1.0") if name == "ResNet-50" else ("2.0",):
        parts.insert(parts.index(f"layer{stage}.{last}"), f"layer{stage}.downsample")
    assert [layer.name for layer in report.layers] == [*parts, "linear"]
    peer.get_submodule("layer2.1").downsample = Nothing()
    report = rr.verify(model, peer)
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("shortcut-missing", "layer2.1.add")]


class Nothing(nn.Module):
    """A shortcut that adds nothing."""

    def forward(self, x: Any) -> Any:
        return 0 * x
