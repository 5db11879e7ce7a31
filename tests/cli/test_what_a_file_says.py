"""What a file says of itself, and what it cannot: how every command goes by it and tells it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import repvgg_ref as rr
import weights_io
from repvgg_ref.arrays import Array
from repvgg_ref.data.images import open_upright
from repvgg_ref.models.about import About
from tests.cli.runner import invoke, save_small, small_model
from tests.data.datasets import make_folder

ABOUT = About(
    classes=("ant", "bee", "cow"),
    input_size=(40, 40),
    mean=(0.2, 0.4, 0.6),
    std=(0.5, 0.25, 0.125),
    crop_ratio=0.8,
)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A file of arrays that says nothing."""
    path = tmp_path / "bare.pth"
    weights_io.save_weights(path, small_model().state_dict(), container="torch-zip")
    return path


@pytest.fixture
def knowing(tmp_path: Path) -> Path:
    """The same network, in a file that says what it is."""
    rr.save(replace(small_model(), about=ABOUT), tmp_path / "knowing.pth")
    return tmp_path / "knowing.pth"


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def commands(weights: Path, folder: Path, picture: Path) -> dict[str, list[object]]:
    make_folder(folder / "data" / "val")
    x = np.random.default_rng(0).normal(size=(1, 3, 16, 16)).astype(np.float32)
    np.save(folder / "x.npy", x)
    dump: dict[str, Any] = {"input": x, **small_model().forward(x, layers=True)}
    np.savez(folder / "dump.npz", **dump)
    return {
        "convert": ["--in", weights, "--out", folder / "out.npz"],
        "inspect": [weights],
        "golden": [
            "--reference",
            weights,
            "--out",
            folder / "bundle",
            "--inputs",
            folder / "x.npy",
        ],
        "verify": ["--reference", weights, "--candidate", folder / "dump.npz"],
        "predict": ["--weights", weights, picture],
        "eval": ["--weights", weights, "--data", folder / "data", "--size", 32],
    }


