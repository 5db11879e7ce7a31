"""Calls with what is wrong in their outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.probes.calls import Made
from repvgg_ref.oracle.probes.screen import Called, deviations, is_the_same
from repvgg_ref.oracle.programs.layers import Programs


def judged(
    made: Sequence[Made],
    programs: Programs,
    precision: Precision,
    *,
    used: float = 0.0,
    first: Outputs | None = None,
) -> list[Made]:
    """The calls with their deviations, all found in one walk over the layers.

    Parameters
    ----------
    made : sequence of Made
    programs : Programs
    precision : Precision
    used : float
        The most that a right first call used of any bound.
    first : Outputs, optional
        A right first call's: what repeats it up to rounding is right, too.
    """
    unknown = [m for m in made if m.outputs is not None and not _repeats(m, first, precision)]
    calls = [Called(m.x, m.outputs.layers) for m in unknown if m.outputs is not None]
    found = iter(deviations(programs, calls, precision, used) if calls else ())
    wrong = {id(m): deviation for m, deviation in zip(unknown, found, strict=True)}
    return [
        m
        if (deviation := wrong.get(id(m))) is None
        else replace(m, deviation=deviation, is_wrong=True)
        for m in made
    ]


def _repeats(made: Made, first: Outputs | None, precision: Precision) -> bool:
    images = made.probe.like_first
    if images is None or made.outputs is None or first is None:
        return False
    return is_the_same(made.outputs.layers, first.layers, images, precision)
