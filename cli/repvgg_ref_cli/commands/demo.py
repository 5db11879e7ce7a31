"""`repvgg-ref demo`: the main job on the bundled model, in a few seconds and without a network."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from repvgg_ref_cli.console import console as screen
from repvgg_ref_cli.options import backend_option, debug_option

if TYPE_CHECKING:
    from rich.console import Console

    from repvgg_ref.arrays import Array
    from repvgg_ref.files.convert import Conversion
    from repvgg_ref.models.network import Model

_SAMPLES_A_ROW = 5
_BLOCKS = " ▄▀█"  # indexed by upper + lower / 2: two pixels, one above the other, in one character
_PLAIN = " .'#"
_INK = 7  # of 16; darker pixels are drawn


@click.command(short_help="Show the main job on a small bundled model; no network.")
@backend_option
@debug_option
def command(backend: str) -> None:
    """Convert the bundled digits model, verify it, find a planted bug, read handwritten digits."""
    import repvgg_ref
    from repvgg_ref.data.digits import MODEL_PATH
    from repvgg_ref.files.convert import convert
    from repvgg_ref_cli.planted import show_verification

    started = time.monotonic()
    console = screen()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / MODEL_PATH.name
        source.write_bytes(MODEL_PATH.read_bytes())
        done = convert(source)
        train, deploy = repvgg_ref.load(source), repvgg_ref.load(done.out)
        _show_conversion(console, source, done)
    show_verification(console, train, deploy)
    _show_samples(console, train, deploy, backend)
    _show_agreement(console, train, deploy, backend)
    console.print(f"\n{time.monotonic() - started:.1f} s. Now your own checkpoint:")
    console.print("  repvgg-ref convert --in RepVGG-A0-train.pth", style="bold")


def _show_conversion(console: Console, source: Path, done: Conversion) -> None:
    check = done.self_check
    assert check is not None, "the bundled model has branches"
    console.print("[bold]1. convert[/bold]")
    console.print(f"   read   {source.name}: three branches a block, {done.container}")
    console.print(
        f"   wrote  {done.out.name}: one 3x3 convolution a block, {done.tensors} arrays\n"
        f"   size   {source.stat().st_size / 1e3:.0f} kB before, "
        f"{done.out.stat().st_size / 1e3:.0f} kB after"
    )
    console.print(
        f"   check  fused = branches in every block; closest to its bound is {check.layer}:\n"
        f"          error {check.max_error:.2g}, bound {check.bound:.2g}"
    )


class _Reading(NamedTuple):
    label: int
    train: int
    deploy: int


def _show_samples(console: Console, train: Model, deploy: Model, backend: str) -> None:
    from rich.table import Table

    from repvgg_ref.data.digits import image_to_input, sample_label, sample_paths
    from repvgg_ref.data.images import open_upright

    console.print("\n[bold]3. predict[/bold] bundled pictures that no training has seen")
    paths = sample_paths()
    for start in range(0, len(paths), _SAMPLES_A_ROW):
        table = Table(box=None, show_header=False, padding=(0, 3, 0, 3))
        drawn, read = [], []
        for path in paths[start : start + _SAMPLES_A_ROW]:
            x = image_to_input(open_upright(path))
            first, second = (int(m.forward(x, backend=backend).argmax()) for m in (train, deploy))
            drawn.append(_drawn(x, console.encoding))
            read.append(_verdict(_Reading(sample_label(path), first, second)))
        table.add_row(*drawn)
        table.add_row(*read)
        console.print(table)


def _verdict(reading: _Reading) -> str:
    if reading.label == reading.train == reading.deploy:
        return f"[green]{reading.label} = {reading.train} = {reading.deploy}[/green]"
    return f"[red]{reading.label}: train {reading.train}, deploy {reading.deploy}[/red]"


def _drawn(x: Array, encoding: str) -> str:
    """The network's input (1, 1, 32, 32) as 4 lines of 8 characters, two pixels in each."""
    from repvgg_ref.data.digits import INK, MEAN, STD, UPSCALE

    ink = (x[0, 0, ::UPSCALE, ::UPSCALE] * STD + MEAN) * INK > _INK
    signs = _BLOCKS if encoding.lower().startswith("utf") else _PLAIN
    pairs = 2 * ink[0::2].astype(int) + ink[1::2]
    return "\n".join("".join(signs[pair] for pair in row) for row in pairs)


def _show_agreement(console: Console, train: Model, deploy: Model, backend: str) -> None:
    import numpy as np

    from repvgg_ref.data.digits import load_digits, to_input

    test = load_digits().test
    x = to_input(test.images)
    branches, fused = (m.forward(x, backend=backend) for m in (train, deploy))
    difference = float(np.abs(branches - fused).max())
    same = int((branches.argmax(1) == fused.argmax(1)).sum())
    console.print(f"\n[bold]4. compare[/bold] on all {len(x)} test images, in float32")
    for name, logits in (("three branches", branches), ("fused", fused)):
        console.print(f"   {name:<15} {_correct(logits, test.labels)} of {len(x)} right")
    console.print(
        f"   same answer on {same} of {len(x)}; logits differ by at most {difference:.1e} "
        f"(they reach {np.abs(branches).max():.0f})"
    )


def _correct(logits: Any, labels: Any) -> int:
    return int((logits.argmax(1) == labels).sum())
