"""The trainer on a CUDA device: a fake one that offers what CuPy offers, or a real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.errors import BackendError
from repvgg_ref.train.events import Finished
from tests.gpu.conftest import UnderTest, device_named
from tests.train.small_training import changed, losses, run, small_job
from tests.train.test_run import EVERYTHING, assert_same_bits


@pytest.fixture(
    scope="module",
    params=["fake without cuDNN", pytest.param("GPU", marks=pytest.mark.gpu)],
)
def device(request: pytest.FixtureRequest) -> Iterator[UnderTest]:
    with device_named(request.param) as found:
        yield found


@pytest.mark.few(1)
@pytest.mark.parametrize("recipe", [changed(), EVERYTHING], ids=["plain", "everything"])
def test_in_float64_it_trains_as_the_reference_does(
    recipe: Any, device: UnderTest, tmp_path: Path
) -> None:
    right = losses(run(small_job(tmp_path / "cpu", recipe=recipe)))
    got = losses(run(small_job(tmp_path / "gpu", recipe=recipe, backend="cupy")))
    error = float(np.max(np.abs(np.subtract(got, right))))
    assert error <= 1e-9


@pytest.mark.few(1)
@pytest.mark.parametrize("math", ["fp32", "tf32", "bf16", "fp16"])
def test_every_arithmetic_learns_and_its_two_forms_agree(
    math: str, device: UnderTest, tmp_path: Path
) -> None:
    recipe = changed(epochs=6)
    job = small_job(tmp_path, recipe=recipe, backend="cupy", math=math, dtype="float32")
    *_, done = events = run(job)
    assert isinstance(done, Finished)
    assert done.evaluation.comparison is not None
    assert done.evaluation.comparison.ok
    assert losses(events)[-1] < 0.8 * losses(events)[0]


def test_a_stopped_training_continues_to_the_same_bits(device: UnderTest, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"recipe": EVERYTHING, "backend": "cupy", "dtype": "float32"}
    run(small_job(tmp_path / "whole", **settings))
    asked = iter([False] * 3 + [True])
    run(small_job(tmp_path / "parts", **settings), stop=lambda: next(asked))
    run(small_job(tmp_path / "parts", **settings, resume=True))
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def test_another_arithmetic_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"--math bf16 with backend numpy"):
        small_job(tmp_path, backend="numpy", math="bf16")
