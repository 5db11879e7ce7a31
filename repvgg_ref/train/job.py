"""What a training needs before its first step: data, network, ranks, and whether they fit."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from repvgg_ref.backends import backend_ops
from repvgg_ref.blocks.catalogue import RESIDUAL_REORG, block_kind
from repvgg_ref.data.dense import is_dense
from repvgg_ref.data.digits import digits_architecture
from repvgg_ref.data.source import Source
from repvgg_ref.errors import BackendError
from repvgg_ref.models.about import About, Assumed
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model
from repvgg_ref.models.pspnet import SCENES_MODEL, scenes_network
from repvgg_ref.models.registry import network
from repvgg_ref.models.residual_reorg import residual_reorg
from repvgg_ref.ops import Ops
from repvgg_ref.train.comm import Comm, Solo, on_device, ranks_on_machine
from repvgg_ref.train.events import Initialised, Plan
from repvgg_ref.train.initial import first_weights, read_given
from repvgg_ref.train.plan import (
    UnfitError,
    available_memory,
    make_plan,
    require_batch,
    require_fit,
)
from repvgg_ref.train.recipe import Recipe
from repvgg_ref.train.settings import Settings
from repvgg_ref.train.sources import Data, open_sources
from repvgg_ref.train.synchronised import synchronised
from repvgg_ref.train.update import Updater

_ROUNDOFF = {"tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8}


@dataclass(frozen=True)
class Job:
    """What `prepare` found out; nothing is written yet."""

    settings: Settings
    data: Data
    updater: Updater
    start: Model
    comm: Comm
    ops: Ops
    plan: Plan
    initialised: Initialised | None


def prepare(
    settings: Settings,
    *,
    comm: Comm | None = None,
    data: Data | None = None,
    arch: Network | None = None,
) -> Job:
    """Open the data, build the network, and see that everything fits together.

    Parameters
    ----------
    comm : Comm, optional
        The ranks; default this process alone.
    data : Data, optional
        In place of what `settings.data` names.
    arch : Network, optional
        In place of what `recipe.model` names.

    Raises
    ------
    ReportedError
        If data, model, recipe, memory or ranks do not fit together; the message says what to do.
    """
    given = read_given(settings)
    settings, comm = given.settings, comm or Solo()
    recipe = settings.recipe
    shares = comm.size * recipe.accumulate
    if recipe.batch % shares:
        raise UnfitError(
            "the batch cannot be split evenly",
            got=f"{recipe.batch} images a step over {comm.size} ranks, {recipe.accumulate} parts",
            wanted=f"a --batch divisible by {shares}",
        )
    ops = _table(settings)
    like = ops.from_host(np.zeros(1, settings.dtype))
    comm = on_device(comm, like)
    channels = 1 if given.model is not None and given.model.arch.in_channels == 1 else 3
    data = data or open_sources(settings, comm, channels=channels)
    source = data.training.source
    arch = (
        arch
        or given.network(len(source.classes), dense=is_dense(source))
        or _architecture(recipe, source)
    )
    if given.says_network and arch.is_dense:  # a file's classifier is but its backbone
        recipe = replace(recipe, model=arch.name)
        settings = replace(settings, recipe=recipe)
    if arch.num_classes != len(source.classes) or arch.in_channels != source.channels:
        raise UnfitError(
            "network and data do not fit together",
            got=f"{arch.num_classes} classes, {arch.in_channels} channels in the network",
            wanted=f"{len(source.classes)} classes, {source.channels} channels, as in the data",
        )
    if arch.is_dense != is_dense(source):
        raise UnfitError(
            "network and data do not fit together",
            got=f"{arch.name} on labels of {'pixels' if is_dense(source) else 'pictures'}",
            wanted="a PSPNet for labels of pixels, a classifier for labels of pictures",
            advice="see --model",
        )
    synchronises = settings.sync_bn and comm.size > 1
    require_batch(arch, recipe, ranks=comm.size, together=synchronises)
    start, initialised = first_weights(given, arch, source.classes)
    # Its strides are those that it is trained with: nothing of them is assumed any more.
    start = replace(start, about=_about(recipe, source), assumed=Assumed())
    updater = Updater(
        start,
        recipe,
        source.standardise,
        ops=synchronised(ops, comm) if synchronises else ops,
        comm=comm,
        seed=settings.seed,
        dtype=settings.dtype,
        scales_loss=settings.math == "fp16",
    )
    plan = make_plan(
        start.arch.called(recipe.model),
        recipe,
        parameters=updater.trainable.size,
        images=len(source),
        test_images=len(data.test.source),
        steps_per_epoch=data.training.steps // recipe.accumulate,
        ranks=comm.size,
        dtype=updater.dtype,
    )
    require_fit(
        plan,
        available_memory(like),
        recipe,
        sharing=1 if ops.on_device else ranks_on_machine(comm),
    )
    return Job(settings, data, updater, start, comm, ops, plan, initialised)


def measured_step(job: Job) -> float:
    """Seconds that one step takes, its wait for data included; changes nothing.

    It is the second one: the first pays for threads and memory that later ones have.
    """
    state = job.updater.start(job.start.params)
    count = job.settings.recipe.accumulate
    batches = iter(job.data.training.epoch(0))
    parts = list(islice(batches, count))
    job.updater.step(state, parts, lr=0.0, epoch=0)
    began = time.perf_counter()
    parts = list(islice(batches, count)) or parts  # an epoch may be a single step
    job.updater.step(state, parts, lr=0.0, epoch=0)
    return time.perf_counter() - began


def identity(job: Job) -> dict[str, Any]:
    """What a continuation must have in common with the state it continues."""
    settings = job.settings
    return (
        settings.recipe.to_json()
        | {
            "seed": settings.seed,
            "dtype": settings.dtype,
            "backend": job.ops.name,  # it says the arithmetic, too
            "ranks": job.comm.size,
            "sync_bn": settings.sync_bn,
            "eps": job.start.eps,
            "classes": job.plan.classes,
            "images": job.plan.images,
        }
        | ({"held_out": job.data.held_out} if job.data.held_out else {})
    )


def data_of(job: Job) -> dict[str, Any]:
    """What is trained and evaluated on, for people and programs that ask later."""
    return {
        "path": None if job.settings.data is None else str(job.settings.data),
        "images": job.plan.images,
        "test_images": job.plan.test_images,
        "held_out": job.data.held_out,
        "notes": list(job.data.notes),
    }


def _table(settings: Settings) -> Ops:
    """The backend's operators in the arithmetic asked for, so that a step repeats to the bit."""
    ops = backend_ops(settings.backend, np.dtype(settings.dtype))
    if ops.on_device:
        from repvgg_ref.gpu import cupy_ops

        return cupy_ops(settings.math or "fp32", deterministic=True)
    if settings.math not in (None, "fp32"):
        raise BackendError(
            "only a GPU backend has another arithmetic",
            got=f"--math {settings.math} with backend {ops.name}",
            wanted="--backend cupy with it",
        )
    return ops


