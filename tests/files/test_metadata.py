"""What our files say beside their arrays: it comes back, from every container, or is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.convert import convert
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.files.metadata import describe
from repvgg_ref.models.about import UNKNOWN, About, Assumed
from repvgg_ref.models.geometry import Geometry, with_geometry
from tests.files.checkpoint_files import SMALL, small_model

ABOUT = About(
    classes=("cat", "dog", "Füchse", "", "a,b"),
    input_size=(48, 64),
    mean=(0.1, 0.25, 1 / 3),
    std=(0.5, 1.0, 2.0),
    crop_ratio=0.875,
)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
@pytest.mark.parametrize("about", [ABOUT, UNKNOWN, About(classes=ABOUT.classes)])
def test_a_model_knows_itself_from_file_to_file(tmp_path: Path, suffix: str, about: About) -> None:
    model = replace(small_model(), about=about)
    rr.save(model, tmp_path / f"m.{suffix}")
    loaded = rr.load(tmp_path / f"m.{suffix}")
    assert (loaded.about, rr.fuse(loaded).about) == (about, about)
    convert(tmp_path / f"m.{suffix}", tmp_path / f"d.{suffix}")
    assert rr.load(tmp_path / f"d.{suffix}").about == about


def test_an_onnx_file_says_the_same(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    rr.save(replace(small_model(), about=ABOUT), tmp_path / "m.pth")
    convert(tmp_path / "m.pth", tmp_path / "d.onnx", strides={"stage0": 1})
    said = {entry.key: entry.value for entry in onnx.load(tmp_path / "d.onnx").metadata_props}
    assert json.loads(said["classes"]) == list(ABOUT.classes or ())
    assert json.loads(said["input_size"]) == [48, 64]
    assert json.loads(said["mean"]) == [0.1, 0.25, 1 / 3]
    assert json.loads(said["strides"])["stage0"] == 1
    assert (said["eps"], said["form"], said["block"]) == ("1e-05", "deploy", "repvgg")


def test_another_programs_words_are_not_ours(tmp_path: Path) -> None:
    """A key of ours in a file without our signature may mean anything, and is no reason to fail."""
    path = tmp_path / "m.safetensors"
    foreign = {"classes": "80", "strides": "[8, 16, 32]", "mean": "imagenet", "format": "pt"}
    weights_io.save_weights(
        path, small_model().state_dict(), container="safetensors", metadata=foreign
    )
    loaded = rr.load(path)
    assert loaded.about == UNKNOWN
    assert loaded.assumed.strides["stage0"] == 2


STRANGERS = [
    {"optimizer": "AdamW", "lr": "3e-4", "eps": "1e-08"},
    {"eps": "see config"},
    {"eps": "0.5", "block": "acb", "writer": "repvgg-reference of somebody"},
]


@pytest.mark.parametrize("foreign", STRANGERS, ids=range(len(STRANGERS)))
def test_a_strangers_eps_is_told_and_not_taken(foreign: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    state = small_model().state_dict()
    weights_io.save_weights(path, state, container="safetensors", metadata=foreign)
    loaded = rr.load(path)
    assert (loaded.eps, loaded.assumed.eps, loaded.arch.blocks[0].kind) == (1e-5, 1e-5, "repvgg")
    assert any(f"says eps {foreign['eps']!r}, which" in note for note in loaded.notes)
    assert rr.load(path, eps=1e-8).eps == 1e-8


def test_a_file_of_version_0_1_is_ours(tmp_path: Path) -> None:
    path = tmp_path / "m.npz"
    metadata = {"model": "custom", "form": "train", "eps": "0.001"}
    weights_io.save_weights(path, small_model().state_dict(), container="npz", metadata=metadata)
    assert (rr.load(path).eps, rr.load(path).assumed.eps) == (1e-3, None)


def test_what_is_said_against_the_file_is_said_aloud(tmp_path: Path) -> None:
    path, fused = tmp_path / "m.npz", tmp_path / "d.npz"
    rr.save(small_model(), path)
    convert(path, fused, eps=1e-3)
    two: Any = {"stage1.1": np.int64(2)}
    other = rr.load(path, eps=1e-3, strides={"stage0": 1}, dilations=two)
    said = " ; ".join(other.notes)
    assert "stage0: the file's metadata says stride 2; 1 is taken, as you say" in said
    assert "stage1.1: the file's metadata says dilation 1; 2 is taken, as you say" in said
    assert "the file's metadata says eps 1e-05; 0.001 is taken, as you say" in said
    assert "eps 0.1 has no effect: the file is fused" in rr.load(fused, eps=0.1).notes
    assert not rr.load(path).notes
    assert "stride 1 in stage0" in repr(other)


@pytest.mark.parametrize("wrong", [[("stage0", 1)], "stage0=1", 5, {1: 1}, {"stage0": True}])
def test_steps_of_another_type_are_refused(wrong: Any, tmp_path: Path) -> None:
    rr.save(small_model(), tmp_path / "m.npz")
    for what in ("strides", "dilations"):
        with pytest.raises(CheckpointError):
            rr.load(tmp_path / "m.npz", **{what: wrong})


def test_inspect_tells_what_contradicts_the_arrays(tmp_path: Path) -> None:
    path = tmp_path / "RepVGG-B1-train.npz"
    model = replace(small_model(), arch=with_geometry(SMALL, Geometry({"stage0": 1})))
    told = {"model": "RepVGG-A0", "form": "deploy"}
    rr.save(model, path, metadata=told)
    said = [finding.message for finding in inspect_file(path).findings]
    assert any("the file's name says RepVGG-B1" in message for message in said)
    assert any("says model 'RepVGG-A0'" in message for message in said)
    assert any("says form 'deploy'" in message for message in said)
    assert any("stride 1 in stage0" in message for message in said)


def test_two_files_that_say_other_strides_do_not_agree(tmp_path: Path) -> None:
    one, other, silent = (tmp_path / f"{name}.npz" for name in ("one", "other", "silent"))
    model = small_model()
    rr.save(rr.fuse(model), one)
    moved = replace(model, arch=with_geometry(SMALL, Geometry({"stage0": 1})))
    rr.save(rr.fuse(moved), other)
    weights_io.save_weights(silent, model.state_dict(), container="npz")
    report = rr.verify(one, other)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage0")
    assert "other.npz says strides stage0=1" in report.reason
    assert rr.verify(one, one).verdict == "agree"
    report = rr.verify(silent, other)
    assert (report.verdict, report.diagnosis[0].bug) == ("disagree", "assumption")
    assert "give --strides stage0=1" in report.diagnosis[0].advice


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("classes", '["a", "b"]', "no classes .*2 of them.*5, as the network has"),
        ("classes", "[1, 2, 3, 4, 5]", "no classes"),
        ("classes", "not json", "no classes"),
        ("mean", "[0.5]", "no mean .*1 of them.*3, as the network has"),
        ("std", "[1, 2, true]", "no std"),
        ("mean", "[NaN, 0, 0]", "no mean"),
        ("input_size", "[32]", "no input_size"),
        ("strides", '{"stage0": 1.5}', "no strides"),
        ("strides", '{"stage7.0": 1}', "there is no block to give a stride"),
        ("dilations", '{"stage0": 0}', "stage0 cannot have this dilation"),
        ("assumed", "[]", "no assumed"),
        ("std", "[0, 1, 1]", "no std"),
        ("std", "[-1, 1, 1]", "no std"),
        ("mean", "[1e308, 0, 0]", "no mean"),
        ("input_size", "[0, 0]", "no input_size"),
        ("input_size", "[-5, 3]", "no input_size"),
        ("crop_ratio", "0", "no crop_ratio"),
        ("crop_ratio", "-1", "no crop_ratio"),
        ("crop_ratio", "1e9", "no crop_ratio"),
        ("strides", '{"stage0": 1, "stage0": 2}', "no strides"),
        ("eps", "-1", "no eps"),
        ("eps", "see config", "no eps"),
    ],
)
def test_what_cannot_be_ours_is_refused_and_inspected(
    tmp_path: Path, name: str, value: str, match: str
) -> None:
    path = tmp_path / "m.pth"
    metadata: dict[str, Any] = describe(SMALL, "train", 1e-5, ABOUT, Assumed()) | {name: value}
    weights_io.save_weights(
        path, small_model().state_dict(), container="torch-zip", metadata=metadata
    )
    with pytest.raises(CheckpointError, match=match):
        rr.load(path)
    with pytest.raises(CheckpointError, match=match):
        convert(path, tmp_path / "d.npz")
    levels = [finding.level for finding in inspect_file(path).findings]
    assert "error" in levels


def test_one_line_says_what_is_known() -> None:
    assert repr(UNKNOWN) == "<About: nothing known>"
    shown = repr(replace(ABOUT, classes=tuple(map(str, range(1000)))))
    assert shown.startswith("<About: 1000 classes (0, 1, 2, 3, 4, ...); pictures of 48 x 64 pixels")
    assert len(shown) < 200


def test_the_bundled_model_knows_its_digits() -> None:
    from repvgg_ref.data.digits import ABOUT as DIGITS
    from repvgg_ref.data.digits import MODEL_PATH

    model = rr.load(MODEL_PATH)
    assert (model.about, bool(model.assumed)) == (DIGITS, False)
    assert len(model.about.mean or ()) == model.arch.in_channels


def test_the_eps_that_save_wrote_is_taken_unless_another_is_asked_for(tmp_path: Path) -> None:
    arch = rr.plain_architecture(depths=[1], channels=[4, 4], num_classes=2)
    model = rr.build(arch, eps=1e-3)
    rr.save(model, tmp_path / "m.npz")
    assert rr.load(tmp_path / "m.npz").eps == 1e-3
    assert rr.load(tmp_path / "m.npz", eps=1e-5).eps == 1e-5
