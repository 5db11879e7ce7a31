"""Fifty steps of the trainer against a training loop in torch: same start, data and recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.train.job import Job
from repvgg_ref.train.recipe import Recipe, load_recipe
from tests.train.small_training import SIZE, losses, run, small_data, small_job

torch = pytest.importorskip("torch")

from tests.peers.torch_repvgg import TorchBlock, build_torch, to_torch  # noqa: E402  (may be absent)

pytestmark = pytest.mark.peers

STEPS = 50
SHORT: dict[str, Any] = {"size": SIZE, "epochs": 10, "batch": 8}  # five steps an epoch

RECIPES = {
    "paper-120": load_recipe("paper-120", SHORT),
    "official-first": load_recipe("official-first", SHORT),
    "official-first, custom L2": load_recipe("official-first", SHORT | {"custom_l2": True}),
    "official-head": load_recipe("official-head", SHORT | {"warm_up_epochs": 2.0}),
}
every_recipe = pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())


@pytest.fixture(autouse=True)
def without_onednn() -> Iterator[None]:
    """The backward passes of torch 2.13's oneDNN die on processors without AVX-512."""
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(True)


def torch_losses(job: Job, dtype: Any) -> list[float]:
    """The same training, written as its author in torch would."""
    recipe, arch = job.settings.recipe, job.start.arch
    network = build_torch(arch).to(dtype).train()
    network.load_state_dict(to_torch(job.start.state_dict()))
    optimizer = _sgd(network, recipe)
    schedule = _schedule(optimizer, recipe)
    standardise = job.data.training.source.standardise
    found = []
    for epoch in range(recipe.epochs):
        for batch in job.data.training.epoch(epoch):
            pixels = torch.tensor(batch.images).to(dtype).permute(0, 3, 1, 2)
            scale, mean, std = (torch.tensor(v, dtype=dtype) for v in standardise)
            x = (pixels * scale - mean[:, None, None]) / std[:, None, None]
            loss = network.loss(x, torch.tensor(batch.labels), recipe.label_smoothing)
            if recipe.custom_l2:
                loss = loss + recipe.weight_decay * 0.5 * _custom_l2(network)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            found.append(float(loss.detach()))
    return found


def _sgd(network: Any, recipe: Recipe) -> Any:
    """Parameter groups as the two official trainers make them."""
    groups = []
    for name, parameter in network.named_parameters():
        lr = recipe.lr * recipe.batch / 256 if recipe.lr_per_256 else recipe.lr
        decay = recipe.weight_decay
        if recipe.decay == "official-first":
            if recipe.custom_l2 and ("rbr_dense" in name or "rbr_1x1" in name):
                decay = 0.0
            if "bias" in name or "bn" in name:
                decay = 0.0
            if "bias" in name:
                lr = 2 * lr
        elif parameter.ndim == 1:
            decay = 0.0
        groups.append({"params": [parameter], "lr": lr, "weight_decay": decay})
    return torch.optim.SGD(groups, momentum=recipe.momentum, nesterov=recipe.nesterov, lr=1.0)


def _schedule(optimizer: Any, recipe: Recipe) -> Any:
    """torch's own cosine; a warm-up in its place for the first steps."""
    if not recipe.warm_up_epochs:
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    warm = int(recipe.warm_up_epochs * STEPS / recipe.epochs)
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda t: t / warm if t < warm else (1 + np.cos(np.pi * t / STEPS)) / 2,
    )


def _custom_l2(network: Any) -> Any:
    """The official code's `get_custom_L2`, summed over the blocks."""
    total = torch.zeros((), dtype=torch.float64)
    for block in network.modules():
        if not isinstance(block, TorchBlock):
            continue
        dense: Any = block.rbr_dense
        point: Any = block.rbr_1x1
        k3, k1 = dense.conv.weight, point.conv.weight
        t3, t1 = (
            (b.bn.weight / (b.bn.running_var + b.bn.eps).sqrt()).reshape(-1, 1, 1, 1).detach()
            for b in (dense, point)
        )
        circle = (k3**2).sum() - (k3[:, :, 1:2, 1:2] ** 2).sum()
        equivalent = k3[:, :, 1:2, 1:2] * t3 + k1 * t1
        total = total + (equivalent**2 / (t3**2 + t1**2)).sum() + circle
    return total


@every_recipe
def test_in_float64_the_loss_curve_is_torchs_to_1e_9(recipe: Recipe, tmp_path: Path) -> None:
    job = small_job(tmp_path / "out", recipe=recipe, backend="numpy")
    ours, theirs = losses(run(job)), torch_losses(job, torch.float64)
    assert len(ours) == len(theirs) == STEPS
    error = float(np.max(np.abs(np.subtract(ours, theirs))))
    assert error <= 1e-9


@every_recipe
def test_in_float32_it_is_as_close_to_the_truth_as_torchs(recipe: Recipe, tmp_path: Path) -> None:
    """Rounding grows from step to step; torch's own distance from float64 is the yardstick."""
    job = small_job(tmp_path / "a", recipe=recipe, backend="numpy", dtype="float32")
    wide = small_job(tmp_path / "b", recipe=recipe, backend="numpy")
    wide = replace(wide, start=_widened(job))
    truth = np.array(torch_losses(wide, torch.float64))
    ours = np.abs(np.array(losses(run(job))) - truth)
    theirs = np.abs(np.array(torch_losses(job, torch.float32)) - truth)
    grown = np.maximum.accumulate(theirs) + 1e-6
    assert np.all(ours <= 10 * grown), (ours / grown).max()


def _widened(job: Job) -> Any:
    model = job.start
    params = {
        n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in model.params.items()
    }
    return replace(model, params=params)


def test_gradients_accumulated_over_parts_are_torchs(tmp_path: Path) -> None:
    """Two backward passes of half the loss each: batch norm sees one part at a time."""
    recipe = replace(RECIPES["paper-120"], accumulate=2, epochs=2)
    job = small_job(tmp_path / "out", recipe=recipe, backend="numpy", data=small_data(recipe))
    network = build_torch(job.start.arch).double().train()
    network.load_state_dict(to_torch(job.start.state_dict()))
    optimizer = _sgd(network, recipe)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    theirs: list[float] = []
    for epoch in range(recipe.epochs):
        halves = []
        for index, batch in enumerate(job.data.training.epoch(epoch)):
            x = torch.tensor(job.updater.inputs(batch).copy())
            loss = network.loss(x, torch.tensor(batch.labels)) / 2
            loss.backward()
            halves.append(float(loss.detach()))
            if index % 2:
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                theirs.append(sum(halves[-2:]))
    ours = losses(run(job))
    assert len(ours) == len(theirs) == 10
    error = float(np.max(np.abs(np.subtract(ours, theirs))))
    assert error <= 1e-9
