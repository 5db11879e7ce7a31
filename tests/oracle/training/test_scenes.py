"""Training steps of networks that say a class for every pixel: exact, judged, their bugs named."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.errors import ReportedError, ShapeError
from repvgg_ref.models.graph import Node
from repvgg_ref.oracle.bugs.base import Mutant, Site, planted
from repvgg_ref.oracle.golden.read import read_golden
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.report import Report
from repvgg_ref.oracle.training import steps as steps_module
from repvgg_ref.oracle.training.bugs import TRAINING_BUGS
from repvgg_ref.oracle.training.bugs.wrong_setup import with_nodes, with_recipe
from repvgg_ref.oracle.training.judge import judge_training
from repvgg_ref.oracle.training.run import KeptChannels, Setup, right_setup, run
from repvgg_ref.oracle.training.settings import SETTINGS
from repvgg_ref.oracle.training.steps import (
    TrainingSteps,
    needed_memory,
    read_steps,
    require_memory,
    write_steps,
)
from tests.oracle.training.scenes import case, setup_of
from tests.oracle.training.tiny import dump_of

OWN = ("dense", "pyramid", "rates")
VARIANTS = 147  # of their bugs and of those that are named below
NAMED = {
    "aux-heads": "they weigh 0.1",
    "ignored-pixels": "denominator",
    "loss-mean-of-means": "",
    "dropout-wrong": "left out in aux",
    "corners-not-aligned": "of aux.logits",
    "resize-gradient": "resized back",
    "dilation-ignored": "stage4 is ignored",
    "momentum-missing": "",
    "weight-decay-on-batch-norm": "lets decay",
    "learning-rate-of-new-modules": "at the backbone's rate",
    "poly-schedule": "counted from 1",
    "class-ignored": "one less",
    "labels-resized": "nearest",
    "resize-cubic": "in the pyramid",
    "pool-windows": "floor to floor",
    "pool-bins": "in reverse",
    "concat-order": "4, 3, 2, 1, 0",
}


def mutants(setup: Setup) -> list[Mutant[Setup]]:
    bugs = [each for each in TRAINING_BUGS if each.family in OWN or each.name in NAMED]
    return list(planted(bugs, Site(setup, setup.x)))


def judged(setup: Setup, *, explained: bool = True) -> Report:
    model, steps = case()
    return judge_training(steps, dump_of(setup), model=model if explained else None)


def test_the_first_step_is_the_packages_own_bit_by_bit() -> None:
    model, steps = case()
    recipe = with_recipe(setup_of(), lrs=(0.0,)).recipe
    exact = run(right_setup(model, steps.x, steps.labels, recipe), first_only=True)
    wide = replace(model, params={n: a.astype(float) for n, a in model.params.items()})
    step = wide.loss_and_grads(
        steps.x.astype(np.float64), steps.labels, backend="reference", dropout=0.0
    )
    assert exact["loss"] == step.loss
    assert np.array_equal(exact["logits"], step.logits)
    for key, grad in step.grads.items():
        assert np.array_equal(exact[f"grad/{key}"], grad), key


def test_a_float32_port_agrees_also_with_a_bundle_that_was_written(tmp_path: Path) -> None:
    model, steps = case()
    write_steps(steps, tmp_path)
    read = read_steps(tmp_path)
    assert {n: k.tolist() for n, k in read.kept.items()} == {
        n: k.tolist() for n, k in steps.kept.items()
    }
    assert read.recipe == steps.recipe
    dump = dump_of(setup_of()) | {f"kept/{n}": mask for n, mask in steps.kept.items()}
    report = judge_training(read, dump, model=model)
    assert report.verdict == "agree", report.reason
    assert not any("names that are not" in note for note in report.notes)


def test_every_dropout_drops_something_and_keeps_more() -> None:
    _, steps = case()
    assert set(steps.kept) == {"cls.dropout", "aux.dropout"}
    for kept in steps.kept.values():
        assert (kept.sum(axis=1) < kept.shape[1]).all()
        assert (2 * kept.sum(axis=1) > kept.shape[1]).all()
    ops = [node.op for node in setup_of().network.nodes if isinstance(node.op, KeptChannels)]
    assert len(ops) == len(steps.kept)


@pytest.mark.few(5)
@pytest.mark.parametrize("number", range(VARIANTS))
def test_every_bug_is_noticed(number: int) -> None:
    """Whatever it is, and without the start weights that explain it."""
    every = mutants(setup_of())
    assert len(every) == VARIANTS
    report = judged(every[number].variant.program, explained=False)
    assert report.verdict == "disagree", every[number].says


@pytest.mark.few(1)
@pytest.mark.parametrize("name", NAMED)
def test_bugs_are_named(name: str) -> None:
    planted_bug = next(
        each for each in mutants(setup_of()) if each.bug.name == name and NAMED[name] in each.says
    )
    report = judged(planted_bug.variant.program)
    assert report.verdict == "disagree"
    assert [finding.bug for finding in report.diagnosis] == [name], planted_bug.says


@pytest.mark.slow
@pytest.mark.parametrize(
    ("bug", "value"),
    [
        ("poly-schedule", 0.7),
        ("learning-rate-of-new-modules", 4.0),
        ("aux-heads", 0.25),
        ("label-smoothing", 0.07),
        ("dropout-wrong", 0.3),
    ],
)
def test_a_number_that_is_in_no_list_is_estimated(bug: str, value: float) -> None:
    setting = next(each for each in SETTINGS if each.bug == bug)
    report = judged(setting.at(setup_of(), value))
    assert [finding.bug for finding in report.diagnosis] == [bug]
    found = report.diagnosis[0]
    assert found.estimate is not None
    assert found.standard_error is not None
    assert abs(found.estimate - value) <= 4 * found.standard_error < 0.01


def test_the_place_is_the_first_that_goes_wrong() -> None:
    """A dropout of the main head is seen in its logits, one of the auxiliary head in the loss."""
    for head, place in (("cls", "logits"), ("aux", "loss")):
        wrong = with_nodes(setup_of(), _without_dropout(head))
        assert judged(wrong, explained=False).first_bad_layer == place


def _without_dropout(head: str) -> Callable[[Node], Node]:
    def change(node: Node) -> Node:
        op = node.op
        if not isinstance(op, KeptChannels) or not node.name.startswith(head):
            return node
        return replace(node, op=replace(op, rate=0.0, kept=np.ones_like(op.kept)))

    return change


def test_steps_of_a_bundle_without_masks_drop_nothing() -> None:
    model, steps = case()
    bare = TrainingSteps(steps.x, steps.labels, steps.recipe, {}, steps.yardstick, 1.0)
    setup = right_setup(model, bare.x, bare.labels, bare.recipe, bare.kept)
    assert not [node for node in setup.network.nodes if isinstance(node.op, KeptChannels)]


def test_one_image_is_refused_where_a_batch_norm_would_see_one_value() -> None:
    model, steps = case()
    with pytest.raises(ShapeError, match="one value a channel"):
        right_setup(model, steps.x[:1], steps.labels[:1], steps.recipe)


def test_steps_that_do_not_fit_into_memory_are_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, steps = case()
    monkeypatch.setattr(
        steps_module, "available_memory", lambda like: needed_memory(model, steps.x)
    )
    require_memory(model, steps.x)
    large = np.zeros((2, 3, 713, 713), np.float32)
    with pytest.raises(ReportedError, match=r"GiB needed for 2x3x713x713"):
        write_golden(model, tmp_path / "bundle", inputs=large, train_step=True)
    assert not (tmp_path / "bundle").exists()


def test_the_estimate_of_memory_is_no_less_than_what_steps_take() -> None:
    model, steps = case()
    setup = setup_of()
    tracemalloc.start()
    try:
        run(setup)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak <= needed_memory(model, steps.x) <= 4 * peak


@pytest.mark.slow
def test_a_golden_bundle_judges_a_dump(tmp_path: Path) -> None:
    model, _ = case()
    write_golden(model, tmp_path / "bundle", train_step=True)
    steps = read_golden(tmp_path / "bundle").steps
    assert steps is not None
    setup = right_setup(model, steps.x, steps.labels, steps.recipe, steps.kept)
    np.savez(tmp_path / "right.npz", **dump_of(setup))  # type: ignore[arg-type]
    report = rr.verify(tmp_path / "bundle", tmp_path / "right.npz")
    assert report.verdict == "agree", report.reason
    other = replace(setup, grads_map=lambda grads: {n: 1.01 * g for n, g in grads.items()})
    np.savez(tmp_path / "wrong.npz", **dump_of(other))  # type: ignore[arg-type]
    report = rr.verify(tmp_path / "bundle", tmp_path / "wrong.npz")
    assert (report.verdict, str(report.first_bad_layer)[:6]) == ("disagree", "after/")
