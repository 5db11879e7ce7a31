"""PSPNet on generated streets, from nothing: ``python -m tests.studies.train.scenes_study RUN``.

Trains by the recipe ``scenes`` into the folder RUN, unless that has finished before, evaluates the
fused network with sliding windows, and writes ``results/scenes``: figures, curves, the confusion,
and three test pictures beside what is labelled and what is said of their pixels.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.data.dense import parted
from repvgg_ref.data.overlay import overlay, palette
from repvgg_ref.data.scenes import CLASSES, ScenesSource
from repvgg_ref.train.result import NAME as RESULT

RESULTS = Path(__file__).parent / "results" / "scenes"
DATA = "generated:scenes"
PICTURES = (3, 40, 77)  # of the test set
_GAP = 6  # pixels
_OF_THE_MACHINE = ("files", "seconds", "data")  # of a result: other on every machine


def command(*arguments: object) -> str:
    """What `repvgg-ref` prints."""
    called = [sys.executable, "-m", "repvgg_ref_cli", *map(str, arguments)]
    return subprocess.run(called, check=True, capture_output=True, text=True).stdout


def main(run: Path) -> None:
    """Train, judge, draw."""
    if not (run / RESULT).exists():
        command("train", "--data", DATA, "--out", run)
    RESULTS.mkdir(parents=True, exist_ok=True)
    how = (
        "--weights",
        run / "deploy.npz",
        "--data",
        DATA,
        "--confusion",
        RESULTS / "confusion.png",
    )
    judged = json.loads(command("eval", *how, "--json"))
    trained = json.loads((run / RESULT).read_text(encoding="utf-8"))
    kept = {name: value for name, value in trained.items() if name not in _OF_THE_MACHINE}
    figures: dict[str, Any] = {"training": kept, "windows": judged}
    (RESULTS / "scenes.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    shutil.copy(run / "curves.svg", RESULTS / "curves.svg")
    network, source = rr.load(run / "deploy.npz"), ScenesSource(DATA, split="val")
    rows = [row(network, source, number) for number in PICTURES]
    stacked(rows, down=True).save(RESULTS / "overlays.png", optimize=True)
    print(f"mIoU {judged['miou']:.2%}, mAcc {judged['macc']:.2%}, allAcc {judged['allacc']:.2%}")


def row(network: rr.Model, source: ScenesSource, number: int) -> Image.Image:
    """A picture, its labels (grey: they do not count), and what the network says over it."""
    image, labels = parted(source.picture(number))
    pixels, truth = np.asarray(image), np.asarray(labels)
    scale = source.standardise
    x = (pixels * scale.scale - np.array(scale.mean)) / np.array(scale.std)
    logits = network.forward(np.moveaxis(x, 2, 0)[None].astype(np.float32))
    said = overlay(pixels, logits[0].argmax(axis=0), CLASSES)
    return stacked([image, coloured(truth), said], down=False)


def coloured(labels: Array) -> Image.Image:
    """Labels in the colours of their classes."""
    colours = np.full((256, 3), 128, np.uint8)
    colours[: len(CLASSES)] = palette(CLASSES)
    return Image.fromarray(colours[labels])


def stacked(parts: list[Image.Image], *, down: bool) -> Image.Image:
    """Pictures below or beside one another."""
    widths, heights = [p.width + _GAP for p in parts], [p.height + _GAP for p in parts]
    size = (max(widths), sum(heights)) if down else (sum(widths), max(heights))
    sheet, left, top = Image.new("RGB", size, "white"), 0, 0
    for part, width, height in zip(parts, widths, heights, strict=True):
        sheet.paste(part, (left, top))
        left, top = (left, top + height) if down else (left + width, top)
    return sheet


if __name__ == "__main__":
    main(Path(sys.argv[1]))
