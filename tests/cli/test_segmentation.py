"""`eval` and `predict` of PSPNets, and which recipe `train` takes for labels of pixels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import repvgg_ref as rr
from repvgg_ref.data.cityscapes import CLASSES as CITYSCAPES
from repvgg_ref.data.dense import labelled, parted
from repvgg_ref.data.scenes import CLASSES, ScenesSource
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.about import About
from repvgg_ref.train.pixels import segmentation_scores
from tests.cli.formats_page import require_documented
from tests.cli.runner import invoke
from tests.models.segmenters import small_graph
from tests.random_networks import random_model


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = random_model(small_graph(classes=len(CLASSES)), 0)
    about = About(CLASSES, (33, 33), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    save(replace(model, about=about), tmp_path / "net.npz")
    return tmp_path / "net.npz"


def test_eval_says_what_the_scores_of_its_own_predictions_are(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn = tmp_path / "confusion.png"
    how = ("--weights", weights, "--data", "generated:scenes-41", "--limit", 2)
    found = invoke(capsys, "eval", *how, "--confusion", drawn, "--form", "both", "--json").json()
    assert {"miou", "macc", "allacc", "iou"} <= found.keys()
    require_documented("eval", [found])
    assert (found["images"], found["window"], found["classes"]) == (2, 33, list(CLASSES))
    counts = np.array(found["confusion"])
    assert found["allacc"] == pytest.approx(np.diag(counts).sum() / counts.sum())
    truth = [
        np.asarray(parted(ScenesSource("generated:scenes-41", split="val").picture(n))[1])
        for n in (0, 50)
    ]
    assert counts.sum() == sum((labels != 255).sum() for labels in truth)
    assert found["forms"].keys() == {"train", "deploy"}
    assert found["same_pixels"] >= 0.999
    assert found["agreement"]["ok"]
    assert found["agreement"]["max_difference"] <= found["agreement"]["tolerance"]
    with Image.open(drawn) as sheet:
        assert sheet.width > 100
    text = invoke(capsys, "eval", *how).out
    assert "mIoU" in text
    assert "traffic sign" in text


def test_pictures_without_a_label_are_told_and_no_score_is_made_up(
    weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = ScenesSource.picture

    def void(self: ScenesSource, index: int) -> Any:
        image, labels = parted(drawn(self, index))
        return labelled(image, np.where(index in lost, 255, np.asarray(labels)))

    lost = {0}
    monkeypatch.setattr(ScenesSource, "picture", void)
    how = ("--weights", weights, "--data", "generated:scenes-41", "--limit", 2)
    shown = invoke(capsys, "eval", *how)
    assert "of 1 of 2 pictures no pixel has a label" in shown.err
    assert "undefined" not in shown.out
    lost = set(range(100))
    shown = invoke(capsys, "eval", *how)
    assert (shown.code, shown.out.count("undefined: no pixel has a label")) == (0, 3)
    found = invoke(capsys, "eval", *how, "--form", "both", "--json").json()
    require_documented("eval", [found])
    assert (found["void"], found["miou"], found["macc"], found["allacc"]) == (2, None, None, None)
    assert set(found["iou"]) == {None}


def test_forms_that_disagree_end_with_1(
    weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = rr.Model.forward

    def skewed(self: rr.Model, x: Any, **options: Any) -> Any:
        y = honest(self, x, **options)
        return y + np.float32(1e-2) if self.form == "deploy" else y

    how = ("--weights", weights, "--data", "generated:scenes-41", "--limit", 1, "--form", "both")
    right = invoke(capsys, "eval", *how)
    assert (right.code, "forms   agree" in right.out) == (0, True)
    monkeypatch.setattr(rr.Model, "forward", skewed)
    shown = invoke(capsys, "eval", *how)
    assert shown.code == 1
    assert "forms   DISAGREE" in shown.out
    found = invoke(capsys, "eval", *how, "--json")
    assert (found.code, found.json()["agreement"]["ok"]) == (1, False)


def test_verify_of_the_fused_file_agrees_though_it_lacks_the_auxiliary_head(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fused = tmp_path / "fused.pth"
    assert invoke(capsys, "convert", "--in", weights, "--out", fused).code == 0
    shown = invoke(capsys, "verify", "--reference", weights, "--candidate", fused)
    assert shown.code == 0, shown.out


def test_golden_of_a_pspnet_is_verified_against(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bundle"
    found = invoke(capsys, "golden", "--reference", weights, "--out", out, "--json").json()
    require_documented("golden", [found])
    assert found["mutation"]["killed"] > 1000
    shown = invoke(capsys, "verify", "--reference", out, "--candidate", out / "outputs.npz")
    assert shown.code == 0, shown.out


def test_predict_draws_pictures_of_any_size(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 44, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "street.png")
    out = tmp_path / "overlay.png"
    call = ("predict", "--weights", weights, tmp_path / "street.png", "--out", out)
    found = invoke(capsys, *call, "--json").json()
    require_documented("predict", [found])
    parts = found["images"][0]["pixels"]
    assert sum(part["share"] for part in parts) == pytest.approx(1)
    assert {part["class"] for part in parts} <= set(CLASSES)
    assert found["images"][0]["out"] == str(out)
    with Image.open(out) as sheet:
        assert sheet.width > 44
    assert "wrote" in invoke(capsys, *call).out


def test_data_and_network_must_have_labels_of_one_kind(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = invoke(capsys, "eval", "--weights", weights, "--data", "digits").error_line()
    assert "not of the model's kind" in told
    two = (tmp_path / "a.png", tmp_path / "b.png")
    for path in two:
        Image.new("RGB", (9, 9)).save(path)
    out = ("--out", tmp_path / "o.png")
    assert "one IMAGE" in invoke(capsys, "predict", "--weights", weights, *two, *out).err
    wrong = invoke(capsys, "predict", "--weights", weights, two[0], "--out", tmp_path / "o.jpg")
    assert "written as PNG" in wrong.error_line()


def test_train_takes_the_recipe_of_the_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    how = ("--data", "generated:scenes-33", "--size", 33, "--batch", 4, "--out", tmp_path / "o")
    found = invoke(capsys, "train", *how, "--dry-run", "--json").json()
    assert (found["recipe"], found["model"], found["classes"]) == ("scenes", "scenes", 8)
    assert found["memory"] > 0
    wrong = invoke(capsys, "train", "--data", "generated:shapes", "--recipe", "pspnet", "--dry-run")
    assert "labels of pixels" in wrong.error_line()
    assert segmentation_scores(np.zeros(1, int), np.zeros(1, int), 1)["miou"] == 1


def test_names_and_assumptions_of_a_file_that_says_nothing_of_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its names are the official example's, its 19 classes Cityscapes', what is said is said."""
    model, path = random_model(small_graph(classes=len(CITYSCAPES)), 0), tmp_path / "net.npz"
    arrays: Any = model.state_dict()
    np.savez(path, **arrays)
    found = invoke(capsys, "inspect", path, "--json").json()
    assert (found["dialect"], found["form"]) == ("official", "train")
    said = ("--dilations", "stage3.0=1")
    shown = invoke(capsys, "convert", "--in", path, "--out", tmp_path / "fused.npz", *said)
    assert "official names" in shown.out
    assert "assumed, where nobody has said otherwise, eps 1e-05; stride" in shown.out
    Image.fromarray(np.zeros((33, 33, 3), np.uint8)).save(tmp_path / "street.png")
    how = ("--weights", path, tmp_path / "street.png", "--size", 33)
    shown = invoke(capsys, "predict", *how)
    assert "Cityscapes' 19 are shown" in shown.err
    found = invoke(capsys, "predict", *how, "--json").json()
    require_documented("predict", [found])
    assert found["class_names"] == "cityscapes"
    assert {CITYSCAPES[part["index"]] for part in found["images"][0]["pixels"]} == {
        part["class"] for part in found["images"][0]["pixels"]
    }
