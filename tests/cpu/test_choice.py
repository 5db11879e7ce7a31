"""How an algorithm is chosen: by the cost model, by measurement, or as asked."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.cpu.convolution import autotune
from repvgg_ref.cpu.convolution.algorithms import (
    ALGORITHMS,
    DEFAULT_CHOICES,
    TRAINING_CHOICES,
    applies,
)
from repvgg_ref.cpu.convolution.autotune import FOLDER, Tuner, cache_file
from repvgg_ref.cpu.convolution.cost import cheapest
from repvgg_ref.cpu.convolution.schedule import ConvShape
from repvgg_ref.cpu.engine import Engine
from repvgg_ref.cpu.workers.pool import pool
from repvgg_ref.errors import BackendError
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.network import fuse
from tests.random_networks import random_model

SHAPE = ConvShape(2, 14, 14, 16, 32)


def test_winograd_needs_three_taps_undilated() -> None:
    assert all(applies(a, SHAPE) for a in ALGORITHMS)
    dilated = ConvShape(1, 8, 8, 4, 4, dilation=2)
    small = ["direct", "winograd2", "winograd4"]
    assert [a for a in ALGORITHMS if applies(a, dilated)] == small
    assert [a for a in ALGORITHMS if applies(a, replace(dilated, stride=2))] == ["direct"]
    assert [a for a in ALGORITHMS if applies(a, ConvShape(1, 8, 8, 4, 4, kernel=1))] == ["direct"]
    strided = [a for a in ALGORITHMS if applies(a, ConvShape(1, 8, 8, 4, 4, stride=2))]
    assert strided == ["direct", "winograd2", "winograd4", "winograd7"]


def test_the_model_knows_large_layers_from_small_ones() -> None:
    assert cheapest(ConvShape(16, 56, 56, 128, 128), 4) == "winograd7"
    assert cheapest(ConvShape(16, 60, 60, 128, 128), 4) == "winograd5"
    assert cheapest(ConvShape(1, 14, 14, 512, 512), 4) == "winograd2"
    assert cheapest(ConvShape(16, 112, 112, 3, 64, stride=2), 4) == "direct"
    assert cheapest(ConvShape(1, 7, 7, 512, 2048, stride=2), 4) == "direct"
    assert cheapest(ConvShape(16, 7, 7, 512, 2048, stride=2), 4) == "winograd7"
    assert cheapest(ConvShape(16, 56, 56, 64, 128, stride=2), 4) == "winograd4"


def test_a_training_step_takes_accurate_algorithms_only() -> None:
    large = ConvShape(16, 14, 14, 256, 512, stride=2)
    assert cheapest(large, 4) == "winograd7"
    assert cheapest(large, 4, purpose="training") == "winograd2"
    assert cheapest(large, 4, purpose="gradient") in TRAINING_CHOICES


def test_a_measurement_is_made_once_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "new"))
    assert cache_file().parent == tmp_path / "new"
    first = Tuner(pool(2), np.float32).choose(SHAPE)
    kept = json.loads(cache_file().read_text())
    ((_, shapes),) = kept.items()
    ((_, times),) = shapes.items()
    assert times.keys() == set(DEFAULT_CHOICES)
    assert min(times, key=times.__getitem__) == first

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Tuner, "_measure", never)
    assert Tuner(pool(2), np.float32).choose(SHAPE) == first


@pytest.mark.parametrize("text", ["", "[1]", '{"a": 1}', '{"a": {"b": {"direct": "fast"}}}'])
def test_a_broken_cache_is_measured_anew(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    cache_file().write_text(text)
    assert Tuner(pool(1), np.float32).choose(ConvShape(1, 4, 4, 2, 2)) in ALGORITHMS


def test_a_folder_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(FOLDER, str(tmp_path / "file"))
    assert Tuner(pool(1), np.float32).choose(ConvShape(1, 4, 4, 2, 2)) in ALGORITHMS
    assert autotune.cache_file().parent.is_file()


ARCH = architecture("RepVGG-A0", num_classes=5)


@pytest.mark.few(1)
@pytest.mark.parametrize("algorithm", ["measure", *ALGORITHMS])
def test_a_network_by_every_algorithm(
    algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    deploy = fuse(random_model(ARCH, 0))
    x = np.random.default_rng(0).normal(size=(2, 3, 48, 64)).astype(np.float32)
    wanted = deploy.forward(x, backend="reference")
    got = deploy.forward(x, algorithm=algorithm)
    limit = 6e-5 if algorithm in ("winograd6", "winograd7") else 2e-5
    assert np.abs(got - wanted).max() <= limit * np.abs(wanted).max()


def test_an_unknown_algorithm_is_refused_by_name() -> None:
    with pytest.raises(BackendError, match="winograd3"):
        Engine(ARCH.blocks, {}, dtype=np.float32, algorithm="winograd3")
