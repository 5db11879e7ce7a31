"""Whole trainings: resumed to the same bits, stopped, diverged, refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.errors import NotFusibleError, ReportedError
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import build, fuse
from repvgg_ref.train.divergence import DivergenceError
from repvgg_ref.train.events import EpochDone, Finished, Noted, Plan, Saved, StepDone, Stopped
from repvgg_ref.train.folder import Folder
from repvgg_ref.train.job import identity, measured_step, prepare
from repvgg_ref.train.log import read_log
from repvgg_ref.train.plan import UnfitError
from repvgg_ref.train.recipe import Recipe, load_recipe
from repvgg_ref.train.run import train
from repvgg_ref.train.settings import Settings
from repvgg_ref.train.state import StateError, read_newest, steps_in
from tests.train.small_training import RECIPE, TINY, changed, losses, run, small_data, small_job

EVERYTHING = changed(accumulate=2, ema=0.8, mixup=0.4, custom_l2=True, decay="official-first")
every_recipe = pytest.mark.parametrize("recipe", [RECIPE, EVERYTHING], ids=["plain", "everything"])


def arrays_in(folder: Path) -> dict[str, Array]:
    stored, damaged = read_newest(folder)
    assert stored is not None
    assert damaged == []
    return stored.arrays


def assert_same_bits(one: Path, other: Path) -> None:
    first, second = arrays_in(one), arrays_in(other)
    assert list(first) == list(second)
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


def test_what_a_training_tells_and_leaves(tmp_path: Path) -> None:
    out = tmp_path / "out"
    events = run(small_job(out))
    assert isinstance(events[0], Plan)
    assert (events[0].steps, events[0].steps_per_epoch, events[0].images) == (10, 5, 40)
    kinds = [type(event) for event in events[1:]]
    epoch = [StepDone] * 5 + [Saved, EpochDone]
    assert kinds == [*epoch, *epoch, Finished]
    assert [e.step for e in events if isinstance(e, StepDone)] == list(range(1, 11))
    left = {path.name for path in out.iterdir()}
    assert left == {
        *(f"state-{step:09}.{kind}" for step in (5, 10) for kind in ("json", "safetensors")),
        *("lock", "log.jsonl", "train.pth", "deploy.npz", "deploy.pth", "result.json"),
    }
    records = read_log(out)
    assert [r["loss"] for r in records if r["event"] == "step"] == losses(events)
    seconds = records[-1]["seconds"]
    assert {"data", "forward_backward", "optimiser", "evaluation", "saving"} <= set(seconds)


def test_it_learns(tmp_path: Path) -> None:
    """The random pictures' brightness tells their class."""
    *_, done = run(small_job(tmp_path / "out", recipe=changed(epochs=8)))
    assert isinstance(done, Finished)
    found = done.evaluation
    assert found.fused is not None
    assert found.trained.top1 == found.fused.top1 == 1.0


def test_a_network_that_cannot_be_fused_is_trained_all_the_same(tmp_path: Path) -> None:
    kind = "relu-in-branches"
    arch = replace(TINY, blocks=tuple(replace(spec, kind=kind) for spec in TINY.blocks))
    job = small_job(tmp_path / "out", recipe=changed(block=kind), arch=arch)
    *events, done = run(job)
    assert isinstance(done, Finished)
    assert (done.evaluation.fused, done.evaluation.comparison) == (None, None)
    assert "fused" not in done.result
    assert done.result["trained"]["loss"] > 0
    assert rr.load(tmp_path / "out" / "train.pth").block == kind
    assert not [path for path in done.files if path.name.startswith("deploy")]
    evaluated = [r for r in read_log(tmp_path / "out") if r["event"] == "evaluation"]
    assert len(evaluated) == sum(isinstance(event, EpochDone) for event in events)


def test_the_exported_forms_agree_and_are_the_last_state(tmp_path: Path) -> None:
    out = tmp_path / "out"
    job = small_job(out)
    run(job)
    trained, fused = rr.load(out / "train.pth"), rr.load(out / "deploy.npz")
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
    assert (trained.form, fused.form) == ("train", "deploy")
    assert np.max(np.abs(trained.forward(x) - fused.forward(x))) <= 1e-12
    assert np.max(np.abs(trained.forward(x) - rr.load(out / "deploy.pth").forward(x))) <= 1e-12
    for name, array in trained.params.items():
        prefix = "running/" if "running" in name or "tracked" in name else "weights/"
        assert np.array_equal(array, arrays_in(out)[prefix + name])


