"""A port that disagrees may be right: the reference's strides, dilations and eps were assumed.

What a checkpoint does not say is tried otherwise: as layer outputs show it, else as forks have it.
A port is said to agree with another network only if all of it does, by the whole verification. Its
verdict stays "disagree": it is not the network that was assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.geometry import Geometry, geometry_of, with_geometry
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.comparison import relative_difference
from repvgg_ref.oracle.diagnosis.alternatives import Chain
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output, plain
from repvgg_ref.oracle.report import Finding, Report

_STRIDES, _DILATIONS = (1, 2, 3, 4), (1, 2, 4, 3, 6, 8)
_SAME_LOGITS = 0.03  # of the largest: another geometry is some 0.5 off, 16-bit arithmetic 0.01
_MOST_TRIED = 2  # whole verifications in a round
_OTHER_EPS = (1e-3, 1e-4, 1e-2)  # Keras and YOLOv6; what people try
_ROUNDS = 2  # geometry, then eps
_THE_SAME = ("stride-moved", "dilation-added", "dilation-ignored", "eps-value", "eps-dropped")


@dataclass(frozen=True)
class Seen:
    """What a port showed: the batch, its own input of each layer, and its outputs."""

    x: Array
    inputs: Mapping[str, Array | None]
    outputs: Mapping[str, Array]


def reconsidered(
    report: Report, model: Model, seen: Seen | None, again: Callable[[Model], Report]
) -> Report:
    """`report`, with what the port would agree with if what was assumed were otherwise.

    Parameters
    ----------
    seen : Seen or None
        None for a file of weights, which has no strides.
    again : callable
        The whole verification of the port against another model.
    """
    other, found = model, report
    for _ in range(_ROUNDS):
        guesses = list(_other_eps(found, other))
        if seen is not None:
            guesses += _other_geometries(found, other, seen)
        judged = [(guess, again(guess)) for guess in guesses[:_MOST_TRIED]]
        for guess, of_guess in judged:
            if of_guess.verdict == "agree":
                return _named(report, model, guess)
        if not judged:
            break
        other, found = min(judged, key=lambda each: sum(not layer.ok for layer in each[1].layers))
    note = (
        f"assumed of the reference, whose file does not say it: {model.assumed}; a port of a"
        " network that has others is called wrong here, so make sure of them first"
    )
    return replace(report, notes=(note, *report.notes))


def _other_eps(report: Report, model: Model) -> Iterator[Model]:
    """The eps that was measured, as people write it."""
    finding = next((f for f in report.diagnosis if f.bug.startswith("eps-")), None)
    if model.assumed.eps is None or finding is None or finding.bug not in _THE_SAME:
        return
    eps = float(f"{finding.estimate or 0.0:.0e}")
    if eps != model.eps:
        yield replace(model, eps=eps)


def _other_geometries(report: Report, model: Model, seen: Seen) -> Iterator[Model]:
    """Models with other strides and dilations that the port may have, the likeliest first."""
    if not model.assumed:
        return
    if set(seen.outputs) == {"linear"}:
        yield from _by_logits(model, seen)
        return
    bad = [layer.name for layer in report.layers if not layer.ok]
    known, shown = geometry_of(model.arch), Geometry()
    for name in bad:
        x, y = seen.inputs.get(name), seen.outputs.get(name)
        if name in known.strides and x is not None and y is not None:
            shown |= _closest(model, name, x, np.asarray(y, np.float64))
    if known | shown != known:
        yield _with(model, shown)


def _closest(model: Model, name: str, x: Array, y_hat: Array) -> Geometry:
    """The stride and dilation with which the block's output is closest to the port's."""
    known, assumed = geometry_of(model.arch), model.assumed
    strides = _STRIDES if name in assumed.strides else (known.strides[name],)
    dilations = _DILATIONS if name in assumed.dilations else (known.dilations[name],)
    best, least = Geometry(), np.inf
    for stride, dilation in product(strides, dilations):
        extents = tuple((n - 1) // stride + 1 for n in x.shape[2:])
        if y_hat.ndim != 4 or extents != y_hat.shape[2:]:
            continue
        guess = Geometry({name: stride}, {name: dilation})
        program = Programs(_with(model, guess))[name]
        if min(program.output_size(*x.shape[2:])) < 1:
            continue
        try:  # a guess may be none that the block's inner convolutions can have
            guessed = layer_output(plain(program), x)
        except (IndexError, ValueError):
            continue
        apart = relative_difference(y_hat, guessed)
        if apart is not None and apart < least:
            best, least = guess, apart
    return best


def _by_logits(model: Model, seen: Seen) -> list[Model]:
    """The networks of `_forks` that give nearly the port's logits for its first image."""
    y_hat = np.asarray(seen.outputs["linear"], np.float64)[:1]
    near: list[tuple[float, int, Model]] = []
    for place, guess in enumerate(_forks(model)):
        apart = relative_difference(y_hat, Chain(Programs(guess), seen.x[:1]).logits)
        if apart is not None and apart < _SAME_LOGITS:
            near.append((apart, place, guess))
    return [guess for _, _, guess in sorted(near, key=lambda each: each[:2])]


