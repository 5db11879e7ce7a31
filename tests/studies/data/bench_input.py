"""How fast pictures reach a step: decoding alone, with its transform, and through the loader.

    python -m tests.studies.data.bench_input [--images 256] [--rounds 5] [--json OUT]

The pictures are generated, 500 x 375 and some 90 KB, nearly as large as ImageNet's are on average.
The three ways take turns, so a busy machine slows all of them; rates are medians of the rounds.
"CPU ms" is processor time per picture, all threads together: unlike a rate it hardly depends on
what else the machine does, and the shares are ratios of it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from repvgg_ref.data import Loader, Source, open_data, training_transform
from repvgg_ref.data.decode import decoder
from repvgg_ref.data.order import stream
from repvgg_ref.data.write_pixels import write_pixels

WIDTH, HEIGHT = 500, 375
BATCH = 32


@dataclass(frozen=True)
class Measured:
    """One row: pictures a second, processor milliseconds a picture, and shares of decoding."""

    data: str
    threads: int
    way: str
    rate: float
    cpu_ms: float
    share_of_decoding: float
    share_of_work: float


def photograph(seed: int) -> Image.Image:
    """Noise at every scale, fine enough that a JPEG of quality 90 takes some 90 KB."""
    rng = np.random.default_rng(seed)
    total = rng.normal(0, 17, (HEIGHT, WIDTH, 3))
    for octave in range(1, 8):
        grid = rng.normal(0, 1, (2 + 3 * 2**octave // 4, 2 + 2**octave, 3))
        layer = [
            np.asarray(
                Image.fromarray(grid[..., c].astype(np.float32)).resize(
                    (WIDTH, HEIGHT), Image.Resampling.BICUBIC
                )
            )
            for c in range(3)
        ]
        total += 70 * 0.6**octave * np.stack(layer, axis=2)
    return Image.fromarray(np.clip(total + 120, 0, 255).astype(np.uint8))


def make_tree(root: Path, images: int) -> None:
    """Eight files, over and over under other names."""
    (root / "class").mkdir(parents=True)
    first = []
    for number in range(min(8, images)):
        first.append(root / "class" / f"{number:05d}.jpg")
        photograph(number).save(first[-1], quality=90)
    for number in range(len(first), images):
        os.link(first[number % len(first)], root / "class" / f"{number:05d}.jpg")


def in_threads(threads: int, count: int, work: Callable[[int], object]) -> None:
    """`work` of every index, each thread its own contiguous part: nothing is handed on."""

    def part(first: int) -> None:
        for index in range(first, count, threads):
            work(index)

    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(part, first) for first in range(threads)]:
            done.result()


def ways(source: Source, threads: int) -> dict[str, Callable[[], None]]:
    """What is timed, by its name."""
    transform = training_transform(size=224)
    loader = Loader(source, transform=transform, batch_size=BATCH, threads=threads)
    count = loader.steps * BATCH

    def both(index: int) -> object:
        return transform(source.picture(index), stream(0, 0, index + 1))

    def pipeline() -> None:
        for _ in loader.epoch(0):
            pass

    return {
        "decode only": lambda: in_threads(threads, count, source.picture),
        "decode + transform": lambda: in_threads(threads, count, both),
        "loader": pipeline,
    }


def measure(data: str, source: Source, threads: int, rounds: int) -> Iterator[Measured]:
    """The three ways in turn, `rounds` times."""
    timed = ways(source, threads)
    count = len(source) // BATCH * BATCH
    walls: dict[str, list[float]] = {way: [] for way in timed}
    cpus: dict[str, list[float]] = {way: [] for way in timed}
    for _ in range(rounds):
        for way, run in timed.items():
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            walls[way].append(time.perf_counter() - wall)
            cpus[way].append(time.process_time() - cpu)

    def share(way: str, of: str) -> float:
        return median(a / b for a, b in zip(cpus[of], cpus[way], strict=True))

    for way in timed:
        yield Measured(
            data,
            threads,
            way,
            count / median(walls[way]),
            1e3 * median(cpus[way]) / count,
            share(way, "decode only"),
            share(way, "decode + transform"),
        )


def sources(folder: Path, images: int) -> Iterator[tuple[str, Source]]:
    """JPEG files by either library, and the same pictures as pixel shards of 256."""
    make_tree(folder / "tree", images)
    for name in ("pillow", "simplejpeg"):
        yield name, open_data(folder / "tree", split="train", decoder=name)
    tree = open_data(folder / "tree", split="train")
    write_pixels(tree, folder / "pixels", size=256)
    yield "uint8 shards", open_data(folder / "pixels", split="train")


@click.command()
@click.option("--images", default=256, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--threads", type=int, multiple=True, help="[default: 1, 2, ... cores]")
@click.option("--json", "out", type=click.Path(path_type=Path))
def main(images: int, rounds: int, threads: tuple[int, ...], out: Path | None) -> None:
    """Print the table."""
    decoder("simplejpeg")  # says what to install if it is missing
    cores = len(os.sched_getaffinity(0))
    counts = threads or [n for n in range(1, cores + 1) if n & (n - 1) == 0 or n == cores]
    found: list[Measured] = []
    with tempfile.TemporaryDirectory() as folder:
        for data, source in sources(Path(folder), images):
            for count in counts:
                found += measure(data, source, count, rounds)
    table = Table(title=f"{WIDTH} x {HEIGHT} to 224 x 224, {cores} cores")
    for title in ("data", "threads", "way", "images/s", "CPU ms", "of decoding", "of the work"):
        table.add_column(
            title, justify="left" if title in ("data", "way") else "right", no_wrap=True
        )
    for row in found:
        table.add_row(
            *(row.data, str(row.threads), row.way, f"{row.rate:.0f}", f"{row.cpu_ms:.2f}"),
            *(f"{row.share_of_decoding:.0%}", f"{row.share_of_work:.0%}"),
        )
    Console(width=100).print(table)
    if out is not None:
        out.write_text(json.dumps([asdict(row) for row in found], indent=1) + "\n")


if __name__ == "__main__":
    main()
