"""The symmetry of layer outputs: which channel of ours each channel of a port's layer is.

A layer that the reference explains from its own input at a few pixels, the largest output of each
of its least active channels among them, is left alone. Of another one all pixels are compared, and
what is found is taken only if the next layer takes it back: a port whose next layer does not is
wrong, here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.sample import sample_of
from repvgg_ref.oracle.bounds.precision import PRECISIONS, Precision
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import Pixels, Program, layer_output
from repvgg_ref.oracle.report import Equivalence
from repvgg_ref.oracle.symmetry.glance import glance
from repvgg_ref.oracle.symmetry.match import Change, matched
from repvgg_ref.oracle.symmetry.taken_back import asked
from repvgg_ref.oracle.symmetry.words import equivalences, hidden, refused

_ROOM = {"fp32": 1e-4, "tf32": 2e-2, "fp16": 2e-2, "bf16": 1e-1}  # of a channel's largest output
# Finer ones, for ports that are not right with the first: factors near 1 are no rounding then. With
# the last a channel has the factor that fits best, whatever it is: what the next layer leaves
# unexplained is rounding for the most part, and each channel is asked about alone.
_FINEST = 2e-7
FINER_ROOMS = {"fp32": (1e-5, 1e-6, _FINEST)}
_PIXELS = 10  # looked at first
_ROUNDINGS = 8.0  # what factors are estimated to, in a layer whose input was divided by others
# Where rounding hides what the next layer does, so many channels that are off by so many roundings
# may be another network's scale; of fewer, a fault of theirs is likelier.
_SEVERAL, _OFF = 3, 4.0
_GONE = 0.5  # of what was unexplained may be left where a change is taken as compensated
_EXPLAINED = 1e-6  # share of a layer's energy, above which something else is wrong with it


class Aligned(NamedTuple):
    """A port's outputs in the reference's order and scale.

    Attributes
    ----------
    outputs : Outputs
        The same object where nothing was found.
    equivalences : tuple of Equivalence
        What was undone, layer by layer.
    unsure : mapping
        Layer -> why some of its factors may be no symmetry.
    refused : mapping
        Layer -> which of its factors the next layer does not take back.
    """

    outputs: Outputs
    equivalences: tuple[Equivalence, ...]
    unsure: Mapping[str, str]
    refused: Mapping[str, str]


def align(
    programs: Programs,
    x: Array,
    outputs: Outputs,
    *,
    precision: str = "fp32",
    room: float | None = None,
    surely: bool = True,
) -> Aligned:
    """Put a port's layer outputs into the reference's order and scale.

    Parameters
    ----------
    programs : Programs
        The reference's layers.
    x : array (N, C, H, W)
        The batch.
    outputs : Outputs
        Layer name -> (N, O, Ho, Wo), "linear" -> (N, classes); what cannot be read is left.
    precision : {"fp32", "tf32", "fp16", "bf16"}
        How far a right layer may be from the reference's.
    room : float, optional
        The same as a number, of a channel's largest output.
    surely : bool
        Of factors so near to 1 that the next layer's rounding hides whether it takes them back,
        none is undone; else they are, and the layer is `unsure`.
    """
    room = _ROOM.get(precision, _ROOM["fp32"]) if room is None else room
    walk = _Walk(programs, x, outputs, room, PRECISIONS[precision], surely=surely)
    found = tuple(walk.along())
    layers = replace(outputs, layers=walk.layers) if found else outputs
    return Aligned(layers, found, walk.unsure, walk.refused)


class _Walk:
    """From layer to layer, each fed the port's own input in our order and scale."""

    def __init__(
        self,
        programs: Programs,
        x: Array,
        outputs: Outputs,
        room: float,
        precision: Precision,
        *,
        surely: bool,
    ) -> None:
        self.programs, self.room, self.precision = programs, room, precision
        self.is_near, self.surely = room <= _FINEST, surely  # factors as near to 1 as rounding
        self.unsure: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.layers = dict(outputs.layers)
        self.x = np.asarray(x, np.float64)

    def along(self) -> Iterable[Equivalence]:
        """Layers, until one cannot be read."""
        names = list(self.programs)
        for name, after in pairwise(names):
            y_hat = self._output(name)
            if y_hat is None:
                return
            if not _is_explained(self.programs, name, self.x, y_hat, self.room):
                change = self._settled(self.programs[name], y_hat, after)
                if change is not None and not change.is_nothing:
                    y_hat = change.undone(y_hat, 1)
                    self.layers[name] = y_hat
                    yield from equivalences(name, change, after, self._doubt(after, y_hat))
            self.x = y_hat

    def _output(self, name: str) -> Array | None:
        """What the port gave, if it can be another layer's input."""
        y_hat, spec = self.layers.get(name), self.programs.model.arch.block(name)
        if y_hat is None or np.ndim(y_hat) != 4 or y_hat.shape[1] != spec.out_channels:
            return None
        y_hat = np.asarray(y_hat)
        return y_hat if np.isfinite(y_hat).all() and y_hat.size else None

    def _settled(self, program: Program, y_hat: Array, after: str) -> Change | None:
        """How the layer's channels differ from ours, if the next layer takes that back."""
        y = layer_output(program, self.x)
        if y.shape != y_hat.shape or self.layers.get(after) is None:
            return None
        change, _ = matched(_by_channel(y), _by_channel(y_hat), self.room)
        if change.is_nothing:
            return change
        nothing = Change.nothing(len(change.order))
        tried = [nothing, change]
        if len(change.moved) and change.is_scaled:
            tried.append(Change(change.order, nothing.factor))
        left = [self._left(after, each.undone(y_hat, 1)) for each in tried]
        best = int(np.argmin(left))
        shown = left[best] < _GONE * left[0]
        if self.is_near and (shown or not len(change.moved)):
            return self._compensated(program.name, after, y_hat, change)
        if not shown or not tried[best].is_scaled:
            return tried[best] if shown else nothing
        return self._compensated(program.name, after, y_hat, tried[best])

    def _compensated(self, name: str, after: str, y_hat: Array, change: Change) -> Change:
        """`change` without factors that the next layer does not know of."""
        program, x = self.programs[after], change.undone(y_hat, 1)
        y, theirs = layer_output(program, x), np.asarray(self.layers[after], np.float64)
        if y.shape != theirs.shape:
            return Change(change.order, np.ones(len(change.order)))  # it says nothing of factors
        if y.ndim == 4:
            onward, _ = matched(_by_channel(y), _by_channel(theirs), self.room)
            theirs = onward.undone(theirs, 1)
        sample = sample_of(program, x, y, theirs, self.precision)
        answer = asked(sample, change.factor[np.argsort(change.order)], self.precision.unit)
        kept, wrong = change.factor != 1, answer.wrong[change.order]
        far = wrong & (np.abs(change.factor - 1) > _ROUNDINGS * self.precision.unit)
        if far.any():
            self.refused[name] = refused(change.factor[far], after)
        kept &= ~wrong
        unsure = answer.unsure[change.order] & kept
        if self.is_near and unsure.any():
            off = np.abs(change.factor[unsure] - 1) > _OFF * self.precision.unit
            several = off.sum() >= _SEVERAL
            if several:
                self.unsure[name] = hidden(change.factor[unsure], after)
            if self.surely or not several:
                kept &= ~unsure
        return Change(change.order, np.where(kept, change.factor, 1.0))

    def _left(self, after: str, x: Array) -> float:
        """The share of the next layer that the reference does not explain from `x`."""
        y, y_hat = layer_output(self.programs[after], x), np.asarray(self.layers[after])
        if y.shape != y_hat.shape or not np.isfinite(y_hat).all():
            return np.inf
        ours, theirs = _by_channel(y), _by_channel(y_hat)
        change = Change.nothing(len(ours))
        if y.ndim == 4:
            change, _ = matched(ours, theirs, self.room)
        rest = theirs - change.factor[:, None] * ours[change.order]
        return float((rest**2).sum() / max((theirs**2).sum(), 1e-300))

    def _doubt(self, after: str, x: Array) -> str:
        """What is to be added where the next layer is wrong all the same."""
        if self._left(after, x) <= max(_EXPLAINED, self.room**2):
            return ""
        return f"; {after} differs for all that, and the fault may lie in either of the two"


