"""A whole training, as a generator of events: steps, evaluations, states, results."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from repvgg_ref.arrays import to_numpy
from repvgg_ref.data.dense import IGNORED, check_labels
from repvgg_ref.data.loader import Batch
from repvgg_ref.data.skipped import told
from repvgg_ref.data.source import DataError
from repvgg_ref.errors import MissingExtraError
from repvgg_ref.train.curves import write_curves
from repvgg_ref.train.divergence import DivergenceError, first_bad_layer
from repvgg_ref.train.evaluate import Evaluation, evaluate
from repvgg_ref.train.events import EpochDone, Event, Finished, Noted, Saved, StepDone, Stopped
from repvgg_ref.train.folder import Folder
from repvgg_ref.train.job import Job, data_of, identity, roundoff
from repvgg_ref.train.log import Log, read_log
from repvgg_ref.train.result import NAME as RESULT
from repvgg_ref.train.result import write_result
from repvgg_ref.train.schedule import learning_rate
from repvgg_ref.train.settings import Settings
from repvgg_ref.train.state import last_good
from repvgg_ref.train.update import State, Stepped, on_host

Clock = dict[str, float]


def train(job: Job, *, stop: Callable[[], bool] = lambda: False) -> Iterator[Event]:
    """Train, yielding what happens.

    Parameters
    ----------
    stop : callable
        Asked before every step; once it says yes, on any rank, the state is saved and the last
        event is `Stopped`.

    Raises
    ------
    DivergenceError
        If the loss or a weight is not finite. The last good state stays.
    SelfCheckError
        If the trained and the fused form disagree.
    StateError
        If the folder is used, is another training's, or cannot be written.
    LabelError
        If the label of a pixel is none, anywhere in the data.
    """
    settings, first = job.settings, job.comm.rank == 0
    with Folder(settings.out, job.updater, identity(job), writes=first) as folder:
        notes: list[str] = []
        state = None
        if settings.resume:
            state, notes = folder.restore(accept_changes=settings.accept_changes)
        else:
            folder.require_unused()
        state = state or job.updater.start(job.start.params)
        yield job.plan
        if state.step == 0:  # an epoch would be lost on a label found wrong in its last step
            notes += _checked_labels(job)
        log = Log(settings.out, after=state.step) if first else None
        try:
            for event in _events(job, folder, state, notes, stop):
                if log is not None:
                    log.write(event)
                yield event
        finally:
            if log is not None:
                log.close()
        job.comm.meet()  # none ends before all have: one may be frozen


def _checked_labels(job: Job) -> list[str]:
    """Look at the labels of all pixels; what to say of pictures that have none.

    Raises
    ------
    LabelError
        If the label of a pixel is none.
    DataError
        If no pixel counts, to train on or to evaluate on.
    """
    said = []
    for loader, purpose in ((job.data.training, "train"), (job.data.test, "evaluate")):
        own = check_labels(loader.source, rank=job.comm.rank, ranks=job.comm.size)
        everybody = job.comm.sum(job.ops.from_host(np.array(own, np.float64)))
        pictures, void = map(int, to_numpy(everybody))
        if not void:
            continue
        said.append(f"of {void} of {pictures} pictures to {purpose} on no pixel has a label")
        if void == pictures:
            raise DataError(
                f"no pixel to {purpose} on has a label",
                got=f"{pictures} pictures all of whose pixels are labelled {IGNORED}",
                wanted="some that have classes",
            )
    return said


def _events(
    job: Job, folder: Folder, state: State, notes: list[str], stop: Callable[[], bool]
) -> Iterator[Event]:
    plan, settings = job.plan, job.settings
    clock: Clock = defaultdict(float)
    yield from map(Noted, (*job.data.notes, *notes))
    if job.initialised is not None and state.step == 0:
        yield job.initialised
    evaluation: Evaluation | None = None
    due = state.step > 0  # a state at the end of an epoch may have been left before its evaluation
    while True:
        epoch, within = divmod(state.step, plan.steps_per_epoch)
        if due and within == 0 and _evaluated(epoch, settings):
            with _timed(clock, "evaluation"):
                evaluation = _evaluate(job, state)
            yield EpochDone(state.step, epoch, evaluation)
        if state.step >= plan.steps:
            break
        stopped = False
        for done in _epoch(job, folder, state, clock, stop):
            state, stopped = done.state, done.stop
            yield done.event
            if _save_due(job, state) or stopped:
                yield from _saved(folder, state, clock)
        if epoch == 0:
            yield from map(Noted, told(job.data.training.skipped))
        if stopped:
            yield Stopped(state.step)
            return
        due = True
    yield from _saved(folder, state, clock)
    assert evaluation is not None, "the last epoch is always evaluated"
    yield from _ended(job, folder, state, evaluation, clock)


def _ended(
    job: Job, folder: Folder, state: State, evaluation: Evaluation, clock: Clock
) -> Iterator[Event]:
    """Write the results; only the first rank does."""
    files: list[Path] = []
    result: dict[str, Any] = {}
    if job.comm.rank == 0:
        files += folder.export(state)
        drawn, notes = _drawn(job, folder)
        files += [*drawn, folder.path / RESULT]
        yield from map(Noted, notes)
        result = write_result(
            folder.path,
            job.plan,
            state.step,
            evaluation,
            data=data_of(job),
            files=files,
            seconds=dict(clock),
        )
    yield Finished(state.step, evaluation, tuple(files), dict(clock), result)


class _Done(NamedTuple):
    """A step that is behind us."""

    state: State
    event: StepDone
    stop: bool


def _epoch(
    job: Job, folder: Folder, state: State, clock: Clock, stop: Callable[[], bool]
) -> Iterator[_Done]:
    """The steps from `state` to the end of its epoch, or until someone is asked to stop."""
    recipe, an_epoch = job.settings.recipe, job.plan.steps_per_epoch
    epoch, within = divmod(state.step, an_epoch)
    batches = iter(job.data.training.epoch(epoch, within * recipe.accumulate))
    for _ in range(within, an_epoch):
        began = time.perf_counter()
        parts = list(islice(batches, recipe.accumulate))
        waited = time.perf_counter() - began
        lr = learning_rate(recipe, state.step, steps_per_epoch=an_epoch)
        done = job.updater.step(state, parts, lr=lr, epoch=epoch, stop=stop())
        if not math.isfinite(done.loss):
            raise _diverged(job, folder, state, done, parts)
        state = done.state
        seconds = {"data": waited, **done.seconds._asdict()}
        seconds["rest"] = time.perf_counter() - began - sum(seconds.values())
        for name, value in seconds.items():
            clock[name] += value
        top1 = done.correct / recipe.batch
        event = StepDone(
            state.step, epoch, done.loss, top1, lr, recipe.batch, seconds, done.skipped
        )
        yield _Done(state, event, done.stop)
        if done.stop:
            return


def _saved(folder: Folder, state: State, clock: Clock) -> Iterator[Saved]:
    with _timed(clock, "saving"):
        path = folder.save(state)
    if path is not None:
        yield Saved(state.step, path)


def _save_due(job: Job, state: State) -> bool:
    every = job.settings.save_every or job.plan.steps_per_epoch
    return state.step % every == 0


def _evaluated(epoch: int, settings: Settings) -> bool:
    """Whether the state after `epoch` epochs is evaluated: every few, and the last."""
    return epoch % settings.evaluate_every == 0 or epoch == settings.recipe.epochs


def _evaluate(job: Job, state: State) -> Evaluation:
    return evaluate(
        on_host(job.updater.model(state, averaged=True)),
        ((job.updater.inputs(batch), batch.labels) for batch in job.data.test.epoch(0)),
        ops=job.ops,
        comm=job.comm,
        roundoff=roundoff(job),
    )


def _drawn(job: Job, folder: Folder) -> tuple[list[Path], list[str]]:
    """The curves' files, or a note that says why there are none."""
    title = f"{job.plan.model} trained by {job.plan.recipe}"
    try:
        return write_curves(folder.path, read_log(folder.path), title=title), []
    except MissingExtraError as error:
        return [], [str(error)]
    except Exception as error:  # the results are written; no drawing is worth failing for
        return [], [f"the curves were not drawn: {type(error).__name__}: {error}"]


def _diverged(
    job: Job, folder: Folder, state: State, done: Stepped, parts: list[Batch]
) -> DivergenceError:
    """What to say of a loss that is not finite: the step, and the layer it came from."""
    params = job.updater.model(state).params
    layer = None
    for part in parts:
        layer = layer or first_bad_layer(
            job.start.arch,
            params,
            job.updater.inputs(part),
            ops=job.updater.ops,
            eps=job.updater.eps,
            comm=job.comm,
        )
    where = f"first in the output of {layer}" if layer else "in the loss alone"
    return DivergenceError(
        f"the training diverged in step {state.step + 1}: the loss is {done.loss}",
        got=f"NaN or infinity {where}",
        advice=f"{last_good(folder.path)}; lower --lr or lengthen --warm-up-epochs",
    )


@contextmanager
def _timed(clock: Clock, name: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    clock[name] += time.perf_counter() - began
