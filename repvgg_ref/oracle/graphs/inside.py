"""Bugs of blocks that a candidate leaves out, by what they make of the next output that it shows.

A hidden block can have every bug that a shown one can. Each is planted in each hidden block, then
in all of them at once, and the nodes between it and the target are computed at those pixels alone
that a few of the target's outputs see: a bottleneck's thousand hypotheses take seconds. What
explains these few is held against as many outputs as any other hypothesis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.models.graph import Node
from repvgg_ref.models.layers import AddRelu, Block
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bugs import Bug, Mutant, Site, Variant, bugs_for
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.harness import site_of
from repvgg_ref.oracle.diagnosis.evidence import (
    DO_NOT_FIT,
    Evidence,
    LayerEvidence,
    sample_pixels,
)
from repvgg_ref.oracle.diagnosis.ranking import Observation, Trial
from repvgg_ref.oracle.graphs.hidden import in_all
from repvgg_ref.oracle.graphs.port import GraphPort
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.program import Pixels, Workspace, all_pixels, plain

_PIXELS = 12  # of the target, each with all its channels: for a first look
_FITTED = 3  # hypotheses with a number, fitted where no usual one explains the target
_STEP = 2.0**-10  # of a derivative
_EVERY = 4  # of the pixels looked at: enough where every channel is
_SOME = 0.5  # of the residual: what explains less is no hint either

NO_ARITHMETIC = 256  # times rounding: what errs by so much as a whole is nobody's arithmetic

Changes = Mapping[str, BlockProgram]

_STRIDE: Bug[Any] = Bug(
    "stride-elsewhere",
    "geometry",
    "the stride is that of {detail}",
    "a ResNet's bottleneck has it in its first convolution (v1) or, in torchvision, the 3x3 (v1.5):"
    " stride is said with --strides",
    lambda site: iter(()),
    scope="layer",
)

_SCALE: Bug[Any] = Bug(
    "outputs-scaled",
    "structure",
    "its outputs are multiplied by {parameter:.7g}",
    "look for a factor applied to the whole layer, or to its batch norms",
    lambda site: iter(()),
    continuous=True,
    scope="layer",
    right=1.0,
)


class Route:
    """The way from the blocks hidden before a node to some of its outputs.

    Parameters
    ----------
    port : GraphPort
        Walked.
    target : Node
        Shown, and fed by what is hidden.
    pixels : (rows, columns)
        Of the target's outputs.
    """

    def __init__(self, port: GraphPort, target: Node, pixels: Pixels) -> None:
        self.port, self.target, self.pixels = port, target, pixels
        self.hidden = list(port.hidden_before(target))
        self.blocks = [node.name for node in self.hidden if isinstance(node.op, Block)]
        inside = [*self.hidden, *([target] if isinstance(target.op, Block) else [])]
        self.right: dict[str, BlockProgram] = {
            node.name: plain(port.programs[node.name])
            for node in inside
            if isinstance(node.op, Block)
        }
        self._workspaces = {node.name: Workspace() for node in inside}
        self._needed = self._seen_by_target()

    def outputs(self, changes: Changes) -> Array | None:
        """The target's outputs, (N, O, P), if blocks compute something else; None if none do."""
        y: dict[str, Array] = {}
        same = all(self._fits(name, program) for name, program in changes.items())
        for node in self.hidden:
            if node.name in changes or not y.keys().isdisjoint(node.inputs):
                pixels = self._needed.get(node.name) if same else None
                y[node.name] = self._given(node, changes, y, pixels)
        if self.target.name not in changes and y.keys().isdisjoint(self.target.inputs):
            return None
        return self._at_target(changes, y)

    def _given(
        self, node: Node, changes: Changes, y: Mapping[str, Array], pixels: Pixels | None
    ) -> Array:
        """A node's whole output, right but at those pixels."""
        xs, right = self._inputs(node, y), self.port.known[node.name].y
        if not isinstance(node.op, Block):
            return self.port.forward(node, xs)
        program = changes.get(node.name, self.right[node.name])
        fed = not y.keys().isdisjoint(node.inputs)
        workspace = None if fed or pixels is None else self._workspaces[node.name]
        found = program.evaluate(xs[0], pixels, workspace)
        if pixels is None:
            return found.reshape(len(xs[0]), -1, *program.output_size(*xs[0].shape[2:]))
        whole = right.copy()
        whole[:, :, pixels[0], pixels[1]] = found
        return whole

    def _at_target(self, changes: Changes, y: Mapping[str, Array]) -> Array:
        xs, (rows, columns) = self._inputs(self.target, y), self.pixels
        if isinstance(self.target.op, Block):
            name = self.target.name
            return changes.get(name, self.right[name]).evaluate(xs[0], self.pixels)
        if isinstance(self.target.op, AddRelu):
            xs = [x[:, :, rows, columns][:, :, None] for x in xs]
            return self.port.forward(self.target, xs)[:, :, 0]
        return self.seen(self.port.forward(self.target, xs))

    def seen(self, whole: Array) -> Array:
        """The pixels of a whole output of the target's shape."""
        rows, columns = self.pixels
        return whole[:, :, None] if whole.ndim == 2 else whole[:, :, rows, columns]

    def _inputs(self, node: Node, y: Mapping[str, Array]) -> list[Array]:
        return [y[name] if name in y else self.port.known[name].y for name in node.inputs]

    def _fits(self, name: str, program: BlockProgram) -> bool:
        """Whether a hypothesis leaves the block's output of the size that it is."""
        x = self.port.known[self.port.nodes[name].inputs[0]].y
        size = self.right[name].output_size(*x.shape[2:])
        return program.output_size(*x.shape[2:]) == size

    def _seen_by_target(self) -> dict[str, Pixels]:
        """The pixels of each hidden node that the target's pixels hang on."""
        needed = {self.target.name: self.pixels}
        for node in (self.target, *reversed(self.hidden)):
            if node.name not in needed:
                continue
            for source in node.inputs:
                if source in {each.name for each in self.hidden}:
                    found = self._below(node, needed[node.name], self.port.known[source].y)
                    if source in needed:
                        found = _both(found, needed[source])
                    needed[source] = found
        return needed

    def _below(self, node: Node, pixels: Pixels, x: Array) -> Pixels:
        """The pixels of an input that an output's pixels see: all, of what is no block or sum."""
        if isinstance(node.op, AddRelu):
            return pixels
        if not isinstance(node.op, Block) or x.ndim == 2:
            return all_pixels(*(x.shape[2:] or (1, 1)))
        program, (height, width) = self.right[node.name], x.shape[2:]
        top, left, *_ = program.pads
        down, across = (np.arange(n) * program.dilation for n in program.size)
        rows = (pixels[0][:, None, None] * program.stride - top) + down[:, None]
        columns = (pixels[1][:, None, None] * program.stride - left) + across
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        seen = np.zeros((height, width), bool)
        seen[(rows + 0 * columns)[inside], (columns + 0 * rows)[inside]] = True
        return np.nonzero(seen)  # type: ignore[return-value]


