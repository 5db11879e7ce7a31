"""One step: accumulation, averages, mixup, the custom L2, and what lies flat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import RESIDUAL_REORG, block_names
from repvgg_ref.data import Batch
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.parameters import is_trainable
from repvgg_ref.models.residual_reorg import residual_reorg
from repvgg_ref.train.custom_l2 import custom_l2
from repvgg_ref.train.flat import Layout
from repvgg_ref.train.job import Job, prepare
from repvgg_ref.train.loss_scale import LARGEST, PATIENCE, LossScale
from repvgg_ref.train.mixup import Blend, draw_blend, mixed, one_hot
from repvgg_ref.train.recipe import load_recipe
from repvgg_ref.train.settings import Settings
from repvgg_ref.train.state import StateError
from repvgg_ref.train.update import Updater
from tests.models.small import SMALL, distinct_model
from tests.train.small_training import changed, small_job

every_network = pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL.keys())


def first_batch(job: Job) -> Batch:
    return next(iter(job.data.training.epoch(0)))


# ------------------------------------------------------------------ flat


def test_arrays_come_back_from_their_vector_as_views() -> None:
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.array(7.0), "c": np.arange(4.0)}
    layout = Layout({name: array.shape for name, array in arrays.items()})
    flat = layout.pack(arrays)
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 7, 0, 1, 2, 3]
    back = layout.unpack(flat)
    for name, array in arrays.items():
        assert np.array_equal(back[name], array)
        assert np.shares_memory(back[name], flat)
        assert not np.shares_memory(array, flat)


def test_a_number_is_spread_over_the_elements_of_its_array() -> None:
    layout = Layout({"a": (2,), "b": (1, 3)})
    spread = layout.spread({"a": 0.5, "b": 2}, np.zeros(0, np.float32))
    assert spread.tolist() == [0.5, 0.5, 2, 2, 2]
    assert spread.dtype == np.float32


# ------------------------------------------------------------------ mixup


def test_a_blend_mixes_images_and_targets_alike() -> None:
    blend = Blend(0.75, np.array([1, 2, 0]))
    x = np.arange(3.0)[:, None]
    assert mixed(x, blend).ravel().tolist() == [0.25, 1.25, 1.5]
    targets = mixed(one_hot(np.array([0, 1, 1]), 2, np.float64), blend)
    assert targets.tolist() == [[0.75, 0.25], [0.0, 1.0], [0.25, 0.75]]
    assert mixed(np.ones(3, np.float32), blend).dtype == np.float32


def test_blends_depend_on_the_seed_alone_and_are_beta_distributed() -> None:
    blends = [draw_blend(5, alpha=0.4, seed=(0, 1, step)) for step in range(400)]
    again = draw_blend(5, alpha=0.4, seed=(0, 1, 7))
    assert again.weight == blends[7].weight
    assert np.array_equal(again.partners, blends[7].partners)
    weights = np.array([blend.weight for blend in blends])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)); six standard errors.
    variance = 1 / (4 * (2 * 0.4 + 1))
    assert abs(weights.mean() - 0.5) <= 6 * np.sqrt(variance / 400)
    assert abs(weights.var() - variance) <= 6 * variance * np.sqrt(2 / 400)
    assert all(sorted(blend.partners) == [0, 1, 2, 3, 4] for blend in blends)


# ------------------------------------------------------------------ custom L2


@every_network
def test_the_custom_l2s_gradient_is_that_of_its_penalty(arch: Network) -> None:
    """Finite differences; the scales of the branches are constants, as upstream detaches them."""
    params = distinct_model(arch).params
    settings: dict[str, Any] = {"eps": 1e-5, "weight_decay": 0.3}
    found = custom_l2(arch, params, **settings)
    assert set(found.grads) == {n for n in params if n.endswith("conv.weight") and "branch" in n}
    rng = np.random.default_rng(0)
    for name, grad in found.grads.items():
        direction = rng.standard_normal(grad.shape)
        ends = [
            custom_l2(arch, params | {name: params[name] + h * direction}, **settings).loss
            for h in (1e-4, -1e-4)
        ]
        analytic, numeric = float((grad * direction).sum()), (ends[0] - ends[1]) / 2e-4
        assert abs(analytic - numeric) <= 1e-7 * (np.abs(grad * direction).sum() + 1), name


@pytest.mark.parametrize("block", block_names())
def test_every_kernel_decays_once_whatever_its_block(block: str, tmp_path: Path) -> None:
    """By the penalty where there is one, else as usual: seen in a step with and without decay."""
    sizes: dict[str, Any] = {"depths": (2, 1), "channels": (4, 4, 6), "num_classes": 3}
    reorganised = block == RESIDUAL_REORG
    chain = plain_architecture(**sizes, kind="plain" if reorganised else block)
    arch = residual_reorg(chain) if reorganised else chain
    plain: dict[str, Any] = {"custom_l2": True, "momentum": 0.0, "nesterov": False}
    after = {}
    for decay in (0.0, 0.25):
        job = small_job(tmp_path, recipe=changed(**plain, weight_decay=decay), arch=arch)
        state = job.updater.start(job.start.params)
        done = job.updater.step(state, [first_batch(job)], lr=1.0, epoch=0)
        after[decay] = job.updater.model(done.state)
    running = after[0.0].params  # the penalty reads the step's own statistics
    weights = {name: job.start.params[name] for name in job.updater.trainable.shapes}
    penalty = custom_l2(arch, running | weights, eps=job.start.eps, weight_decay=0.25).grads
    assert bool(penalty) == (block in ("repvgg", "1x1-only", "identity-without-bn", "mobileone"))
    for name, weight in weights.items():
        usual = 0.25 * weight if weight.ndim > 1 else 0 * weight
        moved = after[0.0].params[name] - after[0.25].params[name]
        assert not np.abs(moved - penalty.get(name, usual)).max() > 1e-12, name


# ------------------------------------------------------------------ steps


def test_a_step_changes_nothing_it_was_given(tmp_path: Path) -> None:
    job = small_job(tmp_path, recipe=changed(ema=0.5, custom_l2=True))
    state = job.updater.start(job.start.params)
    vectors = [state.weights, state.velocity, state.running, state.ema]
    before = [v.copy() for v in vectors if v is not None]
    job.updater.step(state, [first_batch(job)], lr=0.1, epoch=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, vectors, strict=True) if b is not None)


def test_parts_of_a_batch_are_averaged_and_each_has_its_own_statistics(tmp_path: Path) -> None:
    """By hand: the gradient is the mean of the parts', running statistics move once a part."""
    job = small_job(tmp_path, recipe=changed(momentum=0.0, nesterov=False, weight_decay=0.0))
    whole = first_batch(job)
    parts = [Batch(*(field[half] for field in whole)) for half in (slice(4), slice(4, 8))]
    state = job.updater.start(job.start.params)
    done = job.updater.step(state, parts, lr=1.0, epoch=0)
    model, grads, found = job.start, [], []
    for part in parts:
        result = model.loss_and_grads(
            job.updater.inputs(part), part.labels, label_smoothing=0.1, backend="reference"
        )
        grads.append(result.grads)
        found.append(float(result.loss))
        model.load_state_dict(result.stats)
    after = job.updater.model(done.state).state_dict()
    assert done.loss == pytest.approx(np.mean(found), rel=1e-12)
    for name, first in job.updater.model(state).state_dict().items():
        if name in grads[0]:
            want = first - (grads[0][name] + grads[1][name]) / 2
            assert np.max(np.abs(after[name] - want)) <= 1e-13 * (1 + np.abs(want).max()), name
        else:
            assert np.max(np.abs(after[name] - model.state_dict()[name])) <= 1e-14, name


