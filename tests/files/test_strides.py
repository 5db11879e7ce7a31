"""Strides and dilations: proved by a file, said in it, said by the caller, or assumed aloud."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.blocks.catalogue import KINDS
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.convert import convert
from repvgg_ref.files.graphs import identify_graph
from repvgg_ref.files.identify import identify
from repvgg_ref.files.strides import assumed_geometry
from repvgg_ref.models.architectures import Architecture, plain_architecture
from repvgg_ref.models.geometry import Geometry, geometry_of, with_geometry
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.registry import network
from tests.files.checkpoint_files import written
from tests.random_networks import random_model

# stage1.0 has equal widths, as A0's; stage2.0 has not.
ARCH = plain_architecture(depths=(2, 2), channels=(4, 4, 8), num_classes=3)
USUAL = {"stage0": 2, "stage1.0": 2, "stage1.1": 1, "stage2.0": 2, "stage2.1": 1}
X = np.random.default_rng(0).normal(size=(2, 3, 24, 20)).astype(np.float32)


def fork(strides: dict[str, int], dilations: dict[str, int] | None = None) -> rr.Model:
    """The network as forks make it: built as usual, its convolutions changed afterwards."""
    arch = with_geometry(ARCH, Geometry(strides, dilations or {}))
    assert isinstance(arch, Architecture)
    return random_model(arch, 3)


def test_what_nobody_says_is_taken_as_in_the_official_network_and_told(tmp_path: Path) -> None:
    model = rr.load(written(tmp_path, random_model(ARCH, 3).state_dict()))
    assert geometry_of(model.arch).strides == USUAL
    # the identity branches of stage1.1 and stage2.1 prove stride 1
    assert model.assumed.to_json() == {
        "eps": 1e-5,
        "strides": {"stage0": 2, "stage1.0": 2, "stage2.0": 2},
        "dilations": dict.fromkeys(USUAL, 1),
    }
    assert str(model.assumed) == "eps 1e-05; stride 2 in stage0, stage1.0, stage2.0; dilation 1"


def test_a_fused_file_proves_nothing(tmp_path: Path) -> None:
    model = rr.load(written(tmp_path, rr.fuse(random_model(ARCH, 3)).state_dict()))
    assert (model.assumed.eps, model.assumed.strides) == (None, USUAL)
    assert "else 1" in str(model.assumed)


def test_an_identity_branch_proves_stride_1(tmp_path: Path) -> None:
    straight = replace(ARCH, blocks=tuple(replace(s, stride=1) for s in ARCH.blocks))
    model = random_model(straight, 3)
    loaded = rr.load(written(tmp_path, model.state_dict()))
    assert geometry_of(loaded.arch).strides["stage1.0"] == 1
    assert "stage1.0" not in loaded.assumed.strides
    assert "stage2.0" in loaded.assumed.strides
    said = rr.load(tmp_path / "file.weights", strides={"stage0": 1, "stage2.0": 1})
    assert said.arch == model.arch
    np.testing.assert_array_equal(said.forward(X), model.forward(X))


@pytest.mark.parametrize("name", ["stage1.1", "stage2.1"])
def test_a_stride_that_the_arrays_disprove_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, random_model(ARCH, 3).state_dict())
    with pytest.raises(CheckpointError, match=rf"{name} adds its input, so its stride is 1"):
        rr.load(path, strides={name: 2})
    fused = written(tmp_path, rr.fuse(random_model(ARCH, 3)).state_dict())
    assert rr.load(fused, strides={name: 2}).arch.block(name).stride == 2


@pytest.mark.parametrize(
    ("strides", "match"),
    [
        ({"stage9.0": 1}, "there is no block to give a stride"),
        ({"linear": 1}, "there is no block to give a stride"),
        ({"stage0": 0}, "stage0 cannot have this stride"),
        ({"stage0": 1.5}, "stage0 cannot have this stride"),
        ({"stage0": True}, "stage0 cannot have this stride"),
        ({"stage0": 65}, "stage0 cannot have this stride"),
    ],
)
def test_other_blocks_and_numbers_are_refused(
    tmp_path: Path, strides: dict[str, Any], match: str
) -> None:
    path = written(tmp_path, random_model(ARCH, 3).state_dict())
    with pytest.raises(CheckpointError, match=match):
        rr.load(path, strides=strides)
    with pytest.raises(CheckpointError, match=match.replace("stride", "dilation")):
        rr.load(path, dilations=strides)


FORKS: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "last stride 1": ({"stage2.0": 1}, {}),
    "stem stride 1": ({"stage0": 1}, {}),
    # equal widths and stride 1, but no identity branch: there was none when it was built
    "first stage": ({"stage1.0": 1}, {}),
    "dilated": ({"stage2.0": 1}, {"stage2.0": 2, "stage2.1": 4}),
    "stride 3": ({"stage0": 3}, {}),
}


@pytest.mark.parametrize("fork_name", FORKS)
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_what_is_said_reaches_the_network(tmp_path: Path, fork_name: str, form: str) -> None:
    strides, dilations = FORKS[fork_name]
    model = fork(strides, dilations)
    stored = model if form == "train" else rr.fuse(model)
    path = written(tmp_path, stored.state_dict())
    loaded = rr.load(path, strides=strides, dilations=dilations)
    assert not set(strides) & set(loaded.assumed.strides)
    assert not set(dilations) & set(loaded.assumed.dilations)
    np.testing.assert_array_equal(loaded.forward(X), stored.forward(X))
    other = np.abs(rr.load(path).forward(X) - loaded.forward(X)).max()
    assert other > 0.01, "the case shows nothing"


@pytest.mark.parametrize("fork_name", FORKS)
@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
def test_our_own_files_say_it(tmp_path: Path, fork_name: str, suffix: str) -> None:
    model = fork(*FORKS[fork_name])
    rr.save(model, tmp_path / f"m.{suffix}")
    loaded = rr.load(tmp_path / f"m.{suffix}")
    assert (loaded.arch, bool(loaded.assumed)) == (model.arch, False)
    done = convert(tmp_path / f"m.{suffix}", tmp_path / f"d.{suffix}")
    assert not done.assumed
    deploy = rr.load(tmp_path / f"d.{suffix}")
    assert not deploy.assumed
    np.testing.assert_array_equal(deploy.forward(X), rr.fuse(model).forward(X))


def test_no_file_turns_an_assumption_into_a_fact(tmp_path: Path) -> None:
    bare = written(tmp_path, random_model(ARCH, 3).state_dict())
    told = convert(bare, tmp_path / "a.npz", strides={"stage0": 1}).assumed
    assert set(told.strides) == {"stage1.0", "stage2.0"}
    fused = rr.load(tmp_path / "a.npz").assumed
    # that stage1.1 has stride 1 was proved by the branches, and is known now
    assert (fused.eps, fused.strides) == (told.eps, told.strides)
    rr.save(rr.load(bare), tmp_path / "b.pth")
    assert rr.load(tmp_path / "b.pth").assumed == rr.load(bare).assumed
    assert rr.load(tmp_path / "b.pth", eps=1e-3).assumed.eps is None


def test_what_is_asked_for_counts_more_than_what_the_file_says(tmp_path: Path) -> None:
    rr.save(fork({"stage2.0": 1}), tmp_path / "m.npz")
    asked = rr.load(tmp_path / "m.npz", strides={"stage2.0": 2})
    assert asked.arch.block("stage2.0").stride == 2


@pytest.mark.parametrize("block", [name for name, each in KINDS.items() if each.keys])
def test_every_kind_of_block_takes_strides_and_dilations(tmp_path: Path, block: str) -> None:
    arch = plain_architecture(depths=(2, 2), channels=(4, 4, 8), kind=block, num_classes=3)
    said = Geometry({"stage0": 1, "stage2.0": 1}, {"stage2.0": 2, "stage2.1": 2})
    model = random_model(with_geometry(arch, said), 1)
    path = written(tmp_path, model.state_dict())
    loaded = rr.load(path, block=block, strides=said.strides, dilations=said.dilations)
    assert loaded.arch == model.arch
    y = model.forward(X)
    assert y.shape == rr.load(path, block=block).forward(X).shape
    if not loaded.arch.is_fusible:
        return
    error = np.abs(rr.fuse(loaded).forward(X) - y).max() / np.abs(y).max()
    assert not (error > 1e-5)


def test_official_names_stay_whatever_the_strides() -> None:
    shapes = param_shapes(rr.architecture("RepVGG-A0"), "deploy")
    said = Geometry({"stage4.0": 1}, {})
    found = identify(shapes, "deploy", said=said)
    assert (found.name, found.block("stage4.0").stride) == ("RepVGG-A0", 1)
    assert identify(shapes, "deploy", model="RepVGG-A0", said=said) == found


def test_networks_that_are_no_chain_take_them_too() -> None:
    shapes = param_shapes(network("ResNet-18"), "train")
    found = identify_graph(shapes, said=Geometry({"conv1": 1}, {}))
    assert found is not None
    assert found.network.block("conv1").stride == 1
    assumed = assumed_geometry(found.network, found.form, Geometry({"conv1": 1}, {}))
    assert "conv1" not in assumed.strides
    assert assumed.strides["layer2.0.conv1"] == 2