def _both(first: Pixels, second: Pixels) -> Pixels:
    pairs = np.unique(np.concatenate([np.stack(first), np.stack(second)], axis=1), axis=1)
    return pairs[0], pairs[1]


class InsideEvidence(Evidence):
    """What the target shows of hidden blocks."""

    fits_parameters = False

    def __init__(self, route: Route, site: Site[Any], seen: Observation, precision: str) -> None:
        super().__init__(site, seen, precision)
        self.route = route

    def predict(self, program: Any) -> Array | None:
        """The target's outputs; `program` holds those of some blocks by their places."""
        try:
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
                found = self.route.outputs(program)
        except (*DO_NOT_FIT, ZeroDivisionError):
            return None
        if found is None or found.shape != self.seen.y.shape or not np.isfinite(found).all():
            return None
        return found


def inside_trials(port: GraphPort, target: Node, shown: LayerEvidence) -> Iterator[Trial]:
    """The bugs of the blocks hidden before `target` that may explain it, held against it.

    `shown` is what is seen of the target.
    """
    thin = shown.thinned(_PIXELS)
    route = Route(port, target, thin.pixels)
    if not route.blocks:
        return
    sites = _sites(route)
    made = {name: list(_planted(site, shown.precision)) for name, site in sites.items()}
    few = InsideEvidence(route, sites[route.blocks[0]], thin.seen, shown.precision)
    alone = [
        replace(mutant, variant=_joint({name: mutant.variant}))
        for name in route.blocks
        for mutant in made[name]
    ]
    strides = _strides(port, route)
    found: list[Trial] = []
    for mutants in (alone, [*strides, *_together(made)]):
        found += [trial for mutant in mutants if (trial := few.trial(mutant)) is not None]
        if any(trial.named for trial in found):
            break
    if not any(trial.named for trial in found):
        scaled = _scales(route, port.precision)
        found += _fitted(few, [t for m in scaled if (t := few.trial(m)) is not None])
        continuous = (t for t in found if t.mutant.bug.continuous and t.fit.explains > _SOME)
        found += _fitted(few, sorted(continuous, key=lambda t: t.fit.remaining)[:_FITTED])
    closer = _closer(port, target, shown, few.site)
    for trial in sorted(found, key=lambda t: t.fit.remaining):
        if trial.fit.explains > _SOME:
            held = closer.trial(trial.mutant)
            if held is not None:
                yield held


def together_trials(
    port: GraphPort, target: Node, shown: LayerEvidence, bug: str
) -> Iterator[Trial]:
    """One bug of the library in all hidden blocks before `target` that can have it, of several."""
    route = Route(port, target, shown.pixels)
    sites = _sites(route)
    made = {
        name: [each for each in _planted(site, shown.precision) if each.bug.name == bug]
        for name, site in sites.items()
    }
    for mutant in _together(made):
        held = _closer(port, target, shown, sites[mutant.layer or target.name]).trial(mutant)
        if held is not None:
            yield held


