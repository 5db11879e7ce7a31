"""What each known bug does to the logits, in every layer and in each alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs import LAYER_BUGS, Bug, Mutant
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.harness import mutants, output_of, site_of
from repvgg_ref.oracle.diagnosis.differences import Block, Differences, nhwc
from repvgg_ref.oracle.power import Place
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import Program, Workspace, layer_output
from repvgg_ref.oracle.programs.program import plain as as_plain

_AT_ONCE = 16_000_000  # elements of the differences that travel together
_NOTHING = 1e-13  # of a layer's output: less is float64's own rounding
_NOTHING_AT_THE_END = 1e-12  # of the logits
_PIECES = 64  # that an output is compared in

Progress = Callable[[str, int, int], None]
_Setting = tuple[str, float | None]


@dataclass(frozen=True)
class Alternative:
    """One mutant, and by how much its logits differ from the right ones, (N, classes)."""

    mutant: Mutant[Any]
    change: Array

    @property
    def place(self) -> Place:
        """Which mutant it is, on any input."""
        return Place.of(self.mutant)


class Chain:
    """The reference network, run once and runnable from any layer on.

    Attributes
    ----------
    plain : mapping
        The layers, blocks fused in float64, to run what comes after: one convolution each.
    inputs : mapping
        Layer -> the reference's own input of it.
    """

    def __init__(self, programs: Programs, x: Array, plain: dict[str, Program] | None = None):
        self.programs, self.names = programs, tuple(programs)
        self.plain = plain or {name: as_plain(programs[name]) for name in programs}
        self.inputs: dict[str, Array] = {}
        x = np.asarray(x, np.float64)
        for name, program in self.plain.items():
            self.inputs[name] = x
            x = layer_output(program, x)
        self.logits = x

    @property
    def blocks(self) -> tuple[str, ...]:
        """All layers but the head."""
        return self.names[:-1]

    @property
    def images(self) -> int:
        """How many images there are."""
        return len(self.logits)

    def on(self, x: Array) -> Chain:
        """The same network on other images."""
        return Chain(self.programs, x, self.plain)

    def after(self, name: str) -> Array:
        """The right output of a layer."""
        at = self.names.index(name) + 1
        return self.logits if at == len(self.names) else self.inputs[self.names[at]]

    def logits_from(self, name: str, x: Array) -> Array:
        """Run the layer `name` and all that follow it."""
        for each in self.names[self.names.index(name) :]:
            x = layer_output(self.plain[each], x)
        return x

    def logits_after(self, name: str, output: Array) -> Array:
        """The logits if the layer `name` gives `output`."""
        at = self.names.index(name) + 1
        return output if at == len(self.names) else self.logits_from(self.names[at], output)

    @cached_property
    def differences(self) -> Differences:
        """What carries errors to the logits."""
        made: Any = self.plain
        blocks = {n: Block.of(made[n], self.inputs[n], self.after(n)) for n in self.blocks}
        return Differences.of(blocks, made[self.names[-1]])


def alternatives(
    chain: Chain,
    precision: str,
    *,
    wanted: Collection[Place] | None = None,
    progress: Progress | None = None,
) -> Iterator[Alternative]:
    """Every known bug and what it does: in all blocks at once, then in each layer alone.

    A bug that changes nothing on these images comes with a change of 0. Layers are worked on in
    parallel; nothing depends on how fast that is.

    Parameters
    ----------
    precision : str
        Excuses its own rounding.
    wanted : places, optional
        These only.
    progress : callable, optional
        Called with (layer, layers done, layers in all).
    """
    everywhere = [b for b in LAYER_BUGS if b.scope != "layer" and precision not in b.precision]
    names = [b.name for b in everywhere]
    if wanted is not None:
        names = list({place.bug for place in wanted if place.layer is None})
    chain.differences  # noqa: B018 - made before threads ask for it
    layers = [n for n in chain.names if wanted is None or any(place.layer == n for place in wanted)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sought = [b for b in everywhere if b.name in names]
        for found in pool.map(lambda bug: list(_everywhere(chain, bug, wanted)), sought):
            yield from found
        parts = pool.map(lambda name: list(_in_layer(chain, name, precision, wanted)), layers)
        for done, (name, found) in enumerate(zip(layers, parts, strict=True)):
            if progress is not None:
                progress(name, done, len(layers))
            yield from found


def exact(chain: Chain, mutant: Mutant[Any]) -> Array | None:
    """A mutant's change of the logits in float64, on the images of `chain`; None without one."""
    place = Place.of(mutant)
    if place.layer is None:
        found = _everywhere(chain, mutant.bug, [place])
        return next((each.change for each in found), None)
    site = site_of(chain.programs, place.layer, chain.inputs[place.layer])
    for made in planted([mutant.bug], site, place.layer):
        if Place.of(made) == place:
            out = output_of(made.variant.program, site.x)
            wrong = None if out is None else chain.logits_after(place.layer, out)
            return None if wrong is None else wrong - chain.logits
    return None


