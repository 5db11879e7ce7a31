"""What stands inside a branch, before its last convolution or its last norm: norms and sums.

``BN(BN3(W3 x) + W1 x + x)`` has a branch with a norm of its own inside, a diverse-branch block
``W2 BN((W1 + I) x)``. A `Branch` says only what such a part comes to, so what is wrong inside of it
is computed anew from the block's arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, branches_of
from repvgg_ref.blocks.catalogue import linear_expression
from repvgg_ref.blocks.linear import Chain, Identity, Sum
from repvgg_ref.blocks.parts import norms_in
from repvgg_ref.blocks.run import NORM_VECTORS, Linear, Run
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.blocks.unfuse import leaf_name, leaves
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.programs.block import BlockProgram


@lru_cache(maxsize=1024)
def inner_norms(spec: BlockSpec) -> tuple[str, ...]:
    """The batch norms inside branches, each once."""
    found = (norm.name for leaf in _composed(spec).values() for norm in norms_in(leaf))
    return tuple(dict.fromkeys(found))


@lru_cache(maxsize=1024)
def inner_terms(spec: BlockSpec) -> Mapping[str, tuple[str, bool]]:
    """What is summed inside branches, by name: the branch, and whether it is the identity."""
    return {
        leaf_name(part): (branch, isinstance(part, Identity))
        for branch, leaf in _composed(spec).items()
        for part in _terms(leaf)
    }


def with_inner_norms(
    program: BlockProgram, change: Callable[[str, Branch], Branch]
) -> BlockProgram:
    """The program with its inner norms changed; each comes as a branch that has nothing else."""
    parts = dict(program.parts)
    for name in inner_norms(program.spec):
        vectors = {field: parts[f"{name}.{field}"] for field in NORM_VECTORS}
        nothing = np.zeros((len(vectors["gamma"]), 1, 1, 1))
        changed = change(name, Branch(nothing, **vectors))
        parts |= {f"{name}.{field}": getattr(changed, field) for field in NORM_VECTORS}
    return _recomputed(replace(program, parts=parts))


def without_inner(program: BlockProgram, term: str) -> BlockProgram:
    """The program that leaves out one of `inner_terms`."""
    return _recomputed(replace(program, lacks=program.lacks | {term}))


def batch_vectors(program: BlockProgram, x: Array) -> dict[str, tuple[Array, Array]]:
    """Mean and biased variance of what each norm sees of a batch; empty without inner norms."""
    if not program.parts:
        return {}
    run = Run(program.parts, REFERENCE, program.eps, training=True)
    _expression(program).forward(np.asarray(x, np.float64), run)
    return {name: (seen.mean, seen.var) for name, seen in run.stats.items()}


def _recomputed(program: BlockProgram) -> BlockProgram:
    """The program with its composed branches as its `parts` make them; their last norms stay."""
    spec = program.spec
    params = {f"{spec.name}.{name}": array for name, array in program.parts.items()}
    made = branches_of(spec, params, program.eps, _expression(program))

    def anew(name: str, branch: Branch) -> Branch:
        if name not in _composed(spec):
            return branch
        vectors = {field: getattr(branch, field) for field in NORM_VECTORS}
        return made[name]._replace(**vectors)

    return program.with_branches(anew)


def _expression(program: BlockProgram) -> Linear:
    kept: Linear = _without(linear_expression(program.spec), program.lacks)
    return kept


def _without(linear: Any, lacks: frozenset[str]) -> Any:
    if not isinstance(linear, Sum | Chain) or not lacks:
        return linear
    kept = [
        part
        for part in linear.parts
        if not (isinstance(linear, Sum) and hasattr(part, "name") and leaf_name(part) in lacks)
    ]
    return type(linear)(*(_without(part, lacks) for part in kept))


@lru_cache(maxsize=1024)
def _composed(spec: BlockSpec) -> Mapping[str, Linear]:
    """The branches that are more than one convolution and its norm."""
    found = ((leaf_name(leaf), leaf) for leaf, _ in leaves(linear_expression(spec)))
    return {name: leaf for name, leaf in found if isinstance(leaf, Chain)}


def _terms(linear: Any) -> Iterator[Any]:
    """The named terms of every sum in an expression that has several."""
    for part in getattr(linear, "parts", ()):
        if isinstance(linear, Sum) and len(linear.parts) > 1 and hasattr(part, "name"):
            yield part
        yield from _terms(part)
