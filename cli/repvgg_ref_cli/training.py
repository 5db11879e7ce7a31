"""A training on the terminal: the plan, a bar while it runs, a line an epoch, and the results."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING

from repvgg_ref.train.events import (
    EpochDone,
    Event,
    Finished,
    Initialised,
    Noted,
    Plan,
    StepDone,
    Stopped,
)
from repvgg_ref_cli.console import Fitting, can_draw, console
from repvgg_ref_cli.failures import printable
from repvgg_ref_cli.options import note, print_json, say

if TYPE_CHECKING:
    from repvgg_ref.train.evaluate import Evaluation
    from repvgg_ref.train.job import Job

_SMOOTHING = 0.95


class View:
    """Shows events to people; `stopped` says whether the training ended early.

    Parameters
    ----------
    shown : bool
        False for all ranks but the first, which stay silent.
    """

    def __init__(self, plan: Plan, *, shown: bool) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.stopped = False
        self._plan, self._shown = plan, shown
        self._began, self._loss = time.monotonic(), 0.0
        self._console = console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total} {task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=False,  # what is meant for a pipe must reach it
            disable=not (shown and can_draw(sys.stderr)),
        )
        self._task = self._bar.add_task("training", total=plan.steps, figures="")

    def __enter__(self) -> View:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        """Tell `event`."""
        self.stopped = self.stopped or isinstance(event, Stopped)
        if not self._shown:
            return
        if isinstance(event, Finished | Stopped):
            self._bar.stop()
        if isinstance(event, StepDone):
            self._step(event)
        elif isinstance(event, Noted):
            self._say_note(event.message)
        else:
            self.tell(event)

    def tell(self, event: Event) -> None:
        """Print what is no progress and no note."""
        if isinstance(event, Plan):
            self._print(
                f"train  {event.model} by {event.recipe}: {event.images} images, "
                f"{event.classes} classes, {event.steps} steps, {event.parameters:,} parameters"
            )
        elif isinstance(event, Initialised):
            _show_start(event)
        elif isinstance(event, EpochDone):
            found = event.evaluation
            minutes = (time.monotonic() - self._began) / 60
            name, rate = found.trained.headline
            fused = "" if found.fused is None else f"fused {found.fused.headline[1]:7.2%}  "
            self._print(
                f"epoch  {event.epoch:3}  loss {found.trained.loss:.4f}  {name} {rate:7.2%}  "
                f"{fused}"
                f"training loss {self._loss:.4f}  {minutes:.1f} min"
            )
        elif isinstance(event, Stopped):
            self._print(f"stop   after step {event.step}; the state is saved: --resume continues")
        elif isinstance(event, Finished):
            self._results(event)

    def _step(self, event: StepDone) -> None:
        weight = _SMOOTHING if event.step > 1 and self._loss else 0.0
        self._loss = weight * self._loss + (1 - weight) * event.loss
        rate = event.images / max(sum(event.seconds.values()), 1e-9)
        figures = f"{rate:.0f} images/s  loss {self._loss:.3f}  lr {event.lr:.4f}"
        self._bar.update(self._task, completed=event.step, figures=figures)

    def _results(self, event: Finished) -> None:
        from rich.table import Table

        self._proof(event.evaluation)
        for path in event.files:
            self._print(f"wrote  {path}")
        table = Table(box=None, pad_edge=False)
        for title in ("where the time went", "s", "%"):
            table.add_column(title, justify="left" if title[0] == "w" else "right")
        total = sum(event.seconds.values()) or 1.0
        for name, seconds in sorted(event.seconds.items(), key=lambda item: -item[1]):
            table.add_row(name.replace("_", " and "), f"{seconds:.2f}", f"{seconds / total:.1%}")
        self._console.print(Fitting(table))

    def _proof(self, found: Evaluation) -> None:
        apart = found.comparison
        if apart is None:
            self._print("proof  none: these blocks have no fused form")
            return
        self._print(
            f"proof  trained and fused form agree on {found.images} images: logits within "
            f"{apart.largest:.2g};"
        )
        self._print(
            f"       closest image {apart.difference:.2g}, rounding explains {apart.tolerance:.2g};"
        )
        self._print(
            f"       closest block {apart.closest.layer}: error {apart.closest.max_error:.2g}, "
            f"bound {apart.closest.bound:.2g}"
        )

    def _print(self, line: str) -> None:
        # Where bar and lines share a terminal, the bar must be moved out of the way.
        if self._bar.live.is_started and sys.stdout.isatty():
            self._console.print(printable(line), markup=False, highlight=False)
        else:
            say(line)

    def _say_note(self, message: str) -> None:
        if self._bar.live.is_started:
            self._console.print(f"note: {printable(message)}", markup=False, highlight=False)
        else:
            note(message)


class JsonView(View):
    """Progress and notes on stderr; in the end one JSON object on stdout."""

    def tell(self, event: Event) -> None:
        """Print the result as JSON."""
        if isinstance(event, Finished):
            print_json(event.result)
        elif isinstance(event, Stopped):
            names = {"model": self._plan.model, "recipe": self._plan.recipe}
            print_json(names | {"steps": event.step, "stopped": True})


def show_plan(job: Job, step_seconds: float, *, as_json: bool) -> None:
    """What a training would do and cost, from its plan and one measured step."""
    plan, start = job.plan, job.initialised
    duration = timedelta(seconds=round(plan.steps * step_seconds))
    ranks = "1 rank" if plan.ranks == 1 else f"{plan.ranks} ranks"
    if as_json:
        from dataclasses import asdict

        found = asdict(plan) | {"lrs": [list(mark) for mark in plan.lrs]}
        init = None if start is None else asdict(start)
        print_json(found | {"step_seconds": step_seconds, "init": init})
        return
    if start is not None:
        _show_start(start)
    say(f"model     {plan.model}: {plan.parameters:,} parameters, {plan.classes} classes")
    say(f"data      {plan.images} images to train on, {plan.test_images} to evaluate on")
    say(f"steps     {plan.steps}, {plan.steps_per_epoch} an epoch, {ranks}")
    say("rate      " + ", ".join(f"{lr:.4g} at step {step}" for step, lr in plan.lrs))
    say(f"memory    about {plan.memory / 2**20:,.0f} MiB a rank, beside the images")
    say(f"time      about {duration}: {step_seconds:.3f} s a step (one measured)")
    say("nothing was written")


def _show_start(start: Initialised) -> None:
    """What was taken of the file that the training starts from."""
    from weights_io import sanitize

    for number, line in enumerate(start.lines()):
        say(f"{'       ' if number else 'init   '}{sanitize(line)}")
