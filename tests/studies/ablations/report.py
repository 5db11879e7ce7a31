"""What the runs say: one document, and from it a table, sentences and a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

from repvgg_ref.blocks.catalogue import block_names
from tests.studies.ablations.paper import HOLDS, OPEN, REVERSED, reported, verdicts
from tests.studies.ablations.paths import paths
from tests.studies.ablations.runs import Run
from tests.studies.ablations.statistics import interval, kendall, paired
from tests.studies.ablations.task import network_of
from tests.studies.pages.figures import BLUE, GREEN, GREY, ORANGE, RED, Drawing

REFERENCES = "repvgg", "plain"
MEASURES = "test_error", "train_loss"
_ROW, _TOP, _LEFT, _WIDE = 24, 78, 170, 300  # pixels


def document(runs: Sequence[Run]) -> dict[str, Any]:
    """Means, paired differences to both references, and the paper's pairs.

    Raises
    ------
    ValueError
        If a reference has no run, or shares no seed with a block.
    """
    by: dict[str, dict[str, dict[int, float]]] = {}
    for run in runs:
        for measure in MEASURES:
            kept = by.setdefault(run["block"], {}).setdefault(measure, {})
            kept[run["seed"]] = run[measure]
    names = [name for name in block_names() if name in by]
    if lacking := [name for name in REFERENCES if name not in by]:
        raise ValueError(f"no run of {' and '.join(lacking)} to compare with")
    blocks = {name: _block(name, by) for name in names}
    pairs = {
        (a, b): paired(by[a]["test_error"], by[b]["test_error"], comparisons=1)
        for a, b in permutations(names, 2)
    }
    both = [name for name in reported() if name in by]
    order = kendall(
        [reported()[name].top1 for name in both],
        [-blocks[name]["test_error"]["mean"] for name in both],
    )
    return {
        "task": runs[0]["task"],
        "runs": len(runs),
        "seconds": round(sum(run["seconds"] for run in runs)),
        "unlike_fused": sum(run["fused_error"] not in (None, run["test_error"]) for run in runs),
        "blocks": dict(sorted(blocks.items(), key=lambda item: item[1]["test_error"]["mean"])),
        "paper_pairs": verdicts(pairs),
        "kendall": round(order, 3),
    }


def _block(name: str, by: Mapping[str, Mapping[str, Mapping[int, float]]]) -> dict[str, Any]:
    """A block's means, and its differences to the references."""
    paper = reported().get(name)
    found: dict[str, Any] = {
        "seeds": sorted(by[name]["test_error"]),
        "paths": paths(network_of(name)),
        "paper_top1": paper.top1 if paper else None,
        "paper_certain": paper.certain if paper else False,
    }
    for measure in MEASURES:
        own = by[name][measure]
        found[measure] = interval(list(own.values())).to_json()
        for other in REFERENCES:
            if other != name:
                less = paired(own, by[other][measure], comparisons=len(by) - 1)
                found[f"{measure}_less_{other}"] = less.to_json()
    return found