def roundoff(job: Job) -> float:
    """Unit roundoff of the arithmetic in which a job's two forms are compared."""
    of_dtype = float(np.finfo(job.updater.dtype).eps) / 2
    return max(of_dtype, _ROUNDOFF.get(job.settings.math or "fp32", 0.0))


def _about(recipe: Recipe, source: Source) -> About:
    """What the trained network is to know of its classes and pictures."""
    return About(
        classes=tuple(source.classes),
        input_size=(recipe.size, recipe.size),
        mean=tuple(map(float, source.standardise.mean)),
        std=tuple(map(float, source.standardise.std)),
        crop_ratio=recipe.crop_ratio,
    )


def _architecture(recipe: Recipe, source: Source) -> Network:
    classes, channels, block = len(source.classes), source.channels, recipe.block
    if recipe.model == SCENES_MODEL:
        return scenes_network(classes, block=block)
    if recipe.model != "digits":
        return network(
            recipe.model,
            num_classes=classes,
            in_channels=channels,
            size=recipe.size,
            block=block,
        )
    small = digits_architecture()
    kind = "plain" if block == RESIDUAL_REORG else block_kind(block).name
    first, *others = (replace(spec, kind=kind) for spec in small.blocks)
    first = replace(first, in_channels=channels)
    chain = replace(small, blocks=(first, *others), num_classes=classes)
    return residual_reorg(chain) if block == RESIDUAL_REORG else chain
