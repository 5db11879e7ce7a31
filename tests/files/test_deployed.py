"""What is said of files in which no block is left to fuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.errors import CheckpointError


def _refusal(folder: Path, names: list[str], **metadata: str) -> str:
    arrays = {name: np.ones((2, 2, 3, 3), np.float32) for name in names}
    path = folder / "m.npz"
    weights_io.save_weights(path, arrays, container="npz", metadata=metadata)
    with pytest.raises(CheckpointError) as caught:
        rr.load(path)
    return str(caught.value)


def test_a_fused_detector_says_that_nothing_is_left_to_fuse(tmp_path: Path) -> None:
    names = ["model.24.rbr_reparam.weight", "model.24.rbr_reparam.bias", "model.0.conv.weight"]
    assert "m.npz: its blocks are fused already (got model.24.rbr" in _refusal(tmp_path, names)


def test_a_file_of_ours_says_so_by_its_metadata(tmp_path: Path) -> None:
    told = _refusal(tmp_path, ["x.weight"], form="modules", family="yolov9")
    assert "its blocks are fused already (got yolov9, written by repvgg-ref" in told


def test_convolutions_beside_batch_norms_may_be_fused_blocks(tmp_path: Path) -> None:
    names = ["a.conv.weight", "a.conv.bias", "b.conv.weight", "b.bn.running_var"]
    told = _refusal(tmp_path, names)
    assert "no RepVGG in any known dialect" in told
    assert "a.conv.weight: with a bias and no batch norm beside" in told
    assert "b.conv" not in told.partition("a.conv.weight: with")[2]


def test_kernels_without_biases_say_nothing(tmp_path: Path) -> None:
    assert "no RepVGG in any known dialect" in _refusal(tmp_path, ["a.rbr.weight", "b.conv.weight"])
