"""Real digits in three parts: to train on, to predict from, to measure on.

    python -m tests.studies.integer.parts mnist|digits OUT

writes the first part as MNIST's training files and the second as its test files, so that no
training sees the third at all, and its own test images are those that `advise` predicts from. Parts
are drawn at random from all pictures: in the order of their files neighbours are of one writer, and
the ends of MNIST of other ones, so that an interval from one part would say little of another.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.data.digits import INK, UPSCALE, load_digits
from repvgg_ref.data.idx import idx_source
from tests.studies.mnist import Pictures, Split, load_mnist, write_idx

_EACH = {"mnist": 1000, "digits": 360}  # pictures to predict from, and as many to measure on


class Inputs(NamedTuple):
    """`x` (N, 1, H, W) float32 as the network wants it; `labels` (N,) int64."""

    x: Array
    labels: Array


class Parts(NamedTuple):
    """Three sets that share no picture."""

    training: Inputs
    held_out: Inputs
    test: Inputs


def pictures(name: str) -> tuple[Pictures, Pictures, Pictures]:
    """To train on, to predict from, to measure on."""
    split = load_mnist() if name == "mnist" else _bundled()
    images, labels = (np.concatenate(both) for both in zip(*split, strict=True))
    order, each = np.random.default_rng(0).permutation(len(labels)), _EACH[name]
    places = order[: -2 * each], order[-2 * each : -each], order[-each:]
    first, second, third = (Pictures(images[place], labels[place]) for place in places)
    return first, second, third


def inputs(name: str, folder: Path) -> Parts:
    """The three parts, standardised as the trainer does that read `folder`."""
    standardise = idx_source(folder, split="train").standardise
    return Parts(
        *(Inputs(standardise(part.images[..., None]), part.labels) for part in pictures(name))
    )


def _bundled() -> Split:
    """The bundled 8 x 8 digits, 32 x 32 pixels of 0 ... 255 as the trainer's files hold them."""
    large = []
    for part in load_digits():
        ink = part.images.astype(np.uint16) * 255 // INK
        wide = ink.astype(np.uint8).repeat(UPSCALE, axis=1).repeat(UPSCALE, axis=2)
        large.append(Pictures(wide, part.labels))
    return Split(*large)


def main() -> None:
    """Write the first two parts."""
    name, folder = sys.argv[1:]
    training, held_out, test = pictures(name)
    write_idx(Split(training, held_out), Path(folder))
    print(f"{len(training.labels)}, {len(held_out.labels)} digits in {folder}; {len(test.labels)} ")


if __name__ == "__main__":
    main()
