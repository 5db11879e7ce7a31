"""3. Two of 334 tensors, and no error.

The port: a deploy file loaded into a train-form network with `strict=False`. Only `linear.weight`
and `linear.bias` have names in common; every convolution keeps its random start.
(Seen in the questions of people whose two networks disagree: DingXiaoH/RepVGG issue 35.)

Why no test saw it: `strict=False` returns the list of what it did not load, and nobody reads it.

What says so here: not a bug hypothesis but the loader. A file is loaded whole or refused with the
list of what is missing. A port that did it anyway is bad from the first layer on, and its saved
weights are found to be somebody else's without running them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.errors import CheckpointError
from repvgg_ref.models.network import Model, fuse
from repvgg_ref.oracle import verify
from tests.museum.exhibit import PLAIN, torch_port, trained

torch = pytest.importorskip("torch")
from tests.peers.torch_repvgg import build_torch, to_torch  # noqa: E402 - it imports torch

pytestmark = pytest.mark.peers


def _careless(model: Model) -> Any:
    torch.manual_seed(0)
    network = build_torch(model.arch)
    result = network.load_state_dict(to_torch(fuse(model).state_dict()), strict=False)
    assert len(result.missing_keys) > 40  # torch did say so
    return network.eval()


def _write(path: Path, arrays: Mapping[str, Array]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # names are not known to numpy's stubs


def test_the_port_disagrees_from_the_first_layer_on() -> None:
    model = trained(PLAIN)
    report = verify(model, torch_port(_careless(model)))
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage0")


def test_its_weights_are_found_wrong_without_running_them(tmp_path: Path) -> None:
    model = trained(PLAIN)
    state = {k: v.numpy() for k, v in _careless(model).state_dict().items()}
    _write(tmp_path / "port.npz", state)
    report = verify(model, tmp_path / "port.npz")
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage0")
    assert "rbr_dense" in report.reason or "branch_3x3" in report.reason


def test_our_loader_refuses_a_file_of_which_only_a_part_fits(tmp_path: Path) -> None:
    model = trained(PLAIN)
    half = {k: v for k, v in model.state_dict().items() if not k.startswith("stage1.1.rbr_1x1")}
    _write(tmp_path / "half.npz", half)
    with pytest.raises(CheckpointError, match=r"stage1\.1\.rbr_1x1"):
        rr.load(tmp_path / "half.npz")
