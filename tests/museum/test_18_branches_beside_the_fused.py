"""18. The branches beside the fused convolution.

The port: some deployed detectors (RT-DETR and its kin) keep a block's training branches beside the
fused convolution, in the module and in the file. A forward pass that adds up whatever branches
it finds computes the block twice.

Why no test saw it: the file has every key that either form asks for, so it loads strictly into the
module that wrote it. ReLU, batch norm and softmax behind it swallow a factor of 2.

The oracle: `block-summed-twice`. And a file that mixes both forms is refused by that name: which of
the two is meant is not ours to guess.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.errors import CheckpointError
from tests.museum.exhibit import (
    PLAIN,
    Exhibit,
    blocks,
    deploy_form,
    torch_port,
    train_form,
    trained,
)

pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def _mixed(model: Any) -> Any:
    """Every block of the train form with the fused convolution put in beside its branches."""
    network, fused = train_form(model), deploy_form(model)
    for block, deployed in zip(blocks(network), blocks(fused), strict=True):
        block.rbr_reparam = deployed.rbr_reparam
    return network


def exhibits() -> list[Exhibit]:
    model = trained(PLAIN)
    port = torch_port(_mixed(model))
    return [Exhibit("both forms summed", model, port, "block-summed-twice")]


def test_the_block_that_counts_twice_is_named() -> None:
    exhibits()[0].check()


def test_the_file_that_holds_both_forms_is_refused(tmp_path: Path) -> None:
    state = {name: array.numpy() for name, array in _mixed(trained(PLAIN)).state_dict().items()}
    np.savez(tmp_path / "mixed.npz", **state)
    with pytest.raises(CheckpointError, match="mixes fused kernels with training branches"):
        rr.load(tmp_path / "mixed.npz")