def table(made: Mapping[str, Any]) -> str:
    """Markdown, the best block first."""
    lines = [
        "| block | test error, % | less `repvgg` | less `plain` | training loss | paths "
        "| paper, top-1 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, each in made["blocks"].items():
        cells = [
            f"`{name}`",
            f"{each['test_error']['mean']:.2f}",
            *(_difference(each.get(f"test_error_less_{other}")) for other in REFERENCES),
            f"{each['train_loss']['mean']:.3f}",
            f"{each['paths']:,}" if each["paths"] < 10**6 else f"{each['paths']:.0e}",
            _paper(each),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _difference(found: Mapping[str, Any] | None) -> str:
    """Mean and interval; bold where zero is outside, with a star where it stays so for all rows."""
    if found is None:
        return ""
    if found["low"] is None:
        return f"{found['mean']:+.2f}"
    words = f"{found['mean']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"
    star = "\\*" if found["differs_strictly"] else ""
    return f"**{words}**{star}" if found["differs"] else words


def _paper(each: Mapping[str, Any]) -> str:
    if each["paper_top1"] is None:
        return ""
    return f"{'' if each['paper_certain'] else '~'}{each['paper_top1']:.2f}"


def words(made: Mapping[str, Any]) -> str:
    """Where the paper's order holds, where not, and where nobody can tell: Markdown."""
    pairs = made["paper_pairs"]
    by = {what: [p for p in pairs if p["verdict"] == what] for what in (HOLDS, REVERSED, OPEN)}
    lines = [
        f"The paper has {len(pairs)} pairs of these blocks in an order. Of them, here:",
        "",
        f"- **Holds: {len(by[HOLDS])}** (beyond chance the better block is better here, too)"
        + _listed(by[HOLDS]),
        f"- **Reversed: {len(by[REVERSED])}** (beyond chance the worse block is better here)"
        + _listed(by[REVERSED]),
        f"- **Open: {len(by[OPEN])}**: these seeds cannot tell.",
        "",
        f"Of so many intervals of 95 % confidence about {len(pairs) / 20:.1g} miss by chance. "
        f"Kendall's tau of the two orders: {made['kendall']:+.2f} (1: the same, 0: unrelated).",
    ]
    return "\n".join(lines) + "\n"


def _listed(pairs: Sequence[Mapping[str, Any]]) -> str:
    """The worse blocks of every better one."""
    if not pairs:
        return "."
    worse: dict[str, list[str]] = {}
    for pair in pairs:
        worse.setdefault(pair["better"], []).append(f"`{pair['worse']}`")
    return ": " + "; ".join(f"`{b}` over {', '.join(all_)}" for b, all_ in worse.items()) + "."


def picture(made: Mapping[str, Any]) -> str:
    """Every block's difference to both references, with its interval, as SVG."""
    names = list(made["blocks"])
    panel, height = _LEFT + _WIDE, _TOP + _ROW * len(names) + 60
    d = Drawing(panel + _WIDE + 70, height, "Test error of every block less that of two of them")
    ends = [0.0]
    for each in made["blocks"].values():
        for other in REFERENCES:
            found = each.get(f"test_error_less_{other}", {})
            ends += [found[e] for e in ("mean", "low", "high") if found.get(e) is not None]
    low, high = min(ends), max(ends)
    scale = (_WIDE - 20) / max(high - low, 1e-9)
    d.text(
        panel / 2 + 200,
        28,
        "test error less that of the block above, in points; left is better",
        weight="bold",
    )
    for row, name in enumerate(names):
        d.text(_LEFT - 14, _TOP + _ROW * row + 5, name, anchor="end", size=13)
    for index, other in enumerate(REFERENCES):
        left = _LEFT + 10 + index * (_WIDE + 30)
        zero = left - low * scale
        bottom = _TOP + _ROW * len(names)
        d.text(zero, 56, other, size=13, weight="bold")
        d.line(zero, _TOP - 14, zero, bottom, GREY, "5 4")
        for tick in _ticks(low, high):
            x = round(zero + tick * scale, 1)
            d.text(x, bottom + 18, f"{tick:+d}" if tick else "0", GREY, 12)
            d.line(x, bottom, x, bottom + 4, GREY)
        for row, name in enumerate(names):
            found = made["blocks"][name].get(f"test_error_less_{other}")
            if found is not None:
                _whisker(d, found, left - low * scale, scale, _TOP + _ROW * row)
    d.text(
        panel / 2 + 200,
        height - 14,
        "means over seeds and 95 % intervals of paired differences",
        GREY,
        12,
    )
    return d.svg()


def _ticks(low: float, high: float) -> range:
    """Four to nine whole numbers of points, or fewer."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100) if (high - low) / s < 9)
    return range(math.ceil(low / step) * step, math.floor(high) + 1, step)


def _whisker(d: Drawing, found: Mapping[str, Any], zero: float, scale: float, y: float) -> None:
    """One mean and its interval; green is better, red worse, blue neither."""
    colour = BLUE
    if found["differs"]:
        colour = GREEN if found["mean"] < 0 else RED
    if found["low"] is not None:
        ends = [round(zero + found[end] * scale, 1) for end in ("low", "high")]
        d.line(ends[0], y, ends[1], y, colour)
    else:
        colour = ORANGE  # a single seed
    d.circle(round(zero + found["mean"] * scale, 1), y, 5, colour)
