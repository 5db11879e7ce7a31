"""`repvgg-ref train`: train a RepVGG; the same as ``python -m repvgg_ref.train``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from repvgg_ref_cli import completion, remembered
from repvgg_ref_cli.failures import report
from repvgg_ref_cli.options import (
    FILE,
    FOLDER,
    Settings,
    backend_option,
    checkpoint_option,
    debug_option,
    json_option,
    note,
)
from repvgg_ref_cli.stop_signals import StopSignals

if TYPE_CHECKING:
    from repvgg_ref.train.comm import Comm
    from repvgg_ref.train.recipe import Recipe

_BUNDLED, _DEFAULT, _FINE_TUNING = "digits", "paper-120", "fine-tune"


class _WithRecipe(click.Command):
    """Offers every field of a recipe as an option, made when the options are needed."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_recipe_options()]


@cache
def _recipe_options() -> tuple[click.Option, ...]:
    from dataclasses import fields
    from typing import get_type_hints

    from repvgg_ref.train.recipe import Recipe

    hints = get_type_hints(Recipe)
    return tuple(
        _option(field.name, hints[field.name], **field.metadata)
        for field in fields(Recipe)
        if field.name != "name"
    )


def _option(name: str, kind: Any, *, help: str, choices: tuple[str, ...]) -> click.Option:
    flag = "--" + name.replace("_", "-")
    says = f"Recipe: {help}."
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", name], default=None, help=says)
    if kind in (int, float, str):
        chosen = click.Choice(choices) if choices else kind
        complete = {"model": completion.models, "block": completion.blocks}.get(name)
        return click.Option(
            [flag, name], type=chosen, default=None, help=says, shell_complete=complete
        )
    return click.Option([flag, name], type=float, multiple=True, help=f"{says} May be repeated.")


