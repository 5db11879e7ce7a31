"""Forward, backward, running statistics and three steps of SGD, against torch's autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model, build, fuse
from repvgg_ref.train.decay import decay_kernels, official_first
from repvgg_ref.train.sgd import Factors, sgd_step
from tests.models.small import SMALL, batch, distinct_model

torch = pytest.importorskip("torch")

from tests.peers.torch_repvgg import build_torch, to_torch  # noqa: E402  (torch may be absent)

pytestmark = pytest.mark.peers

LR, MOMENTUM, DECAY, SMOOTHING = 0.1, 0.9, 5e-3, 0.1
every_network = pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL.keys())


def peer_of(model: Model) -> Any:
    """The same network in torch, in its double precision."""
    peer = build_torch(model.arch, deploy=model.form == "deploy", eps=model.eps).double()
    peer.load_state_dict(to_torch(model.state_dict()), strict=True)
    return peer


def assert_close(got: Mapping[str, Array], want: Mapping[str, Any], what: str) -> None:
    """Equal names; each array within 1e-10 of torch's largest element."""
    assert set(got) == set(want), what
    for name, tensor in want.items():
        expected = tensor.detach().numpy()
        assert got[name].shape == expected.shape, (what, name)
        error = float(np.max(np.abs(got[name] - expected)))
        assert error <= 1e-10 * float(np.max(np.abs(expected))), (what, name, error)


@every_network
def test_every_layer_in_evaluation_mode(arch: Network) -> None:
    model = distinct_model(arch)
    x, _ = batch(arch)
    for form in (model, fuse(model)):
        peer = peer_of(form).eval()
        want = dict(peer.layers(torch.tensor(x)))
        assert_close(form.forward(x, backend="reference", layers=True), want, form.form)


@every_network
@pytest.mark.parametrize("soft", [False, True], ids=["classes", "soft targets"])
def test_loss_logits_every_gradient_and_running_statistic(arch: Network, soft: bool) -> None:
    model = distinct_model(arch)
    x, labels = batch(arch)
    if soft:
        labels = np.random.default_rng(9).dirichlet(np.ones(arch.num_classes), len(x))
    result = model.loss_and_grads(x, labels, label_smoothing=SMOOTHING, backend="reference")

    peer = peer_of(model).train()
    logits = peer(torch.tensor(x))
    peer.load_state_dict(to_torch(model.state_dict()))  # that forward moved the statistics
    loss = peer.loss(torch.tensor(x), torch.tensor(labels), SMOOTHING)
    loss.backward()

    assert_close({"": np.asarray(result.loss)}, {"": loss}, "loss")
    assert_close({"": result.logits}, {"": logits}, "logits")
    assert_close(result.grads, {n: p.grad for n, p in peer.named_parameters()}, "gradients")
    assert_close(result.stats, dict(peer.named_buffers()), "running statistics")


@every_network
@pytest.mark.parametrize("nesterov", [False, True], ids=["heavy ball", "nesterov"])
@pytest.mark.parametrize("factors", [decay_kernels, official_first])
def test_three_steps(arch: Network, nesterov: bool, factors: Callable[[str], Factors]) -> None:
    model = distinct_model(arch)
    peer = peer_of(model).train()
    groups = [
        {"params": [p], "lr": LR * factors(n).lr, "weight_decay": DECAY * factors(n).decay}
        for n, p in peer.named_parameters()
    ]
    optimizer = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, nesterov=nesterov)
    velocities: dict[str, Array] = {}
    for seed in range(3):
        x, labels = batch(arch, seed=seed)
        result = model.loss_and_grads(x, labels, backend="reference")
        step = sgd_step(
            model.state_dict(),
            result.grads,
            velocities,
            lr=LR,
            momentum=MOMENTUM,
            nesterov=nesterov,
            weight_decay=DECAY,
            factors=factors,
        )
        model.load_state_dict(step.params | result.stats)
        velocities = step.velocities

        optimizer.zero_grad()
        peer.loss(torch.tensor(x), torch.tensor(labels)).backward()
        optimizer.step()

    assert_close(model.state_dict(), peer.state_dict(), "after three steps")
    moved = {n: optimizer.state[p]["momentum_buffer"] for n, p in peer.named_parameters()}
    assert_close(velocities, moved, "velocities")


@pytest.mark.parametrize("name", ["RepVGG-A0", "RepVGG-B1g4"])
def test_start_values_are_distributed_as_torch_leaves_them(name: str) -> None:
    ours = build(name, seed=0).state_dict()
    torch.manual_seed(0)
    theirs = build_torch(architecture(name)).state_dict()
    assert set(ours) == set(theirs)
    for key, tensor in theirs.items():
        ours_flat, theirs_flat = ours[key].ravel(), tensor.numpy().ravel()
        if ours[key].ndim < 2 and key != "linear.bias":
            assert np.array_equal(ours_flat, theirs_flat), key
            continue
        weight = theirs[key.replace("bias", "weight")]
        bound = 1 / np.sqrt(weight[0].numel())
        for flat in (ours_flat, theirs_flat):
            # Uniform in +-bound: mean, mean square and extremes, each to six standard errors.
            slack = 6 / np.sqrt(flat.size)
            scaled = flat.astype(np.float64) / bound
            assert np.abs(scaled).max() <= 1 + 1e-6, key
            assert np.abs(scaled).max() >= 1 - slack**2, key
            assert abs(scaled.mean()) <= slack * np.sqrt(1 / 3), key
            assert abs((scaled**2).mean() - 1 / 3) <= slack * np.sqrt(4 / 45), key
