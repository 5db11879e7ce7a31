"""Counting hits, adding up losses, and the interval."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref import NAMES
from repvgg_ref.models.published import PUBLISHED
from repvgg_ref.train.accuracy import Tally, tally


@given(seed=st.integers(0, 2**32), images=st.integers(1, 20), classes=st.integers(1, 12))
def test_hits_are_what_a_stable_sort_says(seed: int, images: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.integers(0, 4, (images, classes)).astype(np.float32)  # with many ties
    labels = rng.integers(0, classes, images)
    order = np.argsort(-logits, axis=1, kind="stable")
    found = tally(logits, labels)
    assert found.images == images
    for count, k in ((found.top1, 1), (found.top5, 5)):
        assert count == sum(label in row[:k] for label, row in zip(labels, order, strict=True))


def test_a_network_that_says_the_same_of_every_class_is_right_about_one() -> None:
    found = tally(np.zeros((10, 10)), np.arange(10))
    assert found[:3] == (10, 1, 5)
    assert found.score == pytest.approx((np.log(10), 0.1, 0.5))


def test_what_is_not_a_number_is_never_right() -> None:
    logits = np.zeros((3, 8))
    logits[0] = np.nan
    logits[1, 3] = np.nan  # the label's own
    logits[2, :6] = np.nan  # six of the others
    assert tally(logits, np.array([0, 3, 7]))[:3] == (3, 0, 0)


def test_tallies_of_parts_add_up() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(30, 9)), rng.integers(0, 9, 30)
    parts = tally(logits[:13], labels[:13]) | tally(logits[13:], labels[13:])
    whole = tally(logits, labels)
    assert parts[:3] == whole[:3]
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    assert parts | Tally() == parts
    assert tally(logits[:0], labels[:0]) == Tally()
    assert Tally().score == (0, 0, 0)


def test_published_figures_are_of_known_models_and_agree_among_themselves() -> None:
    assert set(PUBLISHED) <= set(NAMES)
    for name, stated in PUBLISHED.items():
        assert stated.paper is not None or stated.timm is not None, name
        if stated.paper is not None and stated.timm is not None:
            assert abs(stated.paper - stated.timm) < 0.05, name
    assert PUBLISHED["RepVGG-A0"] == (72.41, 72.426, 224)