def test_batch_norms_constants_are_the_models_own(tmp_path: Path) -> None:
    """YOLOv6's are eps 1e-3 and momentum 0.03; no recipe says so, the model does."""
    job = small_job(tmp_path)
    like = replace(job.start, eps=1e-3, momentum=0.03)
    updater = Updater(
        like,
        job.settings.recipe,
        job.data.training.source.standardise,
        ops=job.ops,
        comm=job.comm,
        seed=0,
        dtype="float64",
    )
    part = first_batch(job)
    done = updater.step(updater.start(like.params), [part], lr=0.1, epoch=0)
    after = updater.model(done.state)
    assert (after.eps, after.momentum) == (1e-3, 0.03)
    want = like.loss_and_grads(
        updater.inputs(part), part.labels, label_smoothing=0.1, backend="reference"
    ).stats
    state = after.state_dict()
    for name, statistic in want.items():
        assert np.max(np.abs(state[name] - statistic)) <= 1e-14, name


def test_averages_follow_the_weights_and_statistics(tmp_path: Path) -> None:
    job = small_job(tmp_path, recipe=changed(ema=0.75))
    state = job.updater.start(job.start.params)
    shadow: dict[str, Array] = dict(job.start.params)
    for batch in job.data.training.epoch(0):
        state = job.updater.step(state, [batch], lr=0.1, epoch=0).state
        now = job.updater.model(state).params
        shadow = {n: 0.75 * shadow[n] + 0.25 * now[n] for n in now}
    averaged = job.updater.model(state, averaged=True).params
    for name, want in shadow.items():
        if not name.endswith("num_batches_tracked"):
            assert np.max(np.abs(averaged[name] - want)) <= 1e-14, name
    assert any(np.abs(averaged[n] - now[n]).max() > 1e-4 for n in now if is_trainable(n))


