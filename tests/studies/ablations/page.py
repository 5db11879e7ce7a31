"""What the page `branches` says of the studies' results, between its marks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repvgg_ref_cli.pages import FOLDER

from tests.studies.ablations.report import picture, table, words
from weights_io import atomic_path

PAGE = FOLDER / "branches.md"
FIGURE = FOLDER / "figures" / "ablations.svg"
RESULTS = Path(__file__).parent / "results"
_MARK = "<!-- begin: written by python -m {} -->\n"
_END = "<!-- end -->"
_HOW = """\
Every block {seeds} times, by one recipe: {images} of the bundled digits, real scans, other ones
for every seed; {epochs} epochs ({steps} steps of {batch}); a network of {layers} layers in the
paper's five stages, judged on the 360 test digits. `mobileone` has four copies of its 3x3
branch; `residual-reorg` has two layers more, since odd numbers of layers are rounded up. The
{runs} runs took {minutes:.0f} minutes of one processor. Blocks of one seed see the same
pictures in the same order, so the differences are those of pairs: their mean, and the interval
that holds the true one with 95 % confidence (Student's t). Bold: zero is outside. A star: also
if all {others} comparisons of the column are made at once (Bonferroni). ~: the paper's figure
is from memory."""
_COSTS = """\
What branches cost where they are *not* fused: evaluation of a {model} in train form, one image
of {size} x {size}, one thread of this project's CPU engine, beside the plain network in train
form. Fused, all that can be are one and the same network, which takes {fused:.2f} of the plain
one's time: norms are folded, and kernels may be computed by faster algorithms.
"""


def runs_section(made: Mapping[str, Any], longer: Mapping[str, Any] | None) -> str:
    """How it was measured, table, picture and the paper's order; then the longer training."""
    text = (
        f"{_measured(made)}\n\n{table(made)}\n"
        f"![Test error of every block less that of two of them](figures/{FIGURE.name})\n\n"
        f"{words(made)}"
    )
    if longer is not None:
        times = longer["task"]["epochs"] / made["task"]["epochs"]
        text += (
            f"\nThe same with {times:g} times the steps, {len(longer['blocks'])} of the blocks:\n\n"
            f"{table(longer)}\n{words(longer)}"
        )
    return text


def _measured(made: Mapping[str, Any]) -> str:
    task = made["task"]
    return _HOW.format(
        seeds=max(len(each["seeds"]) for each in made["blocks"].values()),
        steps=task["epochs"] * (task["images"] // task["batch"]),
        layers=1 + sum(task["depths"]),
        runs=made["runs"],
        minutes=made["seconds"] / 60,
        others=len(made["blocks"]) - 1,
        **task,
    )


def speeds_section(found: Mapping[str, Any]) -> str:
    """What each block costs in evaluation where it is not fused, and its paths."""
    plain = found["blocks"]["plain"]
    fused = found["fused_seconds"] / plain["train_seconds"]
    lines = [
        _COSTS.format(model=found["model"], size=found["size"], fused=fused),
        "| block | paths through stage 4 | time, train form |",
        "|---|---|---|",
    ]
    for name, each in sorted(found["blocks"].items(), key=lambda one: one[1]["train_seconds"]):
        times = each["train_seconds"] / plain["train_seconds"]
        lines.append(f"| `{name}` | {each['paths_stage4']:,} | {times:.2f} |")
    return "\n".join(lines) + "\n"


def filled(text: str, program: str, section: str) -> str:
    """The page with `section` between the marks of `program`.

    Raises
    ------
    ValueError
        If the page has no such marks.
    """
    before, mark, rest = text.partition(_MARK.format(program))
    _, end, after = rest.partition(_END)
    if not mark or not end:
        raise ValueError(f"{PAGE.name} has no place for what {program} writes")
    return f"{before}{mark}{section}{end}{after}"


def page_of(text: str, results: Path = RESULTS) -> str:
    """The page with what all results say."""
    found = {
        name: json.loads((results / name).read_text(encoding="utf-8"))
        for name in ("ablations.json", "longer/ablations.json", "speeds.json")
        if (results / name).exists()
    }
    if "ablations.json" in found:
        section = runs_section(found["ablations.json"], found.get("longer/ablations.json"))
        text = filled(text, "tests.studies.ablations", section)
    if "speeds.json" in found:
        section = speeds_section(found["speeds.json"])
        text = filled(text, "tests.studies.ablations.speeds", section)
    return text


def write_page() -> None:
    """Bring page and picture up to what the results say."""
    with atomic_path(PAGE) as path:
        path.write_text(page_of(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    made = RESULTS / "ablations.json"
    if made.exists():
        with atomic_path(FIGURE) as path:
            path.write_text(picture(json.loads(made.read_text(encoding="utf-8"))), encoding="utf-8")
