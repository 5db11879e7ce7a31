"""Options of the subcommands that read a data set."""

from __future__ import annotations

import click

from repvgg_ref_cli import completion


def _threads(ctx: click.Context, param: click.Parameter, asked: int | None) -> int:
    from repvgg_ref.cpu.workers.pool import default_threads

    return asked or default_threads()


data_option = click.option(
    "--data",
    required=True,
    metavar="DIR",
    shell_complete=completion.files,
    help="Class folders, tar files (one, a range NAME-{000..146}.tar, or a folder of them), a "
    "folder that `shards` wrote, CIFAR's or MNIST's binary files, generated:shapes, or digits.",
)
threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 256),
    callback=_threads,
    show_default="one a core, or REPVGG_NUM_THREADS",
    help="That decode.",
)
interpolation_option = click.option(
    "--interpolation",
    type=click.Choice(["bilinear", "bicubic"]),
    default="bilinear",
    show_default=True,
    help="How pictures are resized.",
)
decoder_option = click.option(
    "--decoder",
    type=click.Choice(["auto", "pillow", "simplejpeg"]),
    default="auto",
    show_default=True,
    help="Of JPEG files; auto takes simplejpeg where it is installed.",
)
