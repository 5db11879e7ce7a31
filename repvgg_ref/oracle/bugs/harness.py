"""The one mutation harness: every bug of the library, everywhere it applies in a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs import bugs_for
from repvgg_ref.oracle.bugs.base import Mutant, Site, planted
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import Program, Workspace, batch_output


def site_of(programs: Programs, name: str, x: Array, y_hat: Array | None = None) -> Site[Any]:
    """One layer of a model on the input `x`, for bugs to be tried at."""
    is_stem = name == programs.model.arch.layer_names[0]
    return Site(programs[name], x, y_hat, is_stem, programs, programs.alike(name))


def mutants(
    programs: Programs,
    inputs: Mapping[str, Array],
    names: Iterable[str] | None = None,
    *,
    outputs: Mapping[str, Array] | None = None,
    precision: str = "",
) -> Iterator[tuple[Site[Any], Mutant[Any]]]:
    """Plant every bug, one at a time, in every layer of a model (or those of `names`).

    Parameters
    ----------
    inputs : mapping
        Layer -> its input.
    outputs : mapping, optional
        Layer -> what a candidate gave there, for the bugs that read it.
    precision : str
        Excuses its own rounding.
    """
    for name in programs if names is None else names:
        site = site_of(programs, name, inputs[name], (outputs or {}).get(name))
        for mutant in planted(bugs_for(site.program), site, name, precision=precision):
            yield site, mutant


def output_of(program: Program, x: Array, workspace: Workspace | None = None) -> Array | None:
    """A mutant's whole output; None where it has no pixel left or overflows."""
    if min(program.output_size(*x.shape[2:]), default=1) < 1:
        return None
    with np.errstate(all="ignore"):
        out = batch_output(program, x, workspace)
    return out if np.isfinite(out).all() else None
