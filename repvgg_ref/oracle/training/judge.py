"""The verdict on a training dump: what is wrong, what is wrong first, and which bug it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.report import Finding, LayerReport, Report
from repvgg_ref.oracle.training.allowance import Allowance, allowance
from repvgg_ref.oracle.training.diagnose import TrainingCase
from repvgg_ref.oracle.training.dump import KINDS, TrainingDump, read_training_dump
from repvgg_ref.oracle.training.noise import FLOAT32, FLOAT64
from repvgg_ref.oracle.training.order import in_order_of_cause, phase
from repvgg_ref.oracle.training.run import right_setup
from repvgg_ref.oracle.training.steps import TrainingSteps
from weights_io import sanitize

_STILL = 0.1  # of its right way: weight decay moves an array by less
# Without one of these whole, nothing is known of the backward pass.
_ENOUGH = ("grad", "after")


def judge_training(
    steps: TrainingSteps,
    dump: str | Path | Mapping[str, Any],
    *,
    model: Model | None = None,
    name: str = "",
) -> Report:
    """Hold a training dump against the right steps.

    Parameters
    ----------
    steps : TrainingSteps
    dump : path or mapping
        An npz (or mapping) with the bundle's names, float32 or float64: any whole kinds.
    model : Model, optional
        The start weights; without them a disagreement is found but not explained.
    name : str
        What to call the candidate.

    Returns
    -------
    Report
        "layers" are arrays, in the order in which a training step computes them, so that
        `first_bad_layer` is where it goes wrong. Verdicts as for inference; never "agree" on an
        empty dump, a part of a kind, or a loss alone.
    """
    called = name or (sanitize(Path(dump).name) if isinstance(dump, str | Path) else "dump")
    network = model.name if model is not None else "bundle"
    try:
        read = read_training_dump(dump, steps.exact)
    except CandidateFailure as failure:
        return Report("cannot-judge", str(failure), network, called, "auto")
    reason = _unusable(read)
    if reason:
        return Report("cannot-judge", reason, network, called, read.precision)
    allowed = _allowance(steps, read)
    rows = [
        _row(name, read.arrays[name], np.asarray(steps.exact[name]), allowed)
        for name in in_order_of_cause(steps.exact)
        if name in read.arrays
    ]
    bad = [row.name for row in rows if not row.ok]
    if bad and phase(bad[0]) == "after" and model is not None:
        bad = _hardest_hit_first(bad, steps, read, model)
    missing = _missing(steps, read)
    findings = _explained(steps, read, allowed, bad, model) if bad else []
    verdict, reason = _verdict(rows, bad, missing, findings)
    notes = [f"names that are not the bundle's: {listed(read.unknown)}"] if read.unknown else []
    if model is None and bad:
        notes.append("no start weights at hand, so no bug was looked for: give the reference")
    absent = [k for k in ("loss", "logits", *KINDS) if not any(_kind(n) == k for n in read.arrays)]
    if absent:
        notes.append("not in the dump and not judged: " + ", ".join(absent))
    notes.append(_not_tested(steps))
    return Report(
        verdict=verdict,
        reason=reason,
        model=network,
        candidate=called,
        precision=read.precision,
        layers=tuple(rows),
        diagnosis=tuple(findings),
        first_bad_layer=bad[0] if bad else None,
        notes=tuple(notes),
    )


def _not_tested(steps: TrainingSteps) -> str:
    """What a dump of a few steps cannot show."""
    return (
        f"not tested: what shows after {len(steps.recipe.lrs)} steps or on other batches only,"
        " other recipes (schedules, warm-up, averaged weights, gradient clipping, mixed precision),"
        " several devices, data loading and augmentation, evaluation mode and fusion"
    )


def _unusable(dump: TrainingDump) -> str:
    """Why nothing can be said, or the empty string."""
    if not dump.arrays:
        got = f": {listed(dump.unknown)}" if dump.unknown else ""
        return f"the dump holds no number of a training step{got}"
    if dump.precision in ("fp16", "bf16"):
        return (
            f"the dump is in {dump.precision}: there is no yardstick for 16-bit training;"
            " dump the float32 master weights' step"
        )
    return ""


def _allowance(steps: TrainingSteps, dump: TrainingDump) -> Allowance:
    """For the dump's precision, but no finer than the bundle's own numbers are."""
    fine = dump.precision == "fp64" and steps.stored == "float64"
    yardstick = steps.yardstick.scaled(FLOAT64 if fine else FLOAT32)
    errors = {
        name: dump.arrays[name].reshape(np.shape(steps.exact[name])) - steps.exact[name]
        for name in yardstick.of
        if name in dump.arrays and dump.arrays[name].size == np.size(steps.exact[name])
    }
    return allowance(yardstick, steps.exact, errors)


def _row(name: str, given: Array, exact: Array, allowed: Allowance) -> LayerReport:
    """One array; `bound` is the backstop, `likely_ratio` compares with what is allowed."""
    if given.shape != exact.shape and not (given.size == exact.size == 1):
        note = f"shape {_plain(given.shape)} instead of {_plain(exact.shape)}"
        return LayerReport(name, float("nan"), 0.0, float("nan"), ok=False, note=note)
    given = given.reshape(exact.shape).astype(np.float64)
    lost = int((~np.isfinite(given)).sum())
    if lost:
        note = f"{lost} of {given.size} are NaN or infinite"
        return LayerReport(name, float("nan"), 0.0, float("nan"), ok=False, note=note)
    error = given - exact
    largest = float(np.abs(error).max())
    if name not in allowed.yardstick.of:  # a counter
        return LayerReport(name, largest, 0.5, largest / 0.5, ok=largest <= 0.5)
    bound, used = allowed.backstop(name).largest, allowed.used(name, error)
    ok = used <= 1
    note = "" if ok else f"relative error {_relative(error, exact):.2g}"
    return LayerReport(name, largest, bound, largest / bound, ok=ok, likely_ratio=used, note=note)


def _relative(error: Array, exact: Array) -> float:
    size = float(np.linalg.norm(exact))
    return float(np.linalg.norm(error)) / size if size > 0 else float("inf")


def _plain(shape: tuple[int, ...]) -> str:
    return "x".join(str(extent) for extent in shape) or "scalar"


def _kind(name: str) -> str:
    return name.partition("/")[0]


def _missing(steps: TrainingSteps, dump: TrainingDump) -> dict[str, list[str]]:
    """Kind -> what is missing of it, for kinds that are there in part; counters may be missing."""
    there = {_kind(name) for name in dump.arrays}
    missing: dict[str, list[str]] = {}
    for name in steps.exact:
        counter = name.endswith(".num_batches_tracked")
        if _kind(name) in there and name not in dump.arrays and not counter:
            missing.setdefault(_kind(name), []).append(name)
    return missing


def _hardest_hit_first(
    bad: list[str], steps: TrainingSteps, dump: TrainingDump, model: Model
) -> list[str]:
    """Put first the earliest of the weights whose update is wrong by the largest share.

    Whatever an update does to one array goes through all gradients of the next step. What should
    have moved and did not lost its gradient, however far others go astray for it.
    """
    start = model.state_dict()
    shares: dict[str, float] = {}
    still: list[str] = []
    for name in bad:
        given, exact = dump.arrays[name], steps.exact[name]
        if phase(name) == "after" and given.shape == exact.shape and np.isfinite(given).all():
            before = start[name.partition("/")[2]]
            moved = max(float(np.linalg.norm(exact - before)), 1e-300)
            shares[name] = float(np.linalg.norm(given - exact)) / moved
            still += [name] if float(np.linalg.norm(given - before)) < _STILL * moved else []
    most = max(shares.values(), default=0.0)
    hardest = (name for name in bad if shares.get(name, 0.0) > most / 10)
    hit = still[0] if still else next(hardest, bad[0])
    return [hit, *(name for name in bad if name != hit)]


def _explained(
    steps: TrainingSteps,
    dump: TrainingDump,
    allowed: Allowance,
    bad: list[str],
    model: Model | None,
) -> list[Finding]:
    """The diagnosis, if the start weights are known."""
    if model is None:
        return []
    setup = right_setup(model, steps.x, steps.labels, steps.recipe, steps.kept)
    fits = {
        name: array.astype(np.float64)
        for name, array in dump.arrays.items()
        if array.shape == steps.exact[name].shape
    }
    return TrainingCase(setup, steps.exact, fits, allowed, bad).findings()


def _verdict(
    rows: list[LayerReport],
    bad: list[str],
    missing: Mapping[str, list[str]],
    findings: list[Finding],
) -> tuple[Any, str]:
    if bad:
        row = next(row for row in rows if row.name == bad[0])
        what = row.note or f"error {row.max_error:.3g}, {row.ratio:.3g} times what is allowed"
        more = f" ({len(bad) - 1} more arrays are wrong)" if len(bad) > 1 else ""
        says = f": {findings[0].says}" if findings else ""
        return "disagree", f"{row.name}: {what}{more}{says}"
    if missing:
        kind, names = next(iter(missing.items()))
        return "cannot-judge", (
            f"{len(rows)} arrays agree, but of the kind '{kind}' {len(names)} are missing: "
            + listed(names)
        )
    if not any(_kind(row.name) in _ENOUGH for row in rows):
        return "cannot-judge", (
            f"{len(rows)} arrays agree, but there is no gradient among them and no weight after "
            "the steps: nothing is known of the backward pass"
        )
    used = max(row.likely_ratio for row in rows)
    return "agree", (
        f"all {len(rows)} arrays agree (at most {used:.1%} of what rounding is allowed is used)"
    )
