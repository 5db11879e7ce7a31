"""The rivals against torch in float64: logits, loss, every gradient and running statistic."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.baselines import BASELINES
from repvgg_ref.models.network import fuse
from tests.models.small import distinct_model

torch = pytest.importorskip("torch")
from tests.peers.torch_baselines import build_torch, filled  # noqa: E402  (it imports torch)

pytestmark = pytest.mark.peers

CLASSES = 10


def assert_near(got: Array, wanted: Array, tolerance: float = 1e-10) -> None:
    assert got.shape == wanted.shape
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error <= tolerance, error


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("ResNet-18", "reference"),
        ("ResNet-18", "numpy"),
        ("ResNet-50", "numpy"),
        ("ResNet-50-RepVGG", "numpy"),
        ("ResNeXt-50", "numpy"),
        ("VGG-16", "numpy"),
    ],
)
def test_a_training_step_and_both_forms_are_torchs(name: str, backend: str) -> None:
    size, depths = (32, None) if name == "VGG-16" else (64, (2, 2))
    how = {"depths": depths} if depths else {}  # all that there is of a block, and quick
    arch = BASELINES[name](num_classes=CLASSES, size=size, **how)
    model = distinct_model(arch)
    rng = np.random.default_rng(1)
    x, labels = rng.standard_normal((4, 3, size, size)), rng.integers(0, CLASSES, 4)
    built = filled(build_torch(name, size=size, classes=CLASSES, depths=depths), model)
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
    for key, grad in theirs.items():
        assert_near(step.grads[key], grad)
    state = built.state_dict()
    assert step.grads.keys() | step.stats.keys() == state.keys()
    for key, stat in step.stats.items():
        assert_near(np.asarray(stat), state[key].numpy(), 1e-12)
