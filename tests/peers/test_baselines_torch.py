"""ResNet and VGG against torch in float64: logits, loss, every gradient and running statistic."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import fuse
from repvgg_ref.models.registry import network
from tests.models.small import distinct_model

torch = pytest.importorskip("torch")
from tests.peers.torch_baselines import (  # noqa: E402  (it imports torch)
    build_torch,
    filled,
    gradients,
    places,
)

pytestmark = pytest.mark.peers

CLASSES = 10


def assert_near(got: Array, wanted: Array, tolerance: float = 1e-9) -> None:
    assert got.shape == wanted.shape
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error <= tolerance, error


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("ResNet-18", "reference"),
        ("ResNet-18", "numpy"),
        ("ResNet-50", "numpy"),
        ("VGG-16", "numpy"),
    ],
)
def test_a_training_step_and_both_forms_are_torchs(name: str, backend: str) -> None:
    size = 32 if name == "VGG-16" else 64
    arch = network(name, num_classes=CLASSES, size=size)
    model = distinct_model(arch)
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((4, 3, size, size)), rng.integers(0, CLASSES, 4)
    built = filled(build_torch(name, size=size, classes=CLASSES), model)
    with torch.inference_mode():
        logits = built.eval()(torch.from_numpy(x)).numpy()
    for each in (model, fuse(model)):
        assert_near(each.forward(x, backend=backend), logits)
    wanted = built.train()(torch.from_numpy(x))
    loss = torch.nn.functional.cross_entropy(wanted, torch.from_numpy(labels))
    loss.backward()
    step = model.loss_and_grads(x, labels, backend=backend)
    assert_near(step.logits, wanted.detach().numpy())
    assert abs(step.loss - loss.item()) <= 1e-9 * loss.item()
    theirs = dict(gradients(built, arch))
    assert theirs.keys() == step.grads.keys()
    for key, grad in theirs.items():
        assert_near(step.grads[key], grad)
    state, at = built.state_dict(), places(built, arch)
    assert step.grads.keys() | step.stats.keys() == at.keys()
    for key, stat in step.stats.items():
        assert_near(np.asarray(stat), state[at[key]].numpy())