def _forks(model: Model) -> Iterator[Model]:
    """Strides, dilations and eps that forks are known for.

    Stems for small pictures, last strides for re-identification, dilated stages for segmentation
    (every block, or all but a stage's first one, as torchvision has it).
    """
    known, assumed = geometry_of(model.arch), model.assumed
    others = _OTHER_EPS if assumed.eps is not None else ()
    yield from (replace(model, eps=eps) for eps in others)
    firsts = [name for name, stride in assumed.strides.items() if stride != 1]
    if not firsts:
        return
    stem, last = firsts[0], firsts[-1]
    for names in (*([name] for name in firsts), [stem, last], firsts[:2], firsts[-2:]):
        yield _with(model, Geometry(dict.fromkeys(names, 1)))
    for step, eps in product(({stem: 1}, {last: 1}, {stem: 1, last: 1}), others):
        yield replace(_with(model, Geometry(step)), eps=eps)
    yield _with(model, Geometry({stem: 4}))
    blocks = list(known.strides)
    for first, after in zip(firsts, [*firsts[1:], None], strict=True):
        in_stage = blocks[blocks.index(first) : blocks.index(after) if after else len(blocks)]
        for names in ([first], in_stage[1:], in_stage):
            dilated = {name: 2 for name in names if name in assumed.dilations}
            yield _with(model, Geometry({}, dilated))
    for count, skipped in product((1, 2), (0, 1)):
        strided, dilations = firsts[-count:], dict[str, int]()
        for stage, first in enumerate(strided):
            end = blocks.index(strided[stage + 1]) if stage + 1 < count else len(blocks)
            at = blocks.index(first)
            dilations |= dict.fromkeys(blocks[at:end], 2 << stage)
            if skipped:
                dilations[first] = 1 << stage
        dilations = {name: step for name, step in dilations.items() if name in assumed.dilations}
        yield _with(model, Geometry(dict.fromkeys(strided, 1), dilations))


def _with(model: Model, geometry: Geometry) -> Model:
    return replace(model, arch=with_geometry(model.arch, geometry))


def _named(report: Report, assumed: Model, right: Model) -> Report:
    """The report, which says first what the port agrees with."""
    theirs, ours = _apart(right, assumed), _apart(assumed, right)
    options = " ".join(f"--{what} {value}" for what, value in theirs.items())
    if_, instead = (
        " and ".join(f"{what} {value}" for what, value in said.items()) for said in (theirs, ours)
    )
    says = f"your port agrees if {if_}: {instead} was assumed, which the checkpoint does not say"
    advice = f"if the network was trained so, give {options}; if not, the port is wrong there"
    named = Finding("assumption", report.first_bad_layer, None, 1.0, 1.0, says, advice)
    # What the bugs of the library say of the port is the same, from the other side.
    same = [replace(f, advice=advice) for f in report.diagnosis if f.bug in _THE_SAME]
    return replace(report, reason=says, diagnosis=(*same, named))


def _apart(one: Model, other: Model) -> dict[str, str]:
    """What `one` has and `other` has not, as options have it."""
    pairs = [(geometry_of(model.arch)) for model in (one, other)]
    found = {} if one.eps == other.eps else {"eps": f"{one.eps:g}"}
    for what in ("strides", "dilations"):
        own, its = (getattr(geometry, what) for geometry in pairs)
        steps = [f"{name}={step}" for name, step in own.items() if step != its[name]]
        if steps:
            found[what] = ",".join(steps)
    return found
