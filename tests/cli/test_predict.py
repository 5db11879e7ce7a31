"""`repvgg-ref predict`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import repvgg_ref as rr
from repvgg_ref.data.digits import MODEL_PATH, sample_label, sample_paths
from repvgg_ref.data.imagenet import imagenet_classes
from repvgg_ref.data.images import eval_input, open_upright
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.about import About
from repvgg_ref.models.network import build
from tests.cli.runner import invoke, save_small, small_model
from tests.data.pen import written


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
    assert list(found) == ["model", "form", "assumed", "class_names", "images"]
    assert (found["model"], found["form"]) == ("custom", "train")
    assert [image["image"] for image in found["images"]] == [str(picture)] * 2
    top = found["images"][0]["top"]
    assert all(list(entry) == ["index", "class", "probability"] for entry in top)
    logits = rr.load(weights).forward(eval_input(open_upright(picture), size=64))[0]
    powers = np.exp(logits.astype(np.float64))
    assert [entry["index"] for entry in top] == np.argsort(-logits).tolist()
    probabilities = [entry["probability"] for entry in top]
    np.testing.assert_allclose(probabilities, np.sort(powers / powers.sum())[::-1], rtol=1e-6)


def test_classes_without_a_name_are_numbers_for_people_and_null_in_json(
    picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = ("--weights", save_small(tmp_path / "a.npz"), picture, "--size", 64)
    found = invoke(capsys, "predict", *options, "--json").json()
    top = found["images"][0]["top"]
    assert found["class_names"] == "none"
    assert [entry["class"] for entry in top] == [None] * len(top)
    shown = invoke(capsys, "predict", *options).out.splitlines()[1:]
    assert [int(line.split()[-1]) for line in shown] == [entry["index"] for entry in top]


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


def test_a_dark_digit_is_inverted_and_found_and_that_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "seven.png"
    mask = written(7, hand="round", pen=0.1, rng=np.random.default_rng(7), side=160)
    Image.eval(mask, lambda level: 255 - level).save(path)
    shown = invoke(capsys, "predict", "--weights", MODEL_PATH, path, "--top", "1")
    assert (shown.code, shown.err) == (0, "")
    head, best = shown.out.splitlines()
    assert head.startswith(f"{path}  (inverted, cropped to ")
    assert best.split()[1] == "7"
    found = invoke(capsys, "predict", "--weights", MODEL_PATH, path, "--json").json()
    assert found["images"][0]["prepared"][0] == "inverted"
    assert found["class_names"] == "file"
    Image.new("L", (60, 60), 255).save(path)
    line = invoke(capsys, "predict", "--weights", MODEL_PATH, path).error_line()
    assert "seven.png: there is no digit in the picture" in line


@pytest.mark.parametrize("names", ["none", "wordnet"])
def test_imagenets_classes_have_their_names(
    names: str, picture: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Of a file that names none, and of one that learnt from ImageNet's folders."""
    model = build(small_model().arch.with_classes(1000))
    model.params["linear.bias"][207] = 100
    if names == "wordnet":
        model.about = About(classes=tuple(imagenet_classes()))
    save(model, tmp_path / "a.npz")
    options = ("--weights", tmp_path / "a.npz", picture, "--size", 32)
    shown = invoke(capsys, "predict", *options)
    best = shown.out.splitlines()[1].split("%  ")[1]
    assert best == ("golden retriever" if names == "none" else "n02099601 golden retriever")
    assert ("ImageNet's 1000 are shown" in shown.err) == (names == "none")
    found = invoke(capsys, "predict", *options, "--json").json()
    assert found["class_names"] == ("imagenet" if names == "none" else "file")
    assert found["images"][0]["top"][0]["index"] == 207