@pytest.mark.parametrize("name", ["convert", "inspect", "golden", "verify", "predict", "eval"])
def test_every_command_tells_what_it_assumed_and_takes_what_is_said(
    name: str, bare: Path, picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = commands(bare, tmp_path, picture)[name]
    shown = invoke(capsys, name, *arguments, "--json")
    assumed = shown.json()["assumed"]
    blocks = [spec.name for spec in small_model().arch.blocks]
    assert assumed["eps"] == 1e-5
    assert assumed["strides"]["stage0"] == 2
    assert assumed["dilations"] == dict.fromkeys(blocks, 1)

    if name == "inspect":  # it has nothing to say beside its JSON
        shown = invoke(capsys, name, *arguments)
    told = " ".join((shown.out + shown.err).split())
    assert (
        "assumed, where nobody has said otherwise, eps 1e-05; stride 2 in stage0, stage1.0" in told
    )
    assert "--eps, --strides, --dilations say otherwise" in told

    if name == "golden":  # what is said to it: tests/oracle/test_assumptions.py, and it takes long
        return
    said = ["--eps", "1e-5", "--strides", "stage0=1, stage1.0=1", "--strides", "stage2.0=2"]
    dilations = ",".join(f"{block}=1" for block in blocks)
    found = invoke(capsys, name, *arguments, *said, "--dilations", dilations, "--json").json()
    left = found["assumed"]["strides"]
    assert (found["assumed"]["eps"], found["assumed"]["dilations"]) == (None, {})
    assert not {"stage0", "stage1.0", "stage2.0"} & set(left)


@pytest.mark.parametrize("name", ["convert", "inspect", "verify", "predict", "eval"])
def test_of_a_fused_file_no_other_eps_is_offered(
    name: str, bare: Path, picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fused = tmp_path / "fused.npz"
    assert invoke(capsys, "convert", "--in", bare, "--out", fused).code == 0
    arguments = commands(fused, tmp_path, picture)[name]
    shown = invoke(capsys, name, *arguments, "--eps", "0.01")
    told = " ".join((shown.out + shown.err).replace("│", " ").split())
    assert (
        "assumed, where nobody has said otherwise, eps 1e-05 when it was fused; stride 2 in" in told
    )
    assert "--strides, --dilations say otherwise; of another eps, fuse the trained file" in told
    assert "--eps, --strides" not in told
    assert "eps 0.01 has no effect: the file is fused" in told


@pytest.mark.parametrize("name", ["convert", "predict"])
def test_a_file_that_says_everything_needs_no_assumption(
    name: str, knowing: Path, picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = invoke(capsys, name, *commands(knowing, tmp_path, picture)[name])
    assert (shown.code, shown.err) == (0, "")
    assert "assumed" not in shown.out


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("stage0", "no BLOCK=N"),
        ("stage0=two", "no BLOCK=N"),
        ("=2", "no BLOCK=N"),
        ("stage0=1,stage0=2", "stage0 is given two numbers"),
        ("stage9=1", "there is no block to give a stride"),
        ("stage0=0", "stage0 cannot have this stride"),
        ("stage1.1=2", "stage1.1 adds its input, so its stride is 1"),
    ],
)
def test_what_cannot_be_is_one_line(
    said: str, words: str, bare: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out.npz"
    line = invoke(capsys, "convert", "--in", bare, "--out", out, "--strides", said).error_line()
    assert words in line
    assert not out.exists()


def prepared(picture: Path) -> Array:
    """The picture as `ABOUT` says, by Pillow and arithmetic: 40 of 50 pixels, standardised."""
    image = open_upright(picture)  # 90 x 70
    small = image.resize((int(50 * 90 / 70), 50), Image.Resampling.BILINEAR)
    left, top = round((small.width - 40) / 2), 5
    pixels = np.asarray(small.crop((left, top, left + 40, top + 40)), np.float64) / 255
    x = (pixels - np.array([0.2, 0.4, 0.6])) / np.array([0.5, 0.25, 0.125])
    found: Array = x.transpose(2, 0, 1)[None]
    return found


def test_predict_prepares_and_names_as_the_file_says(
    knowing: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (entry,) = invoke(capsys, "predict", "--weights", knowing, picture, "--json").json()["images"]
    logits = rr.load(knowing, dtype=np.float64).forward(prepared(picture))[0]
    powers = np.exp(logits - logits.max())
    want = {
        name: power / powers.sum() for name, power in zip(ABOUT.classes or (), powers, strict=True)
    }
    got = {each["class"]: each["probability"] for each in entry["top"]}
    assert list(got) == sorted(want, key=lambda name: -want[name])
    assert all(abs(got[name] - want[name]) < 1e-3 for name in want)
    asked = invoke(
        capsys, "predict", "--weights", knowing, picture, "--size", "32", "--json"
    ).json()
    assert asked["images"][0]["top"] != entry["top"]


def test_predict_tells_the_size_that_it_assumed(
    bare: Path, knowing: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for weights, options, size in (
        (bare, (), 224),
        (bare, ("--size", 32), None),
        (knowing, (), None),
    ):
        shown = invoke(capsys, "predict", "--weights", weights, picture, *options, "--json")
        assert shown.json()["assumed"]["input_size"] == size
        assert ("assumed input size 224" in shown.err) == (size is not None)


def test_a_fused_file_predicts_the_same(
    knowing: Path, picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = [invoke(capsys, "predict", "--weights", knowing, picture).out]
    for suffix in ("npz", "safetensors", "pth"):
        out = tmp_path / f"fused.{suffix}"
        assert invoke(capsys, "convert", "--in", knowing, "--out", out).code == 0
        shown.append(invoke(capsys, "predict", "--weights", out, picture).out)
    assert len(set(shown)) == 1
    assert "bee" in shown[0]


def test_eval_prepares_and_numbers_classes_as_the_file_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    make_folder(data / "val", each=6)
    model = small_model()
    plain = save_small(tmp_path / "plain.pth")
    names = ("n02", "n00", "n01")  # the folders' names, in the order of another training
    order = [names.index(name) for name in sorted(names)]
    other = replace(model, params=dict(model.params), about=replace(ABOUT, classes=names))
    for part in ("weight", "bias"):
        head = np.empty_like(model.params[f"linear.{part}"])
        head[order] = model.params[f"linear.{part}"]
        other.params[f"linear.{part}"] = head
    rr.save(replace(other, about=About(classes=names)), tmp_path / "other.pth")
    options = ("--data", data, "--size", 32, "--json")
    results = [
        invoke(capsys, "eval", "--weights", path, *options).json()
        for path in (plain, tmp_path / "other.pth")
    ]
    assert results[0]["top1"] == results[1]["top1"] > 0

    rr.save(other, tmp_path / "sized.pth")
    shown = invoke(capsys, "eval", "--weights", tmp_path / "sized.pth", "--data", data, "--json")
    assert (shown.json()["size"], shown.json()["resize"], shown.err) == (40, 50, "")
    rr.save(replace(model, about=ABOUT), tmp_path / "strange.pth")
    shown = invoke(capsys, "eval", "--weights", tmp_path / "strange.pth", "--data", data, "--json")
    assert "3 classes of the data are not called as the model's (n00 for ant" in shown.err


def test_inspect_shows_what_a_file_says(knowing: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(invoke(capsys, "inspect", knowing).out.split())
    assert "3 classes (ant, bee, cow); pictures of 40 x 40 pixels; mean 0.2, 0.4, 0.6" in shown
    found = invoke(capsys, "inspect", knowing, "--json").json()["metadata"]
    assert json.loads(found["classes"]) == ["ant", "bee", "cow"]
