"""`repvgg-ref shards`: pictures resized once, so that training need not decode them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import click

from repvgg_ref_cli.data_options import (
    decoder_option,
    interpolation_option,
    threads_option,
)
from repvgg_ref_cli.options import FILE, FOLDER, debug_option, json_option, note, print_json, say


@click.command(short_help="Resize a data set once, for fast training.")
@click.option("--data", metavar="DIR", help="Any data set that `eval` reads.")
@click.option("--out", type=FOLDER, metavar="DIR", help="A new folder.")
@click.option(
    "--check", type=FILE, metavar="DIR", help="Compare a finished folder with its hashes."
)
@click.option(
    "--size", type=click.IntRange(1, 4096), default=256, show_default=True, help="In pixels."
)
@interpolation_option
@threads_option
@decoder_option
@json_option
@debug_option
def command(
    data: str | None, out: Path | None, check: Path | None, as_json: bool, **settings: Any
) -> None:
    """Write the middle of every picture as bytes: shorter side resized to --size, centre square.

    A data set with train and val gives OUT/train and OUT/val. Evaluation with --resize at --size
    sees the same pixels from OUT as from DIR; training sees central squares only. An interrupted
    run goes on where it was when the same command is run again.
    """
    if check is not None and data is None and out is None:
        found = [_check(folder) for folder in _folders(check)]
    elif data is not None and out is not None and check is None:
        found = [_write(data, split, to, **settings) for split, to in _outputs(data, out)]
    else:
        raise click.UsageError("name --data and --out, or --check alone.")
    if as_json:
        print_json({"data_sets": found})
        return
    for made in found:
        say(
            f"{made['out']}: {made['images']} pictures of {made['size']} x {made['size']}, "
            f"{made['classes']} classes, {made['bytes'] / 1e9:.3f} GB"
            + (", every byte as written" if check else "")
        )


def _outputs(data: str, out: Path) -> list[tuple[str, Path]]:
    """The splits to write, and where to."""
    from repvgg_ref.data import splits_of

    # A data set without splits is the same pictures whichever is asked for.
    return [(split, out / split) for split in splits_of(data)] or [("train", out)]


def _write(
    data: str, split: str, out: Path, *, size: int, interpolation: str, threads: int, decoder: str
) -> dict[str, Any]:
    from repvgg_ref.data import open_data
    from repvgg_ref.data.skipped import told
    from repvgg_ref.data.write_pixels import write_pixels
    from repvgg_ref_cli.progress import ProgressBar

    source = open_data(data, split=split, decoder=decoder)
    with ProgressBar("resizing") as progress:
        manifest = write_pixels(
            source,
            out,
            size=size,
            interpolation=interpolation,
            threads=threads,
            progress=lambda done, total: progress(out.name, done, total),
        )
    for line in told(manifest["skipped"]):
        note(line)
    return _summary(out, manifest)


def _folders(folder: Path) -> list[Path]:
    """The folder itself, or its splits."""
    from repvgg_ref.data import splits_of

    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOENT, "no such folder", str(folder))
    return [folder / split for split in splits_of(folder)] or [folder]


def _check(folder: Path) -> dict[str, Any]:
    from repvgg_ref.data.pixel_shards import PixelSource
    from repvgg_ref_cli.progress import ProgressBar

    source = PixelSource(folder)
    with ProgressBar("checking") as progress:
        for done in source.check():
            progress(folder.name, done, len(source))
    return _summary(folder, source.manifest)


def _summary(out: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    count, size = manifest["count"], manifest["size"]
    return {
        "out": str(out),
        "images": count,
        "size": size,
        "classes": len(manifest["classes"]),
        "bytes": count * size * size * manifest["channels"],
        "skipped": [{"image": name, "reason": reason} for name, reason in manifest["skipped"]],
    }
