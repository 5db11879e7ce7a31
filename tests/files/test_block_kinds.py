"""Which blocks a file holds: from our metadata, else from its keys, else it has to be said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import repvgg_ref as rr
from repvgg_ref.blocks.catalogue import KINDS
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.dialects import MMPRETRAIN, TIMM
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.names import OFFICIAL, Dialect
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


ARCH: dict[str, Any] = {"depths": (2, 2), "channels": (4, 4, 8), "num_classes": 3}
TAKEN_FOR = {"relu-in-branches": "repvgg", "identity-without-bn": "1x1-only"}  # the same keys
LOST = {
    "plain": ("rbr_1x1", "rbr_identity"),
    "identity-only": ("rbr_1x1",),
    "1x1-only": ("rbr_identity",),
}


@pytest.mark.parametrize("block", BLOCKS)
def test_the_keys_of_a_file_that_says_nothing_tell_its_blocks(tmp_path: Path, block: str) -> None:
    path = written(tmp_path, random_model(plain_architecture(**ARCH, kind=block), 1).state_dict())
    model = rr.load(path)
    assert model.block == TAKEN_FOR.get(block, block)
    assert bool(model.notes) == (model.block in LOST)
    asked = rr.load(path, block=block)
    assert asked.block == block
    assert not asked.notes


@pytest.mark.parametrize("block", LOST)
@pytest.mark.parametrize("dialect", [OFFICIAL, TIMM, MMPRETRAIN], ids=lambda d: d.name)
def test_a_repvgg_that_lost_every_such_branch_is_taken_aloud(
    tmp_path: Path, block: str, dialect: Dialect
) -> None:
    whole = random_model(plain_architecture(**ARCH), 1)
    params = whole.params
    lost = {"rbr_1x1": "branch_1x1", "rbr_identity": "branch_identity"}
    kept = [n for n in params if not any(f".{lost[each]}." in n for each in LOST[block])]
    names = dialect.names(params)
    state = {names[name]: params[name] for name in kept}
    model = rr.load(written(tmp_path, state))
    assert model.block == block
    (note,) = [note for note in model.notes if "looks the same" in note]
    for branch in LOST[block]:
        assert branch.removeprefix("rbr_") in note.partition("lost all its ")[2]
    assert ("identity-without-bn" in note) == (block == "1x1-only")


@pytest.mark.parametrize("block", LOST)
@pytest.mark.parametrize("kept", ["stage1.1", "stage2.1"])
def test_a_repvgg_that_lost_some_branches_is_refused(tmp_path: Path, block: str, kept: str) -> None:
    """One block still has what the others lost: no kind has these keys."""
    state = random_model(plain_architecture(**ARCH), 1).state_dict()
    held = {
        name: array
        for name, array in state.items()
        if name.startswith(kept) or not any(f".{branch}." in name for branch in LOST[block])
    }
    says = _refusal(written(tmp_path, held))
    assert "is not exactly a custom in train form" in says
    assert all(branch in says for branch in LOST[block][:1])


def test_one_array_less_than_an_ablation_is_a_repvgg_with_many_less(tmp_path: Path) -> None:
    state = random_model(plain_architecture(**ARCH, kind="plain"), 1).state_dict()
    del state["stage2.1.rbr_dense.bn.bias"]
    assert "rbr_1x1" in _refusal(written(tmp_path, state))


@pytest.mark.parametrize("block", ["nonsense", "conv-bn"])
def test_blocks_that_a_repvgg_cannot_have_are_refused(tmp_path: Path, block: str) -> None:
    assert "no block of that name" in _refusal(written(tmp_path, small_state()), block)
    with pytest.raises(CheckpointError, match="no block of that name"):
        rr.build("RepVGG-A0", block=block)
