"""The fast backend against torch: logits of whole fused networks and gradients of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.network import Model, fuse
from tests.models.small import SMALL
from tests.random_networks import random_model

torch = pytest.importorskip("torch")
from tests.peers.torch_repvgg import build_torch, to_torch  # noqa: E402  (it imports torch)

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
def test_logits_at_224(
    name: str, images: int, record_property: Callable[[str, object], None]
) -> None:
    """The stated error of the default, 2e-5 of the largest output, against float64."""
    deploy = fuse(random_model(architecture(name), 0))
    x = np.random.default_rng(images).normal(size=(images, 3, 224, 224)).astype(np.float32)
    wanted = torch_logits(deploy, x)
    errors = {
        algorithm: np.abs(deploy.forward(x, algorithm=algorithm) - wanted).max()
        / np.abs(wanted).max()
        for algorithm in ("auto", "direct")
    }
    found = ", ".join(f"{algorithm} {error:.1e}" for algorithm, error in errors.items())
    record_property(f"error over largest logit, {name}, {images} images", found)
    assert errors["auto"] <= 2e-5
    assert errors["direct"] <= 5e-6


def torch_step(model: Model, x: Array, labels: Array, dtype: Any) -> tuple[float, dict[str, Array]]:
    """Loss and gradients by autograd."""
    network = build_torch(model.arch, eps=model.eps).to(dtype).train()
    network.load_state_dict(to_torch(model.state_dict()))
    logits = network(torch.tensor(x).to(dtype))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(labels))
    loss.backward()
    return loss.item(), {name: p.grad.numpy() for name, p in network.named_parameters()}


STEPS = {
    "A0 at 64": (architecture("RepVGG-A0", num_classes=7), 64, 3),
    "A0 at 64, batch 1": (architecture("RepVGG-A0", num_classes=7), 70, 1),
    "small at an odd size": (SMALL["plain"], 45, 4),
    "groups": (SMALL["grouped"], 40, 4),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_training_step_is_autograds(
    name: str, record_property: Callable[[str, object], None]
) -> None:
    """Float64 to rounding; float32 by norms, as far from float64 as torch's own float32 is.

    In float32 rounding decides for a few activations near 0 whether their gradient passes; with a
    few pixels left in the last stage each of these changes a gradient by percents, torch's as ours.
    """
    arch, size, images = STEPS[name]
    model = random_model(arch, 5, np.float64)
    rng = np.random.default_rng(6)
    x = rng.normal(size=(images, arch.in_channels, size, size)).astype(np.float32)
    labels = rng.integers(0, arch.num_classes, images)
    loss, wanted = torch_step(model, x, labels, torch.float64)
    got = model.loss_and_grads(x.astype(np.float64), labels, backend="numpy")
    assert abs(got.loss - loss) <= 1e-10 * abs(loss)
    assert got.grads.keys() == wanted.keys()

    def distance(grads: dict[str, Array]) -> float:
        return max(
            float(np.linalg.norm(grads[key] - grad) / np.linalg.norm(grad))
            for key, grad in wanted.items()
        )

    assert distance(got.grads) <= 1e-8
    for key in model.params:
        model.params[key] = model.params[key].astype(np.float32)
    _, theirs = torch_step(model, x, labels, torch.float32)
    ours = model.loss_and_grads(x, labels, backend="numpy")
    found = f"ours {distance(ours.grads):.1e}, torch {distance(theirs):.1e}"
    record_property(f"float32 gradients, {name}", found)
    assert abs(ours.loss - loss) <= 1e-4 * abs(loss)
    assert distance(ours.grads) <= 0.1
