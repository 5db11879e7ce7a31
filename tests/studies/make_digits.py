"""Make the bundled digits, their model and pictures: ``python -m tests.studies.make_digits``.

The data are copied out of scikit-learn (only if ``digits.npz`` is absent); the model is trained
with this project's own backward pass. Run once, by hand; what it wrote is committed.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from repvgg_ref.arrays import Array
from repvgg_ref.data import digits
from repvgg_ref.data.digits import Digits
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.network import Model, build, fuse
from repvgg_ref.train.decay import decay_kernels
from repvgg_ref.train.sgd import sgd_step

SEED = 0
EPOCHS = 40
BATCH = 64
LEARNING_RATE = 0.1
WARM_UP = 50  # steps
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1
MAX_SHIFT = digits.UPSCALE  # network pixels; one pixel of the 8 x 8 image
TEST_A_CLASS = 36
SAMPLE_ZOOM = 16


def main() -> None:
    """Write data, model and pictures, and report the accuracy of both forms."""
    console = Console(stderr=True)
    if not digits.DATA_PATH.exists():
        write_data()
    train, test = digits.load_digits()
    write_samples(test)
    model = train_model(train, console)
    model.about = digits.ABOUT
    save(model, digits.MODEL_PATH)
    for form in (model, fuse(model)):
        logits = form.forward(digits.to_input(test.images))
        correct = int((logits.argmax(axis=1) == test.labels).sum())
        console.print(f"{form.form}: {correct} of {len(test.labels)} test images right")


def write_data() -> None:
    """Copy the digits out of scikit-learn and choose the test images: 36 of each class."""
    from sklearn.datasets import load_digits

    source = load_digits()
    labels = source.target.astype(np.uint8)
    test = np.zeros(len(labels), bool)
    rng = np.random.default_rng(SEED)
    for label in range(10):
        test[rng.choice(np.flatnonzero(labels == label), TEST_A_CLASS, replace=False)] = True
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=source.images.astype(np.uint8), labels=labels, test=test)
    _replace(digits.DATA_PATH, buffer.getvalue())


def write_samples(test: Digits) -> None:
    """Write the first test image of each class, large enough to look at."""
    for label in range(10):
        index = int(np.flatnonzero(test.labels == label)[0])
        small = Image.fromarray(np.rint(test.images[index] * (255 / digits.INK)).astype(np.uint8))
        side = digits.SIDE * SAMPLE_ZOOM
        buffer = io.BytesIO()
        small.resize((side, side), Image.Resampling.NEAREST).save(buffer, "PNG", optimize=True)
        _replace(digits.FOLDER / f"digit-{label}-test{index:03}.png", buffer.getvalue())


def train_model(train: Digits, console: Console) -> Model:
    """Train by SGD with Nesterov momentum, a warm-up, and a cosine down to zero."""
    model = build(digits.digits_architecture(), seed=SEED)
    rng = np.random.default_rng(SEED)
    images, labels = digits.to_input(train.images), train.labels
    total = EPOCHS * (len(labels) // BATCH)
    velocities: dict[str, Array] = {}
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=total)
        for step, batch in enumerate(_batches(len(labels), rng)):
            result = model.loss_and_grads(
                _shifted(images[batch], rng), labels[batch], label_smoothing=LABEL_SMOOTHING
            )
            params, velocities = sgd_step(
                model.state_dict(),
                result.grads,
                velocities,
                lr=_learning_rate(step, total),
                momentum=MOMENTUM,
                nesterov=True,
                weight_decay=WEIGHT_DECAY,
                factors=decay_kernels,
            )
            model.load_state_dict(params | result.stats)
            progress.update(task, advance=1, description=f"loss {float(result.loss):.3f}")
    return model


def _batches(count: int, rng: np.random.Generator) -> Iterator[Array]:
    """Yield indices, all images in a new order each epoch; the last incomplete batch is dropped."""
    for _ in range(EPOCHS):
        order = rng.permutation(count)
        for start in range(0, count - BATCH + 1, BATCH):
            yield order[start : start + BATCH]


def _learning_rate(step: int, total: int) -> float:
    warm = min(1.0, (step + 1) / WARM_UP)
    return LEARNING_RATE * warm * (1 + math.cos(math.pi * step / total)) / 2


def _shifted(x: Array, rng: np.random.Generator) -> Array:
    """Move each image by up to `MAX_SHIFT` pixels each way; blank paper moves in."""
    blank = x.min()
    reach = MAX_SHIFT
    padded = np.pad(x, ((0, 0), (0, 0), (reach, reach), (reach, reach)), constant_values=blank)
    tops, lefts = rng.integers(0, 2 * reach + 1, (2, len(x)))
    height, width = x.shape[2:]
    return np.stack(
        [
            image[:, top : top + height, left : left + width]
            for image, top, left in zip(padded, tops, lefts, strict=True)
        ]
    )


def _replace(path: Path, content: bytes) -> None:
    """Put `content` at `path` in one step: a killed run leaves the old file or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    temporary.replace(path)


if __name__ == "__main__":
    main()
