"""The rivals against torch in float64: logits, loss, every gradient and running statistic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.baselines import BASELINES
from repvgg_ref.models.efficientnet import EFFICIENTNETS
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import fuse
from repvgg_ref.models.regnet import REGNETS
from tests.models.small import distinct_model

torch = pytest.importorskip("torch")
from tests.peers.torch_baselines import build_torch, filled  # noqa: E402  (it imports torch)
from tests.peers.torch_gated import EfficientNet, RegNet  # noqa: E402  (it imports torch)

pytestmark = pytest.mark.peers

CLASSES = 10


def assert_near(got: Array, wanted: Array, tolerance: float = 1e-10) -> None:
    assert got.shape == wanted.shape
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error <= tolerance, error


def made(name: str) -> tuple[Network, Any, int]:
    """A short network of that family, its torch peer, and the side of its images."""
    if name.startswith("RegNet"):
        how = {"depth": 5, "initial": 24, "slope": 30.0, "step": 2.4, "group_width": 8}
        regnet = REGNETS[name](num_classes=CLASSES, **how)
        return regnet, RegNet([(24, 1), (56, 2), (136, 2)], 8, CLASSES), 64
    if name.startswith("Efficient"):
        small = EFFICIENTNETS[name](num_classes=CLASSES, width=0.25, depth=0.5)
        return small, EfficientNet(0.25, 0.5, CLASSES), 40
    size, depths = (32, None) if name == "VGG-16" else (64, (2, 2))
    short = {"depths": depths} if depths else {}
    arch = BASELINES[name](num_classes=CLASSES, size=size, **short)
    return arch, build_torch(name, size=size, classes=CLASSES, depths=depths), size


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("ResNet-18", "reference"),
        ("ResNet-18", "numpy"),
        ("ResNet-50", "numpy"),
        ("ResNet-50-RepVGG", "numpy"),
        ("ResNeXt-50", "numpy"),
        ("VGG-16", "numpy"),
        ("RegNetX-3.2GF", "numpy"),
        ("EfficientNet-B0", "reference"),
        ("EfficientNet-B0", "numpy"),
    ],
)
def test_a_training_step_and_both_forms_are_torchs(name: str, backend: str) -> None:
    arch, peer, size = made(name)
    model = distinct_model(arch)
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((4, 3, size, size)), rng.integers(0, CLASSES, 4)
    built = filled(peer, model)
    with torch.inference_mode():
        logits = built.eval()(torch.from_numpy(x)).numpy()
    for each in (model, fuse(model)):
        assert_near(each.forward(x, backend=backend), logits)
    wanted = built.train()(torch.from_numpy(x))
    loss = torch.nn.functional.cross_entropy(wanted, torch.from_numpy(labels))
    loss.backward()
    step = model.loss_and_grads(x, labels, backend=backend)
    assert_near(step.logits, wanted.detach().numpy())
    assert abs(step.loss - loss.item()) <= 1e-12 * loss.item()
    theirs = {key: array.grad.numpy() for key, array in built.named_parameters()}
    assert theirs.keys() == step.grads.keys()
    largest = max(np.abs(grad).max() for grad in theirs.values())
    for key, grad in theirs.items():
        if np.abs(grad).max() > 1e-12 * largest:
            assert_near(step.grads[key], grad)
        else:  # a shift that the next batch norm takes away: rounding is all that is there
            assert np.abs(step.grads[key]).max() <= 1e-12 * largest
    state = built.state_dict()
    assert step.grads.keys() | step.stats.keys() == state.keys()
    for key, stat in step.stats.items():
        assert_near(np.asarray(stat), state[key].numpy(), 1e-12)
