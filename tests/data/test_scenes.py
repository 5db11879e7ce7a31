"""Generated scenes, Cityscapes folders, and how a loader hands on labels of pixels."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from repvgg_ref.data.cityscapes import CLASSES, KINDS, CityscapesSource
from repvgg_ref.data.dense import IGNORED, LabelError, check_labels, parted
from repvgg_ref.data.dense_transforms import DenseEvaluationTransform, DenseTrainingTransform
from repvgg_ref.data.loader import Loader
from repvgg_ref.data.open import open_data, open_parts
from repvgg_ref.data.pictures import ImageError
from repvgg_ref.data.scenes import ScenesSource
from repvgg_ref.data.source import DataError, Subset


def cityscapes(root: Path, *, splits: tuple[str, ...] = ("train", "val"), count: int = 3) -> Path:
    """A tiny folder of its layout; label ids are all that there are, a row each."""
    rng = np.random.default_rng(0)
    for split in splits:
        for city in ("aachen", "bonn"):
            for kind in ("leftImg8bit", "gtFine"):
                (root / kind / split / city).mkdir(parents=True, exist_ok=True)
            for n in range(count):
                name = f"{city}_{n:06}_000019"
                image = Image.fromarray(rng.integers(0, 255, (34, 49, 3), dtype=np.uint8))
                image.save(root / f"leftImg8bit/{split}/{city}/{name}_leftImg8bit.png")
                ids = np.repeat(np.arange(34, dtype=np.uint8)[:, None], 49, 1)
                truth = root / f"gtFine/{split}/{city}/{name}_gtFine_labelIds.png"
                Image.fromarray(ids).save(truth)
    return root


def labels_of(root: Path, split: str = "train") -> Path:
    return min((root / "gtFine" / split).glob("*/*labelIds.png"))


def test_scenes_follow_from_their_number_and_hold_every_class() -> None:
    source = ScenesSource("generated:scenes-65", split="train")
    image, _ = parted(source.picture(3))
    again = ScenesSource("generated:scenes-65", split="train")
    np.testing.assert_array_equal(np.asarray(again.picture(3)), np.asarray(source.picture(3)))
    assert image.size == (65, 65)
    seen = set[int]()
    for n in range(12):
        seen |= set(np.unique(np.asarray(parted(source.picture(n))[1])).tolist())
    assert seen == {*range(len(source.classes)), IGNORED}
    other = ScenesSource("generated:scenes-65", split="val").picture(3)
    assert (np.asarray(other) != np.asarray(source.picture(3))).any()
    with pytest.raises(DataError, match="no such generated"):
        open_data("generated:scenery", split="train")
    with pytest.raises(DataError, match="no scenes of this size"):
        open_data("generated:scenes-8", split="train")


def test_label_ids_become_train_ids_in_the_published_order(tmp_path: Path) -> None:
    training, test, _, _ = open_parts(cityscapes(tmp_path))
    assert (len(training), len(test), training.classes) == (6, 6, CLASSES)
    labels = np.asarray(parted(training.picture(0))[1])[:, 0]
    wanted = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 31: 16, 32: 17, 33: 18}
    wanted |= {label: label - 13 for label in range(19, 29)}
    assert labels.tolist() == [wanted.get(label, IGNORED) for label in range(34)]
    assert len(KINDS) == 19


def test_train_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    path = labels_of(cityscapes(tmp_path))
    ids = np.full((34, 49), 18, np.uint8)
    Image.fromarray(ids).save(str(path).replace("labelIds", "labelTrainIds"))
    source = open_data(tmp_path, split="train")
    np.testing.assert_array_equal(np.asarray(parted(source.picture(0))[1]), ids)


def test_what_is_wrong_with_a_folder_is_said_before_anything_begins(tmp_path: Path) -> None:
    root = cityscapes(tmp_path)
    with pytest.raises(DataError, match="no pictures of the split val"):
        open_data(cityscapes(tmp_path / "b", splits=("train",)), split="val")
    truth = labels_of(root)
    Image.fromarray(np.full((34, 49), 40, np.uint8)).save(truth)
    with pytest.raises(LabelError, match=r"labels out of range \(got 40 in 1666 pixels"):
        open_data(root, split="train")
    Image.fromarray(np.zeros((34, 49, 3), np.uint8)).save(truth)
    with pytest.raises(LabelError, match=r"in colours, where ids are expected \(got mode RGB"):
        open_data(root, split="train")
    Image.fromarray(np.zeros((34, 49), np.uint8)).convert("P").save(truth)
    with pytest.raises(LabelError, match="got mode P"):
        open_data(root, split="train")
    truth.unlink()
    with pytest.raises(DataError, match=r"without labels \(got 1 of 6: aachen/aachen_0"):
        open_data(root, split="train")
    image = next((root / "leftImg8bit" / "val").glob("*/*.png"))
    image.unlink()
    name = f"{image.parent.name}/{image.name.removesuffix('_leftImg8bit.png')}"
    with pytest.raises(DataError, match=rf"labels of val without pictures \(got 1 of 6: {name} ;"):
        open_data(root, split="val")


def test_a_damaged_label_picture_is_named_with_its_folder(tmp_path: Path) -> None:
    """In every city there may be one of that name."""
    root = cityscapes(tmp_path)
    truth = labels_of(root)
    truth.write_bytes(truth.read_bytes()[:60])
    place = truth.relative_to(root).as_posix()
    with pytest.raises(ImageError, match=re.escape(f"{place}: the picture is damaged")):
        check_labels(open_data(root, split="train"))


def test_all_label_files_can_be_looked_at_before_an_epoch_is_lost(tmp_path: Path) -> None:
    root = cityscapes(tmp_path, splits=("val",), count=6)
    truths = sorted((root / "gtFine" / "val").glob("*/*labelIds.png"))
    source = open_data(root, split="val")
    assert check_labels(source) == (12, 0)
    Image.fromarray(np.full((34, 49), 3, np.uint8)).save(truths[5])  # a parking place: counts not
    assert check_labels(source) == (12, 1)
    Image.fromarray(np.full((34, 49), 40, np.uint8)).save(truths[5])
    source = open_data(root, split="val")  # which looks at four of twelve
    with pytest.raises(LabelError, match=r"aachen_000005.*out of range \(got 40"):
        check_labels(Subset(source, 4))
    check_labels(source, rank=0, ranks=2)  # the sixth is the other's
    with pytest.raises(LabelError, match="got 40"):
        check_labels(source, rank=1, ranks=2)
    assert check_labels(ScenesSource("generated:scenes-33", split="val")) == (0, 0)  # no files


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (
            np.zeros((20, 49), np.uint8),
            r"another size than the picture \(got 20 x 49 ; wanted 34 x",
        ),
        (np.zeros((34, 49, 3), np.uint8), "in colours, where ids are expected"),
        (np.zeros((34, 49), bool), "of one bit a pixel, where ids are expected"),
    ],
    ids=["size", "colours", "one-bit"],
)
def test_what_headers_tell_of_any_label_file_is_said_at_once(
    tmp_path: Path, split: str, labels: np.ndarray, what: str
) -> None:
    """Not of those alone that are read before anything begins."""
    root = cityscapes(tmp_path, count=6)
    truth = sorted((root / "gtFine" / split).glob("*/*labelIds.png"))[5]
    Image.fromarray(labels).save(truth)
    with pytest.raises(LabelError, match=f"aachen_000005.*{what}"):
        open_parts(root)


def test_labels_of_another_size_end_an_epoch_and_are_not_passed_over(tmp_path: Path) -> None:
    root = cityscapes(tmp_path)
    source = open_data(root, split="train")
    Image.fromarray(np.zeros((20, 49), np.uint8)).save(labels_of(root))
    loader = Loader(source, transform=DenseTrainingTransform(17), batch_size=6)
    with pytest.raises(LabelError, match="another size than the picture"):
        list(loader.epoch(0))


def test_a_loader_gives_images_and_their_labels_apart(tmp_path: Path) -> None:
    source = Subset(open_data(cityscapes(tmp_path), split="val"), 4)
    loader = Loader(
        source, transform=DenseEvaluationTransform(33), batch_size=3, shuffle=False, drop_last=False
    )
    batches = list(loader.epoch(0))
    assert [b.labels.shape for b in batches] == [(3, 33, 33), (1, 33, 33)]
    assert [b.images.shape for b in batches] == [(3, 33, 33, 3), (1, 33, 33, 3)]
    picture = np.asarray(source.picture(0))
    np.testing.assert_array_equal(batches[0].labels[0], picture[:33, 8:41, 3])
    np.testing.assert_array_equal(batches[0].images[0], picture[:33, 8:41, :3])
    assert source.dense


def test_threads_and_ranks_change_no_picture() -> None:
    source = ScenesSource("generated:scenes-33", split="train")

    def first(**how: Any) -> np.ndarray:
        transform = DenseTrainingTransform(17)
        loader = Loader(source, transform=transform, batch_size=4, seed=3, **how)
        return next(iter(loader.epoch(1))).labels

    whole = first(threads=2)
    halves = [first(rank=rank, ranks=2) for rank in (0, 1)]
    np.testing.assert_array_equal(np.concatenate(halves), whole)


def test_a_cityscapes_source_needs_no_training_split(tmp_path: Path) -> None:
    from repvgg_ref.data.decode import decoder
    from repvgg_ref.data.splits import splits_of

    root = cityscapes(tmp_path, splits=("val",))
    assert splits_of(root) == ("val",)
    assert len(CityscapesSource(root, split="val", decode=decoder())) == 6
