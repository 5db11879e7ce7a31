"""Class folders: torchvision's order, and everything that can be wrong with a tree."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from repvgg_ref.data import DataError, Loader, evaluation_transform, open_data, splits_of
from repvgg_ref.data.decode import decoder
from repvgg_ref.data.folder import EXTENSIONS, FolderSource
from tests.data.datasets import encoded, make_folder
from tests.data.pictures import drawn


def opened(root: Path) -> FolderSource:
    return FolderSource(root, decode=decoder())


def test_classes_and_pictures_come_in_torchvisions_order(tmp_path: Path) -> None:
    """Its rule, word for word: sorted(os.walk) of each class in sorted order, sorted names."""
    for name in ("b/2.jpg", "b/10.jpg", "b/in-side/3.JPG", "b/in/1.png", "B/a.jpeg", "a/x.webp"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(drawn(9, 8)))
    (tmp_path / "b" / "readme.txt").write_text("no picture")
    (tmp_path / "b" / ".hidden.jpg").write_bytes(b"")
    (tmp_path / ".cache").mkdir()
    wanted = []
    classes = sorted(e.name for e in os.scandir(tmp_path) if not e.name.startswith("."))
    for label, name in enumerate(classes):
        for folder, _, files in sorted(os.walk(tmp_path / name, followlinks=True)):
            wanted += [
                (os.path.join(folder, file), label)  # noqa: PTH118  # as torchvision has it
                for file in sorted(files)
                if file.lower().endswith(EXTENSIONS) and not file.startswith(".")
            ]
    source = opened(tmp_path)
    assert source.classes == ("B", "a", "b")
    assert [(source.name(i), source.labels[i]) for i in range(len(source))] == wanted
    assert source.labels.dtype == np.int64


def test_a_loader_reads_a_tree(tmp_path: Path) -> None:
    source = open_data(make_folder(tmp_path / "val").parent, split="val")
    transform = evaluation_transform(size=16)
    made = Loader(source, transform=transform, batch_size=5, shuffle=False, drop_last=False)
    batches = list(made.epoch(0))
    assert [len(batch.labels) for batch in batches] == [5, 5, 2]
    assert np.concatenate([b.labels for b in batches]).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    with Image.open(source.name(3)) as picture:
        np.testing.assert_array_equal(batches[0].images[3], transform(picture.convert("RGB")))


def test_the_split_is_a_folder_or_the_folder_itself(tmp_path: Path) -> None:
    flat = make_folder(tmp_path / "flat")
    assert splits_of(flat) == ()
    assert len(open_data(flat, split="train")) == len(open_data(flat, split="val")) == 12
    make_folder(tmp_path / "both" / "train", each=5)
    with pytest.raises(DataError, match="no folder called val"):
        open_data(tmp_path / "both", split="val")
    make_folder(tmp_path / "both" / "val")
    assert splits_of(tmp_path / "both") == ("train", "val")
    assert len(open_data(tmp_path / "both", split="train")) == 15
    with pytest.raises(DataError, match="no such split"):
        open_data(flat, split="test")


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "root")
    (root / "n01" / "more").symlink_to(root / "n00")
    assert len(opened(root)) == 16
    (root / "n02" / "up").symlink_to(root)
    with pytest.raises(DataError, match="links go in a circle"):
        opened(root)


def test_a_broken_link_is_a_picture_that_cannot_be_read(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "root")
    (root / "n01" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    transform = evaluation_transform(size=16)
    made = Loader(opened(root), transform=transform, batch_size=13, shuffle=False, drop_last=False)
    (batch,) = made.epoch(0)
    assert len(batch.labels) == 12
    ((name, reason),) = made.skipped
    assert name.endswith("n01/gone.jpg")
    assert "No such file" in reason


def test_damaged_pictures_are_skipped_by_name(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "root")
    path = root / "n01" / "2.JPEG"
    path.write_bytes(path.read_bytes()[:-40])
    transform = evaluation_transform(size=16)
    made = Loader(opened(root), transform=transform, batch_size=4, threads=2)
    assert sum(len(batch.labels) for batch in made.epoch(0)) == 12
    ((name, reason),) = made.skipped
    assert name == str(path)
    assert reason.startswith(f"{path}: the picture is damaged")


def test_a_tree_without_use_is_refused_in_one_line(tmp_path: Path) -> None:
    def refusal(path: Path) -> str:
        with pytest.raises(DataError) as refused:
            open_data(path, split="val")
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert refusal(tmp_path / "nowhere").endswith("nowhere: no such folder")
    (tmp_path / "file").touch()
    assert "no such folder (got a file)" in refusal(tmp_path / "file")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "no classes (got no folder" in refusal(empty)
    (empty / "cat.jpg").write_bytes(encoded(drawn(9, 8)))
    assert "got pictures that lie in no class's folder" in refusal(empty)
    root = make_folder(tmp_path / "root")
    for number in range(7):
        (root / f"empty{number}\x1b[2J").mkdir()
    message = refusal(root)
    assert "classes without a picture (got empty0\\x1b[2J, " in message
    assert "and 2 more" in message
    assert message.isprintable()
