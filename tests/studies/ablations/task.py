"""What every block is trained on, and how: the same for all of them.

The bundled digits, real scans of handwriting, of which a network that sees all of them makes almost
no mistake. So each run sees few: `Task.images` of the 1437, drawn anew for every seed and the same
for all blocks. It is judged on the 360 test digits. The network has the paper's five stages, each
of half the pixels of the one before, most of its layers in the last but one, and few channels.

`MNIST` is the same on scans of 28 x 28 pixels, which are no enlarged ones: `Task.images` of 4,000
(`tests.studies.mnist` writes them), judged on 1,000, in 5.2 times as many steps.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import RESIDUAL_REORG
from repvgg_ref.data import ArraySource, Loader, evaluation_transform, training_transform
from repvgg_ref.data.bundled import digits_source
from repvgg_ref.data.idx import idx_source
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.graph import Network
from repvgg_ref.models.residual_reorg import residual_reorg
from repvgg_ref.train.evaluate import evaluate
from repvgg_ref.train.job import prepare, roundoff
from repvgg_ref.train.recipe import Recipe, load_recipe
from repvgg_ref.train.schedule import learning_rate
from repvgg_ref.train.settings import Settings
from repvgg_ref.train.sources import Data

_EVALUATION_BATCH = 120
_SHIFT = 2  # pixels
_COPIES = 4  # of MobileOne's 3x3 branch, as its S0 has them


@dataclass(frozen=True)
class Task:
    """Data, network and budget; `images` to train on, the same number of every class."""

    images: int = 300
    epochs: int = 8
    batch: int = 32
    lr: float = 0.1
    depths: tuple[int, ...] = (1, 3, 6, 1)
    channels: tuple[int, ...] = (8, 16, 16, 32, 64)
    data: str = "digits"
    size: int = 32

    def recipe(self, block: str) -> Recipe:
        """The bundled digits' recipe, with this budget."""
        return replace(
            load_recipe("digits"),
            name="ablations",
            block=block,
            epochs=self.epochs,
            batch=self.batch,
            lr=self.lr,
            shift=_SHIFT,
            label_smoothing=0.0,
        )


TASK = Task()
MNIST = replace(TASK, images=1000, epochs=12, data="mnist", size=28)


def network_of(block: str, task: Task = TASK) -> Network:
    """The network, built of `block`."""
    reorganised = block == RESIDUAL_REORG
    chain = plain_architecture(
        depths=task.depths,
        channels=task.channels,
        kind="plain" if reorganised else block,
        num_classes=10,
        in_channels=1,
    )
    if block == "mobileone":  # with one copy it is the paper's block under other names
        chain = replace(chain, blocks=tuple(replace(b, copies=_COPIES) for b in chain.blocks))
    return residual_reorg(chain) if reorganised else chain


def chosen(labels: Array, images: int, seed: int) -> Array:
    """Indices of the pictures that the seed trains on: equally many of every class, ascending."""
    rng, classes = np.random.default_rng((seed, 15)), np.unique(labels)
    each = [rng.permutation(np.flatnonzero(labels == c))[: images // len(classes)] for c in classes]
    return np.sort(np.concatenate(each))


def data_of(seed: int, task: Task = TASK, folder: Path | None = None) -> Data:
    """The seed's training pictures, in the seed's order, and all test pictures.

    `folder` holds MNIST's four files; without it they are the bundled digits.
    """
    find = digits_source if folder is None else partial(_of_folder, folder)
    whole, test = find("train"), find("val")
    kept = chosen(whole.labels, task.images, seed)
    few = ArraySource(
        whole.images[kept],
        whole.labels[kept],
        classes=whole.classes,
        standardise=whole.standardise,
        title=task.data,
    )
    seen = training_transform(size=task.size, crop="shift", shift=_SHIFT, flip=False)
    judged = evaluation_transform(size=task.size, crop_ratio=1.0)
    loader = partial(Loader, threads=1)
    return Data(
        loader(few, transform=seen, batch_size=task.batch, seed=seed),
        loader(
            test, transform=judged, batch_size=_EVALUATION_BATCH, shuffle=False, drop_last=False
        ),
    )


def _of_folder(folder: Path, split: str) -> ArraySource:
    return idx_source(folder, split=split)


def trained(
    block: str, seed: int, task: Task = TASK, *, folder: Path | None = None
) -> dict[str, Any]:
    """Train once and say what came of it; `folder` as for `data_of`.

    Returns
    -------
    dict
        `test_error` and `fused_error` in percent (the latter None where nothing fuses),
        `test_loss`, `losses` (the training's, mean of each epoch), `train_loss` (the last of them),
        `steps`, and `seconds` of the processor.

    Raises
    ------
    SelfCheckError
        If the trained and the fused network disagree on the test pictures.
    """
    began = time.process_time()
    settings = Settings(task.recipe(block), Path(), backend="numpy", seed=seed, threads=1)
    job = prepare(settings, data=data_of(seed, task, folder), arch=network_of(block, task))
    state, losses = job.updater.start(job.start.params), []
    for epoch in range(task.epochs):
        for batch in job.data.training.epoch(epoch):
            lr = learning_rate(settings.recipe, state.step, steps_per_epoch=job.data.training.steps)
            done = job.updater.step(state, [batch], lr=lr, epoch=epoch)
            state = done.state
            losses.append(done.loss)
    last = evaluate(
        job.updater.model(state),
        ((job.updater.inputs(batch), batch.labels) for batch in job.data.test.epoch(0)),
        ops=job.ops,
        comm=job.comm,
        roundoff=roundoff(job),
    )
    epochs = np.reshape(losses, (task.epochs, -1)).mean(axis=1)
    return {
        "test_error": round(100 * (1 - last.trained.top1), 4),
        "fused_error": None if last.fused is None else round(100 * (1 - last.fused.top1), 4),
        "test_loss": round(last.trained.loss, 6),
        "train_loss": round(float(epochs[-1]), 6),
        "losses": [round(float(loss), 4) for loss in epochs],
        "steps": len(losses),
        "seconds": round(time.process_time() - began, 2),
    }
