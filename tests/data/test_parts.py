"""What is trained on is never what is evaluated on: every layout of a data set."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.data import ArraySource, DataError, Source, open_parts, splits_of
from repvgg_ref.data import hold_out as hold_out_module
from repvgg_ref.data.hold_out import hold_out, in_both
from repvgg_ref.data.write_pixels import write_pixels
from tests.data.datasets import array_source, make_folder, make_tar


def keys(source: Source) -> set[str]:
    return {source.key(index) for index in range(len(source))}


def require_apart(training: Source, test: Source, count: int) -> None:
    assert len(training) + len(test) == count
    assert not keys(training) & keys(test)
    assert training.classes == test.classes
    assert not in_both(training, test)


@pytest.mark.parametrize("each", [2, 4, 10, 26])
def test_flat_class_folders_are_split_class_by_class(each: int, tmp_path: Path) -> None:
    parts = open_parts(make_folder(tmp_path, each=each))
    require_apart(parts.training, parts.test, 3 * each)
    assert np.bincount(parts.test.labels).tolist() == [max(1, round(each / 10))] * 3
    assert parts.held_out is not None
    assert "held out" in parts.notes[0]


def test_the_split_follows_from_the_names_alone(tmp_path: Path) -> None:
    first = open_parts(make_folder(tmp_path / "a" / "b", each=12))
    shutil.copytree(tmp_path / "a" / "b", tmp_path / "elsewhere")
    second = open_parts(tmp_path / "elsewhere")
    assert keys(first.test) == keys(second.test)
    assert first.held_out == second.held_out
    # The smallest of `sha256sum`'s: another release or system must not choose others.
    assert keys(first.test) == {"n00/9.JPEG", "n01/0.JPEG", "n02/8.JPEG"}
    (tmp_path / "elsewhere" / "n00" / "0.JPEG").unlink()
    assert open_parts(tmp_path / "elsewhere").held_out == first.held_out
    (tmp_path / "elsewhere" / "n00" / "9.JPEG").unlink()
    assert open_parts(tmp_path / "elsewhere").held_out != first.held_out


def test_a_class_of_one_picture_is_trained_on_and_nothing_else_is_refused(tmp_path: Path) -> None:
    make_folder(tmp_path, each=1)
    with pytest.raises(DataError, match="nothing apart to evaluate on"):
        open_parts(tmp_path)
    shutil.copy(tmp_path / "n00" / "0.JPEG", tmp_path / "n00" / "1.JPEG")
    parts = open_parts(tmp_path)
    assert (len(parts.training), len(parts.test)) == (3, 1)
    assert "also trained on" in parts.notes[1]


@pytest.mark.parametrize(
    ("train", "val"),
    [("train", "val"), ("training", "validation"), ("Train", "Test"), ("train", "valid")],
)
def test_two_folders_are_taken_as_they_are(train: str, val: str, tmp_path: Path) -> None:
    make_folder(tmp_path / train, each=5)
    make_folder(tmp_path / val, each=2)
    for path in (tmp_path / val).rglob("*.JPEG"):  # other bytes, the same picture
        path.write_bytes(path.read_bytes() + b"\0")
    assert splits_of(tmp_path) == ("train", "val")
    parts = open_parts(tmp_path)
    assert (len(parts.training), len(parts.test), parts.held_out, parts.notes) == (15, 6, None, ())
    assert parts.training.classes == ("n00", "n01", "n02")


def test_of_a_folder_train_alone_some_is_held_out(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", each=10)
    parts = open_parts(tmp_path)
    require_apart(parts.training, parts.test, 30)
    assert parts.held_out == open_parts(tmp_path / "train").held_out


def test_a_folder_val_alone_is_nothing_to_train_on(tmp_path: Path) -> None:
    make_folder(tmp_path / "val")
    with pytest.raises(DataError, match="no folder called train"):
        open_parts(tmp_path)


def test_the_val_beside_a_named_train_is_pointed_to(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", each=10)
    make_folder(tmp_path / "val", each=2)
    assert f"--data {tmp_path} would" in open_parts(tmp_path / "train").notes[0]
    assert "would" not in open_parts(tmp_path / "val").notes[0]


def test_classes_called_train_and_test_are_classes(tmp_path: Path) -> None:
    make_folder(tmp_path / "a", each=4)
    for other, name in (("n00", "train"), ("n01", "test"), ("n02", "bus")):
        (tmp_path / "a" / other).rename(tmp_path / "a" / name)
    assert splits_of(tmp_path / "a") == ()
    assert open_parts(tmp_path / "a").training.classes == ("bus", "test", "train")


def test_pictures_in_both_folders_are_told(tmp_path: Path) -> None:
    make_folder(tmp_path / "train", each=6)
    make_folder(tmp_path / "val", each=3)  # the same ones
    note = open_parts(tmp_path).notes[0]
    assert note.startswith("9 pictures to evaluate on are also trained on, such as ")
    assert "val/n00/0.JPEG = " in note


def test_a_picture_under_two_names_in_a_flat_folder_is_told(tmp_path: Path) -> None:
    make_folder(tmp_path, each=10)
    held = open_parts(tmp_path).test.key(0)
    number = 0
    while open_parts(tmp_path).notes[1:] == ():  # until the copy is on the other side
        shutil.copy(tmp_path / held, (tmp_path / held).with_name(f"copy{number}.JPEG"))
        number += 1
    assert "also trained on" in open_parts(tmp_path).notes[1]


def test_pictures_that_cannot_be_read_are_left_to_the_loader(tmp_path: Path) -> None:
    for split, each in (("train", 6), ("val", 3)):
        folder = make_folder(tmp_path / split, each=each) / "n00"
        (folder / "gone.png").symlink_to(tmp_path / "nowhere")
        (folder / "empty.png").touch()
    parts = open_parts(tmp_path)
    assert (len(parts.training), len(parts.test)) == (20, 11)
    assert parts.notes[0].startswith("9 pictures to evaluate on are also trained on")


def test_of_what_is_large_a_part_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "train", each=6)
    make_folder(tmp_path / "val", each=6)
    monkeypatch.setattr(hold_out_module, "_MOST_BYTES", 12_000)
    parts = open_parts(tmp_path)
    assert 0 < len(in_both(parts.training, parts.test)) < 18
    monkeypatch.setattr(hold_out_module, "_MOST_PICTURES", 17)
    assert open_parts(tmp_path).notes == ()


def test_tars_are_told_apart_by_words_of_their_names(tmp_path: Path) -> None:
    for name in ("interval-0", "retrained-1"):  # "val" and "train" are no words there
        make_tar(tmp_path / "none" / f"{name}.tar", 15, first=100 * len(name))
    assert splits_of(tmp_path / "none") == ()
    parts = open_parts(tmp_path / "none")
    require_apart(parts.training, parts.test, 30)
    make_tar(tmp_path / "two" / "x-train-0.tar", 6)
    make_tar(tmp_path / "two" / "x-validation-0.tar", 4, first=50)
    parts = open_parts(tmp_path / "two")
    assert (len(parts.training), len(parts.test), parts.notes) == (6, 4, ())
    make_tar(tmp_path / "one" / "x-train-0.tar", 30)
    require_apart(*open_parts(tmp_path / "one")[:2], 30)
    require_apart(*open_parts(f"{tmp_path}/one/x-train-{{0..0}}.tar")[:2], 30)


def test_shards_of_a_flat_folder_are_split_too(tmp_path: Path) -> None:
    write_pixels(array_source(40), tmp_path / "out", size=8)
    require_apart(*open_parts(tmp_path / "out")[:2], 40)
    for split, first in (("train", 0), ("val", 30)):
        source = array_source(40)
        images, labels = source.images[first:], source.labels[first:]
        about = {"classes": source.classes, "standardise": source.standardise}
        write_pixels(ArraySource(images, labels, **about), tmp_path / "both" / split, size=8)  # type: ignore[arg-type]  # as in the source
    parts = open_parts(tmp_path / "both")
    assert (len(parts.training), len(parts.test)) == (40, 10)
    assert "10 pictures to evaluate on are also trained on" in parts.notes[0]


@pytest.mark.parametrize("name", [None, "digits", "generated:shapes"])
def test_our_own_sets_have_two_parts(name: str | None) -> None:
    parts = open_parts(name)
    assert parts.held_out is None
    assert not keys(parts.training) <= set()
    if name == "generated:shapes":
        assert parts.notes == ()


def test_what_is_held_out_does_not_depend_on_the_order() -> None:
    source = array_source(60)
    held = hold_out(source)
    assert keys(held.test) == keys(hold_out(array_source(60)).test)
    assert len(held.test) == 5
    assert sorted(held.test.labels.tolist()) == [0, 1, 2, 3, 4]