def _in_layer(
    chain: Chain, name: str, precision: str, wanted: Collection[Place] | None
) -> Iterator[Alternative]:
    """Mutants of one layer; those whose output keeps its extent travel as differences."""
    right, workspace = chain.after(name), Workspace()
    waiting: list[tuple[Mutant[Any], Array]] = []
    room = max(1, _AT_ONCE // right.size)
    for site, mutant in mutants(chain.programs, chain.inputs, [name], precision=precision):
        mutant = replace(mutant, where=f" (in {name})")
        if wanted is not None and Place.of(mutant) not in wanted:
            continue
        out = output_of(mutant.variant.program, site.x, workspace)
        if out is None or out.shape[1] != right.shape[1]:
            continue
        if out.shape == right.shape and _is_same(out, right):
            yield Alternative(mutant, np.zeros_like(chain.logits))
        elif name == chain.names[-1]:
            yield Alternative(mutant, out - right)
        elif out.shape != right.shape:
            yield Alternative(mutant, chain.differences.logits(name, nhwc(out)) - chain.logits)
        else:
            waiting.append((mutant, nhwc(out - right)))
        if len(waiting) == room:
            yield from _carried(chain, name, waiting)
            waiting = []
    yield from _carried(chain, name, waiting)


def _is_same(out: Array, right: Array) -> bool:
    """Whether they differ by `_NOTHING`; most bugs show in the first piece already."""
    ours, theirs = out.reshape(-1), right.reshape(-1)
    step = max(1, -(-ours.size // _PIECES))
    pieces = (slice(first, first + step) for first in range(0, ours.size, step))
    return all(np.allclose(ours[p], theirs[p], rtol=_NOTHING, atol=0) for p in pieces)


def _carried(
    chain: Chain, name: str, waiting: Sequence[tuple[Mutant[Any], Array]]
) -> Iterator[Alternative]:
    """The differences of a layer's output, taken to the logits together."""
    if not waiting:
        return
    with np.errstate(all="ignore"):
        changes = chain.differences.to_logits(name, np.concatenate([d for _, d in waiting]))
    for (mutant, _), change in zip(waiting, changes.reshape(-1, *chain.logits.shape), strict=True):
        if np.isfinite(change).all():
            yield Alternative(mutant, change)


def _everywhere(
    chain: Chain, bug: Bug[Any], wanted: Collection[Place] | None = None
) -> Iterator[Alternative]:
    """The same setting in every block where it exists; told apart by its words and parameter.

    What exists in one block alone is that block's.
    """
    running: dict[_Setting, tuple[Mutant[Any], Array | None]] = {}
    places: Counter[_Setting] = Counter()
    for name in chain.blocks:
        here = {_setting(m): m for m in _planted(chain, bug, name, chain.inputs[name])}
        places.update(here.keys())
        for setting, mutant in here.items():
            if wanted is None or Place.of(mutant) in wanted:
                running.setdefault(setting, (mutant, chain.inputs[name]))
        for setting, (mutant, x) in running.items():
            if x is not None:
                there: Mutant[Any] | None = here.get(setting)
                if x is not chain.inputs[name]:
                    made = _planted(chain, bug, name, x)
                    there = next((m for m in made if _setting(m) == setting), None)
                program = chain.plain[name] if there is None else there.variant.program
                running[setting] = mutant, output_of(program, x, Workspace())
    for setting, (mutant, x) in running.items():
        if x is not None and places[setting] > 1:
            change = chain.logits_from(chain.names[-1], x) - chain.logits
            close = np.abs(change).max() <= _NOTHING_AT_THE_END * np.abs(chain.logits).max()
            mutant = replace(mutant, where=" (in every layer)")
            yield Alternative(mutant, 0 * change if close else change)


def _planted(chain: Chain, bug: Bug[Any], name: str, x: Array) -> Iterator[Mutant[Any]]:
    return planted([bug], site_of(chain.programs, name, x))


def _setting(mutant: Mutant[Any]) -> _Setting:
    return mutant.variant.detail, mutant.variant.parameter
