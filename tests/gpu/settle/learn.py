"""Does it learn, and does the input keep up? A minute of training on generated pictures."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator

import numpy as np

from repvgg_ref.arrays import Array, to_numpy
from repvgg_ref.data.loader import Loader
from repvgg_ref.data.source import IMAGENET_RGB, ArraySource
from repvgg_ref.data.transforms import training_transform
from repvgg_ref.models.network import build
from tests.gpu.settle import ours
from tests.gpu.settle.sections import Found
from tests.gpu.settle.sizes import Sizes, network

CLASSES = 10


def train_for_a_while(found: Found, sizes: Sizes) -> None:
    """From pictures in memory through crops, flips and upload to SGD in bf16; loss read at the end.

    Pictures are noise with their class's colour, so the loss must fall; that is no accuracy.
    """
    import cupy

    from repvgg_ref.gpu.upload import standardise, upload

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
    training = ours.start_training(build(arch, seed=0), "bf16", lr=0.05)
    mean, std = (cupy.asarray(np.array(v, np.float32)) for v in IMAGENET_RGB[1:])
    losses, waited, steps = [], 0.0, 0
    batches = upload(_endless(loader))
    began = previous = time.perf_counter()
    for images, labels in batches:
        waited += time.perf_counter() - previous
        x = standardise(images, mean, std, scale=IMAGENET_RGB.scale, dtype=np.float32)
        losses.append(training.step(x, labels).loss)
        steps += 1
        if steps % 8 == 0:  # at most this far ahead of the device, or memory grows
            cupy.cuda.Device().synchronize()
        previous = time.perf_counter()
        if previous - began > sizes.training_s:
            break
    cupy.cuda.Device().synchronize()
    seconds = time.perf_counter() - began
    batches.close()  # type: ignore[attr-defined]
    values = [float(to_numpy(loss)) for loss in losses]
    found |= {
        "network": f"{name} x {batch} at {sizes.pixels}",
        "seconds": seconds,
        "steps": steps,
        "images_per_s": steps * batch / seconds,
        "waited_for_input": waited / seconds,
        "loss_first": float(np.mean(values[:5])),
        "loss_last": float(np.mean(values[-5:])),
        "input_alone_images_per_s": _input_alone(loader, batch, min(10.0, sizes.training_s)),
        "threads": threads,
    }
    if not np.isfinite(values).all():
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


def _endless(loader: Loader) -> Iterator[tuple[Array, Array]]:
    for epoch in itertools.count():
        for batch in loader.epoch(epoch):
            yield batch.images, batch.labels


def _input_alone(loader: Loader, batch: int, seconds: float) -> float:
    """What the loader gives when nobody computes."""
    began, count = time.perf_counter(), 0
    for _ in _endless(loader):
        count += batch
        if time.perf_counter() - began > seconds:
            break
    return count / (time.perf_counter() - began)
