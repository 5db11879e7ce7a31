"""The logits of the reference with each known bug in it, in every layer and in each alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs import LAYER_BUGS, Bug, Mutant
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.bugs.harness import mutants, output_of, site_of
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import Program, Workspace, layer_output

Alternative = tuple[Mutant[Any], Array]


class Chain:
    """The reference network, run once and runnable from any layer on.

    Attributes
    ----------
    plain : mapping
        The layers, blocks fused in float64, to run what comes after: one convolution each.
    inputs : mapping
        Layer -> the reference's own input of it.
    """

    def __init__(self, programs: Programs, x: Array) -> None:
        self.programs, self.names = programs, tuple(programs)
        self.plain: dict[str, Program] = {name: _plain(programs[name]) for name in programs}
        self.inputs: dict[str, Array] = {}
        x = np.asarray(x, np.float64)
        for name, program in self.plain.items():
            self.inputs[name] = x
            x = layer_output(program, x)
        self.logits = x

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


def _plain(program: Any) -> Any:
    if not isinstance(program, BlockProgram):
        return program
    return replace(program, branches={}, fused=program.fused_kernel())


def alternatives(chain: Chain, precision: str) -> Iterator[Alternative]:
    """Every known bug and its logits: in all blocks at once, then in each layer alone.

    `precision` excuses its own rounding. Layers are worked on in parallel.
    """
    everywhere = [b for b in LAYER_BUGS if b.scope != "layer" and precision not in b.precision]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(lambda bug: list(_everywhere(chain, bug)), everywhere):
            yield from found
        for found in pool.map(lambda name: list(_in_layer(chain, name, precision)), chain.names):
            yield from found


def _in_layer(chain: Chain, name: str, precision: str) -> Iterator[Alternative]:
    right, workspace = chain.after(name), Workspace()
    for site, mutant in mutants(chain.programs, chain.inputs, [name], precision=precision):
        out = output_of(mutant.variant.program, site.x, workspace)
        if out is None or out.shape[1] != right.shape[1]:
            continue
        if out.shape == right.shape and np.allclose(out, right, rtol=1e-13, atol=0):
            continue  # the bug changes nothing here
        yield replace(mutant, where=f" (in {name})"), chain.logits_after(name, out)


def _everywhere(chain: Chain, bug: Bug[Any]) -> Iterator[Alternative]:
    """The same variant in every block where it exists; told apart by its words and parameter."""
    *blocks, head = chain.names

    def found_at(name: str, x: Array) -> dict[tuple[str, float | None], Mutant[Any]]:
        found = planted([bug], site_of(chain.programs, name, x))
        return {(m.variant.detail, m.variant.parameter): m for m in found}

    settings: dict[tuple[str, float | None], Mutant[Any]] = {}
    for name in blocks:
        settings = found_at(name, chain.inputs[name]) | settings
    for setting in sorted(settings, key=str):
        x: Array | None = chain.inputs[blocks[0]]
        for name in blocks:
            if x is None:
                break
            mutant = found_at(name, x).get(setting)
            program = chain.plain[name] if mutant is None else mutant.variant.program
            x = output_of(program, x, Workspace())
        if x is not None:
            mutant = replace(settings[setting], where=" (in every layer)")
            yield mutant, chain.logits_from(head, x)
