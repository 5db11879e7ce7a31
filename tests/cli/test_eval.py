"""`repvgg-ref eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.data.digits import MODEL_PATH
from repvgg_ref.data.images import eval_input, open_upright
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.architectures import plain_architecture
from tests.cli.runner import invoke, save_small, small_model
from tests.data.datasets import make_folder, make_tar
from tests.models.small import distinct_model

KEYS = [
    "model",
    "form",
    "assumed",
    "images",
    "top1",
    "top5",
    "interval",
    "size",
    "resize",
    "skipped",
    "expected",
]
SMALL = ("--size", 32, "--threads", 2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three classes, as the small model has."""
    make_folder(tmp_path / "data" / "val", each=8)
    return tmp_path / "data"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return save_small(tmp_path / "a.pth")


def counted(weights: Path, data: Path) -> list[int]:
    """Images right first and among two, by the path that `predict` takes, one by one."""
    model = rr.load(weights)
    places = []
    for label, folder in enumerate(sorted((data / "val").iterdir())):
        for path in folder.iterdir():
            (logits,) = model.forward(eval_input(open_upright(path), size=32), backend="reference")
            places.append(int((logits > logits[label]).sum()))
    return [sum(place < k for place in places) for k in (1, 5)]


def test_json_counts_what_predict_would_say(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = invoke(capsys, "eval", "--weights", weights, "--data", data, *SMALL, "--json")
    assert (shown.code, shown.err) == (0, "")
    found = shown.json()
    assert list(found) == KEYS
    assert (found["model"], found["form"], found["images"]) == ("custom", "deploy", 24)
    assert (found["size"], found["resize"]) == (32, 36)
    assert [round(24 * found[key]) for key in ("top1", "top5")] == counted(weights, data)
    assert 0 < found["top1"] < 1
    low, high = found["interval"]
    assert low < found["top1"] < high
    assert (found["skipped"], found["expected"]) == ([], None)


def test_neither_batches_nor_threads_nor_the_backend_change_the_counts(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = []
    for options in (
        (),
        ("--batch", 5, "--threads", 3),
        ("--backend", "reference", "--form", "train"),
        ("--decoder", "pillow"),
    ):
        shown = invoke(
            capsys, "eval", "--weights", weights, "--data", data, "--size", 32, *options, "--json"
        )
        assert shown.code == 0
        results.append([shown.json()[key] for key in ("images", "top1", "top5", "interval")])
    assert results == [results[0]] * 4


def test_tar_shards_and_pixel_shards_give_the_same_as_the_folder(
    weights: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    make_tar(tmp_path / "val-0.tar", 24)
    options = ("--size", 32, "--resize", 40)
    made = invoke(
        capsys, "shards", "--data", tmp_path / "val-0.tar", "--out", tmp_path / "px", "--size", 40
    )
    assert made.code == 0
    found = [
        invoke(capsys, "eval", "--weights", weights, "--data", where, *options, "--json").json()
        for where in (tmp_path / "val-{0..0}.tar", tmp_path / "px")
    ]
    assert found[0] == found[1]
    assert found[0]["images"] == 24


def test_both_forms_are_compared_on_every_image(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", MODEL_PATH, "--data", "digits", "--form", "both"]
    found = invoke(capsys, "eval", *options, "--json").json()
    assert list(found) == [*KEYS, "forms", "agreement"]
    assert list(found["forms"]) == ["train", "deploy"]
    assert found["forms"]["train"] == found["forms"]["deploy"]
    assert (found["images"], found["top1"], found["size"], found["resize"]) == (360, 1.0, 32, 32)
    agreement = found["agreement"]
    assert (agreement["ok"], agreement["same_class"]) == (True, 360)
    assert 0 < agreement["max_difference"] <= agreement["tolerance"] < 1e-2
    shown = invoke(capsys, "eval", *options)
    assert shown.code == 0
    assert shown.out.splitlines()[0] == "custom, both forms, 360 images (32 x 32 of 32)"
    assert "forms  agree: the same class for 360 of 360 images" in shown.out


def test_small_pictures_are_looked_at_as_they_are(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ten = plain_architecture(depths=[1, 1], channels=[4, 6, 8], num_classes=10)
    save(distinct_model(ten, dtype="float32"), tmp_path / "ten.pth")
    options = ["--weights", tmp_path / "ten.pth", "--limit", 20, "--json"]
    for data, seen in (("generated:shapes-48", (48, 48)), ("generated:shapes-256", (224, 256))):
        found = invoke(capsys, "eval", "--data", data, *options).json()
        assert (found["size"], found["resize"], found["images"]) == (*seen, 20)


def test_forms_that_disagree_end_with_1(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = rr.Model.forward

    def skewed(self: rr.Model, x: Any, **options: Any) -> Any:
        return honest(self, x, **options) + (1e-2 if self.form == "deploy" else 0)

    monkeypatch.setattr(rr.Model, "forward", skewed)
    shown = invoke(capsys, "eval", "--weights", weights, "--data", data, *SMALL, "--form", "both")
    assert shown.code == 1
    assert "forms  DISAGREE" in shown.out


def test_the_published_figure_stands_beside_an_official_model(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rr.Model, "name", "RepVGG-A0")  # an A0 of the right shapes takes seconds
    weights = save_small(tmp_path / "a.pth")
    options = ["--weights", weights, "--data", make_folder(tmp_path / "data")]
    found = invoke(capsys, "eval", *options, "--json").json()
    assert found["expected"] == {"paper": 0.7241, "timm": 0.72426, "size": 224, "same_size": True}
    shown = invoke(capsys, "eval", *options, "--size", 64)
    assert "stated 72.41% (paper), 72.43% (released weights, timm)" in shown.out
    assert shown.out.rstrip().endswith("at 224 x 224")


def test_skipped_images_are_named_and_counted(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = data / "val" / "n01" / "2.JPEG"
    broken.write_bytes(broken.read_bytes()[:-30])
    shown = invoke(capsys, "eval", "--weights", weights, "--data", data, *SMALL, "--json")
    found = shown.json()
    assert (shown.code, found["images"]) == (0, 23)
    assert [skipped["image"] for skipped in found["skipped"]] == [str(broken)]
    assert shown.err.startswith(f"note: skipped: {broken}: the picture is damaged")
    for folder in (data / "val").iterdir():
        for path in folder.iterdir():
            path.write_bytes(b"no picture")
    line = invoke(capsys, "eval", "--weights", weights, "--data", data, *SMALL).error_line()
    assert "too many pictures cannot be read" in line


def test_a_limit_takes_images_of_every_class(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--weights", weights, "--data", data, *SMALL, "--json"]
    assert invoke(capsys, "eval", *options, "--limit", 6).json()["images"] == 6
    assert invoke(capsys, "eval", *options, "--limit", 1000).json()["images"] == 24


def test_what_cannot_be_done_is_one_line(
    data: Path, weights: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fused, nan, four = tmp_path / "fused.npz", tmp_path / "nan.npz", tmp_path / "four"
    save(rr.fuse(small_model()), fused)
    broken = small_model()
    broken.params["linear.bias"][:] = np.nan
    save(broken, nan)
    make_folder(four, classes=4)
    (tmp_path / "empty").mkdir()
    high = make_tar(tmp_path / "high.tar", 8, classes=4)

    def line(*arguments: object) -> str:
        return invoke(capsys, "eval", *arguments, "--json").error_line()

    small = ("--weights", weights, *SMALL)
    assert "no such folder" in line(*small, "--data", tmp_path / "nowhere")
    assert "no classes" in line(*small, "--data", tmp_path / "empty")
    assert "got 4 classes, 3 channels ; wanted 3 classes" in line(*small, "--data", four)
    assert "got 4 classes" in line(*small, "--data", high)
    assert "got 10 classes, 1 channels" in line(*small, "--data", "digits")
    assert "larger than the resized" in line(*small, "--data", data, "--resize", 31)
    assert "No such file" in line("--weights", tmp_path / "none.pth", "--data", data)
    fused_already = line("--weights", fused, "--data", data, "--form", "both")
    assert "branches are fused already" in fused_already
    assert "outputs are not finite" in line("--weights", nan, "--data", data, *SMALL)
    assert "no folder called train" in line(*small, "--data", data, "--split", "train")
