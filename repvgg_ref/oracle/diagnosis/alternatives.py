"""The logits of the reference with each known bug in it, in every layer and in each alone."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.bugs import LIBRARY, Hypothesis, Site
from repvgg_ref.oracle.programs.evaluate import evaluate
from repvgg_ref.oracle.programs.head import HEAD_BUGS, HeadProgram, evaluate_head
from repvgg_ref.oracle.programs.layers import Programs, block_output, head_program
from repvgg_ref.oracle.programs.program import BlockProgram, Workspace, fused_kernel, output_size


@dataclass(frozen=True)
class Alternative:
    """The logits of the reference with one bug in it; `layer` None: in every layer."""

    name: str
    layer: str | None
    says: str
    advice: str
    parameter: float | None
    logits: Array


@dataclass(frozen=True)
class Chain:
    """The reference network, runnable from any layer on.

    Attributes
    ----------
    programs : Programs
        Blocks with their branches, for bugs to change.
    plain : mapping
        The same blocks fused in float64, to run what comes after: one convolution each.
    inputs : mapping
        Layer -> the reference's own input of it.
    """

    names: tuple[str, ...]
    programs: Programs
    plain: Mapping[str, BlockProgram]
    head: HeadProgram
    inputs: Mapping[str, Array]

    def logits_from(self, at: int, x: Array) -> Array:
        """Run blocks `at`, `at + 1`, ... and the head."""
        for name in self.names[at:]:
            x = block_output(self.plain[name], x)
        return evaluate_head(self.head, x)

    def site(self, at: int, x: Array) -> Site:
        """Layer number `at` with the input `x`, for hypotheses."""
        name = self.names[at]
        alike = tuple(self.programs.alike(name))
        return Site(self.programs[name], x, None, at == 0, self.programs, alike)


def make_chain(model: Model, x: Array) -> Chain:
    """Run the reference once, keeping every layer's input."""
    programs = Programs(model)
    plain = {
        name: replace(program, branches={}, fused=fused_kernel(program))
        for name, program in programs.items()
    }
    inputs: dict[str, Array] = {}
    x = np.asarray(x, np.float64)
    for name, program in plain.items():
        inputs[name] = x
        x = block_output(program, x)
    inputs["linear"] = x
    return Chain(tuple(plain), programs, plain, head_program(model), inputs)


def alternatives(chain: Chain, precision: str) -> Iterator[Alternative]:
    """Every known bug: in all layers at once, then in each, then in the head.

    `precision` excuses its own rounding. Layers are worked on in parallel.
    """
    library = [h for h in LIBRARY if precision not in h.precision]
    everywhere = [h for h in library if h.global_bug]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(lambda h: list(_everywhere(chain, h)), everywhere):
            yield from found
        numbers = range(len(chain.names))
        for found in pool.map(lambda at: list(_in_layer(chain, at, library)), numbers):
            yield from found
    yield from _in_head(chain, precision)


def _in_layer(chain: Chain, at: int, library: list[Hypothesis]) -> Iterator[Alternative]:
    name, workspace = chain.names[at], Workspace()
    x = chain.inputs[name]
    site = chain.site(at, x)
    following = chain.names[at + 1] if at + 1 < len(chain.names) else "linear"
    right = chain.inputs[following]
    for hypothesis in library:
        for variant in hypothesis.variants(site):
            out = _output(variant.program, x, workspace)
            if out is None or out.shape[1] != right.shape[1]:
                continue
            if out.shape == right.shape and np.allclose(out, right, rtol=1e-13, atol=0):
                continue  # the bug changes nothing here
            yield Alternative(
                hypothesis.name,
                name,
                hypothesis.says.format(parameter=variant.parameter or 0.0, detail=variant.detail),
                hypothesis.advice,
                variant.parameter,
                chain.logits_from(at + 1, out),
            )


def _everywhere(chain: Chain, hypothesis: Hypothesis) -> Iterator[Alternative]:
    """The same variant in every layer where it exists; told apart by its words and parameter."""
    settings = {
        (variant.detail, variant.parameter)
        for at, name in enumerate(chain.names)
        for variant in hypothesis.variants(chain.site(at, chain.inputs[name]))
    }
    for detail, parameter in sorted(settings, key=str):
        x: Array | None = chain.inputs[chain.names[0]]
        for at, name in enumerate(chain.names):
            if x is None:
                break
            program = next(
                (
                    variant.program
                    for variant in hypothesis.variants(chain.site(at, x))
                    if (variant.detail, variant.parameter) == (detail, parameter)
                ),
                chain.plain[name],
            )
            x = _output(program, x)
        if x is not None:
            says = hypothesis.says.format(parameter=parameter or 0.0, detail=detail)
            logits = evaluate_head(chain.head, x)
            yield Alternative(hypothesis.name, None, says, hypothesis.advice, parameter, logits)


def _in_head(chain: Chain, precision: str) -> Iterator[Alternative]:
    for bug in HEAD_BUGS:
        for program, detail in bug.variants(chain.head) if precision not in bug.precision else ():
            logits = evaluate_head(program, chain.inputs["linear"])
            says = bug.says.format(detail=detail)
            yield Alternative(bug.name, "linear", says, bug.advice, None, logits)


def _output(program: BlockProgram, x: Array, workspace: Workspace | None = None) -> Array | None:
    """The whole batch's output, or None where it has no pixel left or overflows."""
    if not program.branches and program.fused is None:
        return x
    size = output_size(program, *x.shape[2:])
    if min(size) < 1:
        return None
    with np.errstate(all="ignore"):
        out = evaluate(program, x, workspace=workspace).reshape(len(x), -1, *size)
    return out if np.isfinite(out).all() else None
