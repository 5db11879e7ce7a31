"""The input pipeline's peers: torch's arithmetic, and torchvision itself where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.data import Loader, evaluation_transform, open_data
from repvgg_ref.data.source import IMAGENET_MEAN, IMAGENET_RGB, IMAGENET_STD
from tests.data.datasets import make_folder
from tests.data.test_transforms_torchvision import FIXTURE

torch = pytest.importorskip("torch", reason="the extra 'peers' is not installed")

pytestmark = pytest.mark.peers
NO_TORCHVISION = "torchvision does not go with the project's torch"


def test_standardised_pictures_are_torchs_to_float32_rounding() -> None:
    images = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32).div(255)
    mean, std = (torch.tensor(c).view(1, 3, 1, 1) for c in (IMAGENET_MEAN, IMAGENET_STD))
    wanted = x.sub(mean).div(std).numpy()
    # Three roundings of numbers up to 1, divided by 0.224, and one of a result up to 2.7.
    assert np.abs(IMAGENET_RGB(images) - wanted).max() <= 1e-6


def test_the_committed_file_is_what_torchvision_does() -> None:
    """Runs in an environment that has torchvision; elsewhere the file speaks for it."""
    pytest.importorskip("torchvision", reason=NO_TORCHVISION)
    from tests.peers import make_torchvision_fixture as made

    torch.manual_seed(0)
    parts = {name: list(part()) for name, part in made.PARTS.items()}
    assert json.loads(json.dumps(parts)) == {name: FIXTURE[name] for name in made.PARTS}


def test_a_whole_evaluation_set_is_what_torchvisions_loader_gives(tmp_path: Path) -> None:
    """Folder order, decoding, resizing, cropping and standardising, from files to arrays."""
    torchvision: Any = pytest.importorskip("torchvision", reason=NO_TORCHVISION)
    transforms = torchvision.transforms
    root = make_folder(tmp_path, classes=4, each=8)
    theirs = torchvision.datasets.ImageFolder(
        root,
        transforms.Compose(
            [
                transforms.Resize(36),
                transforms.CenterCrop(32),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        ),
    )
    ours = open_data(root, split="val", decoder="pillow")
    assert list(ours.classes) == theirs.classes
    assert [(ours.name(i), ours.labels[i]) for i in range(len(ours))] == theirs.samples
    loader = Loader(
        ours,
        transform=evaluation_transform(size=32),
        batch_size=32,
        threads=2,
        shuffle=False,
    )
    (batch,) = loader.epoch(0)
    wanted = np.stack([x.numpy() for x, _ in theirs])
    assert np.abs(ours.standardise(batch.images) - wanted).max() <= 1e-6
