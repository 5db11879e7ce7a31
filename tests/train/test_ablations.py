"""The ablation study: its statistics, its resumption, what it says of the paper's order."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.blocks.catalogue import block_names
from repvgg_ref.data.digits import load_digits
from repvgg_ref.models.registry import network
from tests.studies.ablations.page import FIGURE, MNIST_FIGURE, PAGE, RESULTS, filled, page_of
from tests.studies.ablations.paper import HOLDS, OPEN, REVERSED, judged, reported
from tests.studies.ablations.paths import paths
from tests.studies.ablations.report import document, picture, table, words
from tests.studies.ablations.runs import RUNS, Run, StudyError, go_on, missing, read
from tests.studies.ablations.statistics import interval, kendall, paired, student
from tests.studies.ablations.task import MNIST, TASK, Task, chosen, data_of, network_of, trained

TINY = replace(TASK, images=20, epochs=1, batch=10, depths=(2, 2, 1), channels=(2, 2, 4, 4))
BLOCKS = ("repvgg", "plain", "dirac")


def pretended(block: str, seed: int, task: Task = TASK) -> Run:
    """A run of no training: every block's error its place in the paper, and the seed's luck."""
    error = 80 - reported()[block].top1 + seed
    return {"test_error": error, "fused_error": error, "train_loss": 0.1 * error, "seconds": 1.0}


def all_runs(path: Path, blocks: tuple[str, ...] = BLOCKS, seeds: int = 3) -> list[Run]:
    list(go_on(path, blocks, seeds, pretended))
    return read(path)


def test_quantiles_are_those_of_the_printed_tables() -> None:
    """Abramowitz and Stegun, table 26.10, and closed forms of one and two degrees of freedom."""
    printed = {(0.975, 4): 2.776, (0.975, 9): 2.262, (0.995, 4): 4.604, (0.9995, 30): 3.646}
    for (probability, freedom), value in printed.items():
        assert not abs(student(probability, freedom) - value) > 5e-4
    for p in (0.6, 0.975, 0.9999):
        assert not abs(student(p, 1) / math.tan(math.pi * (p - 0.5)) - 1) > 1e-9
        closed = (2 * p - 1) / math.sqrt(2 * p * (1 - p))
        assert not abs(student(p, 2) / closed - 1) > 1e-9


def test_intervals_hold_the_mean_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    found = [interval(rng.normal(1.0, 2.0, 5).tolist(), comparisons=10) for _ in range(2000)]
    inside = np.mean([each.low < 1 < each.high for each in found])
    strictly = np.mean([each.strict_low < 1 < each.strict_high for each in found])
    assert not abs(inside - 0.95) > 0.015  # three standard deviations
    assert not abs(strictly - 0.995) > 0.005


def test_pairs_are_of_one_seed() -> None:
    luck = {0: 5.0, 1: -3.0, 2: 9.0}
    worse = {seed: value + 1 + 0.01 * seed for seed, value in luck.items()} | {7: 99.0}
    found = paired(worse, luck, comparisons=1)
    assert (found.pairs, found.differs) == (3, True)
    assert not abs(found.mean - 1.01) > 1e-12
    single = paired({0: 2.0}, {0: 1.0}, comparisons=1)
    assert single.to_json()["low"] is None
    assert not single.differs
    with pytest.raises(ValueError, match="no value"):
        paired({0: 1.0}, {1: 1.0}, comparisons=1)


def test_orders_are_compared() -> None:
    assert kendall([1, 2, 3], [10, 20, 30]) == 1
    assert kendall([1, 2, 3], [3, 2, 1]) == -1
    assert kendall([1, 2, 3], [1, 3, 2]) == pytest.approx(1 / 3)


def test_a_stopped_study_goes_on_where_it_was(tmp_path: Path) -> None:
    path, done = tmp_path / "new" / RUNS, []

    def killed(block: str, seed: int, task: Task) -> Run:
        if (block, seed) == ("plain", 1):
            raise KeyboardInterrupt
        done.append((block, seed))
        return pretended(block, seed)

    with pytest.raises(KeyboardInterrupt):
        list(go_on(path, BLOCKS, 2, killed))
    assert missing(read(path), BLOCKS, 2) == [("plain", 1), ("dirac", 1)]
    left = [left for _, left in go_on(path, BLOCKS, 2, pretended)]
    assert left == [1, 0]
    assert done == [("repvgg", 0), ("plain", 0), ("dirac", 0), ("repvgg", 1)]
    assert [(r["block"], r["seed"]) for r in read(path)[:4]] == done
    assert [each.name for each in path.parent.iterdir()] == [RUNS]


def test_one_process_is_at_it_and_runs_are_of_one_task(tmp_path: Path) -> None:
    path = tmp_path / RUNS
    first = go_on(path, BLOCKS, 1, pretended)
    next(first)
    with pytest.raises(StudyError, match="another process"):
        next(go_on(path, BLOCKS, 1, pretended))
    list(first)
    with pytest.raises(StudyError, match=r"trained otherwise.*move the file away"):
        read(path, TINY)
    path.write_text(path.read_text() + '{"block": "plain"}\n')
    with pytest.raises(StudyError, match="line 4 is no run"):
        read(path)


def test_the_paper_s_order_holds_is_reversed_or_is_open() -> None:
    better = interval([-1.0, -1.1, -0.9])
    assert judged(0.5, better) == HOLDS
    assert judged(-0.5, better) == REVERSED
    assert judged(0.5, interval([-1.0, 1.1, -0.9])) == OPEN


def test_a_study_whose_errors_are_the_paper_s_finds_its_order(tmp_path: Path) -> None:
    names = tuple(reported())
    made = document(all_runs(tmp_path / RUNS, names))
    assert [p["verdict"] for p in made["paper_pairs"]] == [HOLDS] * 55  # of 11 blocks
    assert made["kendall"] == 1
    assert list(made["blocks"]) == list(names)
    plain = made["blocks"]["plain"]["test_error_less_repvgg"]
    assert not abs(plain["mean"] - (75.14 - 72.39)) > 1e-4
    assert "**Holds: 55**" in words(made)
    assert "| `dirac` |" in table(made)
    assert "| ~73.97 |" in table(made)
    shown = {e.text for e in ET.fromstring(picture(made)).iter() if e.tag.endswith("text")}
    assert set(names) <= shown


def test_paths_are_those_that_the_paper_counts() -> None:
    """Section 4.2: stage 4 of B0 is 2 x 3^15 models, in residual blocks 2^8."""
    assert paths(network("RepVGG-B0"), "stage3") == 2 * 3**15
    assert paths(network("RepVGG-B0", block="residual-reorg"), "stage3") == 2**8
    assert paths(network("RepVGG-B0", block="plain")) == 1
    small = network_of("repvgg", TINY)
    assert paths(small) == 2 * (2 * 3) ** 2 * 2


def test_every_seed_trains_on_other_pictures_and_every_block_on_the_same() -> None:
    labels = load_digits().train.labels
    first, second = chosen(labels, TASK.images, 0), chosen(labels, TASK.images, 1)
    assert len(first) == TASK.images == len(set(first))
    assert len(set(first) & set(second)) < TASK.images / 2
    assert set(np.bincount(labels[first])) == {TASK.images // 10}


@pytest.mark.parametrize("block", ["repvgg", "residual-reorg"])
def test_a_run_is_a_real_training_that_repeats(block: str) -> None:
    found = trained(block, 0, TINY)
    again = trained(block, 0, TINY)
    assert found | {"seconds": 0} == again | {"seconds": 0}
    assert found["steps"] == 2
    assert found["fused_error"] == (None if block == "residual-reorg" else found["test_error"])
    assert trained(block, 1, TINY)["train_loss"] != found["train_loss"]


def committed(name: str) -> Any:
    return (RESULTS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("folder", "task", "figure"), [("", TASK, FIGURE), ("mnist/", MNIST, MNIST_FIGURE)]
)
def test_what_is_committed_is_what_the_runs_say(folder: str, task: Task, figure: Path) -> None:
    runs = read(RESULTS / folder / RUNS, task)
    made = document(runs)
    assert json.loads(committed(folder + "ablations.json")) == made
    assert committed(folder + "ablations.md") == table(made) + "\n" + words(made)
    drawn = committed(folder + "ablations.svg")
    assert drawn == picture(made) == figure.read_text(encoding="utf-8")
    assert set(made["blocks"]) == set(block_names())
    assert min(len(each["seeds"]) for each in made["blocks"].values()) >= 5
    assert made["unlike_fused"] == 0


def test_pictures_of_a_folder_are_taken_in_the_size_that_they_have(tmp_path: Path) -> None:
    """MNIST's files: as many of a class as asked for, all test pictures, 28 x 28."""
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 20)):
        pictures = rng.integers(0, 256, (count, 28, 28), np.uint8)
        for what, array in (("images-idx3", pictures), ("labels-idx1", np.arange(count) % 10)):
            head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">i4").tobytes()
            body = array.astype(np.uint8).tobytes()
            (tmp_path / f"{name}-{what}-ubyte").write_bytes(head + body)
    task = replace(TINY, data="mnist", size=28)
    data = data_of(0, task, tmp_path)
    (first, *_), (judged, *_) = data.training.epoch(0), data.test.epoch(0)
    assert first.images.shape == (10, 28, 28, 1)
    assert (
        np.bincount(np.concatenate([b.labels for b in data.training.epoch(0)])).tolist() == [2] * 10
    )
    assert judged.labels.tolist() == (np.arange(20) % 10).tolist()
    assert trained("plain", 0, task, folder=tmp_path)["steps"] == 2


def test_the_page_says_what_the_results_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page_of(text) == text
    assert committed("ablations.md").split("\n\n")[0] in text


def test_a_page_without_its_marks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"branches\.md has no place"):
        filled("# Why three branches?\n", "a.study", "a table")
