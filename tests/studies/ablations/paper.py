"""What the paper reports of each block, and whether our runs order them as it does.

Tables 6 and 7: RepVGG-B0 on ImageNet, 120 epochs. What stands in the catalogue as not certain is
from memory, and is marked so wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from repvgg_ref.blocks.catalogue import KINDS, RESIDUAL_REORG, block_names
from repvgg_ref.models.residual_reorg import TOP1
from tests.studies.ablations.statistics import Interval

HOLDS, REVERSED, OPEN = "holds", "reversed", "cannot be told"


class Reported(NamedTuple):
    """Top-1 of a block in percent."""

    top1: float
    certain: bool


def reported() -> dict[str, Reported]:
    """Those blocks that the paper has, the best first."""
    found = {RESIDUAL_REORG: Reported(TOP1, True)}
    for name in block_names():
        if name in KINDS and (top1 := KINDS[name].top1) is not None:
            found[name] = Reported(top1, KINDS[name].certain)
    return dict(sorted(found.items(), key=lambda item: -item[1].top1))


def judged(paper_gain: float, ours: Interval) -> str:
    """Whether a block is better or worse than another here as well.

    Parameters
    ----------
    paper_gain : float
        The paper's top-1 of the first less that of the second.
    ours : Interval
        Our *error* of the first less that of the second.
    """
    if not ours.differs:
        return OPEN
    return HOLDS if (ours.mean < 0) == (paper_gain > 0) else REVERSED


def verdicts(differences: Mapping[tuple[str, str], Interval]) -> list[dict[str, Any]]:
    """Every pair of the paper's blocks, the one that is better there first."""
    found = []
    for (first, second), ours in differences.items():
        paper = reported()
        if first in paper and second in paper and paper[first].top1 > paper[second].top1:
            gain = round(paper[first].top1 - paper[second].top1, 2)
            found.append(
                {
                    "better": first,
                    "worse": second,
                    "paper": gain,
                    "certain": paper[first].certain and paper[second].certain,
                    "ours": ours.to_json(),
                    "verdict": judged(gain, ours),
                }
            )
    return found
