"""Pixel shards: the same pixels, written whole or visibly unfinished, validated when opened."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.data import (
    DataError,
    Loader,
    Source,
    evaluation_transform,
    open_data,
    splits_of,
    training_transform,
)
from repvgg_ref.data import write_pixels as write_pixels_module
from repvgg_ref.data.pictures import ImageError
from repvgg_ref.data.pixel_shards import LABELS, MANIFEST, PixelSource
from repvgg_ref.data.write_pixels import BATCH, PLAN, write_pixels
from tests.cli.runner import ROOT, environment
from tests.data.datasets import SometimesBroken, array_source, make_folder
from tests.data.pictures import drawn

SIZE = 16
# Two batches of 64 pictures a part.
PART = 2 * BATCH * SIZE * SIZE * 3


def write(source: Source, out: Path, **settings: Any) -> dict[str, Any]:
    return write_pixels(source, out, **{"size": SIZE, "part_bytes": PART} | settings)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("size", [(500, 375), (375, 501), (333, 334), (256, 300)])
def test_evaluation_sees_the_same_pixels_from_shards(size: tuple[int, int]) -> None:
    """Two crops, of 256 and then 224, are one: both offsets round alike as 32 / 2 is even."""
    picture = drawn(*size)
    shard = evaluation_transform(size=256, resize=256)(picture)
    from PIL import Image

    transform = evaluation_transform(size=224)
    np.testing.assert_array_equal(transform(Image.fromarray(shard)), transform(picture))


def test_a_data_set_comes_back_from_its_shards(tmp_path: Path) -> None:
    source = open_data(make_folder(tmp_path / "tree", classes=4, each=50), split="train")
    manifest = write(source, tmp_path / "out", threads=2)
    assert [part["count"] for part in manifest["parts"]] == [128, 72]
    shards = open_data(tmp_path / "out", split="train")
    assert isinstance(shards, PixelSource)
    assert (shards.classes, len(shards), shards.channels) == (source.classes, 200, 3)
    assert shards.standardise == source.standardise
    np.testing.assert_array_equal(shards.labels, source.labels)
    transform = evaluation_transform(size=SIZE, resize=SIZE)
    for i in (0, 127, 128, 199):
        np.testing.assert_array_equal(np.asarray(shards.picture(i)), transform(source.picture(i)))
    assert shards.name(128).endswith("pixels-00001.u8[0]")
    assert list(shards.check()) == [128, 200]
    batch = next(Loader(shards, transform=training_transform(size=8), batch_size=50).epoch(0))
    np.testing.assert_array_equal(batch.labels, source.labels[batch.indices])


def test_grey_pictures_and_other_standardisations_are_kept(tmp_path: Path) -> None:
    digits = open_data(None, split="val")
    write(digits, tmp_path / "out", size=32)
    shards = open_data(tmp_path / "out", split="val")
    assert (shards.channels, shards.standardise) == (1, digits.standardise)
    np.testing.assert_array_equal(np.asarray(shards.picture(7)), np.asarray(digits.picture(7)))


def test_unreadable_pictures_are_left_out_and_listed(tmp_path: Path) -> None:
    errors: dict[int, Exception] = {3: ImageError("bad"), 130: OSError("gone")}
    source = SometimesBroken(array_source(200, side=SIZE), errors)
    manifest = write(source, tmp_path / "out")
    assert manifest["count"] == 198
    assert manifest["skipped"] == [("picture-130", "gone"), ("picture-3", "bad")]
    shards = PixelSource(tmp_path / "out")
    assert shards.labels.tolist() == [i % 5 for i in range(200) if i not in errors]
    np.testing.assert_array_equal(np.asarray(shards.picture(129)), source.source.images[131])


def interrupted_after(batches: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == batches:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(tmp_path: Path) -> None:
    errors: dict[int, Exception] = {3: ImageError("bad"), 130: OSError("gone")}
    source = SometimesBroken(array_source(500, side=SIZE), errors)
    write(source, tmp_path / "whole")
    out = tmp_path / "out"
    for batches in (1, 3, 4, 7):
        with pytest.raises(KeyboardInterrupt):
            write(source, out, progress=interrupted_after(batches))
        assert not any(path.name.startswith(".") for path in out.iterdir())
        with pytest.raises(DataError, match=r"manifest\.json is missing .*run `repvgg-ref shards`"):
            open_data(out, split="train")
    done: list[int] = []
    write(source, out, progress=lambda batch, total: done.append(batch))
    assert done == [7, 8]  # the parts that were whole are not made again
    assert contents(out) == contents(tmp_path / "whole")


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    source, out = array_source(200, side=SIZE), tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        write(source, out, progress=interrupted_after(2))
    for name in (".gitignore", ".repvgg-refuse", ".notes"):
        (out / name).write_text("mine")
    (out / ".repvgg-ref-0123456789ab.json").touch()  # of a writer that was killed
    write(source, out)
    assert {name for name in contents(out) if name.startswith(".")} == {
        ".gitignore",
        ".repvgg-refuse",
        ".notes",
    }


RECORDS = [
    b"[" * 100_000,
    b"{}",
    b"[1]",
    b'{"count": "64"}',
    b'{"file": "", "count": 128, "sha256": "", "labels": [1], "skipped": []}',
    b'{"file": "", "count": true, "sha256": "", "labels": [null], "skipped": []}',
]


@pytest.mark.parametrize("record", RECORDS, ids=range(len(RECORDS)))
def test_a_part_whose_record_is_damaged_is_made_again(record: bytes, tmp_path: Path) -> None:
    source, out = array_source(300, side=SIZE), tmp_path / "out"
    write(source, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write(source, out, progress=interrupted_after(3))
    (out / "pixels-00000.json").write_bytes(record)
    write(source, out)
    assert contents(out) == contents(tmp_path / "whole")


KILLED = """
import sys, time
from pathlib import Path
from repvgg_ref.data.write_pixels import write_pixels
from tests.data.datasets import array_source
from tests.data.test_pixel_shards import PART, SIZE

