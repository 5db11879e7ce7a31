"""Class folders without val: what is held out is said, remembered, and can be evaluated again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from repvgg_ref.train.log import read_log
from tests.cli.runner import invoke
from tests.data.datasets import make_folder

RECIPE = ("--recipe", "digits", "--batch", "4", "--epochs", "1", "--size", "32", "--threads", "1")


def test_a_training_on_flat_folders_says_what_it_held_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data, out = make_folder(tmp_path / "data", each=6), tmp_path / "run"
    arguments = ("train", "--data", data, "--out", out, *RECIPE, "--json")
    shown = invoke(capsys, *arguments)
    assert shown.code == 0, shown.err
    note = "3 of 18 pictures are held out of the training"
    assert note in shown.err
    told = shown.json()["data"]
    assert (told["images"], told["test_images"], told["path"]) == (15, 3, str(data))
    assert note in told["notes"][0]
    result = json.loads((out / "result.json").read_text())
    assert result["data"] == told
    assert result["fused"] == shown.json()["fused"]
    assert any(note in record.get("message", "") for record in read_log(out))
    weights = ("--weights", out / "train.pth", "--model", "custom", "--size", "32")
    for split, images in (("held-out", 3), ("val", 18)):
        found = invoke(capsys, "eval", *weights, "--data", data, "--split", split, "--json")
        assert found.json()["images"] == images
        assert ("--split held-out" in found.err) == (split == "val")
    (data / "n00" / "more.png").write_bytes((data / "n00" / "3.png").read_bytes())
    (data / "n00" / "0.JPEG").unlink()
    more = invoke(capsys, *arguments, "--epochs", "2", "--resume", "--accept-changes")
    assert more.code == 0, more.err


def test_a_dry_run_says_it_too(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    data = make_folder(tmp_path / "data", each=6)
    shown = invoke(capsys, "train", "--data", data, "--out", tmp_path / "run", *RECIPE, "--dry-run")
    assert shown.code == 0
    assert "3 of 18 pictures are held out" in shown.err
