"""What a file would hold if a block in it were whole: so that the broken one can be named.

Arrays that a batch norm or a numbered copy lacks have the shapes of those beside them. Nothing is
made of such arrays: a block that is found among them only is told with what it lacks.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

Shape = tuple[int, ...]
_NORM = ("weight", "bias", "running_mean", "running_var")
_SEEN = (*_NORM[2:], "num_batches_tracked")  # what no other layer has
_COPY = re.compile(r"(.*\b(?:rbr_conv|conv_kxk)\.)(\d{1,2})(\..*)", re.DOTALL)
_MOST = 16  # copies; MobileOne has up to 4
_MOST_ARRAYS = 8  # of one: a kernel and its batch norm


def completed(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes, and behind them those of arrays that batch norms and numbered copies lack."""
    found = dict(shapes)
    _fill_norms(found)
    _fill_copies(found)
    return found


def _fill_norms(found: dict[str, Shape]) -> None:
    """Of a batch norm some arrays are there, among them one that only a batch norm has."""
    norms = {key.rpartition(".")[0] for key in found if key.rpartition(".")[2] in _SEEN}
    for norm in sorted(norms):
        keys = [f"{norm}.{part}".lstrip(".") for part in _NORM]
        held = {found[key] for key in keys if key in found}
        if len(held) == 1:
            shape = held.pop()
            for key in keys:
                found.setdefault(key, shape)


def _fill_copies(found: dict[str, Shape]) -> None:
    """A number is skipped among copies that are alike."""
    copies: dict[str, dict[int, dict[str, Shape]]] = defaultdict(lambda: defaultdict(dict))
    for key, shape in found.items():
        if (split := _COPY.fullmatch(key)) and str(int(split[2])) == split[2]:
            copies[split[1]][int(split[2])][split[3]] = shape
    for start, held in copies.items():
        one = held[min(held)]
        for number in range(min(max(held), _MOST)):
            if number not in held and len(one) <= _MOST_ARRAYS:
                found |= {f"{start}{number}{end}": shape for end, shape in one.items()}
