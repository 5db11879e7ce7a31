"""Ports of a network with one bug in one layer, as they would be dumped: every layer in float32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT
from repvgg_ref.oracle.bugs import Mutant
from repvgg_ref.oracle.bugs.harness import mutants, output_of
from repvgg_ref.oracle.golden.mutation import MutationMatrix
from repvgg_ref.oracle.programs.layers import Programs


def layer_by_layer(
    programs: Programs, x: Array, at: str = "", program: Any = None
) -> dict[str, Array] | None:
    """Every layer's output, float32, with `program` in the place of the layer `at`.

    None where that gives no numbers, or another size.
    """
    known: dict[str, Array] = {INPUT: np.asarray(x)}
    for name, right in programs.items():
        given = programs.input_of(name, known)
        assert given is not None
        y = output_of(program if name == at else right, given)
        if y is None or y.shape[2:] != right.output_size(*given.shape[2:]):
            return None
        known[name] = y.astype(np.float32)
    del known[INPUT]
    return known


def planted_in(programs: Programs, x: Array, name: str) -> Iterator[Mutant[Any]]:
    """Every bug of one layer, planted there alone."""
    known = {INPUT: np.asarray(x), **(layer_by_layer(programs, x) or {})}
    given = programs.input_of(name, known)
    assert given is not None
    rolled = {name: np.roll(known[name], 1, axis=1)}
    for _, mutant in mutants(programs, {name: given}, [name], outputs=rolled):
        yield mutant


def counted(matrix: MutationMatrix) -> set[tuple[str, str, str]]:
    """Bug, layer and setting of every mutant that computes another function."""
    return {(m.bug, m.layer, m.detail) for m in matrix.mutants if m.fate != "equivalent"}