print("started", flush=True)
source = array_source(1500, side=SIZE)
write_pixels(source, Path(sys.argv[1]), size=SIZE, part_bytes=PART,
             progress=lambda done, total: time.sleep(0.01))
"""


def test_a_killed_run_leaves_nothing_that_opens_and_is_resumed(tmp_path: Path) -> None:
    source = array_source(1500, side=SIZE)
    write(source, tmp_path / "whole")
    out, rng = tmp_path / "out", random.Random(0)
    for _ in range(4):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(out)],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.PIPE,
        ) as run:
            assert run.stdout is not None
            run.stdout.readline()
            time.sleep(rng.uniform(0.01, 0.12))
            os.kill(run.pid, signal.SIGKILL)
        if out.exists() and any(out.iterdir()):
            with pytest.raises(DataError, match=r"manifest\.json is missing"):
                PixelSource(out)
    write(source, out)
    assert contents(out) == contents(tmp_path / "whole")


def test_a_run_killed_while_it_tidied_up_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest was there, so it was told that a data set is, and the records stayed."""
    source = array_source(300, side=SIZE)
    made = write(source, tmp_path / "whole")
    out = tmp_path / "out"

    def killed(*_: object) -> None:
        (out / "pixels-00000.json").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(write_pixels_module, "_tidied", killed)
        with pytest.raises(KeyboardInterrupt):
            write(source, out)
    assert len(PixelSource(out)) == 300
    with pytest.raises(DataError, match="the beginnings of another data set"):
        write(array_source(299, side=SIZE), out)
    assert write(source, out) == json.loads(json.dumps(made))
    assert contents(out) == contents(tmp_path / "whole")


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    source, other = array_source(200, side=SIZE), array_source(199, side=SIZE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").touch()
    with pytest.raises(DataError, match="is not empty"):
        write(source, tmp_path / "full")
    with pytest.raises(KeyboardInterrupt):
        write(source, tmp_path / "out", progress=interrupted_after(3))
    for changed, settings in ((other, {}), (source, {"size": 8}), (source, {"part_bytes": 1})):
        with pytest.raises(DataError, match="the beginnings of another data set"):
            write(changed, tmp_path / "out", **settings)

    def meddle(done: int, total: int) -> None:
        if done == 3:
            with pytest.raises(DataError, match="another process is writing here"):
                write(source, tmp_path / "out")

    write(source, tmp_path / "out", progress=meddle)
    with pytest.raises(DataError, match="holds a data set already"):
        write(source, tmp_path / "out")


def change(**fields: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        for name, value in fields.items():
            manifest[name] = value
        (folder / MANIFEST).write_text(json.dumps(manifest))

    return damage


def truncate(name: str, by: int) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-by])

    return damage


