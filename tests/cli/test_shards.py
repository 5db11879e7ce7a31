"""`repvgg-ref shards`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.data import evaluation_transform, open_data
from tests.cli.runner import invoke
from tests.data.datasets import make_folder

KEYS = ["out", "images", "size", "classes", "bytes", "skipped"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    make_folder(tmp_path / "data" / "train", each=5)
    make_folder(tmp_path / "data" / "val", each=4)
    return tmp_path / "data"


def test_both_splits_are_written_and_read(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shown = invoke(capsys, "shards", "--data", data, "--out", out, "--size", 24, "--json")
    assert (shown.code, shown.err) == (0, "")
    first, second = shown.json()["data_sets"]
    assert list(first) == KEYS
    assert (first["out"], first["images"], first["classes"]) == (str(out / "train"), 15, 3)
    assert (second["images"], second["bytes"]) == (12, 12 * 24 * 24 * 3)
    transform = evaluation_transform(size=24, resize=24)
    for split in ("train", "val"):
        left, right = (open_data(where, split=split) for where in (data, out))
        np.testing.assert_array_equal(left.labels, right.labels)
        np.testing.assert_array_equal(transform(left.picture(9)), np.asarray(right.picture(9)))


def test_a_data_set_without_splits_gives_one_without(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown = invoke(
        capsys, "shards", "--data", make_folder(tmp_path / "flat"), "--out", tmp_path / "out"
    )
    assert shown.code == 0
    assert shown.out == f"{tmp_path}/out: 12 pictures of 256 x 256, 3 classes, 0.002 GB\n"
    assert len(open_data(tmp_path / "out", split="val")) == 12


def test_check_finds_a_changed_byte(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    invoke(capsys, "shards", "--data", data, "--out", out, "--size", 24)
    shown = invoke(capsys, "shards", "--check", out)
    assert shown.code == 0
    assert shown.out.count("every byte as written") == 2
    path = out / "val" / "pixels-00000.u8"
    path.write_bytes(b"\x07" + path.read_bytes()[1:])
    line = invoke(capsys, "shards", "--check", out, "--json").error_line()
    assert "pixels-00000.u8: other bytes than were written" in line


def test_skipped_pictures_are_named(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = data / "val" / "n00" / "1.JPEG"
    broken.write_bytes(b"no picture")
    shown = invoke(
        capsys, "shards", "--data", data, "--out", tmp_path / "out", "--size", 24, "--json"
    )
    assert shown.json()["data_sets"][1]["skipped"][0]["image"] == str(broken)
    assert (
        shown.err == f"note: skipped: {broken}: not a picture (wanted a format that Pillow reads)\n"
    )


def test_what_cannot_be_done_is_one_line(
    data: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def line(*arguments: object) -> str:
        return invoke(capsys, "shards", *arguments).error_line()

    assert "name --data and --out, or --check alone" in line("--data", data)
    assert "name --data and --out" in line("--data", data, "--out", "x", "--check", "y")
    assert "no such folder" in line("--data", tmp_path / "none", "--out", tmp_path / "out")
    full = tmp_path / "full"
    (full / "train").mkdir(parents=True)
    (full / "train" / "diary").touch()
    assert "is not empty" in line("--data", data, "--out", full)
    assert "manifest.json is missing" in line("--check", tmp_path)
    done = tmp_path / "done"
    invoke(capsys, "shards", "--data", data, "--out", done, "--size", 24)
    assert "holds a data set already" in line("--data", data, "--out", done, "--size", 24)
    (tmp_path / "file").touch()
    assert "file" in line("--data", data, "--out", tmp_path / "file")
