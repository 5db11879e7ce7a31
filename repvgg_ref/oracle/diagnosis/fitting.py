"""A bug's number (eps) fitted to logits, where the library's own settings do not reproduce them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are first used: a second of start-up

from repvgg_ref.oracle.bugs.base import Bug, Mutant, Site, Variant
from repvgg_ref.oracle.diagnosis.alternatives import Alternative, exact
from repvgg_ref.oracle.diagnosis.look import Look, Match

_LIKELY = 0.5  # squared correlation with the residual from which a number is worth fitting
_MOST = 3  # bugs times places that are fitted
_STEPS = 24


def fitted(look: Look, matches: Sequence[Match]) -> list[Match]:
    """The likeliest bugs with a number, each with the number that leaves least."""
    best: dict[tuple[str, str | None], Match] = {}
    for match in sorted(matches, key=lambda m: -_correlation(m)):
        if match.mutant.bug.continuous and _correlation(match) > _LIKELY:
            best.setdefault((match.mutant.bug.name, match.mutant.layer), match)
    return [_fitted(look, match) for match in list(best.values())[:_MOST]]


def _correlation(match: Match) -> float:
    """Squared; 0 where the bug makes the residual grow the other way."""
    if match.coefficient <= 0 or match.energy == 0:
        return 0.0
    return (match.coefficient * match.size / match.energy) ** 2


def _fitted(look: Look, start: Match) -> Match:
    parameter = start.mutant.variant.parameter
    assert parameter is not None
    middle = float(np.log(parameter))

    def at(log: float) -> Match:
        mutant = with_parameter(start.mutant, float(np.exp(log)))
        change = exact(look.chain, mutant)
        if change is None:
            return replace(start, left=np.inf)
        return look.matches([Alternative(mutant, change)])[0]

    # Neighbouring settings are a decade apart; far below them eps has no effect left to fit.
    found = scipy.optimize.minimize_scalar(
        lambda log: np.log(at(log).left + 1e-9),
        bounds=(middle - 2.5, middle + 2.5),
        method="bounded",
        options={"maxiter": _STEPS, "xatol": 1e-5},
    )
    return at(float(found.x))


def with_parameter(mutant: Mutant[Any], parameter: float) -> Mutant[Any]:
    """The same bug, wherever it is, with another number."""

    def mutate(site: Site[Any]) -> Iterator[Variant[Any]]:
        settings = (v for v in mutant.bug.mutate(site) if v.detail == mutant.variant.detail)
        made = next((v for v in settings if v.at is not None), None)
        if made is not None and made.at is not None:
            yield Variant(made.at(parameter), parameter, made.detail, made.at)

    bug: Bug[Any] = replace(mutant.bug, mutate=mutate)
    return replace(mutant, bug=bug, variant=mutant.variant._replace(parameter=parameter))