def _sites(route: Route) -> dict[str, Site[Any]]:
    """Where bugs of hidden blocks, and of the target if it is one, are planted."""
    port = route.port
    return {
        name: site_of(port.programs, name, port.known[port.nodes[name].inputs[0]].y)
        for name in route.right
    }


def _closer(port: GraphPort, target: Node, shown: LayerEvidence, site: Site[Any]) -> InsideEvidence:
    """All that is seen of the target."""
    return InsideEvidence(Route(port, target, shown.pixels), site, shown.seen, shown.precision)


def smallest_scales(port: GraphPort, target: Node) -> dict[str, float]:
    """The factors 1 + s on hidden blocks' outputs that `target` shows for certain: their least s.

    What such a factor changes is beyond the bound although rounding is against it by as much.
    """
    compared = port.comparisons[target.name]
    if target.name in port.inputs or compared.bound is None:
        return {}
    pixels = sample_pixels(*(compared.y.shape[2:] or (1, 1)))
    route = Route(port, target, (pixels[0][::_EVERY], pixels[1][::_EVERY]))
    y, room = (route.seen(array) for array in (compared.y, compared.bound.certified))
    found, larger = dict[str, float](), partial(_scaled, 1 + _STEP)
    for name in route.blocks:
        moved = route.outputs({name: route.right[name].with_kernel(larger)})
        if moved is not None and route.right[name].se is None:
            slope = np.abs(moved - y) / _STEP
            found[name] = 2 * float((room / np.maximum(slope, 1e-300)).min())
    return found


def _scaled(factor: float, kernel: FusedConv) -> FusedConv:
    """What ReLU lets through as it is."""
    return FusedConv(*(part * factor for part in kernel))


def _planted(site: Site[Any], precision: str) -> Iterator[Mutant[Any]]:
    for bug in bugs_for(site.program):
        try:
            yield from planted([bug], site, site.program.name, precision=precision)
        except DO_NOT_FIT:
            continue


def _fitted(few: InsideEvidence, trials: list[Trial]) -> list[Trial]:
    """Hypotheses with a number, with the number that fits best."""
    return [t for each in trials if (t := few.trial(few.fitted(each.mutant))) is not None]


def _scales(route: Route, precision: Precision) -> Iterator[Mutant[Any]]:
    """A factor on a hidden block's outputs, other than what arithmetics that are right make."""
    least = NO_ARITHMETIC * precision.unit
    for name in route.blocks:
        for step, room in ((_STEP, (1 + least, 2.0)), (-_STEP, (0.5, 1 - least))):
            at = partial(_scaled_at, name, route.right[name])
            yield Mutant(
                replace(_SCALE, admissible=room), Variant(at(1 + step), 1 + step, at=at), name
            )


def _scaled_at(name: str, right: BlockProgram, factor: float) -> Any:
    return {name: right.with_kernel(partial(_scaled, factor))}


def _together(made: Mapping[str, list[Mutant[Any]]]) -> Iterator[Mutant[Any]]:
    """The same bug in the same words in all blocks that can have it, of which there are more."""
    alike: dict[tuple[str, str], dict[str, Mutant[Any]]] = {}
    for name, mutants in made.items():
        for mutant in mutants:
            alike.setdefault((mutant.bug.name, mutant.says), {})[name] = mutant
    for same in alike.values():
        if len(same) > 1:
            variants = {name: mutant.variant for name, mutant in same.items()}
            yield replace(in_all(same), variant=_joint(variants))


def _joint(variants: Mapping[str, Variant[Any]]) -> Variant[Any]:
    first = next(iter(variants.values()))
    makers = {name: each.at for name, each in variants.items()}

    def at(value: float) -> dict[str, Any]:
        return {name: make(value) for name, make in makers.items() if make is not None}

    program: Any = {name: each.program for name, each in variants.items()}
    again: Callable[[float], Any] | None = None if first.at is None else at
    return first._replace(program=program, at=again)


def _strides(port: GraphPort, route: Route) -> Iterator[Mutant[Any]]:
    """A stride in another convolution of the same way: ResNet's v1 for v1.5, say."""
    for name, program in route.right.items():
        if program.stride == 1:
            continue
        for other in _way(port, route, name):
            right = route.right[other]
            if right.stride == 1:
                moved = {
                    name: replace(program, stride=1),
                    other: replace(right, stride=program.stride),
                }
                said: Any = moved
                yield Mutant(_STRIDE, Variant(said, detail=f"{other}, not of {name}"), name)


def _way(port: GraphPort, route: Route, name: str) -> Iterator[str]:
    """The blocks before and behind a block in a row of hidden ones."""
    at = port.nodes[name].inputs[0]
    while at in route.right:
        yield at
        at = port.nodes[at].inputs[0]
    behind = name
    for node in route.hidden:
        if node.inputs == (behind,) and node.name in route.right:
            behind = node.name
            yield behind
