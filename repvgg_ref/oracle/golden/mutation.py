"""Do these vectors notice? Every known bug is planted in every layer and must be seen.

A mutant is killed if its output has another shape, is not finite, leaves the certified bound, or
is found by regression (`Trial.is_hidden`) although float32 rounding lies on top of it: that
of our own float32 forward pass. What is left has survived: these vectors would let it pass.

A mutant that computes the *same function whatever the weights* does not count. That is proven by
comparing programs bit by bit, for this model's weights and for generic ones; if only this model's
make them equal (an ignored mean of 0), the reference hides the bug and it has survived. Where every
branch ends in a ReLU their sum is not negative, nor is it behind a gate, so that what an activation
does below 0 is no part of the function: without it, or leaky, it is the same one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bounds.block import Bound, layer_bound
from repvgg_ref.oracle.bounds.nodes import node_bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs import BETWEEN_BUGS, HEAD_BUGS, LAYER_BUGS, NODE_BUGS, Bug, Mutant, Site
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.harness import mutants
from repvgg_ref.oracle.diagnosis.evidence import LayerEvidence
from repvgg_ref.oracle.golden.arrays import float32_outputs
from repvgg_ref.oracle.programs.activation import AS_IS_ABOVE_ZERO
from repvgg_ref.oracle.programs.between import BetweenProgram
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.distinguishing import distinguishing_block
from repvgg_ref.oracle.programs.head import HeadProgram
from repvgg_ref.oracle.programs.layers import Programs, block_program
from repvgg_ref.oracle.programs.node import NodeProgram, wide_pass
from repvgg_ref.oracle.programs.program import layer_output

Fate = Literal["bound", "regression", "shape", "not-finite", "equivalent", "hidden"]
Progress = Callable[[str, int, int], None]

# One letter a layer in the manifest's matrix; the worst of a bug's variants counts.
LETTERS: dict[Fate, str] = {
    "shape": "S",
    "not-finite": "N",
    "bound": "B",
    "regression": "R",
    "equivalent": "E",
    "hidden": "H",
}
NOT_APPLICABLE = "."
_FROM_BEST_TO_WORST: tuple[Fate, ...] = tuple(LETTERS)
_LIBRARY: tuple[tuple[Bug[Any], ...], ...] = (LAYER_BUGS, BETWEEN_BUGS, HEAD_BUGS)

_NAMES = tuple(bug.name for bugs in _LIBRARY for bug in bugs)

# Bugs whose input map only moves values about, so that what it does to positions is all it does.
_MOVES = frozenset({"input-memory-layout", "groups-permuted", "input-mirrored"})

# What makes a bug invisible, where its name says enough.
_WHY = {
    "se-pool": "height equals width, so a square window is the whole image",
    "se-gate": "the hidden units are on for every image, or the gates do not vary",
    "mean-": "running means are (nearly) 0",
    "beta-ignored": "beta is 0",
    "gamma-ignored": "gamma is 1",
    "eps": "the variances are large compared with eps",
    "stale-statistics": "the statistics are the initial ones",
    "default-batch-norm": "batch norm does nothing here",
    "var-used-as-std": "the variances are 1",
    "other-activation": "no output reaches the range where the functions differ",
    "input-": "the images hardly change under it",
}


@dataclass(frozen=True)
class Planted:
    """One planted bug: where, which setting of it, and what became of it.

    `ratio` is the largest change over the certified fp32 bound.
    """

    bug: str
    layer: str
    detail: str
    fate: Fate
    ratio: float = 0.0
    reason: str = ""

    @property
    def killed(self) -> bool:
        """Whether the vectors notice it."""
        return self.fate not in ("hidden", "equivalent")


@dataclass(frozen=True)
class MutationMatrix:
    """All mutants of one model on one batch."""

    layers: tuple[str, ...]
    mutants: tuple[Planted, ...]

    @property
    def counted(self) -> int:
        """Mutants that compute another function."""
        return sum(mutant.fate != "equivalent" for mutant in self.mutants)

    @property
    def killed(self) -> int:
        """Mutants that are noticed."""
        return sum(mutant.killed for mutant in self.mutants)

    @property
    def score(self) -> float:
        """Killed over counted, 0 to 1."""
        return self.killed / self.counted if self.counted else 0.0

    @property
    def survivors(self) -> tuple[Planted, ...]:
        """What these vectors would let pass."""
        return tuple(mutant for mutant in self.mutants if mutant.fate == "hidden")

    def rows(self) -> dict[str, str]:
        """Bug -> one letter a layer (see `LETTERS`, `NOT_APPLICABLE`); the worst variant's.

        Of bugs between blocks those that were planted.
        """
        worst: dict[tuple[str, str], int] = {}
        for mutant in self.mutants:
            rank = _FROM_BEST_TO_WORST.index(mutant.fate)
            key = mutant.bug, mutant.layer
            worst[key] = max(worst.get(key, 0), rank)
        return {
            bug: "".join(
                LETTERS[_FROM_BEST_TO_WORST[worst[bug, layer]]]
                if (bug, layer) in worst
                else NOT_APPLICABLE
                for layer in self.layers
            )
            for bug in dict.fromkeys((*_NAMES, *(mutant.bug for mutant in self.mutants)))
        }


def mutation_matrix(model: Model, x: Array, *, progress: Progress | None = None) -> MutationMatrix:
    """Plant every known bug in every layer, one at a time.

    Parameters
    ----------
    model : Model
        The reference, train or deploy form.
    x : array, shape (N, in_channels, H, W)
    progress : callable, optional
        ``progress(layer, done, total)``.

    Returns
    -------
    MutationMatrix
    """
    programs, names = Programs(model), model.arch.layer_names
    outputs = {name: y.astype(np.float64) for name, y in float32_outputs(model, x).items()}
    # Each layer is given what a float32 port hands on, so that every input fits into float32.
    given = {INPUT: np.asarray(x, np.float64), **outputs}
    inputs = _Inputs(programs, given)
    rolled = {name: np.roll(y, 1, axis=1) for name, y in outputs.items()}
    tests = len(names) * (len(LAYER_BUGS) + len(BETWEEN_BUGS) + len(HEAD_BUGS))
    found: list[Planted] = []
    for done, name in enumerate(names):
        layer: PlantedLayer | None = None
        for site, mutant in mutants(
            programs, inputs, [name] if name in programs else (), outputs=rolled
        ):
            if layer is None:
                y = layer_output(site.program, site.x)
                bound = layer_bound(site.program, site.x, y, PRECISIONS["fp32"])
                layer = PlantedLayer(model, site, y, outputs[name], bound, tests)
            found.append(layer.judged(mutant))
        found += _between(model, name, given) if name not in programs else ()
        if isinstance(programs.get(name), BlockProgram):
            found += swapped_sides(inputs[name], name)
        if progress is not None:
            progress(name, done + 1, len(names))
    return MutationMatrix(names, tuple(found))


class _Inputs(Mapping[str, Array]):
    """Layer -> its input, put together when asked for."""

    def __init__(self, programs: Programs, known: Mapping[str, Array]) -> None:
        self._programs, self._known = programs, known

    def __getitem__(self, name: str) -> Array:
        found = self._programs.input_of(name, self._known)
        if found is None:
            raise KeyError(name)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._programs)

    def __len__(self) -> int:
        return len(self._programs)


def _between(model: Model, name: str, given: Mapping[str, Array]) -> Iterator[Planted]:
    """What can be wrong between blocks: a residual sum without its shortcut, say."""
    node = next(node for node in model.arch.evaluated if node.name == name)
    if not set(node.inputs) <= given.keys():
        return
    run, xs = wide_pass(model), tuple(given[source] for source in node.inputs)
    site = Site(NodeProgram(node, xs, run), xs[0], given[name])
    bound = node_bound(node, list(xs), run, PRECISIONS["fp32"])
    mutants = list(planted(NODE_BUGS, site, name))
    if mutants:
        y = site.program.y
        layer = PlantedLayer(model, site, y, given[name], Bound(bound, bound), tests=0)
        yield from map(layer.judged, mutants)


def swapped_sides(x: Array, layer: str) -> list[Planted]:
    """A block with height and width exchanged: on an image that is no square its shape tells."""
    height, width = x.shape[2:]
    return [Planted("height-width-swapped", layer, "", "shape")] if height != width else []


class PlantedLayer:
    """One layer on one input: the right output, its bounds, and float32's own errors.

    Parameters
    ----------
    y, single : arrays
        The exact output of `site`, and what a right float32 port gives.
    tests : int
        How many regressions there are in all; 0 where certified bounds alone judge.
    """

    def __init__(
        self, model: Model, site: Site[Any], y: Array, single: Array, bound: Bound, tests: int
    ) -> None:
        self.model, self.site, self.single, self.tests = model, site, single, tests
        self.y, self.bound = y, bound
        self.sampled = self._evidence(everywhere=False)

    def _evidence(self, *, everywhere: bool) -> LayerEvidence:
        """What a right float32 port gives."""
        return LayerEvidence(self.site, self.y, self.single, self.bound, everywhere=everywhere)

    def judged(self, mutant: Mutant[Any]) -> Planted:
        """What becomes of one mutant."""
        bug, program = mutant.bug.name, mutant.variant.program
        name, label = self.site.program.name, mutant.variant.label
        if program.output_size(*self.site.x.shape[2:]) != self.y.shape[2:]:
            return Planted(bug, name, label, "shape")
        fate, ratio = self._fate(mutant, self.sampled)
        if fate == "hidden":  # the pixels that were left out may tell
            fate, ratio = self._fate(mutant, self._evidence(everywhere=True))
        reason = _reason(bug, fate, ratio)
        if fate == "hidden" and _is_same_function(bug, program, self.site):
            if self._is_same_for_all_weights(mutant):
                fate, reason = "equivalent", ""
            else:
                reason = "the same function with this reference's numbers"
        return Planted(bug, name, label, fate, ratio, reason)

    def _fate(self, mutant: Mutant[Any], evidence: LayerEvidence) -> tuple[Fate, float]:
        """Whether a port with this bug, and float32's rounding on top, is noticed."""
        seen = evidence.seen
        with np.errstate(all="ignore"):
            predicted = mutant.variant.program.evaluate(
                self.site.x, evidence.pixels, evidence.workspace
            )
        if predicted.shape != seen.y.shape:
            return "shape", 0.0
        if not np.isfinite(predicted).all():
            return "not-finite", 0.0
        change = np.abs(predicted - seen.y)
        ratio = float((change / seen.certified).max())
        if not change.any():
            return "hidden", 0.0
        port = replace(seen, y_hat=predicted + (seen.y_hat - seen.y))
        if (np.abs(port.residual) > seen.certified).any():
            return "bound", ratio
        trial = port.compare(mutant, predicted) if self.tests else None
        found = trial is not None and trial.is_hidden(self.tests)
        return ("regression" if found else "hidden"), ratio

    def _is_same_for_all_weights(self, mutant: Mutant[Any]) -> bool:
        """Whether the bug changes nothing with generic weights either."""
        if not isinstance(self.site.program, BlockProgram):
            return True
        variants = {v.label: v.program for v in mutant.bug.mutate(self._generic)}
        label = mutant.variant.label
        return label not in variants or _is_same_function(
            mutant.bug.name, variants[label], self._generic
        )

    @cached_property
    def _generic(self) -> Site[BlockProgram]:
        """The block with other weights, which coincide nowhere."""
        right, rng = self.site.program, np.random.default_rng(0)
        params = distinguishing_block(right.spec, self.site.x, rng, right.eps)
        for part, like in zip(("weight", "bias"), right.fused or (), strict=False):
            params[f"{right.name}.fused.{part}"] = rng.normal(size=like.shape)
        other = replace(self.model, params=self.model.params | params)
        return replace(self.site, program=block_program(other, right.spec))


