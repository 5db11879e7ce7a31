"""Every block of the catalogue against a torch module with its published names, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import KINDS
from repvgg_ref.models.architectures import Architecture, plain_architecture
from repvgg_ref.models.network import build
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.train.decay import decay_kernels
from repvgg_ref.train.sgd import sgd_step
from tests.models.small import batch, distinct_model

torch = pytest.importorskip("torch")

from tests.peers.torch_blocks import BLOCKS, Network  # noqa: E402  (torch may be absent)

pytestmark = pytest.mark.peers
every = pytest.mark.parametrize("name", [name for name, each in KINDS.items() if each.keys])


def arch_of(name: str, groups: int = 1) -> Architecture:
    return plain_architecture(
        depths=[2, 2], channels=[4, 8, 8], groups=groups, num_classes=5, in_channels=2, kind=name
    )


def test_no_block_is_without_a_peer() -> None:
    assert BLOCKS.keys() == {name for name, each in KINDS.items() if each.keys}


def depthwise(arch: Architecture) -> Architecture:
    """With one group a channel wherever that can be."""
    blocks = (
        replace(b, groups=b.in_channels) if b.in_channels == b.out_channels else b
        for b in arch.blocks
    )
    return replace(arch, blocks=tuple(blocks))


@every
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_loss_gradients_and_statistics_are_torchs(name: str, groups: int, backend: str) -> None:
    assert_torchs(arch_of(name, groups), backend)


@pytest.mark.parametrize("backend", ["reference", "numpy"])
def test_a_depthwise_diverse_block_is_torchs(backend: str) -> None:
    """It averages without a 1x1, has none beside its kernel, and twice the channels inside."""
    arch = depthwise(arch_of("dbb"))
    assert any(b.groups == b.in_channels and b.stride == 2 for b in arch.blocks)
    assert_torchs(arch, backend)


def assert_torchs(arch: Architecture, backend: str) -> None:
    """The loss to 1e-12, gradients to 1e-10, running statistics to 1e-12."""
    model = distinct_model(arch)
    x, labels = batch(model.arch, count=3)
    ours = model.loss_and_grads(x, labels, backend=backend)
    root = Network(model).train()
    loss = torch.nn.functional.cross_entropy(root(torch.tensor(x)), torch.tensor(labels))
    loss.backward()
    assert float(ours.loss) == pytest.approx(loss.item(), rel=1e-12)
    theirs = {n: p.grad.numpy() for n, p in root.named_parameters()}
    assert theirs.keys() == ours.grads.keys()
    for key, grad in theirs.items():
        assert not np.abs(ours.grads[key] - grad).max() > 1e-10 * max(1e-3, np.abs(grad).max())
    for key, value in root.named_buffers():
        assert not np.abs(ours.stats[key] - value.numpy()).max() > 1e-12


@every
def test_three_steps_are_torchs(name: str) -> None:
    """SGD with momentum, decay on kernels alone: weights and statistics to 1e-10."""
    model = distinct_model(arch_of(name))
    root = Network(model).train()
    groups = [
        {"params": [p], "weight_decay": 5e-3 * decay_kernels(n).decay}
        for n, p in root.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    velocities: dict[str, Array] = {}
    for seed in range(3):
        x, labels = batch(model.arch, count=3, seed=seed)
        result = model.loss_and_grads(x, labels, backend="reference")
        step = sgd_step(
            model.state_dict(),
            result.grads,
            velocities,
            lr=0.1,
            momentum=0.9,
            nesterov=False,
            weight_decay=5e-3,
            factors=decay_kernels,
        )
        model.load_state_dict(step.params | result.stats)
        velocities = step.velocities
        optimizer.zero_grad()
        logits = root(torch.tensor(x))
        torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()
        optimizer.step()
    ours = model.state_dict()
    for key, value in root.state_dict().items():
        size = max(1.0, float(value.abs().max()))
        assert not np.abs(ours[key] - value.numpy()).max() > 1e-10 * size, key


@every
def test_evaluation_is_torchs(name: str) -> None:
    model = distinguishing_model(arch_of(name), seed=4)
    x, _ = batch(model.arch)
    with torch.no_grad():
        want = Network(model).eval()(torch.tensor(x)).numpy()
    for backend in ("reference", "numpy"):
        assert (
            not np.abs(model.forward(x, backend=backend) - want).max() > 1e-9 * np.abs(want).max()
        )


@every
def test_arrays_that_are_no_kernels_start_as_torchs(name: str) -> None:
    """Scales, shifts, kernels of zeros; the others are random numbers of one range."""
    model = build(arch_of(name), dtype=np.float64)
    torch.manual_seed(0)
    theirs = Network(model, start=True).state_dict()
    for key, array in model.state_dict().items():
        given = theirs[key].numpy().astype(np.float64)
        if given.std() > 0:
            few = given.size < 20
            assert few or abs(array).max() == pytest.approx(abs(given).max(), rel=0.4), key
        else:
            np.testing.assert_allclose(array, given, rtol=1e-7, err_msg=key)