@pytest.mark.few(2)
@every_recipe
@pytest.mark.parametrize("steps", [1, 4, 5, 7])
def test_a_training_that_was_stopped_continues_to_the_same_bits(
    recipe: Recipe, steps: int, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    data = small_data(recipe)
    straight = run(small_job(whole, recipe=recipe, data=data))
    asked = iter([False] * (steps - 1) + [True])
    first = run(small_job(parts, recipe=recipe, data=data), stop=lambda: next(asked))
    assert isinstance(first[-1], Stopped)
    assert first[-1].step == steps
    second = run(small_job(parts, recipe=recipe, data=data, resume=True))
    assert losses(first) + losses(second) == losses(straight)
    assert_same_bits(whole, parts)
    logs = [[r for r in read_log(out) if r["event"] == "step"] for out in (whole, parts)]
    assert [[r["loss"] for r in log] for log in logs] == [losses(straight)] * 2
    evaluations = [[r for r in read_log(o) if r["event"] == "evaluation"] for o in (whole, parts)]
    assert evaluations[0] == evaluations[1]


@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_with_a_damaged_newest_state_the_one_before_it_is_continued(
    suffix: str, tmp_path: Path
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run(small_job(whole))
    run(small_job(out))
    newest = out / f"state-000000010.{suffix}"
    newest.write_bytes(newest.read_bytes()[:-7])
    events = run(small_job(out, resume=True))
    notes = [event.message for event in events if isinstance(event, Noted)]
    assert "state-000000010 is damaged" in notes[0]
    assert notes[1] == "resumed at step 5"
    assert len(losses(events)) == 5
    assert_same_bits(whole, out)


def test_if_every_state_is_damaged_nothing_is_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(small_job(out))
    for path in out.glob("*.safetensors"):
        path.write_bytes(b"")
    with pytest.raises(StateError, match=r"no state in .* can be used"):
        run(small_job(out, resume=True))
    assert steps_in(out) == [10, 5]


def test_a_finished_training_resumes_to_its_results(tmp_path: Path) -> None:
    run(small_job(tmp_path))
    events = run(small_job(tmp_path, resume=True))
    assert losses(events) == []
    assert isinstance(events[-1], Finished)


def test_resuming_where_nothing_is_starts_and_says_so(tmp_path: Path) -> None:
    events = run(small_job(tmp_path / "out", resume=True))
    assert any(isinstance(e, Noted) and "starting at step 0" in e.message for e in events)
    assert len(losses(events)) == 10


def test_a_used_folder_is_refused(tmp_path: Path) -> None:
    run(small_job(tmp_path))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StateError, match="--resume"):
        run(small_job(tmp_path))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.few(2)
@pytest.mark.parametrize(
    ("fields", "settings", "said"),
    [
        ({"lr": 0.04}, {}, "lr 0.05 -> 0.04"),
        ({"nesterov": False}, {}, "nesterov True -> False"),
        ({}, {"seed": 1}, "seed 0 -> 1"),
        ({}, {"dtype": "float32"}, "dtype"),
        ({}, {"backend": "numpy"}, "backend 'reference' -> 'numpy'"),
    ],
)
def test_another_training_is_not_resumed_unless_that_is_said(
    fields: dict[str, Any], settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    run(small_job(tmp_path))
    other = replace(RECIPE, **fields)
    with pytest.raises(StateError, match=said):
        run(small_job(tmp_path, recipe=other, resume=True, **settings))
    events = run(small_job(tmp_path, recipe=other, resume=True, accept_changes=True, **settings))
    assert any(isinstance(e, Noted) and said in e.message for e in events)


def test_averages_may_begin_when_a_training_is_resumed(tmp_path: Path) -> None:
    run(small_job(tmp_path))
    run(small_job(tmp_path, recipe=changed(ema=0.5, epochs=3), resume=True, accept_changes=True))
    assert any(name.startswith("ema/") for name in arrays_in(tmp_path))


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    with (
        Folder(tmp_path, job.updater, identity(job), writes=True),
        pytest.raises(StateError, match="another process"),
    ):
        run(job)


def test_averages_are_what_is_evaluated_and_exported(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(small_job(out, recipe=changed(ema=0.9)))
    averaged, raw = rr.load(out / "train-ema.pth"), rr.load(out / "train.pth")
    fused = rr.load(out / "deploy.npz")
    x = np.random.default_rng(0).standard_normal((2, 3, 16, 16))
    assert np.max(np.abs(averaged.forward(x) - fused.forward(x))) <= 1e-12
    assert np.max(np.abs(raw.forward(x) - fused.forward(x))) > 1e-3


# ------------------------------------------------------------------ divergence


def test_a_rate_that_diverges_stops_at_its_step_and_layer_and_keeps_the_last_state(
    tmp_path: Path,
) -> None:
    recipe = changed(lr=1e250, schedule="constant", epochs=4)
    with pytest.raises(DivergenceError, match=r"step \d+.*nan.*output of stage") as caught:
        run(small_job(tmp_path, recipe=recipe, save_every=1))
    stored, _ = read_newest(tmp_path)
    assert stored is not None
    assert f"last good state is step {stored.step}" in str(caught.value)
    assert all(np.isfinite(array).all() for array in stored.arrays.values())


def test_a_weight_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    step = job.updater.step

    def poisoned(state: Any, *rest: Any, **settings: Any) -> Any:
        done = step(state, *rest, **settings)
        if state.step == 6:
            done.state.weights[3] = np.inf
        return done

    job.updater.step = poisoned  # type: ignore[method-assign]  # the plant
    events = train(replace(job, settings=replace(job.settings, save_every=1)))
    with pytest.raises(DivergenceError, match=r"after step 7.*last good state is step 6"):
        list(events)
    assert steps_in(tmp_path)[0] == 6


# ------------------------------------------------------------------ what does not fit


def test_a_network_for_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnfitError, match=r"5 classes.*3 classes"):
        small_job(tmp_path, arch=replace(TINY, num_classes=5))


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    for recipe in (changed(batch=41), changed(batch=80, accumulate=2)):
        with pytest.raises(ReportedError, match="batch"):
            small_job(tmp_path, recipe=recipe)


def test_more_memory_than_there_is_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("repvgg_ref.train.job.available_memory", lambda like: 1 << 10)
    with pytest.raises(UnfitError, match=r"memory.*--accumulate 2"):
        small_job(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_preparing_and_measuring_write_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert measured_step(small_job(out)) > 0
    assert not out.exists()


def test_a_training_starts_from_a_checkpoint_in_train_form(tmp_path: Path) -> None:
    model = build(TINY, seed=9, dtype=np.float64)
    save(model, tmp_path / "start.pth")
    job = small_job(tmp_path / "out", init=tmp_path / "start.pth")
    for name, array in model.params.items():
        assert np.array_equal(job.start.params[name], array)
    assert losses(run(job)) != losses(run(small_job(tmp_path / "other")))


def test_a_fused_checkpoint_cannot_be_trained_and_says_so(tmp_path: Path) -> None:
    save(fuse(build(TINY)), tmp_path / "fused.pth")
    with pytest.raises(NotFusibleError, match=r"fused\.pth.*three branches"):
        small_job(tmp_path / "out", init=tmp_path / "fused.pth")


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    wider = plain_architecture(depths=(2, 2), channels=(4, 4, 8), groups=2, num_classes=3)
    save(build(wider), tmp_path / "other.pth")
    with pytest.raises(UnfitError, match=r"channels 4, 4, 4, 8, 8 ; wanted"):
        small_job(tmp_path / "out", init=tmp_path / "other.pth")


def test_the_bundled_digits_are_the_default_data(tmp_path: Path) -> None:
    job = prepare(Settings(load_recipe("digits"), tmp_path / "out"))
    assert (job.plan.images, job.plan.test_images, job.plan.classes) == (1437, 360, 10)
    assert job.plan.model == "digits"


def test_the_log_is_one_json_object_a_line(tmp_path: Path) -> None:
    run(small_job(tmp_path))
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert all(isinstance(json.loads(line), dict) for line in lines)