@click.command(cls=_WithRecipe, short_help="Train a network; with no options, on bundled digits.")
@click.option("--data", type=FILE, help="A data set's folder. Default: the bundled digits.")
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|FILE.toml",
    shell_complete=completion.recipes,
    help=f"What to train with. Default: {_BUNDLED} without --data, {_FINE_TUNING} with --data and "
    f"--init, scenes and pspnet for generated scenes and Cityscapes, else {_DEFAULT}.",
)
@click.option("--out", type=FOLDER, help="The folder for states and results. Default: runs/RECIPE.")
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the training in --out, with the options that it was given.",
)
@click.option(
    "--accept-changes", is_flag=True, help="Resume even if recipe, data or ranks have changed."
)
@checkpoint_option(
    "init",
    "--init",
    required=False,
    help="Start from this checkpoint in train form: its network, unless --model names one, and a "
    "head for the data's classes.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    show_default="REPVGG_NUM_THREADS, else all processors",
    help="For images and arithmetic, a rank.",
)
@click.option(
    "--dtype", type=click.Choice(["float32", "float64"]), default="float32", show_default=True
)
@click.option(
    "--math",
    type=click.Choice(["fp32", "tf32", "bf16", "fp16"]),
    help="Arithmetic on a GPU; fp16 scales the loss.",
)
@click.option("--sync-bn", is_flag=True, help="Batch norm over the images of all ranks.")
@click.option(
    "--rank-timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long ranks wait for a frozen one before all end.",
)
@click.option(
    "--save-every", type=click.IntRange(min=0), default=0, help="Steps between states; 0: an epoch."
)
@click.option(
    "--evaluate-every",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Epochs between evaluations.",
)
@click.option("--dry-run", is_flag=True, help="Say what would happen, and write nothing.")
@click.option("--tensorboard", is_flag=True, help="Also write TensorBoard events (extra).")
@backend_option
@json_option
@debug_option
@click.pass_context
def command(
    ctx: click.Context, /, as_json: bool, dry_run: bool, tensorboard: bool, **asked: Any
) -> None:
    """Train a RepVGG by a recipe, and export the fused network.

    Every field of the recipe is an option; without one the recipe's value holds. The folder --out
    gets states to resume from, log.jsonl, result.json, curves, train.pth (official names) and
    deploy.npz. A training that is interrupted saves its state and exits with 128 + the signal's
    number; so does every rank under `mpiexec -n N python -m repvgg_ref.train ...`.

    After every few epochs the trained and the fused form are evaluated and must agree within the
    derived bound; otherwise the training stops with exit code 1.
    """
    from repvgg_ref.cpu.workers.pool import THREADS, default_threads
    from repvgg_ref.train.comm import connect, ranks_on_machine

    options = remembered.Options(remembered.named(ctx, asked))
    if asked["resume"]:
        options.before = remembered.recall(ctx, _folder(asked))
        asked |= options.before
    # A loss that is not finite is found and told; the arithmetic's threads need not warn as well.
    warnings.filterwarnings("ignore", "overflow|invalid value", RuntimeWarning)
    comm = connect(asked.pop("rank_timeout"))
    if asked["threads"] is None:
        told = THREADS in os.environ
        shared = 1 if told else ranks_on_machine(comm)
        asked["threads"] = max(1, default_threads() // shared)
    if asked["threads"] != default_threads():  # the arithmetic's are made at its first use
        os.environ[THREADS] = str(asked["threads"])
    with _ending_all_ranks(comm, ctx):
        _train(comm, asked, options, as_json=as_json, dry_run=dry_run, tensorboard=tensorboard)


def _train(
    comm: Comm,
    asked: dict[str, Any],
    options: remembered.Options,
    *,
    as_json: bool,
    dry_run: bool,
    tensorboard: bool,
) -> None:
    from repvgg_ref.train.job import measured_step, prepare
    from repvgg_ref.train.log import TensorBoard
    from repvgg_ref.train.run import train
    from repvgg_ref.train.settings import Settings as Run
    from repvgg_ref_cli.training import JsonView, View, show_plan

    recipe = _recipe(asked)
    run = Run(
        recipe,
        _folder(asked),
        **{
            name: asked[name]
            for name in (
                *("data", "backend", "dtype", "math", "seed", "threads"),
                *("sync_bn", "init", "resume", "accept_changes", "save_every", "evaluate_every"),
            )
        },
    )
    job = prepare(run, comm=comm)
    first = comm.rank == 0
    if dry_run:
        seconds = measured_step(job)
        if first:
            for message in job.data.notes:
                note(message)
            show_plan(job, seconds, as_json=as_json)
        return
    view = (JsonView if as_json else View)(job.plan, shown=first)
    board = TensorBoard(run.out) if tensorboard and first else None
    with StopSignals() as signals, view:
        for number, event in enumerate(train(job, stop=signals.asked)):
            if number == 0 and first:  # the folder is this training's now
                remembered.remember(run.out, options.before | options.now)
                if options.before:
                    note(f"as before: {remembered.spelt(options.before)}")
            view.show(event)
            if board is not None:
                board.write(event)
    if board is not None:
        board.close()
    if view.stopped:
        raise SystemExit(128 + signals.number)


def _folder(asked: dict[str, Any]) -> Path:
    return asked["out"] or Path("runs") / _recipe(asked).name


def _recipe(asked: dict[str, Any]) -> Recipe:
    """The recipe asked for, with the fields that were given as options."""
    from dataclasses import fields, replace

    from repvgg_ref.models.pspnet import SEGMENTERS
    from repvgg_ref.models.registry import find_name
    from repvgg_ref.train.recipe import FROM_FILE, Recipe, load_recipe

    given = {
        field.name: asked[field.name]
        for field in fields(Recipe)
        if asked.get(field.name) not in (None, ())
    }
    usual = _BUNDLED if asked["data"] is None else _usual_on(asked["data"])
    if asked["init"] is not None:
        usual = _FINE_TUNING if usual == _DEFAULT else usual
    recipe = load_recipe(asked["recipe_name"] or usual, given)
    if asked["init"] is None or "model" in given or find_name(recipe.model) in SEGMENTERS:
        return recipe  # a PSPNet takes its backbone from the file
    return replace(recipe, model=FROM_FILE)


def _usual_on(data: Path) -> str:
    """The recipe for a data set, where none is named."""
    from repvgg_ref.data.cityscapes import is_cityscapes
    from repvgg_ref.data.scenes import SCENES

    if str(data).startswith(SCENES):
        return "scenes"
    return "pspnet" if is_cityscapes(data) else _DEFAULT


@contextmanager
def _ending_all_ranks(comm: Comm, ctx: click.Context) -> Iterator[None]:
    """One rank's error is everybody's end: otherwise the others would wait for it for ever.

    What is wrong on all ranks is told by the first; the others give it a second to do so.
    """
    import time

    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, SystemExit)
        if comm.size == 1 or stopped:
            raise
        time.sleep(min(comm.rank, 1))
        settings = ctx.find_object(Settings) or Settings()
        if comm.rank:
            click.echo(f"rank {comm.rank} of {comm.size}:", err=True)
        code = report(error, debug=settings.debug, as_json=settings.as_json and not comm.rank)
        click.echo("all ranks end; continue from the last state with --resume", err=True)
        comm.abort(code)
