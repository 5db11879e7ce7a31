"""Memory for packed weights: a budget is kept, the network stays right, and more is faster."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from repvgg_ref.cpu import budget as budgets
from repvgg_ref.cpu.budget import VARIABLE, Choice, choices_within, required_memory
from repvgg_ref.cpu.convolution.algorithms import DEFAULT_CHOICES, applies
from repvgg_ref.cpu.convolution.cost import cheapest, inference, seconds, streamed
from repvgg_ref.cpu.engine import Engine
from repvgg_ref.cpu.graph import GraphEngine
from repvgg_ref.cpu.plan import conv_shapes
from repvgg_ref.cpu.workers.pool import Pool
from repvgg_ref.errors import BackendError
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.network import fuse
from repvgg_ref.oracle import verify
from tests.models.small import GRAPHS, SMALL, batch, distinct_model

NETWORKS: dict[str, Any] = {**SMALL, **GRAPHS}
B1 = architecture("RepVGG-B1")
SHAPES = conv_shapes(B1.blocks, 16, 224, 224)
POSSIBLE = [[a for a in DEFAULT_CHOICES if applies(a, shape)] for shape in SHAPES]
WEIGHTS = 4 * sum(9 * shape.pairs for shape in SHAPES)


def packed_bytes(choices: list[Choice]) -> float:
    return sum(
        inference(choice.algorithm, shape, 4).weight_bytes
        for choice, shape in zip(choices, SHAPES, strict=True)
        if not choice.streamed
    )


def estimate(choices: list[Choice]) -> float:
    return sum(
        seconds((streamed if choice.streamed else inference)(choice.algorithm, shape, 4))
        for choice, shape in zip(choices, SHAPES, strict=True)
    )


def test_without_a_limit_every_layer_has_the_cheapest_and_keeps_its_weights() -> None:
    found = choices_within(math.inf, SHAPES, POSSIBLE, 4)
    assert found == [Choice(cheapest(shape, 4)) for shape in SHAPES]


def test_a_budget_is_kept_and_more_of_it_takes_no_more_time() -> None:
    least = choices_within(0, SHAPES, POSSIBLE, 4)
    before, floor = estimate(least), packed_bytes(least)
    assert floor < WEIGHTS / 50
    for budget in (WEIGHTS / 4, WEIGHTS / 2, WEIGHTS, 3 * WEIGHTS, 9 * WEIGHTS):
        found = choices_within(budget, SHAPES, POSSIBLE, 4)
        assert packed_bytes(found) <= budget
        assert estimate(found) < before
        before = estimate(found)
    assert found == choices_within(math.inf, SHAPES, POSSIBLE, 4)


@pytest.fixture
def _every_layer_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "PRIVATE_WEIGHTS", 0)


@pytest.mark.few
@pytest.mark.usefixtures("_every_layer_is_large")
@pytest.mark.parametrize("memory", [0, 3000, "lean"])
@pytest.mark.parametrize("variant", NETWORKS)
def test_a_network_in_little_memory_is_the_reference(variant: str, memory: Any) -> None:
    model = fuse(distinct_model(NETWORKS[variant], dtype="float32"))
    made: Any = Engine if model.arch.is_chain else GraphEngine
    how: Any = {"dtype": np.float32, "threads": 2, "memory": memory}
    network: Any = model.arch.blocks if model.arch.is_chain else model.arch
    engine = made(network, model.params, **how)
    for count in (1, 3):
        x, _ = batch(model.arch, count=count, dtype=np.float32)
        wanted = model.forward(x, backend="reference")
        for _ in range(2):
            assert np.abs(engine.forward(x) - wanted).max() <= 2e-5 * np.abs(wanted).max()
        assert isinstance(engine.plan(x.shape).team, Pool)


@pytest.mark.usefixtures("_every_layer_is_large")
def test_packed_weights_are_those_of_one_plan_and_within_the_budget() -> None:
    model = fuse(distinct_model(SMALL["plain"], dtype="float32"))
    engine = Engine(SMALL["plain"].blocks, model.params, dtype=np.float32, memory=3000)
    held = []
    for size in (16, 32, 16):
        engine.forward(np.ones((1, 3, size, size), np.float32))
        held.append(engine.packed_bytes)
    assert held[0] == held[2]
    assert all(0 < each <= 3000 for each in held)


@pytest.mark.slow
@pytest.mark.usefixtures("_every_layer_is_large")
def test_the_oracle_takes_weights_transformed_in_float32_for_rounding() -> None:
    trained = distinct_model(SMALL["plain"], dtype="float32")
    fused = fuse(trained)
    for algorithm in ("winograd4", "winograd7"):
        how: Any = {"algorithm": algorithm, "memory": 0}
        report = verify(trained, lambda x, how=how: fused.forward(x, layers=True, **how))
        assert report.verdict == "agree", report.diagnosis


def test_the_variable_is_what_holds_where_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fuse(distinct_model(SMALL["plain"], dtype="float32"))
    x = np.ones((1, 3, 32, 32), np.float32)
    monkeypatch.setenv(VARIABLE, "lean")
    assert required_memory() == "lean"
    lean, fast = model.forward(x), model.forward(x, memory="fast")
    assert np.abs(lean - fast).max() <= 2e-5 * np.abs(fast).max()
    monkeypatch.setenv(VARIABLE, "600000000")
    assert required_memory() == 600_000_000
    monkeypatch.delenv(VARIABLE)
    assert required_memory() == "fast"


@pytest.mark.parametrize("wrong", ["small", "1.5", "-1", "6e8", -1, 0.5, True])
def test_other_memory_is_refused_by_name(wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = distinct_model(SMALL["plain"], dtype="float32")
    with pytest.raises(BackendError, match="memory says how much"):
        model.forward(np.ones((1, 3, 8, 8), np.float32), memory=wrong)
    if isinstance(wrong, str):
        monkeypatch.setenv(VARIABLE, wrong)
        with pytest.raises(BackendError, match=VARIABLE):
            required_memory()
