"""Every layer of a port compared with the reference's, in its order and scale."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT
from repvgg_ref.oracle.blas import single_threaded_blas
from repvgg_ref.oracle.bounds.comparison import Comparison, compare, relative_difference
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.candidates import Outputs
from repvgg_ref.oracle.diagnosis.explain import Case
from repvgg_ref.oracle.estimates.port import is_estimable
from repvgg_ref.oracle.programs.flow import go_on, inputs_of_layers
from repvgg_ref.oracle.programs.head import HeadProgram
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import layer_output
from repvgg_ref.oracle.report import Equivalence
from repvgg_ref.oracle.symmetry.outputs import FINER_ROOMS, Aligned, align

Progress = Callable[[str, int, int], None]

_FAR = 0.01  # of a layer's largest output: a hundred times what is looked into further


def aligned(
    programs: Programs,
    outputs: Outputs,
    x: Array,
    precision: Precision,
    candidate: str,
    progress: Progress | None,
) -> tuple[Case, tuple[Equivalence, ...]]:
    """The layers compared, once in the reference's order and scale as far as rounding is sure.

    A port that is not right so may be right, or wrong in fewer layers, with factors nearer to 1.
    """

    def compared(given: Aligned) -> Case:
        layers, same, _, refused = given
        comparisons, unjudged = compare_all(programs, layers, x, precision, progress)
        behind = frozenset(n for n in programs if not _is_estimated(programs, n, precision, same))
        unjudged |= {name: why for name, why in refused.items() if name in behind}
        return Case(programs, comparisons, x, layers, precision, unjudged, candidate, behind)

    if not programs.model.arch.is_chain:
        return compared(Aligned(outputs, (), {}, {})), ()
    found = align(programs, x, outputs, precision=precision.number_format)
    best, same = compared(found), found.equivalences
    if _is_far_off(best):
        return best, same
    for room in FINER_ROOMS.get(precision.name, ()):
        if best.is_right:
            break
        found = align(programs, x, outputs, room=room)
        if not found.equivalences:
            continue
        tried = compared(found)
        if _wrong(tried) < _wrong(best):
            best, same = tried, found.equivalences
    if not best.is_right and found.unsure:  # right if the next layers take back all that they may?
        found = align(programs, x, outputs, room=room, surely=False)
        tried = _without_rough_head(compared(found), found.equivalences)
        if tried.is_right and not found.refused:
            wrong = {*best.bad, *best.estimates.alarms}
            unsure = {n: why for n, why in found.unsure.items() if n in wrong} or found.unsure
            return replace(tried, unjudged={**tried.unjudged, **unsure}), found.equivalences
    return _without_rough_head(best, same), same


def _wrong(case: Case) -> int:
    """How many layers are not right, those included that may have lost an alarm on the way."""
    return len({*case.bad, *case.estimates.alarms, *case.unjudged})


def _without_rough_head(case: Case, same: Sequence[Equivalence]) -> Case:
    """The case, its head unjudged where factors before it are known too roughly to call it wrong.

    A right gated layer, divided by its factors, is within its bound of the reference, and so it is
    divided by those that were estimated.
    """
    *_, before, name = case.programs
    head, compared, gated = (
        case.programs[name],
        case.comparisons.get(name),
        _rough(case.programs, same),
    )
    if before not in gated or name not in case.bad or not isinstance(head, HeadProgram):
        return case
    bound = case.comparisons[before].bound
    if compared is None or compared.bound is None or bound is None:
        return case
    sizes = replace(head, weight=np.abs(head.weight), bias=np.zeros_like(head.bias), relu=False)
    doubt = layer_output(sizes, 2 * bound.certified)
    if not (np.abs(compared.y_hat - compared.y) <= compared.bound.certified + doubt).all():
        return case
    why = f"its input is {before} divided by factors that errors of gates let be told only roughly"
    case.mark(name, ok=True, note=why)
    return replace(case, unjudged={**case.unjudged, name: why})


def _is_far_off(case: Case) -> bool:
    """Whether half of the layers err by more than factors near 1 could make them err."""
    far = [
        compared.report.max_error > _FAR * float(np.abs(compared.y).max())
        for compared in case.comparisons.values()
        if compared.bound is not None and not compared.report.ok
    ]
    return 2 * sum(far) > len(case.comparisons)


def _is_estimated(
    programs: Programs, name: str, precision: Precision, same: Sequence[Equivalence]
) -> bool:
    """Whether a layer can be estimated: not where its input or output was only estimated itself."""
    blurred = programs.model.arch.is_chain and _is_blurred(programs, name, same)
    return is_estimable(programs[name], precision) and not blurred


def _is_blurred(programs: Programs, name: str, same: Sequence[Equivalence]) -> bool:
    """Whether a layer's output or input was divided by factors that errors of gates are part of."""
    at = list(programs).index(name)
    return not _rough(programs, same).isdisjoint(list(programs)[max(at - 1, 0) : at + 1])


def _rough(programs: Programs, same: Sequence[Equivalence]) -> set[str]:
    """Layers that were divided by factors that errors of gates are part of."""
    scaled = {each.layer for each in same if each.kind == "scaling"}
    return {spec.name for spec in programs.model.arch.blocks if spec.se != "none"} & scaled


def compare_all(
    programs: Programs, outputs: Outputs, x: Array, precision: Precision, progress: Progress | None
) -> tuple[dict[str, Comparison], dict[str, str]]:
    """Compare every layer whose input and output are known; say why others cannot be judged."""
    inputs = inputs_of_layers(programs, outputs.layers, x)

    def compared(name: str) -> Comparison | None:
        x_hat, y_hat = inputs[name], outputs.layers.get(name)
        if x_hat is None or y_hat is None:
            return None
        return compare(programs[name], x_hat, np.asarray(y_hat, np.float64), precision)

    comparisons: dict[str, Comparison] = {}
    unjudged: dict[str, str] = {}
    true = {INPUT: np.asarray(x, np.float64)}  # the reference's own, for the inherited error
    with single_threaded_blas(), ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, (name, found) in enumerate(
            zip(programs, pool.map(compared, programs), strict=True)
        ):
            if progress is not None:
                progress(name, done, len(programs))
            x_hat = inputs[name]
            if found is None or x_hat is None:
                unjudged[name] = "its input or output is not known"
            else:
                inherited = relative_difference(x_hat, programs.input_of(name, true))
                report = replace(found.report, inherited=inherited)
                comparisons[name] = replace(found, report=report)
                if found.is_blind:
                    unjudged[name] = f"{precision.name} rounding may be larger than its values"
            go_on(programs, name, true)
    return comparisons, unjudged
