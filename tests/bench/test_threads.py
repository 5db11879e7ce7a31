"""`Model.forward(threads=)`: the number of threads is the caller's, in both forms."""

from __future__ import annotations

import numpy as np
import pytest

from repvgg_ref.cpu.convolution import conv2d
from repvgg_ref.cpu.workers.pool import Pool, default_of, default_threads
from repvgg_ref.errors import BackendError
from repvgg_ref.models.network import fuse
from tests.models.small import SMALL, distinct_model

TRAIN = distinct_model(SMALL["plain"], dtype="float32")
X = np.random.default_rng(0).normal(size=(3, 3, 20, 20)).astype(np.float32)


@pytest.mark.parametrize("form", ["train", "deploy"])
def test_the_number_of_threads_changes_no_more_than_rounding(form: str) -> None:
    model = TRAIN if form == "train" else fuse(TRAIN)
    one, three = (model.forward(X, threads=threads) for threads in (1, 3))
    assert np.abs(one - three).max() <= 1e-5 * np.abs(one).max()


def test_the_branches_are_computed_by_as_many_threads_as_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[int] = []

    def pool() -> Pool:
        used.append(default_threads())
        return Pool(default_threads())

    monkeypatch.setattr(conv2d, "pool", pool)
    TRAIN.forward(X, threads=3)
    assert set(used) == {3}


def test_the_default_comes_back_after_the_block() -> None:
    before = default_threads()
    with default_of(before + 1):
        assert default_threads() == before + 1
        with default_of(None):
            assert default_threads() == before + 1
    assert default_threads() == before


@pytest.mark.parametrize("threads", [0, -1])
def test_no_threads_are_refused(threads: int) -> None:
    with pytest.raises(BackendError, match="threads"):
        TRAIN.forward(X, threads=threads)
