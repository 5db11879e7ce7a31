"""The fast backend against torch: logits of whole fused networks and gradients of a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.network import Model, fuse
from tests.random_networks import random_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def torch_logits(deploy: Model, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """In float64, by torch's own convolution."""

    def tensor(name: str) -> Any:
        return torch.from_numpy(deploy.params[name].astype(np.float64))

    y = torch.from_numpy(x.astype(np.float64))
    for spec in deploy.arch.blocks:
        weight, bias = tensor(f"{spec.name}.fused.weight"), tensor(f"{spec.name}.fused.bias")
        y = torch.nn.functional.conv2d(
            y, weight, bias, stride=spec.stride, padding=1, groups=spec.groups
        ).relu()
    logits = y.mean((2, 3)) @ tensor("linear.weight").T + tensor("linear.bias")
    return np.asarray(logits.numpy())


@pytest.mark.parametrize("name", ["RepVGG-A0", "RepVGG-A2", "RepVGG-B1g4"])
@pytest.mark.parametrize("images", [1, 3])
def test_logits_at_224(name: str, images: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The stated error of the default, 2e-5 of the largest output, against float64."""
    deploy = fuse(random_model(architecture(name), 0))
    x = np.random.default_rng(images).normal(size=(images, 3, 224, 224)).astype(np.float32)
    wanted = torch_logits(deploy, x)
    errors = {
        algorithm: np.abs(deploy.forward(x, algorithm=algorithm) - wanted).max()
        / np.abs(wanted).max()
        for algorithm in ("auto", "direct")
    }
    with capsys.disabled():
        print(f"\n{name}, {images} images, error over largest logit: {errors}")
    assert errors["auto"] <= 2e-5
    assert errors["direct"] <= 5e-6
