"""The race: everyone the same, wrong ones not timed, broken ones told, ratios within a round."""

from __future__ import annotations

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from repvgg_ref.bench import race as race_module
from repvgg_ref.bench.contenders.base import BRANCHES, ENTRIES, OURS
from repvgg_ref.bench.race import difference, race
from repvgg_ref.bench.result import spread
from repvgg_ref.bench.rival import ContenderError, environment
from repvgg_ref.bench.task import Task
from tests.bench.ways import ways

TASK = Task("inference", "RepVGG-A0", batch=2, size=16, threads=1)


@pytest.fixture(autouse=True)
def _short_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race_module, "TURN_SECONDS", 0.01)


def run(*names: str, rounds: int = 2) -> Any:
    return race(TASK, [ways(name) for name in names], rounds=rounds)


@pytest.mark.slow
def test_a_slower_contender_has_a_ratio_above_one() -> None:
    found = run("slow", "slower", rounds=3)
    assert 3 < found.ratio(found.contenders[1]).median < 7
    assert found.images_per_second(found.ours) == pytest.approx(100, rel=0.3)
    assert [len(one.seconds) for one in found.contenders] == [3, 3]
    assert found.skipped == []


@pytest.mark.slow
def test_the_fastest_right_variant_represents_a_contender() -> None:
    found = run("slow", "slower or wrong or slow or dies")
    other = found.contenders[1]
    assert other.variant == "slow"
    assert set(other.tried) == {"slow", "slower"}
    assert [each.name.partition(" (")[2] for each in found.skipped] == ["wrong)", "dies)"]


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["wrong", "nan", "infinite", "other shape"])
def test_who_computes_something_else_is_not_timed(name: str) -> None:
    found = run("slow", name)
    assert [one.name for one in found.contenders] == ["slow"]
    assert "something else" in found.skipped[0].reason


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("refuses", "not today (got rain)"),
        ("dies", "exit code 139"),
        ("raises", "KeyError: 'what nobody expected'"),
        ("dies later", "out of luck"),
    ],
)
def test_who_breaks_is_left_out_with_the_reason(name: str, why: str) -> None:
    found = run("slow", name, "slower")
    assert [one.name for one in found.contenders] == ["slow", "slower"]
    assert why in found.skipped[0].reason
    assert found.skipped[0].reason.isprintable()


@pytest.mark.few(1)
@pytest.mark.parametrize("name", ["refuses", "dies", "dies later"])
def test_nothing_is_compared_with_a_broken_first_one(name: str) -> None:
    with pytest.raises(ContenderError):
        run(name, "slow")


def test_nothing_is_compared_with_nan() -> None:
    with pytest.raises(ContenderError, match="something else"):
        run("nan", "slow")


def test_what_a_framework_prints_is_no_answer() -> None:
    assert len(run("talks", "slow").contenders) == 2


@pytest.mark.slow
def test_no_process_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[subprocess.Popen[str]] = []

    class Kept(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr("repvgg_ref.bench.rival.subprocess.Popen", Kept)
    run("slow", "slower or wrong")

    def interrupted(what: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        race(TASK, [ways("slow"), ways("slower")], rounds=1, progress=interrupted)
    assert len(made) == 5
    assert all(process.poll() is not None for process in made)


@pytest.mark.slow
def test_progress_counts_to_the_end() -> None:
    steps: list[tuple[int, int]] = []
    race(
        TASK,
        [ways("slow"), ways("slower")],
        rounds=2,
        progress=lambda what, done, total: steps.append((done, total)),
    )
    assert steps == [(k, 7) for k in range(1, 8)]


@pytest.mark.slow
def test_ours_agrees_with_its_own_branches_and_tells_its_layers() -> None:
    found = race(TASK, [ENTRIES[OURS], ENTRIES[BRANCHES]], rounds=1, layers=True)
    assert found.skipped == []
    assert 0 < found.contenders[1].error < 1e-4
    assert found.layers is not None
    assert len(found.layers["rows"]) == 22
    memory = [one.memory for one in found.contenders]
    assert memory[0]["weights"] == 4 * 8_309_384
    assert all(each["peak"] > each["weights"] for each in memory)


def test_the_one_who_asks_loads_no_framework() -> None:
    program = (
        "import sys, repvgg_ref.bench.race, repvgg_ref.bench.peers; "
        "from repvgg_ref.bench.contenders.base import ENTRIES; "
        "from repvgg_ref.bench.task import Task; "
        "[e.variants(Task('inference', 'RepVGG-A0', 1, 8, 1)) for e in ENTRIES.values()]; "
        "sys.exit(str({'torch', 'onnx', 'onnxruntime', 'openvino', 'ncnn'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(1), capture_output=True, text=True
    )
    assert done.stderr == "set()\n"


def test_a_spread_is_taken_within_rounds() -> None:
    """A machine that is ten times slower for a round moves no ratio."""
    found = spread([2, 20, 3], [1, 10, 1])
    assert found.all == (2, 2, 3)
    assert (found.median, found.low, found.high) == (2, 2, 2.5)
    assert spread([3], [2]).low == 1.5


def test_a_difference_is_of_the_largest_and_never_passes_what_cannot_be_compared() -> None:
    wanted = {"logits": np.array([1.0, -4.0]), "loss": np.array(2.0)}
    assert difference(wanted, wanted) == 0
    assert difference(wanted | {"loss": np.array(1.0)}, wanted) == 0.5
    assert difference(wanted | {"logits": np.array([2.0, -4.0])}, wanted) == 0.25
    assert math.isnan(difference(wanted | {"loss": np.array(np.nan)}, wanted))
    assert difference({"logits": wanted["logits"]}, wanted) == math.inf
    assert difference(wanted | {"logits": np.array([[1.0, -4.0]])}, wanted) == math.inf
