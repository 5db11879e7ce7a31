"""Random networks whose activations keep a sane scale, however deep they are.

`tests.random_networks` draws batch norm's statistics blindly; after the 48 layers of D2se little
sense is left. Here each batch norm's statistics are those of its own input, off by random factors,
as in a trained network that sees new images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.checkpoint import load
from repvgg_ref.digits import MODEL_PATH, load_digits, to_input
from repvgg_ref.models.architectures import Architecture, architecture, plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.inputs import distinguishing_inputs
from tests.peers.torch_repvgg import build_torch, to_torch
from tests.random_networks import random_model

SMALL = {
    "small": plain_architecture(depths=(2, 2), channels=(8, 16, 24), num_classes=10),
    "small-g4": plain_architecture(depths=(2, 2), channels=(16, 16, 32), groups=4, num_classes=7),
    "small-se": plain_architecture(
        depths=(2, 1), channels=(16, 32, 48), se="before_relu", num_classes=5
    ),
    "small-pse": plain_architecture(
        depths=(1, 2), channels=(16, 16, 32), se="after_relu", num_classes=5
    ),
}


def calibrated_model(arch: Architecture, seed: int) -> Model:
    """The train form of `arch`, float32, every batch norm fitted to what reaches it."""
    import torch

    drawn = random_model(arch, seed)
    network = build_torch(arch)
    network.load_state_dict(to_torch(drawn.state_dict()))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # running statistics := this batch's
    with torch.no_grad():
        network(torch.from_numpy(distinguishing_inputs(arch, batch=4, height=96, width=64)))
    rng = np.random.default_rng(seed + 1000)
    state: dict[str, Array] = {k: v.numpy() for k, v in network.state_dict().items()}
    official = drawn.state_dict()
    params = {
        name: _drifted(name, state[theirs], rng)
        for name, theirs in zip(drawn.params, official, strict=True)
    }
    return Model(arch, "train", params)


def _drifted(name: str, value: Array, rng: np.random.Generator) -> Array:
    if name.endswith(".running_var"):
        value = value * np.exp(rng.normal(0, 0.4, value.shape)) + 1e-6
    elif name.endswith(".running_mean"):
        value = value * np.exp(rng.normal(0, 0.2, value.shape))
    else:
        return value
    return np.asarray(value, np.float32)


def model_and_inputs(name: str, seed: int) -> tuple[Model, Array]:
    """A network by name ("digits", a small one, an official one) and a batch for it.

    "digits" is the bundled trained network, always the same; the seed chooses the images.
    """
    if name == "digits":
        images = load_digits().test.images
        chosen = np.random.default_rng(seed).choice(len(images), 2, replace=False)
        return load(MODEL_PATH), to_input(images[chosen])
    arch = SMALL[name] if name in SMALL else architecture(name)
    batch, height, width = (2, 48, 64) if name in SMALL else (1, 64, 64)
    x = distinguishing_inputs(arch, batch=batch, height=height, width=width, seed=seed)
    return calibrated_model(arch, seed), x


def fresh_folder(root: Path, *parts: Any) -> Path:
    """A new folder for one candidate's files."""
    folder = root.joinpath(*(str(part).replace(" ", "-").replace("/", "-") for part in parts))
    folder.mkdir(parents=True, exist_ok=True)
    return folder
