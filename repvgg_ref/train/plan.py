"""What a training would cost, before it starts: steps, learning rates, memory."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from repvgg_ref.arrays import Array, array_module
from repvgg_ref.blocks.catalogue import norms
from repvgg_ref.errors import ReportedError, ShapeError
from repvgg_ref.models.arguments import require_statistics
from repvgg_ref.models.dense import Zoom
from repvgg_ref.models.graph import Network, extents
from repvgg_ref.models.layers import Block
from repvgg_ref.train.events import Plan
from repvgg_ref.train.recipe import Recipe
from repvgg_ref.train.schedule import learning_rate

_SHOWN_STEPS = 7
_OF_LOGITS = 4  # arrays as large as the logits of pixels: these, what the loss keeps, a gradient
_OF_A_LOSS = 8  # and while a loss is in work


class UnfitError(ReportedError):
    """A training that does not fit: into memory, or onto its data."""


def activation_bytes(arch: Network, *, images: int, extent: tuple[int, int], itemsize: int) -> int:
    """What a step keeps of its forward pass for the backward pass, in bytes.

    Each block keeps its input for the convolutions, a normalised image for every branch, and its
    output for the ReLU; the block in work holds a gradient for each of these beside them. Backends
    with fused blocks keep a third less.
    """
    kept, largest, sizes = 0, 0, extents(arch, *extent)
    for node in arch.nodes if arch.is_dense else arch.evaluated:
        if not isinstance(node.op, Block):
            numbers, logits = prod(sizes[node.name]), isinstance(node.op, Zoom)
            kept += numbers * (_OF_LOGITS if logits else arch.is_dense)
            largest = max(largest, _OF_A_LOSS * numbers * logits)
            continue
        block = node.op.spec
        entry, exit_ = prod(sizes[node.inputs[0]]), prod(sizes[node.name])
        block_kept = entry + (len(norms(block)) + 1 + (block.se != "none")) * exit_
        kept += block_kept
        largest = max(largest, entry + (len(norms(block)) + 2) * exit_)
    return images * (kept + largest) * itemsize


def memory_bytes(
    arch: Network, parameters: int, recipe: Recipe, *, images: int, itemsize: int
) -> int:
    """Estimate of a rank's largest need: vectors of the state and of a step, and activations.

    Weights, velocity, gradient (by array and packed), the step's new weights, velocity and
    direction, factors, and two each for averages.
    """
    vectors = 10 + (2 if recipe.ema else 0)
    extent = recipe.size, recipe.size
    activations = activation_bytes(arch, images=images, extent=extent, itemsize=itemsize)
    return vectors * parameters * itemsize + activations


def available_memory(like: Array) -> int | None:
    """Bytes that the machine, or the GPU that holds `like`, can still give, if it says."""
    xp = array_module(like)
    if xp is not np:
        return int(xp.cuda.runtime.memGetInfo()[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def require_fit(plan: Plan, available: int | None, recipe: Recipe, *, sharing: int) -> None:
    """Refuse a training that cannot run, where `sharing` ranks share the `available` bytes.

    Raises
    ------
    UnfitError
        If the batch is larger than the data set, or the memory smaller than the estimate.
    """
    if plan.steps_per_epoch < 1:
        raise UnfitError(
            "the batch is larger than the data set",
            got=f"{recipe.batch} images a step, {plan.images} to train on",
            wanted=f"--batch of at most {plan.images}",
        )
    needed = plan.memory * sharing
    if available is not None and needed > available:
        raise UnfitError(
            "the training does not fit into memory",
            got=f"about {needed / 2**30:.1f} GiB needed, {available / 2**30:.1f} GiB available",
            advice=f"take a smaller --batch, or --accumulate {2 * recipe.accumulate} to keep it",
        )


def require_batch(arch: Network, recipe: Recipe, *, ranks: int, together: bool) -> None:
    """Refuse batches of single images to a network of which some batch norm needs more.

    `together`: statistics are those of all `ranks`.

    Raises
    ------
    UnfitError
        If there is such a batch norm.
    """
    shares = ranks * recipe.accumulate
    images = recipe.batch // (recipe.accumulate if together else shares)
    try:
        require_statistics(arch, images, recipe.size, recipe.size)
    except ShapeError as error:
        raise UnfitError(
            f"{arch.name} cannot be trained on single images",
            got=f"--batch {recipe.batch}, in {shares} parts: {error.got}",
            wanted=f"--batch {2 * shares} or more",
            advice=None if ranks == 1 or together else "--sync-bn normalises all ranks' images",
        ) from error


def make_plan(
    arch: Network,
    recipe: Recipe,
    *,
    parameters: int,
    images: int,
    test_images: int,
    steps_per_epoch: int,
    ranks: int,
    dtype: np.dtype[np.generic],
) -> Plan:
    """The plan of `recipe` on a data set of `images`."""
    local = recipe.batch // recipe.accumulate // ranks
    total = recipe.epochs * steps_per_epoch
    warm = round(recipe.warm_up_epochs * steps_per_epoch)
    marks = {0, warm, *(total * n // (_SHOWN_STEPS - 1) for n in range(_SHOWN_STEPS - 1))}
    marks |= {max(0, total - 1)}
    return Plan(
        model=arch.name,
        recipe=recipe.name,
        images=images,
        test_images=test_images,
        classes=arch.num_classes,
        steps=total,
        steps_per_epoch=steps_per_epoch,
        ranks=ranks,
        parameters=parameters,
        memory=memory_bytes(
            arch, parameters, recipe, images=local, itemsize=np.dtype(dtype).itemsize
        ),
        lrs=tuple(
            (step, learning_rate(recipe, step, steps_per_epoch=max(1, steps_per_epoch)))
            for step in sorted(marks)
            if step < max(1, total)
        ),
    )