def test_mixup_changes_the_loss_and_repeats(tmp_path: Path) -> None:
    def loss(recipe: Any, seed: int = 0) -> float:
        job = small_job(tmp_path, recipe=recipe, seed=seed)
        state = job.updater.start(small_job(tmp_path).start.params)
        parts = [first_batch(small_job(tmp_path))]
        return job.updater.step(state, parts, lr=0.1, epoch=0).loss

    blended = loss(changed(mixup=0.4))
    assert blended == loss(changed(mixup=0.4))
    assert len({blended, loss(changed()), loss(changed(mixup=0.4), seed=1)}) == 3


def test_images_become_inputs_as_the_data_says(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    batch = first_batch(job)
    x = job.updater.inputs(batch)
    assert x.shape == (8, 3, 16, 16)
    assert x.dtype == np.float64
    want = (batch.images.transpose(0, 3, 1, 2) / 255 - 0.4) / 0.3
    assert np.max(np.abs(x - want)) <= 1e-14


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    params = {n: a for n, a in job.start.params.items() if n != "linear.bias"}
    with pytest.raises(StateError, match=r"linear\.bias: missing"):
        job.updater.start(params)
    with pytest.raises(StateError, match=r"linear\.bias: \(7,\)"):
        job.updater.start(params | {"linear.bias": np.zeros(7)})


# ------------------------------------------------------------------ loss scale


def scaling(job: Job, planted: float = 1.0) -> Updater:
    """The job's updater with a loss scale, as float16 has it; gradients `planted` times larger."""
    backward = job.ops.softmax_cross_entropy_backward
    ops = replace(job.ops, softmax_cross_entropy_backward=lambda c: planted * backward(c))
    return Updater(
        job.start,
        job.settings.recipe,
        job.data.training.source.standardise,
        ops=ops,
        comm=job.comm,
        seed=0,
        dtype="float64",
        scales_loss=True,
    )


def test_a_loss_scale_changes_no_bit_where_nothing_underflows(tmp_path: Path) -> None:
    job = small_job(tmp_path)
    parts = [first_batch(job)]
    plain = job.updater.step(job.updater.start(job.start.params), parts, lr=0.1, epoch=0)
    updater = scaling(job)
    start = updater.start(job.start.params)
    assert start.scale.value == 2.0**12
    done = updater.step(start, parts, lr=0.1, epoch=0)
    assert done.state.weights.tobytes() == plain.state.weights.tobytes()
    assert (done.loss, done.skipped) == (plain.loss, False)


def test_a_scaled_gradient_that_overflows_skips_the_step_and_halves_the_scale(
    tmp_path: Path,
) -> None:
    job = small_job(tmp_path, recipe=changed(ema=0.5))
    updater = scaling(job, planted=np.inf)
    start = updater.start(job.start.params)
    done = updater.step(start, [first_batch(job)], lr=0.1, epoch=0)
    assert done.skipped
    assert np.isfinite(done.loss)
    assert done.state.step == 1
    assert done.state.scale == LossScale(2.0**11, 0)
    assert np.array_equal(done.state.weights, start.weights)
    assert np.array_equal(done.state.velocity, start.velocity)


def test_the_scale_doubles_after_good_steps_and_stays_within_its_limits() -> None:
    scale = LossScale(2.0**23)
    for _ in range(2 * PATIENCE):
        scale = scale.after(overflow=False)
    assert scale == LossScale(LARGEST, 0)
    assert LossScale(1.0, 7).after(overflow=True) == LossScale(1.0, 0)


# ------------------------------------------------------------------ the same bits


@pytest.mark.parametrize("threads", [2, 3])
def test_a_step_on_several_threads_gives_the_same_bits_every_time(
    threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On it rests that a resumed training is the one that was interrupted."""
    monkeypatch.setenv("REPVGG_NUM_THREADS", str(threads))
    recipe = load_recipe("digits", {"batch": 48, "mixup": 0.2})
    job = prepare(Settings(recipe, tmp_path, backend="numpy"))
    state, parts = job.updater.start(job.start.params), [first_batch(job)]
    first = job.updater.step(state, parts, lr=0.1, epoch=0)
    for _ in range(12):
        again = job.updater.step(state, parts, lr=0.1, epoch=0)
        assert again.loss == first.loss
        assert again.state.weights.tobytes() == first.state.weights.tobytes()
        assert again.state.running.tobytes() == first.state.running.tobytes()
