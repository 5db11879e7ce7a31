"""`repvgg-ref predict`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import repvgg_ref as rr
from repvgg_ref.data.digits import MODEL_PATH, sample_label, sample_paths
from repvgg_ref.data.images import eval_input, open_upright
from repvgg_ref.files.checkpoint import save
from tests.cli.runner import invoke, save_small, small_model


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_json_names_the_most_probable_classes_in_order(
    picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = save_small(tmp_path / "a.pth")
    shown = invoke(
        capsys, "predict", "--weights", weights, picture, picture, "--size", 64, "--json"
    )
    assert (shown.code, shown.err) == (0, "")
    found = shown.json()
    assert list(found) == ["model", "form", "assumed", "images"]
    assert (found["model"], found["form"]) == ("custom", "train")
    assert [image["image"] for image in found["images"]] == [str(picture)] * 2
    top = found["images"][0]["top"]
    assert all(list(entry) == ["index", "class", "probability"] for entry in top)
    logits = rr.load(weights).forward(eval_input(open_upright(picture), size=64))[0]
    powers = np.exp(logits.astype(np.float64))
    assert [entry["index"] for entry in top] == np.argsort(-logits).tolist()
    probabilities = [entry["probability"] for entry in top]
    np.testing.assert_allclose(probabilities, np.sort(powers / powers.sum())[::-1], rtol=1e-6)


def test_both_forms_of_the_digits_model_read_every_sample(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fused = tmp_path / "fused.npz"
    assert invoke(capsys, "convert", "--in", MODEL_PATH, "--out", fused).code == 0
    for weights in (MODEL_PATH, fused):
        found = invoke(capsys, "predict", "--weights", weights, *sample_paths(), "--json").json()
        for image in found["images"]:
            assert image["top"][0]["index"] == sample_label(Path(image["image"]))


@pytest.mark.parametrize("style", ["lines", "json"])
def test_classes_are_named(
    style: str, picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    names = ["cat", "dog, hound", "owl"]
    listed = tmp_path / "names.txt"
    listed.write_text(json.dumps(names) if style == "json" else "\n".join(names) + "\n")
    weights = save_small(tmp_path / "a.npz")
    options = ["--size", "32", "--classes", listed, "--top", "2"]
    shown = invoke(capsys, "predict", "--weights", weights, picture, *options)
    assert (shown.code, shown.err) == (0, "")
    head, *lines = shown.out.splitlines()
    assert head == str(picture)
    assert len(lines) == 2
    assert all(line.split("%  ")[1] in names for line in lines)


def test_what_cannot_be_done_is_one_line(
    picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights = save_small(tmp_path / "a.npz")
    broken = tmp_path / "broken.png"
    broken.write_bytes(picture.read_bytes()[:200])
    text = tmp_path / "text.txt"
    text.write_text("one\ntwo")
    nan = small_model()
    nan.params["linear.bias"][:] = np.nan
    save(nan, tmp_path / "nan.npz")
    two_channels = save_small(tmp_path / "two.npz", "se-before-relu")

    def line(*arguments: object) -> str:
        return invoke(capsys, "predict", *arguments, "--size", "32", "--json").error_line()

    assert "No such file" in line("--weights", weights, tmp_path / "none.png")
    assert "the picture is damaged" in line("--weights", weights, broken)
    assert "not a picture" in line("--weights", weights, text)
    assert "got 2 lines ; wanted 3 names" in line("--weights", weights, picture, "--classes", text)
    assert "outputs are not finite" in line("--weights", tmp_path / "nan.npz", picture)
    assert "got 2 input channels" in line("--weights", two_channels, picture)


def test_the_backend_may_be_named_by_a_variable(
    picture: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = save_small(tmp_path / "a.npz")
    monkeypatch.setenv("REPVGG_BACKEND", "tpu")
    assert "'tpu'" in invoke(capsys, "predict", "--weights", weights, picture).error_line()
