"""Which blocks a file holds: from our metadata, else from its keys, else it has to be said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import repvgg_ref as rr
from repvgg_ref.blocks.catalogue import KINDS
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.models.architectures import plain_architecture
from tests.files.checkpoint_files import small_state, written
from tests.random_networks import random_model

BLOCKS = [name for name, each in KINDS.items() if each.keys]


def _refusal(path: Path, block: str = "auto") -> str:
    with pytest.raises(CheckpointError) as caught:
        rr.load(path, block=block)
    return str(caught.value)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_our_own_files_say_what_blocks_they_hold(tmp_path: Path, block: str, form: str) -> None:
    arch = plain_architecture(depths=(2, 2), channels=(4, 4, 8), kind=block, num_classes=3)
    if form == "deploy" and not arch.is_fusible:
        pytest.skip("these blocks have no deploy form")
    model = random_model(arch, 1)
    rr.save(model if form == "train" else rr.fuse(model), tmp_path / "m.npz")
    loaded = rr.load(tmp_path / "m.npz")
    assert (loaded.block, loaded.form) == (block, form)
    assert repr(loaded).startswith(f"<Model custom: {form} form, {block} blocks")


@pytest.mark.parametrize("block", BLOCKS)
def test_inspect_finds_nothing_wrong_but_says_what_cannot_be_fused(
    tmp_path: Path, block: str
) -> None:
    arch = plain_architecture(depths=(2, 2), channels=(4, 4, 8), kind=block, num_classes=3)
    rr.save(random_model(arch, 1), tmp_path / "m.npz")
    found = [f for f in inspect_file(tmp_path / "m.npz").findings if f.level != "info"]
    if arch.is_fusible:
        assert not found
    else:
        (one,) = found
        assert one.message.startswith("it cannot be fused: stage0: a ReLU stands before the sum")


@pytest.mark.parametrize("block", BLOCKS)
def test_a_file_that_says_nothing_loads_or_names_the_block_to_ask_for(
    tmp_path: Path, block: str
) -> None:
    arch = plain_architecture(depths=(2, 2), channels=(4, 4, 8), kind=block, num_classes=3)
    path = written(tmp_path, random_model(arch, 1).state_dict())
    if KINDS[block].auto:
        assert rr.load(path).block == block
    elif block == "relu-in-branches":  # its keys are the paper's block's
        assert rr.load(path).block == "repvgg"
    else:
        assert re.search(rf"with --block .*{block}.* it is exactly", _refusal(path))
    assert rr.load(path, block=block).block == block


@pytest.mark.parametrize("block", ["nonsense", "conv-bn"])
def test_blocks_that_a_repvgg_cannot_have_are_refused(tmp_path: Path, block: str) -> None:
    assert "no block of that name" in _refusal(written(tmp_path, small_state()), block)
    with pytest.raises(CheckpointError, match="no block of that name"):
        rr.build("RepVGG-A0", block=block)