def _is_explained(programs: Programs, name: str, x: Array, y_hat: Array, room: float) -> bool:
    """Whether the reference gives these outputs at some pixels, a right layer's error allowed."""
    model = programs.model
    spec = model.arch.block(name)
    pixels = _telling(y_hat)
    if len(x) != len(y_hat):
        return False
    if spec.se == "none":
        y = glance(spec, model.params, model.eps, x, pixels)
    else:  # a gate needs every pixel
        program = programs[name]
        if program.output_size(*x.shape[2:]) != y_hat.shape[2:]:
            return False
        y = program.evaluate(x, pixels)
    if y is None:
        return False
    seen = y_hat[:, :, pixels[0], pixels[1]]
    largest = np.abs(y_hat).max(axis=(0, 2, 3))
    return bool((np.abs(seen - y).max(axis=(0, 2)) <= room * largest).all())


def _telling(y_hat: Array) -> Pixels:
    """Pixels at which the least active channels have their largest outputs, in the first image."""
    flat = y_hat.reshape(*y_hat.shape[:2], -1)  # (N, O, P)
    largest = flat.max(axis=0).argmax(axis=1)  # (O,)
    active = (flat > 0).sum(axis=(0, 2))
    order = np.argsort(np.where(active > 0, active, np.iinfo(int).max), kind="stable")
    chosen = list(dict.fromkeys(largest[order].tolist()))[:_PIXELS]
    rows, columns = np.divmod(np.array(chosen), y_hat.shape[3])
    return rows, columns


def _by_channel(y: Array) -> Array:
    """(N, O, ...) -> (O, N * P), float64."""
    moved = np.moveaxis(np.asarray(y, np.float64), 1, 0)
    return np.ascontiguousarray(moved).reshape(len(moved), -1)
