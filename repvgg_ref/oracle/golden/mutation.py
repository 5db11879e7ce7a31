"""Do these vectors notice? Every known bug is planted in every layer and must be seen.

A mutant is killed if its output has another shape, is not finite, leaves the certified bound, or
is found by regression (`Observation.is_hidden`) although float32 rounding lies on top of it: that
of our own float32 forward pass. What is left has survived: these vectors would let it pass.

A mutant that computes the *same function whatever the weights* does not count. That is proven by
comparing programs bit by bit, for this model's weights and for generic ones; if only this model's
make them equal (an ignored mean of 0), the reference hides the bug and it has survived.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.block import block_branches, fused_block_forward, train_block_forward
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.network import Model
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.bounds.block import block_bound, head_bound
from repvgg_ref.oracle.bounds.precision import PRECISIONS
from repvgg_ref.oracle.bugs import LIBRARY, Hypothesis, Site, Variant
from repvgg_ref.oracle.diagnosis.diagnose import sample_pixels
from repvgg_ref.oracle.diagnosis.trials import Bug, Observation
from repvgg_ref.oracle.programs.distinguishing import distinguishing_block
from repvgg_ref.oracle.programs.evaluate import evaluate
from repvgg_ref.oracle.programs.head import HEAD_BUGS, HeadProgram, evaluate_head
from repvgg_ref.oracle.programs.layers import Programs, block_output, head_program
from repvgg_ref.oracle.programs.program import (
    BlockProgram,
    Workspace,
    correct_program,
    fused_kernel,
    output_size,
)

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
class Mutant:
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
    mutants: tuple[Mutant, ...]

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
    def survivors(self) -> tuple[Mutant, ...]:
        """What these vectors would let pass."""
        return tuple(mutant for mutant in self.mutants if mutant.fate == "hidden")

    def rows(self) -> dict[str, str]:
        """Bug -> one letter a layer (see `LETTERS`, `NOT_APPLICABLE`); the worst variant's."""
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
            for bug in dict.fromkeys([*(h.name for h in LIBRARY), *(b.name for b in HEAD_BUGS)])
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
    tests = len(names) * (len(LIBRARY) + len(HEAD_BUGS))
    mutants: list[Mutant] = []
    y = np.asarray(x, np.float64)
    for done, spec in enumerate(model.arch.blocks):
        program = programs[spec.name]
        site = Site(
            program, y, is_stem=done == 0, others=programs, alike=tuple(programs.alike(spec.name))
        )
        layer = _BlockUnderTest(model, site, tests)
        mutants += layer.mutants()
        y = layer.next_input
        if progress is not None:
            progress(spec.name, done + 1, len(names))
    mutants += _head_mutants(head_program(model), y, tests)
    if progress is not None:
        progress("linear", len(names), len(names))
    return MutationMatrix(names, tuple(mutants))


class _BlockUnderTest:
    """One block on one input: the right output, its bounds, and float32's own errors."""

    def __init__(self, model: Model, site: Site, tests: int) -> None:
        program, x = site.program, site.x
        self.spec, self.tests = program.spec, tests
        self.y = block_output(program, x)
        bound = block_bound(program, x, self.y, PRECISIONS["fp32"])
        self.certified, self.likely = bound.certified, bound.likely
        single = _float32_output(model, program.spec, x)
        self.rounding = single - self.y
        self.next_input = single  # what a float32 port hands on, so every x fits into float32
        rolled = np.roll(self.y, 1, axis=1)
        self.site = Site(program, x, rolled, site.is_stem, others=site.others, alike=site.alike)
        self.pixels = sample_pixels(*self.y.shape[2:])
        self._workspace = Workspace()

    def mutants(self) -> Iterator[Mutant]:
        """Every variant of every hypothesis that applies here."""
        for hypothesis in LIBRARY:
            for variant in hypothesis.variants(self.site):
                yield self._judged(hypothesis, variant.program, _detail(variant))
        height, width = self.site.x.shape[2:]
        if height != width:
            # The hypothesis needs a square image: on another one the shape gives the bug away.
            yield Mutant("height-width-swapped", self.spec.name, "", "shape")

    def _judged(self, bug: Hypothesis, program: BlockProgram, detail: str) -> Mutant:
        name = self.spec.name
        skipped = not program.branches and program.fused is None
        if not skipped and output_size(program, *self.site.x.shape[2:]) != self.y.shape[2:]:
            return Mutant(bug.name, name, detail, "shape")
        rows, columns = self.pixels
        seen = _seen(name, *(a[:, :, rows, columns] for a in self._arrays()))
        with np.errstate(all="ignore"):
            predicted = evaluate(program, self.site.x, self.pixels, self._workspace)
            fate, ratio = _fate(bug, seen, predicted, self.tests)
            if fate == "hidden":  # the pixels that were left out may tell
                everywhere = _seen(name, *(_flat(a) for a in self._arrays()))
                predicted = evaluate(program, self.site.x)
                fate, ratio = _fate(bug, everywhere, predicted, self.tests)
        reason = ""
        if fate == "hidden" and _is_same_function(bug, program, self.site):
            if self._is_same_for_all_weights(bug, detail):
                fate = "equivalent"
            else:
                reason = "the same function with this reference's numbers"
        return Mutant(bug.name, name, detail, fate, ratio, reason or _reason(bug.name, fate, ratio))

    def _is_same_for_all_weights(self, bug: Hypothesis, detail: str) -> bool:
        """Whether the bug changes nothing with generic weights either."""
        generic = self._generic
        variants = {_detail(v): v.program for v in bug.variants(generic)}
        return detail not in variants or _is_same_function(bug, variants[detail], generic)

    @cached_property
    def _generic(self) -> Site:
        """The block with other weights, which coincide nowhere."""
        right, rng = self.site.program, np.random.default_rng(0)
        params = distinguishing_block(self.spec, self.site.x, rng, right.eps)
        if right.fused is None:
            branches = block_branches(self.spec, params)
        else:
            branches = {}
            for part, like in zip(("weight", "bias"), right.fused, strict=True):
                params[f"{self.spec.name}.fused.{part}"] = rng.normal(size=like.shape)
        program = correct_program(self.spec, params, right.eps, branches)
        return replace(self.site, program=program)

    def _arrays(self) -> tuple[Array, Array, Array, Array]:
        return self.y, self.rounding, self.certified, self.likely


