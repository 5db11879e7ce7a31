"""What an image costs by batch and by size: ``python -m tests.studies.bench.scale --out FILE``.

Processor time of one thread of our engine, which other work on the machine disturbs less than the
clock's: milliseconds an image, and nanoseconds a pixel, which should fall to a level and stay.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.bench.machine import machine
from repvgg_ref.models.network import Model, build, fuse

BATCHES = [(images, 224) for images in (1, 2, 4, 8, 16, 32, 64, 256)]
SIZES = [(1, size) for size in (224, 320, 448, 640, 1024)]
ROUNDS = 3


def cost(model: Model, images: int, size: int) -> dict[str, float]:
    """The median of the rounds, weights packed before."""
    x = np.random.default_rng(0).standard_normal((images, 3, size, size), np.float32)
    model.forward(x, threads=1)
    seconds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        model.forward(x, threads=1)
        seconds.append((time.process_time() - began) / images)
    median = float(np.median(seconds))
    return {
        "images": images,
        "size": size,
        "ms_an_image": round(1e3 * median, 2),
        "ns_a_pixel": round(1e9 * median / size**2, 1),
    }


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="RepVGG-A0")
    parser.add_argument("--out", type=Path, required=True, help="a JSON file")
    asked = parser.parse_args()
    model, rows = fuse(build(asked.model)), list[dict[str, float]]()
    for images, size in [*BATCHES, *SIZES]:
        rows.append(cost(model, images, size))
        print(rows[-1], flush=True)
    made: dict[str, Any] = {"model": asked.model, "threads": 1, "machine": machine(), "rows": rows}
    asked.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