def _is_same_function(bug: str, program: Any, site: Site[Any]) -> bool:
    """Proof: all is the same, bit by bit, but for the order in which a kernel is fused."""
    right = site.program
    if isinstance(right, BetweenProgram):
        return False  # each is another function by its name
    if isinstance(right, NodeProgram):
        return False  # it has no weights: what changes nothing on these inputs does on others
    if isinstance(right, HeadProgram):
        return _is_equal(program, right, ("pool", "input_map", "output_map", "weight", "bias"))
    if bug in _MOVES and program.input_map is not None:
        positions = np.arange(site.x.size).reshape(site.x.shape)
        if np.array_equal(program.input_map(positions), positions):
            program = replace(program, input_map=right.input_map)
    if program.is_skipped or (program.se is None) != (right.se is None):
        return False
    program, right = _on_what_occurs(program), _on_what_occurs(right)
    kernels = zip(program.fused_kernel(), right.fused_kernel(), strict=True)
    squeeze = zip(program.se or (), right.se or (), strict=True)
    return _is_equal(program, right, _SETTINGS) and all(
        np.array_equal(mine, theirs) for mine, theirs in (*kernels, *squeeze)
    )


def _on_what_occurs(program: BlockProgram) -> BlockProgram:
    """The program without those activations that change nothing of a sum of ReLUs.

    Gates are from 0 to 1; a changed fused kernel is no sum of branches any more.
    """
    if not program.relu_inside or program.kernel_map is not None:
        return program
    left = [step for step in program.activation.split("-") if step not in AS_IS_ABOVE_ZERO]
    return replace(program, activation="-".join(left) or "none")


# What a block's function consists of, besides its fused kernel and its squeeze-and-excitation.
_SETTINGS = (
    *("stride", "dilation", "groups", "pads", "pad_mode", "relu_inside"),
    *("activation", "se_pool", "se_gate", "input_map", "output_map"),
)


def _is_equal(program: Any, right: Any, fields: tuple[str, ...]) -> bool:
    return all(np.array_equal(getattr(program, f), getattr(right, f)) for f in fields)


def _reason(bug: str, fate: Fate, ratio: float) -> str:
    """Why a mutant was not noticed."""
    if fate != "hidden":
        return ""
    size = f"changes at most {ratio:.2g} of the bound" if ratio else "changes nothing on these"
    why = next((why for start, why in _WHY.items() if bug.startswith(start)), "")
    return f"{size}: {why}" if why else size
