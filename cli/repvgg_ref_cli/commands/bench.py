"""`repvgg-ref bench`: speed and memory, side by side with every installed peer."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli import completion
from repvgg_ref_cli.console import console
from repvgg_ref_cli.options import (
    Output,
    algorithm_option,
    backend_option,
    debug_option,
    json_option,
    note,
    print_json,
)

if TYPE_CHECKING:
    from repvgg_ref.bench.document import Found
    from repvgg_ref.bench.task import Task

# As in `repvgg_ref.bench.contenders`, too heavy to import for --help.
PEERS = ("torch", "onnxruntime", "openvino", "ncnn")
KINDS = ("train", "convert", "table4")


def _names(ctx: click.Context, param: click.Parameter, value: str | None) -> list[str] | None:
    """``torch,ncnn`` as a list; ``none`` is the empty one."""
    if value is None:
        return None
    names = [] if value == "none" else [name.strip() for name in value.split(",")]
    if unknown := [name for name in names if name not in PEERS]:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(map(repr, PEERS))}")
    return names


@click.command(short_help="Time ours against every installed peer.")
@click.option(
    "--model",
    default="RepVGG-A0",
    show_default=True,
    metavar="NAME",
    shell_complete=completion.models,
)
@click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--size", type=click.IntRange(min=1), default=224, show_default=True)
@click.option(
    "--against",
    callback=_names,
    metavar="NAME,...|none",
    show_default="all that are installed",
    help=f"Peers: {', '.join(PEERS)}.",
)
@click.option("--train", is_flag=True, help="Time a training step: forward, loss, backward.")
@click.option(
    "--convert", is_flag=True, help="Time the conversion of a checkpoint, and its memory."
)
@click.option("--table4", is_flag=True, help="Re-run the speed order of the paper's Table 4.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True)
@click.option(
    "--threads", type=click.IntRange(min=1), show_default="REPVGG_NUM_THREADS, else all processors"
)
@algorithm_option
@click.option(
    "--memory",
    show_default="REPVGG_MEMORY, else fast",
    metavar="fast|lean|BYTES",
    help="What packed weights may take beside the model's own.",
)
@backend_option
@click.option(
    "--layers/--no-layers", default=True, show_default=True, help="Show each layer's GFLOP/s."
)
@click.option("--out", type=Output("json"), help="Also write the JSON here, all rounds included.")
@click.option("--picture", type=Output("svg"), help="Also draw it, as an SVG file.")
@json_option
@debug_option
def command(
    model: str,
    batch: int,
    size: int,
    against: list[str] | None,
    rounds: int,
    threads: int | None,
    algorithm: str,
    memory: str | None,
    backend: str,
    layers: bool,
    out: Path | None,
    picture: Path | None,
    as_json: bool,
    **kinds: bool,
) -> None:
    """Time inference of the fused chain against its three-branch form and every installed peer.

    Everyone gets the same weights, images and number of threads, in a process of its own; the
    contenders take turns, and a peer that computes something else is not timed. Shown are ratios
    within a round: above 1, ours is faster. Nothing here is a test: exit code 0 whatever is found.
    """
    from repvgg_ref.bench.document import as_text, document
    from repvgg_ref.bench.machine import Watch
    from repvgg_ref.bench.picture import render_picture
    from repvgg_ref_cli.bench_report import render
    from weights_io import atomic_path

    kind = _kind(kinds, against)
    task = _task(kind, model, batch, size, threads, algorithm, backend, memory)
    with ExitStack() as files:
        # Opened first: a folder that cannot be written must not show after minutes of work.
        targets = {path: files.enter_context(atomic_path(path)) for path in (out, picture) if path}
        watch = Watch()
        made = document(_found(kind, task, against, rounds, layers), watch)
        if out:
            targets[out].write_text(as_text(made), encoding="utf-8")
        if picture:
            targets[picture].write_text(render_picture(made), encoding="utf-8")
    if made["busy"]:
        others = f"others used {100 * made['others']:.0f} % of the machine"
        note(f"{others}: trust the ratios little, the seconds less")
    if as_json:
        print_json(made)
        return
    console().print(render(made))


def _kind(kinds: dict[str, bool], against: list[str] | None) -> str:
    asked = [kind for kind in KINDS if kinds[kind]]
    if len(asked) > 1:
        raise click.UsageError(f"--{asked[0]} and --{asked[1]} are two different benchmarks")
    kind = asked[0] if asked else "inference"
    if kind == "table4" and against is not None:
        raise click.UsageError("--table4 times our own networks only; leave --against out")
    return kind


def _task(
    kind: str,
    model: str,
    batch: int,
    size: int,
    threads: int | None,
    algorithm: str,
    backend: str,
    memory: str | None,
) -> Task:
    from repvgg_ref.backends import backend_ops, required_memory
    from repvgg_ref.bench.task import Task
    from repvgg_ref.cpu.workers.pool import default_threads
    from repvgg_ref.models.registry import network

    # Refuses now what cannot be had, and tells what "auto" is; "cupy-fp32" is the table of "cupy".
    backend = backend_ops(backend).name.partition("-")[0]
    if kind in ("convert", "table4") and backend != "numpy":
        raise click.UsageError(f"--{kind} runs on the numpy backend only")
    return Task(
        "training" if kind == "train" else "inference",
        network(model).name,
        batch,
        size,
        threads or default_threads(),
        algorithm,
        backend,
        str(required_memory(memory)),
    )


def _found(kind: str, task: Task, against: Any, rounds: int, layers: bool) -> Found:
    from repvgg_ref.bench.conversion import race_conversions
    from repvgg_ref.bench.peers import choose_converter, choose_entries
    from repvgg_ref.bench.race import race
    from repvgg_ref.bench.table4 import race_table4
    from repvgg_ref_cli.progress import ProgressBar

    with ProgressBar("timing") as progress:
        if kind == "table4":
            return race_table4(task, rounds=rounds, progress=progress)
        if kind == "convert":
            official, skipped = choose_converter(against)
            done = race_conversions(task, official=official, rounds=rounds, progress=progress)
            done.skipped += skipped
            return done
        entries, skipped = choose_entries(against, task)
        layers = layers and kind == "inference" and task.backend == "numpy"
        found = race(task, entries, rounds=rounds, layers=layers, progress=progress)
        found.skipped += skipped
        return found