def _is_same_function(bug: Hypothesis, program: BlockProgram, site: Site) -> bool:
    """Proof: the same geometry and activation, no maps, and the same taps, bit by bit."""
    right = site.program
    if bug.name in _MOVES and program.input_map is not None:
        positions = np.arange(site.x.size).reshape(site.x.shape)
        if np.array_equal(program.input_map(positions), positions):
            program = replace(program, input_map=right.input_map)
    same = all(
        getattr(program, field) == getattr(right, field)
        for field in (
            *("stride", "dilation", "groups", "pads", "pad_mode", "relu_inside"),
            *("activation", "se_pool", "se_gate", "input_map", "output_map"),
        )
    )
    if not same or not (program.branches or program.fused):
        return False
    if (program.se is None) != (right.se is None):
        return False
    kernels = zip(fused_kernel(program), fused_kernel(right), strict=True)
    squeeze = zip(program.se or (), right.se or (), strict=True)
    return all(np.array_equal(mine, theirs) for mine, theirs in (*kernels, *squeeze))


def _detail(variant: Variant) -> str:
    if variant.detail or variant.parameter is None:
        return variant.detail
    return f"{variant.parameter:g}"


def _float32_output(model: Model, spec: BlockSpec, x: Array) -> Array:
    """What a plain float32 port gives, widened."""
    params = {
        name: np.asarray(array).astype(np.float32)
        for name, array in model.params.items()
        if name.startswith(f"{spec.name}.")
    }
    single = x.astype(np.float32)
    if model.form == "deploy":
        y = fused_block_forward(spec, params, single, ops=REFERENCE)
    else:
        y, _ = train_block_forward(
            spec, params, single, ops=REFERENCE, eps=model.eps, training=False
        )
    return y.astype(np.float64)


def _flat(array: Array) -> Array:
    return array.reshape(*array.shape[:2], -1)  # (N, O, Ho, Wo) -> (N, O, P)


def _seen(layer: str, y: Array, rounding: Array, certified: Array, likely: Array) -> Observation:
    """What a right float32 port gives, at some pixels."""
    return Observation(layer, y, y + rounding, certified, likely)


def _fate(bug: Bug, seen: Observation, predicted: Array, tests: int) -> tuple[Fate, float]:
    """What becomes of a mutant whose exact output is `predicted`, (N, O, P)."""
    if predicted.shape != seen.y.shape:
        return "shape", 0.0
    if not np.isfinite(predicted).all():
        return "not-finite", 0.0
    change = np.abs(predicted - seen.y)
    ratio = float((change / seen.certified).max())
    if not change.any():
        return "hidden", 0.0
    rounding = seen.y_hat - seen.y
    if (np.abs(predicted + rounding - seen.y) > seen.certified).any():
        return "bound", ratio
    port = Observation(seen.layer, seen.y, predicted + rounding, seen.certified, seen.likely)
    trial = port.compare(bug, predicted)
    found = trial is not None and port.is_hidden(trial, tests)
    return ("regression" if found else "hidden"), ratio


def _head_mutants(head: HeadProgram, x: Array, tests: int) -> Iterator[Mutant]:
    """The same for pool and linear layer."""
    y = evaluate_head(head, x)
    bound = head_bound(head.weight, head.bias, x, y, PRECISIONS["fp32"])
    single = x.astype(np.float32).mean(axis=(2, 3)) @ head.weight.astype(np.float32).T
    rounding = (single + head.bias.astype(np.float32)).astype(np.float64) - y
    arrays = (array[:, :, None] for array in (y, rounding, bound.certified, bound.likely))
    seen = _seen("linear", *arrays)
    for bug in HEAD_BUGS:
        for program, detail in bug.variants(head):
            with np.errstate(all="ignore"):
                fate, ratio = _fate(bug, seen, evaluate_head(program, x)[:, :, None], tests)
            if fate == "hidden" and _is_same_head(program, head):
                fate = "equivalent"
            yield Mutant(bug.name, "linear", detail, fate, ratio, _reason(bug.name, fate, ratio))


def _is_same_head(program: HeadProgram, head: HeadProgram) -> bool:
    return (
        program.pool == head.pool
        and program.input_map is head.input_map
        and program.output_map is head.output_map
        and np.array_equal(program.weight, head.weight)
        and np.array_equal(program.bias, head.bias)
    )


def _reason(bug: str, fate: Fate, ratio: float) -> str:
    """Why a mutant was not noticed."""
    if fate != "hidden":
        return ""
    size = f"changes at most {ratio:.2g} of the bound" if ratio else "changes nothing on these"
    why = next((why for start, why in _WHY.items() if bug.startswith(start)), "")
    return f"{size}: {why}" if why else size
