"""Does it learn, and does the input keep up? A minute of training on generated pictures."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator

import numpy as np

from repvgg_ref.data.loader import Batch, Loader
from repvgg_ref.data.source import IMAGENET_RGB, ArraySource
from repvgg_ref.data.transforms import training_transform
from repvgg_ref.models.network import build
from repvgg_ref.train.comm import Solo
from repvgg_ref.train.recipe import Recipe
from repvgg_ref.train.update import Updater
from tests.studies.gpu.settle.sections import Found
from tests.studies.gpu.settle.sizes import Sizes, network

CLASSES = 10


def train_for_a_while(found: Found, sizes: Sizes) -> None:
    """The trainer's own step in bf16, from pictures in memory through crops and flips.

    Pictures are noise with their class's colour, so the loss must fall; that is no accuracy.
    """
    from repvgg_ref.gpu import cupy_ops

    name, batch = sizes.trained[0]
    arch = network(name)
    threads = os.cpu_count() or 1
    loader = Loader(
        pictures(sizes, arch.in_channels, arch.num_classes),
        transform=training_transform(size=sizes.pixels),
        batch_size=batch,
        threads=threads,
        ahead=4,
    )
    model = build(arch, seed=0)
    updater = Updater(
        model,
        Recipe(nesterov=True, label_smoothing=0.1),
        IMAGENET_RGB,
        ops=cupy_ops("bf16"),
        comm=Solo(),
        seed=0,
        dtype=np.float32,
    )
    state = updater.start(model.params)
    losses: list[float] = []
    waited = 0.0
    began = previous = time.perf_counter()
    for part in _endless(loader):
        waited += time.perf_counter() - previous
        stepped = updater.step(state, [part], lr=0.05, epoch=0)
        state = stepped.state
        losses.append(stepped.loss)
        previous = time.perf_counter()
        if previous - began > sizes.training_s:
            break
    seconds = time.perf_counter() - began
    found |= {
        "network": f"{name} x {batch} at {sizes.pixels}",
        "seconds": seconds,
        "steps": len(losses),
        "images_per_s": len(losses) * batch / seconds,
        "waited_for_input": waited / seconds,
        "loss_first": float(np.mean(losses[:5])),
        "loss_last": float(np.mean(losses[-5:])),
        "input_alone_images_per_s": _input_alone(loader, batch, min(10.0, sizes.training_s)),
        "threads": threads,
    }
    if not np.isfinite(losses).all():
        raise AssertionError("a loss is not finite")
    if not sizes.rehearsal and not found["loss_last"] < 0.5 * found["loss_first"]:
        raise AssertionError(f"it does not learn: {found['loss_first']} -> {found['loss_last']}")


def pictures(sizes: Sizes, channels: int, classes: int) -> ArraySource:
    """Noise around a colour for each class, a little larger than the network's input."""
    rng = np.random.default_rng(6)
    count, side = sizes.training_images, sizes.pixels * 8 // 7
    labels = rng.integers(0, min(classes, CLASSES), count)
    colours = rng.integers(60, 196, (CLASSES, 1, 1, channels))
    images = np.empty((count, side, side, channels), np.uint8)
    for index, label in enumerate(labels):
        noise = rng.integers(-60, 60, (side, side, 1), dtype=np.int16)
        images[index] = np.clip(colours[label] + noise, 0, 255)
    names = tuple(str(number) for number in range(classes))
    return ArraySource(images, labels, classes=names, standardise=IMAGENET_RGB, title="generated")


def _endless(loader: Loader) -> Iterator[Batch]:
    for epoch in itertools.count():
        yield from loader.epoch(epoch)


def _input_alone(loader: Loader, batch: int, seconds: float) -> float:
    """What the loader gives when nobody computes."""
    began, count = time.perf_counter(), 0
    for _ in _endless(loader):
        count += batch
        if time.perf_counter() - began > seconds:
            break
    return count / (time.perf_counter() - began)
