"""What a name is taken for; CIFAR's and MNIST's files; the generated shapes."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.data import ArraySource, DataError, open_data, splits_of
from repvgg_ref.data.digits import load_digits
from repvgg_ref.data.generated import CLASSES, draw
from repvgg_ref.data.order import stream
from tests.data.datasets import PLAIN

NAMES = [f"class {number}" for number in range(10)]


def cifar10(folder: Path, count: int = 7) -> Array:
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        records = rng.integers(0, 256, (count, 3073), np.uint8)
        records[:, 0] %= 10
        (folder / f"{name}.bin").write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(NAMES) + "\n\n")
    return records


def test_cifar_10_is_read_by_planes(tmp_path: Path) -> None:
    last = cifar10(tmp_path)
    assert splits_of(tmp_path) == ("train", "val")
    source = open_data(tmp_path, split="val")
    assert (source.classes, len(source), source.channels) == (tuple(NAMES), 7, 3)
    assert len(open_data(tmp_path, split="train")) == 35
    np.testing.assert_array_equal(source.labels, last[:, 0])
    pixels = np.asarray(source.picture(2))
    for y, x, channel in ((0, 0, 0), (3, 31, 1), (31, 5, 2)):
        assert pixels[y, x, channel] == last[2, 1 + 1024 * channel + 32 * y + x]


def test_cifar_100_has_fine_labels(tmp_path: Path) -> None:
    records = np.zeros((3, 3074), np.uint8)
    records[:, 0], records[:, 1] = 9, (1, 0, 2)
    (tmp_path / "train.bin").write_bytes(records.tobytes())
    (tmp_path / "test.bin").write_bytes(records[:1].tobytes())
    (tmp_path / "fine_label_names.txt").write_text("apple\nbaby\nbear\n")
    source = open_data(tmp_path, split="train")
    assert source.labels.tolist() == [1, 0, 2]
    assert source.classes == ("apple", "baby", "bear")
    assert len(open_data(tmp_path, split="val")) == 1


def test_damaged_cifar_files_are_refused(tmp_path: Path) -> None:
    cifar10(tmp_path)
    path = tmp_path / "data_batch_3.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        DataError, match=r"data_batch_3\.bin: not whole CIFAR records .*a multiple of 3073"
    ):
        open_data(tmp_path, split="train")
    path.write_bytes(b"\x0b" + whole[1:])
    with pytest.raises(DataError, match="label 11 of image 14 is out of range"):
        open_data(tmp_path, split="train")
    path.unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin: the file of CIFAR's is missing"):
        open_data(tmp_path, split="train")


def idx(path: Path, array: Array) -> None:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    data = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def mnist(folder: Path, suffix: str = "") -> Array:
    rng = np.random.default_rng(0)
    for prefix, count in (("train", 9), ("t10k", 4)):
        images = rng.integers(0, 256, (count, 28, 28), np.uint8)
        idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", np.arange(count) % 3)
    return images


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnists_files_are_read_plain_and_compressed(suffix: str, tmp_path: Path) -> None:
    last = mnist(tmp_path, suffix)
    assert splits_of(tmp_path) == ("train", "val")
    train, val = (open_data(tmp_path, split=split) for split in ("train", "val"))
    assert (len(train), len(val), val.channels, val.classes) == (9, 4, 1, ("0", "1", "2"))
    np.testing.assert_array_equal(np.asarray(val.picture(3)), last[3])
    assert val.labels.tolist() == [0, 1, 2, 0]
    assert val.standardise == train.standardise
    pixels = np.stack([np.asarray(train.picture(i)) for i in range(9)]) / 255
    assert abs(train.standardise.mean[0] - pixels.mean()) <= 5.1e-5
    assert abs(train.standardise.std[0] - pixels.std()) <= 5.1e-5
    (tmp_path / "classes.txt").write_text("shirt\nshoe\nbag\n")
    assert open_data(tmp_path, split="val").classes == ("shirt", "shoe", "bag")


def test_damaged_idx_files_are_refused(tmp_path: Path) -> None:
    def refusal() -> str:
        with pytest.raises(DataError) as refused:
            open_data(tmp_path, split="train")
        return str(refused.value)

    mnist(tmp_path, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "not whole in MNIST's format" in refusal()
    path.write_bytes(b"no gzip")
    assert "not whole in MNIST's format" in refusal()
    idx(path, np.zeros((9, 28)))
    assert "a header of 00 00 08 02" in refusal()
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12))
    assert "an array of shape" in refusal()
    path.write_bytes(gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 1, 2, 2) + b"12345"))
    assert "5 bytes or more, not 4" in refusal()
    idx(path, np.zeros((8, 28, 28)))
    assert "labels of another shape" in refusal()
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert "train-labels-idx1-ubyte is missing" in refusal()


def test_digits_need_no_path() -> None:
    for name in (None, "digits"):
        assert len(open_data(name, split="train")) == 1437
        assert len(open_data(name, split="val")) == len(load_digits().test.labels) == 360
    assert splits_of("digits") == ("train", "val")


def test_generated_shapes_follow_from_their_index() -> None:
    train, val = (open_data("generated:shapes", split=split) for split in ("train", "val"))
    assert (len(train), len(val), train.classes) == (10_000, 2_000, CLASSES)
    for source in (train, val):
        assert np.bincount(source.labels).tolist() == [len(source) // 10] * 10
    first, again = (np.asarray(train.picture(17)) for _ in range(2))
    assert (first.shape, first.dtype.name) == ((32, 32, 3), "uint8")
    np.testing.assert_array_equal(first, again)
    assert (first != np.asarray(val.picture(17))).any()
    assert (first != np.asarray(train.picture(27))).any()
    assert train.name(17) == "generated:shapes/train[17]"
    assert open_data("generated:shapes-96", split="val").picture(3).size == (96, 96)


def test_shapes_are_told_by_nothing_but_their_shape() -> None:
    """Mean colour and brightness, and place, say nothing of the class."""
    looks = {
        shape: np.stack([np.asarray(draw(shape, 24, stream(1, 0, i))) for i in range(60)])
        for shape in CLASSES
    }
    means = np.array([pictures.mean() for pictures in looks.values()])
    # One picture's mean varies by some 45 of 255, so a mean of 60 by 6 (5 deviations: 30).
    assert np.ptp(means) < 30
    assert len({pictures.tobytes() for pictures in looks.values()}) == len(CLASSES)


@pytest.mark.parametrize(
    "name",
    [
        "generated:faces",
        "generated:",
        "generated:shapes-x",
        "generated:shapes-8",
        "generated:shapes-99999",
    ],
)
def test_other_generated_sets_do_not_exist(name: str) -> None:
    with pytest.raises(DataError, match=r"generated|no shapes of this size"):
        open_data(name, split="train")


def test_arrays_of_another_kind_are_refused() -> None:
    images, labels = np.zeros((4, 8, 8, 3), np.uint8), np.arange(4)
    for wrong in (images[..., 0], images.astype(np.float32), images[..., :2]):
        with pytest.raises(DataError, match="images of another shape or type"):
            ArraySource(wrong, labels, classes=("a",) * 4, standardise=PLAIN)
    for wrong_labels, says in (
        (labels[:3], "labels of another shape"),
        (labels.astype(np.float32), "labels of another shape"),
        (labels - 1, "label -1 of image 0 is out of range"),
        (labels + 1, "label 4 of image 3 is out of range"),
    ):
        with pytest.raises(DataError, match=says):
            ArraySource(images, wrong_labels, classes=("a",) * 4, standardise=PLAIN)
