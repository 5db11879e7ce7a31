"""The loader: what a batch holds depends on (seed, epoch, step) and on nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

from repvgg_ref.arrays import Array
from repvgg_ref.data import (
    Batch,
    DataError,
    Loader,
    Subset,
    evaluation_transform,
    open_data,
    training_transform,
)
from repvgg_ref.data.loader import FEWEST_LIMIT
from repvgg_ref.data.pictures import ImageError
from repvgg_ref.errors import ReportedError
from tests.data.datasets import SometimesBroken, array_source

TRANSFORM = training_transform(size=6, auto_augment="randaugment")
PLAIN = evaluation_transform(size=8, crop_ratio=1.0)


def loader(source: Any, **settings: Any) -> Loader:
    usual: dict[str, Any] = {"transform": TRANSFORM, "batch_size": 12, "seed": 3}
    return Loader(source, **usual | settings)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [t for t in threading.enumerate() if t.name.startswith("repvgg-data")] == []


def joined(batches: list[Batch]) -> Batch:
    return Batch(*(np.concatenate(part) for part in zip(*batches, strict=True)))


def require_same(left: Batch, right: Batch) -> None:
    for a, b in zip(left, right, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_batches_are_the_same_whatever_the_threads_and_ranks(threads: int, ranks: int) -> None:
    source = array_source(64)
    alone = list(loader(source).epoch(5))
    assert len(alone) == loader(source).steps == 5
    parts = [
        list(loader(source, threads=threads, rank=rank, ranks=ranks).epoch(5))
        for rank in range(ranks)
    ]
    for step, whole in enumerate(alone):
        require_same(joined([part[step] for part in parts]), whole)
        assert all(len(part[step].labels) == 12 // ranks for part in parts)


def test_a_batch_says_which_pictures_it_holds() -> None:
    source = array_source(300)
    for batch in loader(source, transform=PLAIN).epoch(0):
        assert batch.images.shape == (12, 8, 8, 3)
        assert [part.dtype.name for part in batch] == ["uint8", "int64", "int64"]
        np.testing.assert_array_equal(batch.images, source.images[batch.indices])
        np.testing.assert_array_equal(batch.labels, source.labels[batch.indices])


def test_an_epoch_is_a_permutation_and_the_next_another_one() -> None:
    source = array_source(60)
    seen = [joined(list(loader(source).epoch(epoch))).indices for epoch in (0, 1)]
    assert all(sorted(indices) == list(range(60)) for indices in seen)
    assert (seen[0] != seen[1]).any()
    other = joined(list(loader(source, seed=4).epoch(0))).indices
    assert (other != seen[0]).any()
    straight = joined(list(loader(source, shuffle=False).epoch(9))).indices
    np.testing.assert_array_equal(straight, np.arange(60))


def test_a_picture_looks_different_in_every_epoch_but_not_by_its_place() -> None:
    source = array_source(24)
    looks = []
    for epoch, seed in ((0, 3), (1, 3), (0, 4)):
        whole = joined(list(loader(source, seed=seed).epoch(epoch)))
        looks.append(whole.images[np.argsort(whole.indices)])
    assert all((looks[0] != other).any(axis=(1, 2, 3)).sum() > 20 for other in looks[1:])
    straight = joined(list(loader(source, shuffle=False, batch_size=8).epoch(0)))
    np.testing.assert_array_equal(straight.images, looks[0])


@pytest.mark.parametrize("first", [0, 2, 4, 5])
def test_an_epoch_goes_on_at_any_step(first: int) -> None:
    source = array_source(64)
    whole = list(loader(source).epoch(1))
    rest = list(loader(source, threads=2).epoch(1, first_step=first))
    assert len(rest) == 5 - first
    for left, right in zip(rest, whole[first:], strict=True):
        require_same(left, right)


@pytest.mark.parametrize("ranks", [1, 3])
def test_evaluation_sees_every_picture_once(ranks: int) -> None:
    source = array_source(29)
    settings = {"shuffle": False, "drop_last": False, "ranks": ranks, "transform": PLAIN}
    parts = [loader(source, rank=rank, **settings) for rank in range(ranks)]
    assert {part.steps for part in parts} == {3}
    seen = [batch.indices for part in parts for batch in part.epoch(0)]
    assert sorted(np.concatenate(seen)) == list(range(29))


def test_the_next_picture_stands_in_for_a_broken_one_and_is_named_as_itself() -> None:
    errors: dict[int, Exception] = {7: ImageError("bad"), 8: OSError("gone"), 59: ImageError("end")}
    source = SometimesBroken(array_source(60), errors)
    for threads in (1, 3):
        made = loader(source, transform=PLAIN, threads=threads)
        seen = joined(list(made.epoch(0))).indices
        expected = joined(list(loader(array_source(60), transform=PLAIN).epoch(0))).indices
        instead = {7: 9, 8: 9, 59: 0}
        assert seen.tolist() == [instead.get(int(i), int(i)) for i in expected]
        assert made.skipped == [("picture-7", "bad"), ("picture-8", "gone"), ("picture-59", "end")]


def test_evaluation_leaves_broken_pictures_out() -> None:
    source = SometimesBroken(
        array_source(26), {0: ImageError("a"), 24: ImageError("b"), 25: OSError("c")}
    )
    made = loader(source, transform=PLAIN, shuffle=False, drop_last=False)
    sizes = [len(batch.labels) for batch in made.epoch(0)]
    assert sizes == [11, 12, 0]
    assert [name for name, _ in made.skipped] == ["picture-0", "picture-24", "picture-25"]


def test_too_many_broken_pictures_are_refused() -> None:
    few: dict[int, Exception] = {i: ImageError(f"no {i}") for i in range(FEWEST_LIMIT)}
    assert len(list(loader(SometimesBroken(array_source(60), few)).epoch(0))) == 5
    many = few | {40: ImageError("no 40")}
    with pytest.raises(DataError, match=r"too many .*got 11 of 60.* wanted at most 10"):
        list(loader(SometimesBroken(array_source(60), many), threads=2).epoch(0))


def test_no_readable_picture_at_all_is_an_error_and_no_endless_search() -> None:
    errors: dict[int, Exception] = {i: ImageError("no") for i in range(4)}
    with pytest.raises(DataError, match="no picture of the data set can be read"):
        list(loader(SometimesBroken(array_source(4), errors), batch_size=4).epoch(0))


def test_an_unexpected_error_comes_out_once_with_the_pictures_name() -> None:
    source = SometimesBroken(array_source(60), {20: ZeroDivisionError("oops")})
    with pytest.raises(DataError, match=r"picture-20: unexpected ZeroDivisionError \(got oops\)"):
        list(loader(source, threads=4).epoch(0))


class Slow:
    """A transform that takes its time, and counts."""

    size = 8

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.done = 0

    def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Array:
        time.sleep(self.seconds)
        self.done += 1
        return np.asarray(picture)


def test_closing_early_cancels_what_is_under_way() -> None:
    slow = Slow(0.01)
    batches = loader(array_source(240), transform=slow, threads=2, ahead=10).epoch(0)
    next(batches)
    before = slow.done
    batches.close()
    assert slow.done < before + 60  # of the 120 pictures ahead, those begun


def test_an_interrupt_while_waiting_ends_the_threads() -> None:
    class Interrupted:
        size = 8

        def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Array:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(loader(array_source(24), transform=Interrupted()).epoch(0))


def test_batches_are_made_ahead_but_not_without_end() -> None:
    source, asked = array_source(240), []

    class Counting:
        size = 8

        def __call__(self, picture: Image.Image, rng: np.random.Generator) -> Array:
            asked.append(1)
            return np.asarray(picture)

    batches = loader(source, transform=Counting(), ahead=2).epoch(0)
    next(batches)
    deadline = time.monotonic() + 5
    while len(asked) < 36 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.02)
    assert len(asked) == 36  # the one in hand and two ahead, of 20
    batches.close()


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 65}, "smaller than one batch"),
        ({"batch_size": 0}, "no batch can be made so"),
        ({"threads": 0}, "no batch can be made so"),
        ({"rank": 2, "ranks": 2}, "no batch can be made so"),
        ({"ranks": 5}, "cannot be shared out evenly"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ReportedError, match=says):
        loader(array_source(64), **settings)


def test_a_subset_is_spread_evenly() -> None:
    source = array_source(100)
    some = Subset(source, 4)
    assert [some.name(i) for i in range(len(some))] == [f"array[{i}]" for i in (0, 25, 50, 75)]
    assert some.labels.tolist() == source.labels[[0, 25, 50, 75]].tolist()
    assert len(Subset(source, 1000)) == 100


def test_the_bundled_digits_are_standardised_as_their_model_expects() -> None:
    from repvgg_ref.data.digits import load_digits, to_input

    source = open_data(None, split="val")
    transform = evaluation_transform(size=32, crop_ratio=1.0)
    made = Loader(source, transform=transform, batch_size=360, shuffle=False)
    (batch,) = made.epoch(0)
    np.testing.assert_array_equal(
        source.standardise(batch.images), to_input(load_digits().test.images)
    )
