"""PSPNet against an independent torch one in float64: logits, loss, every gradient."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from tests.models.segmenters import (
    AUX,
    CHANNELS,
    CLASSES,
    DEPTHS,
    HEAD,
    pictures,
    small_model,
)

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def peer_of(model: Any, *, fast: bool) -> Any:
    from tests.peers.torch_pspnet import TorchPSPNet

    peer = TorchPSPNet(DEPTHS, CHANNELS, fast=fast, classes=CLASSES, width=HEAD, aux=AUX)
    state = {name: torch.tensor(np.asarray(a)) for name, a in model.state_dict().items()}
    peer.double().load_state_dict(state, strict=True)
    return peer


def close(found: Any, wanted: Any) -> None:
    wanted = wanted.detach().numpy()
    error = np.abs(found - wanted).max()
    assert found.shape == wanted.shape
    assert error <= 1e-9 * max(1.0, np.abs(wanted).max()), error


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_logits_of_both_forms(backend: str, fast: bool) -> None:
    model = small_model(fast=fast)
    peer = peer_of(model, fast=fast).eval()
    x, _ = pictures()
    wanted, _ = peer(torch.from_numpy(x))
    close(model.forward(x, backend=backend), wanted)
    close(rr.fuse(model).forward(x, backend=backend), wanted)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("backend", ["numpy", "reference"])
def test_loss_and_every_gradient(backend: str, fast: bool) -> None:
    model = small_model(fast=fast)
    peer = peer_of(model, fast=fast).train()
    x, labels = pictures(1)
    step = model.loss_and_grads(x, labels, dropout=0.0, backend=backend)
    loss = peer.loss(torch.from_numpy(x), torch.from_numpy(labels))
    loss.backward()
    close(np.asarray(step.loss), loss)
    theirs = dict(peer.named_parameters())
    assert step.grads.keys() == theirs.keys()
    for name, grad in step.grads.items():
        close(grad, theirs[name].grad)
    buffers = dict(peer.named_buffers())
    assert step.stats.keys() == buffers.keys()
    for name, stat in step.stats.items():
        close(np.asarray(stat), buffers[name])


def test_fast_and_usual_are_two_networks() -> None:
    """The same arrays: only dilations part them."""
    usual, fast = small_model(), small_model(fast=True)
    assert usual.state_dict().keys() == fast.state_dict().keys()
    x, _ = pictures()
    assert np.abs(usual.forward(x) - fast.forward(x)).max() > 1e-3


def test_the_published_sizes_hold() -> None:
    """Parameters of a PSPNet as torch counts them, on the backbone with groups."""
    from tests.peers.torch_pspnet import TorchPSPNet

    model = rr.build("pspnet_repvgg_a0_fast", num_classes=19)
    with torch.device("meta"):
        peer = TorchPSPNet(
            (2, 4, 14, 1), (48, 48, 96, 192, 1280), fast=True, classes=19, width=512, aux=256
        )
    shapes = {name: tuple(a.shape) for name, a in peer.state_dict().items()}
    assert {name: a.shape for name, a in model.state_dict().items()} == shapes
