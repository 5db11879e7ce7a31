"""The plan: any batch, any size, replaced weights, threads that fail, memory that is bounded."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from repvgg_ref.cpu.engine import CHUNK, Engine
from repvgg_ref.cpu.workers.pool import THREADS, Pool, Stage, default_threads
from repvgg_ref.errors import BackendError
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.network import fuse
from tests.random_networks import random_model

ARCH = architecture("RepVGG-A0", num_classes=5)
DEPLOY = fuse(random_model(ARCH, 0))


def images(count: int, height: int = 33, width: int = 40) -> np.ndarray:
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, 3, height, width)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, CHUNK - 1, 2 * CHUNK, 2 * CHUNK + 3])
def test_a_batch_is_its_images(count: int) -> None:
    x = images(count)
    together = DEPLOY.forward(x)
    alone = np.concatenate(
        [DEPLOY.forward(x[n : n + 1], backend="reference") for n in range(count)]
    )
    assert np.abs(together - alone).max() <= 2e-5 * np.abs(alone).max()


@pytest.mark.parametrize("size", [(1, 1), (2, 31), (32, 32), (65, 17)])
def test_any_height_and_width(size: tuple[int, int]) -> None:
    x = images(2, *size)
    got, wanted = DEPLOY.forward(x), DEPLOY.forward(x, backend="reference")
    assert np.abs(got - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_a_plan_may_run_again_and_after_another_shape() -> None:
    x, other = images(3), images(2, 64, 20)
    first = DEPLOY.forward(x)
    DEPLOY.forward(other)
    assert (DEPLOY.forward(x) == first).all()


def test_direct_is_as_exact_as_the_reference() -> None:
    x = images(2, 64, 64)
    wanted = DEPLOY.forward(x.astype(np.float64), backend="reference")
    error = np.abs(DEPLOY.forward(x, algorithm="direct") - wanted).max() / np.abs(wanted).max()
    assert error <= 2e-6


def test_replaced_weights_are_seen_and_changes_in_place_refused() -> None:
    model = fuse(random_model(ARCH, 3))
    x = images(1)
    before = model.forward(x)
    name = "stage1.1.fused.weight"
    with pytest.raises(ValueError, match="read-only"):
        model.params[name] *= 2
    model.params[name] = model.params[name] * 2
    after, wanted = model.forward(x), model.forward(x, backend="reference")
    assert np.abs(after - wanted).max() <= 2e-5 * np.abs(wanted).max()
    assert not np.allclose(before, after)


@pytest.mark.few(1)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_no_result_beyond_rounding(threads: int) -> None:
    x = images(2)
    engine = Engine(ARCH.blocks, DEPLOY.params, dtype=np.float32, threads=threads)
    wanted = DEPLOY.forward(x, backend="reference")
    assert np.abs(engine.forward(x) - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_inputs_are_left_alone() -> None:
    x = images(2)
    x.flags.writeable = False
    DEPLOY.forward(x)
    DEPLOY.forward(x, layers=True)


def test_nan_goes_through() -> None:
    x = images(1)
    x[0, 1, 5, 5] = np.nan
    assert np.isnan(DEPLOY.forward(x)).all()


def test_memory_is_two_activations_and_scratch() -> None:
    engine = Engine(ARCH.blocks, DEPLOY.params, dtype=np.float32, threads=2)
    plan = engine.plan((4, 3, 64, 64))
    largest = sorted((layer.x.nbytes for layer in plan.layers), reverse=True)
    buffers = sum(buffer.nbytes for buffer in plan.buffers)
    assert buffers <= largest[0] + largest[1]
    scratch = max(layer.convolution.scratch for layer in plan.layers) * plan.arena.itemsize
    assert buffers < plan.scratch_bytes <= buffers + 3 * scratch  # one shared, one a worker


def test_the_pool_hands_on_what_fails_and_works_on() -> None:
    workers = Pool(3)

    def fail(worker: int, item: int) -> None:
        if item == 5:
            raise KeyError("five")

    for _ in range(20):
        with pytest.raises(KeyError, match="five"):
            workers.run(Stage(9, fail))
    done: list[int] = []
    workers.run(Stage(100, lambda worker, item: done.append(item)))
    assert sorted(done) == list(range(100))


def test_the_variable_sets_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(THREADS, "3")
    assert default_threads() == 3
    monkeypatch.setenv(THREADS, "none")
    with pytest.raises(BackendError, match=THREADS):
        default_threads()
    monkeypatch.delenv(THREADS)
    assert default_threads() >= 1


def test_a_model_that_has_run_can_be_copied_and_pickled() -> None:
    x = images(1)
    wanted = DEPLOY.forward(x)
    for twin in (copy.deepcopy(DEPLOY), pickle.loads(pickle.dumps(DEPLOY))):
        assert (twin.forward(x) == wanted).all()


def test_an_empty_batch_has_no_logits() -> None:
    assert DEPLOY.forward(images(0)).shape == (0, 5)
    assert DEPLOY.forward(images(0), layers=True)["stage0"].shape[0] == 0


def test_callers_in_several_threads_take_turns() -> None:
    batches = [images(n) for n in (1, 2, 3, 4)]
    wanted = [DEPLOY.forward(x) for x in batches]
    with ThreadPoolExecutor(4) as callers:
        for got, want in zip(callers.map(DEPLOY.forward, batches * 5), wanted * 5, strict=True):
            assert (got == want).all()