def write_manifest(text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / MANIFEST).write_text(text)

    return damage


def other_labels(data: bytes) -> Callable[[Path], None]:
    """With a hash that fits: whoever can write the folder can write the manifest."""

    def damage(folder: Path) -> None:
        (folder / LABELS).write_bytes(data)
        change(labels_sha256=hashlib.sha256(data).hexdigest())(folder)

    return damage


PARTS = [{"file": "pixels-00000.u8", "count": 128, "sha256": ""}]


@pytest.mark.parametrize(
    "damage",
    [
        truncate(MANIFEST, 5),
        truncate(LABELS, 1),
        truncate("pixels-00001.u8", 1),
        lambda folder: (folder / "pixels-00000.u8").unlink(),
        lambda folder: (folder / LABELS).unlink(),
        write_manifest("[" * 100_000),
        write_manifest("[]"),
        change(format="something else"),
        change(version=2),
        change(version=True),
        change(size=-4),
        change(size="16"),
        change(size=2**40),
        change(channels=2),
        change(count=199),
        change(classes=["a"]),
        change(classes=[1, 2, 3, 4, 5]),
        change(standardise=[1.0, [0.0], [1.0]]),
        change(standardise=None),
        change(parts=PARTS),
        change(parts=[{"file": "../../etc/passwd", "count": 200, "sha256": ""}]),
        change(parts=[{"file": "pixels-00000.u8", "count": -1, "sha256": ""}]),
        change(parts=[7]),
        change(labels_sha256="0" * 64),
        other_labels(b""),
        other_labels(b"\x93NUMPY\x01\x00garbage"),
        other_labels(b"\x80\x04K\x05."),  # a pickle
    ],
)
def test_damage_is_refused_when_the_folder_is_opened(
    damage: Callable[[Path], None], tmp_path: Path
) -> None:
    write(array_source(200, side=SIZE), tmp_path / "out")
    PixelSource(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(DataError) as refused:
        PixelSource(tmp_path / "out")
    assert str(tmp_path / "out") in str(refused.value) or "label" in str(refused.value)


def test_changed_pixels_are_found_by_their_hash(tmp_path: Path) -> None:
    write(array_source(200, side=SIZE), tmp_path / "out")
    path = tmp_path / "out" / "pixels-00001.u8"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)
    checked = PixelSource(tmp_path / "out").check()
    assert next(checked) == 128
    with pytest.raises(DataError, match="other bytes than were written"):
        next(checked)


def test_splits_are_folders(tmp_path: Path) -> None:
    for split, count in (("train", 200), ("val", 64)):
        write(array_source(count, side=SIZE), tmp_path / "out" / split)
    assert splits_of(tmp_path / "out") == ("train", "val")
    assert len(open_data(tmp_path / "out", split="val")) == 64
    assert not (tmp_path / "out" / "val" / PLAN).exists()
