"""Logits whose classes come in another order: read off them, alone or behind softmax and the like.

The library tries a few orders only, since there are as many as there are; which one it is shows in
the logits themselves, once whatever else is done to them is done to the reference's, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from repvgg_ref.oracle.bugs import bugs_for
from repvgg_ref.oracle.bugs.base import Mutant, Site, planted
from repvgg_ref.oracle.bugs.harness import output_of, site_of
from repvgg_ref.oracle.diagnosis.alternatives import Alternative
from repvgg_ref.oracle.diagnosis.look import Look
from repvgg_ref.oracle.diagnosis.ranking import Trial
from repvgg_ref.oracle.report import Finding

_OUTPUT, _ORDER = "head-output", "head-classes-permuted"
_APART = 50.0  # deviations between neighbours in a row of logits: else an order fits by chance


def reordered(look: Look) -> list[Finding]:
    """The order of the classes, and what else is done to the logits; nothing if no order fits."""
    chain = look.chain
    name = chain.names[-1]
    y_hat = chain.logits + look.residual
    right = site_of(chain.programs, name, chain.inputs[name], y_hat)
    for first, site in _changed(right):
        for order in planted(_bugs(right, _ORDER), site, name):
            predicted = output_of(order.variant.program, site.x)
            if predicted is None or predicted.shape != y_hat.shape:
                continue
            gap = float(predicted.std()) / predicted.shape[1]
            if gap < _APART * float(look.noise.deviation.mean()):
                continue
            (match,) = look.matches([Alternative(order, predicted - chain.logits)])
            if look.reproduces(match):
                made = [m for m in (first, order) if m is not None]
                told = [Trial(m, match.change, match.fit, within=True) for m in made]
                return [t.finding(1.0) if first is None else t.one_of_two() for t in told]
    return []


def _changed(site: Site[Any]) -> Iterator[tuple[Mutant[Any] | None, Site[Any]]]:
    """The logits as they are, then with each function behind them that the library knows."""
    yield None, site
    for first in planted(_bugs(site, _OUTPUT), site, site.program.name):
        yield first, replace(site, program=first.variant.program)


def _bugs(site: Site[Any], name: str) -> list[Any]:
    return [bug for bug in bugs_for(site.program) if bug.name == name]
