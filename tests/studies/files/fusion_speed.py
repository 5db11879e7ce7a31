"""What fusing a file of many blocks costs, stage by stage, in processor time.

    python -m tests.studies.files.fusion_speed [--blocks 103] [--channels 348] [--rounds 5]

Makes a safetensors file of YOLOv6's blocks in a temporary folder, then prints a table in Markdown:
each stage alone in one thread, and `convert_modules` as a whole, the least of all rounds. With
PYTHONPATH another checkout is measured by the same script.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import weights_io
from repvgg_ref.blocks.fusion import fuse_linear
from repvgg_ref.blocks.selfcheck import check_linear
from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.files.modules import blocks_of

STAGES = ("tell the blocks", "read", "fuse", "self check", "all, written to the page cache")


def write_file(path: Path, blocks: int, channels: int) -> None:
    """Blocks of a 3x3, a 1x1 and an identity branch, each with its batch norm."""
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {}
    for number in range(blocks):
        for branch, kernel in (("rbr_dense", 3), ("rbr_1x1", 1), ("rbr_identity", 0)):
            start = f"backbone.{number}.{branch}"
            if kernel:
                shape = (channels, channels, kernel, kernel)
                arrays[f"{start}.conv.weight"] = rng.normal(0, 0.05, shape).astype(np.float32)
            norm = f"{start}.bn" if kernel else start
            for vector in ("weight", "bias", "running_mean", "running_var"):
                arrays[f"{norm}.{vector}"] = rng.uniform(0.5, 2, channels).astype(np.float32)
    weights_io.save_weights(path, arrays, container="safetensors")


def stages(path: Path) -> list[float]:
    """Seconds of this thread for each stage but the last."""
    spent = [0.0] * (len(STAGES) - 1)
    clock = time.thread_time

    with weights_io.open_weights(path) as archive:
        arrays: Any = archive.root
        start = clock()
        found = blocks_of(arrays).found
        spent[0] = clock() - start
        for block in found:
            start = clock()
            parts = {leaf: arrays[key].read() for leaf, key in block.names.items()}
            here = block.prefix, block.linear, block.conv, parts
            read = clock()
            fused = fuse_linear(*here, eps=block.eps, dtype=np.float32)
            done = clock()
            check_linear(*here, fused, eps=block.eps)
            for stage, seconds in enumerate((read - start, done - read, clock() - done), start=1):
                spent[stage] += seconds
    return spent


def whole(path: Path, out: Path) -> float:
    """Seconds of all threads."""
    start = time.process_time()
    convert_modules(path, out, "safetensors")
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    for option, default in (("--blocks", 103), ("--channels", 348), ("--rounds", 5)):
        parser.add_argument(option, type=int, default=default)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder) / "train.safetensors", Path(folder) / "fused.safetensors"
        write_file(path, asked.blocks, asked.channels)
        size = path.stat().st_size / 1e9
        rounds = [[*stages(path), whole(path, out)] for _ in range(asked.rounds)]
    print(f"{size:.2f} GB in {asked.blocks} blocks; the least of {asked.rounds} rounds\n")
    print("| stage | seconds of processor time | GB a core-second |\n|---|---|---|")
    for stage, spent in zip(STAGES, np.min(rounds, axis=0), strict=True):
        print(f"| {stage} | {spent:.2f} | {size / spent:.2f} |")


if __name__ == "__main__":
    main()
