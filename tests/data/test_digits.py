"""The bundled example: the committed data and model are what their README says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

import repvgg_ref as rr
from repvgg_ref import data
from repvgg_ref.arrays import Array
from repvgg_ref.data import digits
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.network import Model
from tests.cli.runner import run_python


@pytest.fixture(scope="module")
def model() -> Model:
    return rr.load(digits.MODEL_PATH)


def classes(model: Model, images: Array) -> Array:
    answer: Array = model.forward(digits.to_input(images)).argmax(axis=1)
    return answer


def test_reading_the_digits_loads_neither_pillow_nor_threads() -> None:
    program = (
        "import sys, repvgg_ref.data.digits as d; d.load_digits(); "
        "heavy = {'PIL', 'concurrent.futures', 'repvgg_ref.data.loader'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = run_python("-c", program)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_room_offers_what_it_says_and_nothing_else() -> None:
    assert [getattr(data, name).__name__ for name in data.__all__] == data.__all__
    with pytest.raises(AttributeError, match="no attribute 'Losder'"):
        data.Losder  # noqa: B018  # the access is the test


def test_everything_bundled_is_under_a_megabyte() -> None:
    files = [path for path in digits.FOLDER.iterdir() if path.is_file() and path.suffix != ".py"]
    assert {digits.DATA_PATH, digits.MODEL_PATH, digits.FOLDER / "README.md"} <= set(files)
    assert sum(path.stat().st_size for path in files) < 500_000


def test_the_split_is_complete_stratified_and_disjoint() -> None:
    train, test = digits.load_digits()
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    assert Counter(test.labels.tolist()) == dict.fromkeys(range(10), 36)
    for part in (train, test):
        assert part.images.dtype == np.uint8
        assert part.images.shape == (len(part.labels), 8, 8)
        assert (part.images.min(), part.images.max()) == (0, 16)
    seen = {image.tobytes() for image in train.images}
    assert not any(image.tobytes() in seen for image in test.images)


def test_the_model_has_every_kind_of_block(model: Model) -> None:
    assert model.form == "train"
    assert model.arch == digits.digits_architecture()
    blocks = model.arch.blocks
    kinds = {(block.stride, block.groups, block.can_add_input) for block in blocks}
    assert kinds == {(2, 1, False), (2, 2, False), (1, 1, True), (1, 2, True)}


def test_its_batch_norms_are_far_from_their_start(model: Model) -> None:
    """Mean 0 and variance 1 would hide a fusion that ignores the statistics."""
    for name, array in model.params.items():
        if name.endswith(".running_mean"):
            assert np.abs(array).max() > 0.01, name
        if name.endswith(".running_var"):
            assert np.abs(array - 1).max() > 0.1, name


def test_it_reads_test_digits_and_the_fused_form_agrees_on_every_image(model: Model) -> None:
    train, test = digits.load_digits()
    fused = rr.fuse(model)
    answers = classes(model, test.images)
    assert (answers == test.labels).mean() >= 0.985
    assert np.array_equal(classes(fused, test.images), answers)
    assert np.array_equal(classes(fused, train.images), classes(model, train.images))


def test_every_picture_is_read_as_its_name_says(model: Model) -> None:
    paths = digits.sample_paths()
    assert [digits.sample_label(path) for path in paths] == list(range(10))
    test = digits.load_digits().test
    for path in paths:
        with Image.open(path) as picture:
            x = digits.image_to_input(picture)
        index = int(path.stem.rpartition("test")[2])
        assert test.labels[index] == digits.sample_label(path)
        assert np.abs(x - digits.to_input(test.images[[index]])).max() <= 1e-5 + 0.5 / 255 / 0.376
        assert model.forward(x).argmax() == digits.sample_label(path)


def test_input_is_standardised_and_each_pixel_four_wide_and_high() -> None:
    train = digits.load_digits().train
    x = digits.to_input(train.images)
    assert x.shape == (1437, 1, 32, 32)
    assert x.dtype == np.float32
    assert abs(x.mean()) < 0.01
    assert abs(x.std() - 1) < 0.01
    assert np.array_equal(x[:, 0, 3::4, ::4], x[:, 0, ::4, 3::4])


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match="another size"):
        digits.to_input(np.zeros((2, 28, 28)))


def test_the_data_are_scikit_learns() -> None:
    sklearn = pytest.importorskip("sklearn.datasets")
    source = sklearn.load_digits()
    with np.load(digits.DATA_PATH) as file:
        assert np.array_equal(file["images"], source.images)
        assert np.array_equal(file["labels"], source.target)
