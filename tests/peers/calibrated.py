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
from repvgg_ref.data.digits import MODEL_PATH, load_digits, to_input
from repvgg_ref.files.checkpoint import load
from repvgg_ref.models.architectures import architecture, plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
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


def calibrated_model(arch: Network, seed: int) -> Model:
    """The train form of `arch`, float32, every batch norm fitted to what reaches it."""
    import torch

    drawn = random_model(arch, seed)
    network = build_torch(arch)
    network.load_state_dict(to_torch(drawn.state_dict()))
    rng = np.random.default_rng(seed + 1000)
    y = torch.from_numpy(distinguishing_inputs(arch, batch=4, height=96, width=64, seed=seed))
    with torch.no_grad():
        for path in network.paths:
            block = network.get_submodule(path)
            norms = [m for m in block.modules() if isinstance(m, torch.nn.BatchNorm2d)]
            for bn in norms:
                bn.momentum = 1.0  # running statistics := this batch's
            block.train()(y)
            for bn in norms:
                _drift(bn, rng)
            y = block.eval()(y)
    state: dict[str, Array] = {k: v.numpy() for k, v in network.state_dict().items()}
    official = drawn.state_dict()
    params = {name: state[theirs] for name, theirs in zip(drawn.params, official, strict=True)}
    return Model(arch, "train", params)


def _drift(bn: Any, rng: np.random.Generator) -> None:
    """Statistics of other images: off by a factor; a dead channel's variance is not 0."""
    shape = tuple(bn.running_var.shape)
    factors = np.exp(rng.normal(0, [[0.4], [0.2]], (2, *shape))).astype(np.float32)
    bn.running_var.clamp_(min=0.05 * float(bn.running_var.mean())).mul_(
        bn.running_var.new_tensor(factors[0])
    )
    bn.running_mean.mul_(bn.running_mean.new_tensor(factors[1]))


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
