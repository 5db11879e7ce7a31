"""What the study of advice found, as tables and as a picture."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from repvgg_ref_cli.pages import FOLDER

from tests.studies.ablations.page import filled
from tests.studies.pages.figures import BLUE, GREY, ORANGE, Drawing

Row = Mapping[str, Any]
WAYS = ("float", "per-tensor", "equalized", "per-channel", "equalized per-channel", "mixed")
REMEDIES = WAYS[2:]
_TEXT = """\
# What INT8 costs trained digits, and advice, predicted and measured

Made by `python -m tests.studies.integer.advice_study`, networks by `advice_runs.sh`. Three parts of
real digits share no picture: one is trained on, gains are predicted from the second (1,000 of
mnist, 360 of digits), and measured on the third (as many). Brackets hold 95 % intervals for
pictures like these: Wilson's of a rate, Bonett and Price's of a paired difference.

## Top-1 in %, measured in integers

{accuracies}
`mixed` keeps in floats the layers that `advise` names; it is simulated, the others are integers.
Uneven networks are equal to `repvgg` as trained: a tenth of the channels made wider.

## Gains over one scale a tensor, in points

{verdict}
The rows are not independent: they share pictures, and ways share the naive network.
[How a loss is best predicted](margins.md) holds counting against smoother estimates.

An earlier study predicted from 479 images that were trained on and measured on 360, and missed the
factor of two twice (+1.9 points against +4.2 and +3.9). That was one event, since both remedies are
held against the same naive network: 9 images of 479 lost their class, and 15 of 360 (Fisher's exact
test: p = 0.06). Intervals say so now, and more images make them narrow.

![Predicted and measured gains](advice.svg)

{gains}"""
_SECTION = """\
Top-1 in %, measured in integers on 1,000 real digits of 28 x 28 pixels (MNIST's) that neither
training nor `advise` has seen, with the interval that holds the truth for digits like these in 95
of 100 cases. A network of eight blocks, trained on 3,000 others by this tool; `custom-l2` with the
first official trainer's decay, `qarepvgg` with that block. Below them networks equal to the first,
in which a tenth of the channels reach up to so many times as far, as identity branches make them on
ImageNet: there the way of quantising decides.

{accuracies}
`per-tensor` is naive: one scale a layer, ranges by min-max. `equalized` is `--per-tensor
--equalize`; `mixed` leaves the layers that `advise` names in floats, where it names any (simulated;
all others are integers). As trained, no way costs anything that 1,000 digits show.

{verdict}

![Gains, predicted and measured](figures/advice.svg)

How gains are best counted was measured on {networks} networks: root mean square differences, in
points, between the loss predicted and the one measured on other images.

| predicted from | counted | smoothed by the noise within a class | by the noise of any image |
|---|--:|--:|--:|
| 1,000 images (360 of small digits) that were trained on | {trained_on} | | |
| as many held out | {held_out} | {by_class_all} | |
| 128 held out | {few} | {by_class} | {additive} |

Smoothing turns each image's right or wrong into a probability, by its logits' margins; noise
depends on the image, so what others lend is too little (small losses: {small_by_class} points on
average instead of {small_measured}). Counting needs no such model, and its interval says how little
few images tell. An image that was trained on promises no clearly other loss here than one held out;
held out they are so that nobody has to believe that.
"""
RESULTS = Path(__file__).parent / "results"
PAGE = FOLDER / "integers.md"
FIGURE = FOLDER / "figures" / "advice.svg"
LOSSES = {
    "trained_on": "trained on",
    "held_out": "held out",
    "by_class_all": "by class, all",
    "few": "128 held out",
    "by_class": "by class",
    "additive": "additive",
}
SMALLEST = 0.01  # a predicted gain that is compared: a point
_LEFT, _TOP, _SIDE = 90, 60, 520


class Compared(NamedTuple):
    """A gain, predicted and measured, each with its 95 % interval; as parts of 1."""

    row: Row
    way: str
    predicted: tuple[float, float, float]
    measured: tuple[float, float, float]

    @property
    def within_two(self) -> bool:
        """Whether the measured gain is half to twice the predicted one."""
        return 0.5 <= self.measured[0] / self.predicted[0] <= 2

    @property
    def compatible(self) -> bool:
        """Whether the interval of the difference holds zero (of two independent samples)."""
        (p, p_low, p_high), (m, m_low, m_high) = self.predicted, self.measured
        if m >= p:
            return m - p <= math.hypot(p_high - p, m - m_low)
        return p - m <= math.hypot(p - p_low, m_high - m)


def compared(rows: Sequence[Row], source: str = "predicted") -> Iterator[Compared]:
    """Every gain over one scale a tensor that is predicted to be a point or more."""
    for row in rows:
        for way in REMEDIES:
            if way in row[source] and way in row["measured"]:
                said, found = (_gain(row[which][way]) for which in (source, "measured"))
                if said[0] >= SMALLEST:
                    yield Compared(row, way, said, found)


class Summary(NamedTuple):
    """How many of the gains compared are within a factor of two, and compatible."""

    gains: int
    within_two: int
    compatible: int


def summary(found: Sequence[Compared]) -> Summary:
    """Counts of these comparisons."""
    return Summary(
        len(found), sum(each.within_two for each in found), sum(each.compatible for each in found)
    )


def accuracy_table(rows: Sequence[Row], data: str = "") -> str:
    """Measured top-1 with its interval, networks as trained and the first of each factor.

    Of the networks whose names begin with `data`.
    """
    lines = [
        "| network | widest channel | " + " | ".join(WAYS) + " |",
        "|---|--:|" + "--:|" * len(WAYS),
    ]
    for row in rows:
        if row["seed"] == 0 and row["network"].startswith(data):
            cells = " | ".join(_rate(row["measured"].get(way)) for way in WAYS)
            width = "as trained" if row["factor"] == 1 else f"up to x {row['factor']}"
            lines.append(f"| {row['network']} | {width} | {cells} |")
    return "\n".join(lines) + "\n"


def gains_table(rows: Sequence[Row]) -> str:
    """Predicted and measured gains, in points, with intervals."""
    lines = [
        "| network | widest channel | remedy | predicted | measured | ratio |",
        "|---|--:|---|--:|--:|--:|",
    ]
    for each in compared(rows):
        ratio = each.measured[0] / each.predicted[0]
        lines.append(
            f"| {each.row['network']} {each.row['seed']} | x {each.row['factor']} | {each.way} | "
            f"{_points(each.predicted)} | {_points(each.measured)} | "
            f"{ratio:.2f}{'' if each.within_two else ' **no**'}"
            f"{'' if each.compatible else ' *'} |"
        )
    return "\n".join(lines) + "\n"


def text(rows: Sequence[Row]) -> str:
    """The page of results."""
    return _TEXT.format(
        accuracies=accuracy_table(rows), verdict=verdict(rows), gains=gains_table(rows)
    )


def verdict(rows: Sequence[Row]) -> str:
    """What the comparisons come to, in a sentence or two."""
    found = list(compared(rows))
    every, small = summary(found), summary([each for each in found if each.predicted[0] < 0.1])
    said = (
        f"{every.within_two} of {every.gains} gains that `advise` predicts to be a point or more "
        f"are within a factor of two of what was measured, {small.within_two} of {small.gains} "
        f"of those below 10 points; in {every.compatible} the interval of the difference of both "
        "holds zero."
    )
    return textwrap.fill(said, 100)


def picture(rows: Sequence[Row]) -> str:
    """Every gain as a cross of its two intervals, on logarithmic axes; a factor of two shaded."""
    d = Drawing(_LEFT + _SIDE + 40, _TOP + _SIDE + 80, "Gains, predicted and measured")
    d.text(_LEFT + _SIDE / 2, 28, "gain over one scale a tensor, in points", weight="bold")
    for factor, dash in ((0.5, "5 4"), (1.0, ""), (2.0, "5 4")):
        low, high = max(0.2, 0.2 / factor), min(100.0, 100 / factor)
        d.line(_x(low), _y(low * factor), _x(high), _y(high * factor), GREY, dash)
    for tick in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100):
        d.text(_x(tick), _TOP + _SIDE + 20, f"{tick:g}", GREY, 12)
        d.text(_LEFT - 10, _y(tick) + 4, f"{tick:g}", GREY, 12, anchor="end")
    d.text(_LEFT + _SIDE / 2, _TOP + _SIDE + 46, "predicted on held-out pictures", GREY, 13)
    d.text(_LEFT - 10, _TOP - 14, "measured on others", GREY, 13, anchor="start")
    for each in compared(rows):
        colour = BLUE if each.row["network"].startswith("mnist") else ORANGE
        (p, p_low, p_high), (m, m_low, m_high) = (
            [100 * x for x in of] for of in (each.predicted, each.measured)
        )
        d.line(_x(p_low), _y(m), _x(p_high), _y(m), colour)
        d.line(_x(p), _y(m_low), _x(p), _y(m_high), colour)
        d.circle(_x(p), _y(m), 4, colour)
    d.text(
        _LEFT + _SIDE / 2,
        _TOP + _SIDE + 68,
        "blue: 28 x 28 pixels, orange: 8 x 8; bars: 95 %; dashed: a factor of two",
        GREY,
        12,
    )
    return d.svg()


def section(rows: Sequence[Row], found: Sequence[Row]) -> str:
    """What the page on integers says of it; `found` are the losses of `margins_study`."""
    losses = [row for row in found if row["network"] != "bundled"]
    apart = {
        name: 100
        * math.sqrt(sum((row[way] - row["measured"]) ** 2 for row in losses) / len(losses))
        for name, way in LOSSES.items()
    }
    small = [row for row in losses if 0.03 <= size_of(row) < 0.1]
    small_means = {
        f"small_{name}": 100 * sum(row[way] for row in small) / len(small)
        for name, way in (("measured", "measured"), ("by_class", "by class, all"))
    }
    return _SECTION.format(
        accuracies=accuracy_table(rows, "mnist"),
        verdict=verdict(rows),
        networks=len(losses),
        **{name: f"{points:.1f}" for name, points in (apart | small_means).items()},
    )


def page_of(text: str, folder: Path = RESULTS) -> str:
    """The page with what the results say between its marks."""
    rows, losses = (
        json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("advice", "margins")
    )
    return filled(text, "tests.studies.integer.advice_study", section(rows, losses))


def write_report(rows: Sequence[Row], folder: Path) -> None:
    """``advice.md`` and ``advice.svg``; the page on integers and its figure."""
    (folder / "advice.md").write_text(text(rows), encoding="utf-8")
    for path in (folder / "advice.svg", FIGURE):
        path.write_text(picture(rows), encoding="utf-8")
    PAGE.write_text(page_of(PAGE.read_text(encoding="utf-8"), folder), encoding="utf-8")


def main() -> None:
    """Write the report once more, from what was measured."""
    write_report(json.loads((RESULTS / "advice.json").read_text(encoding="utf-8")), RESULTS)


def size_of(row: Row) -> float:
    """By what a network is sorted: all estimates alike, so that none is favoured by its errors."""
    return float(max(0.0, (row["measured"] + row["held out"] + row["trained on"]) / 3))


def _gain(way: Row) -> tuple[float, float, float]:
    gain = way["gain"]
    return (gain["by"], *gain["interval"])


def _rate(way: Row | None) -> str:
    if way is None:
        return ""
    low, high = (100 * end for end in way["interval"])
    return f"{100 * way['top1']:.1f} ({low:.1f} to {high:.1f})"


def _points(gain: Sequence[float]) -> str:
    by, low, high = (100 * part for part in gain)
    return f"{by:+.1f} ({low:+.1f} to {high:+.1f})"


def _along(points: float) -> float:
    """0 at 0.2 points and what is below, 1 at 100."""
    return math.log(max(points, 0.2) / 0.2) / math.log(100 / 0.2)


def _x(points: float) -> float:
    return round(_LEFT + _SIDE * _along(points), 1)


def _y(points: float) -> float:
    return round(_TOP + _SIDE * (1 - _along(points)), 1)


if __name__ == "__main__":
    main()
