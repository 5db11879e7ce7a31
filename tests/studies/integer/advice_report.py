"""What the study of advice found, as tables and as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.studies.pages.figures import BLUE, GREY, ORANGE, Drawing

Row = Mapping[str, Any]
WAYS = ("float", "per-tensor", "equalized", "per-channel", "equalized per-channel", "mixed")
REMEDIES = WAYS[2:]
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


def summary(rows: Sequence[Row], source: str, *, ways: Sequence[str] = REMEDIES) -> dict[str, int]:
    """Counts of the comparisons."""
    found = [each for each in compared(rows, source) if each.way in ways]
    return {
        "gains": len(found),
        "within a factor of two": sum(each.within_two for each in found),
        "compatible": sum(each.compatible for each in found),
        "predicted below 10 points": sum(each.predicted[0] < 0.1 for each in found),
        "of these within a factor of two": sum(
            each.within_two for each in found if each.predicted[0] < 0.1
        ),
    }


def accuracy_table(rows: Sequence[Row]) -> str:
    """Measured top-1 with its interval, networks as trained and the first of each factor."""
    lines = [
        "| network | widest channel | " + " | ".join(WAYS) + " |",
        "|---|--:|" + "--:|" * len(WAYS),
    ]
    for row in rows:
        if row["seed"] == 0:
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
    held, trained = (
        summary(rows, "predicted"),
        summary(rows, "predicted_from_training", ways=("per-channel",)),
    )
    same = summary(rows, "predicted", ways=("per-channel",))
    return f"""# What INT8 costs trained digits, and advice, predicted and measured

Made by `python -m tests.studies.integer.advice_study`, networks by `advice_runs.sh`. Three parts of
real digits share no picture: one is trained on, gains are predicted from the second (1,000 of mnist,
360 of digits), and measured on the third (as many). Brackets hold 95 % intervals for pictures like
these: Wilson's of a rate, Bonett and Price's of a paired difference.

## Top-1 in %, measured in integers

{accuracy_table(rows)}
`mixed` keeps in floats the layers that `advise` names; it is simulated, the others are integers.
Uneven networks are equal to `repvgg` as trained: a tenth of the channels made wider.

## Gains over one scale a tensor, in points

Of {held["gains"]} gains predicted to be a point or more {held["within a factor of two"]} are within
a factor of two of what was measured, {held["compatible"]} compatible with it (the interval of the
difference holds zero, which of 100 right predictions 95 do). Below 10 points:
{held["of these within a factor of two"]} of {held["predicted below 10 points"]} within a factor of two.

Predicted from as many pictures that the network was *trained* on, per channel:
{trained["within a factor of two"]} of {trained["gains"]} within a factor of two, below 10 points
{trained["of these within a factor of two"]} of {trained["predicted below 10 points"]}; from held-out
pictures {same["within a factor of two"]} of {same["gains"]}, below 10 points
{same["of these within a factor of two"]} of {same["predicted below 10 points"]}.

![Predicted and measured gains](advice.svg)

{gains_table(rows)}
"""


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


def write_report(rows: Sequence[Row], folder: Path) -> None:
    """``advice.md`` and ``advice.svg``."""
    (folder / "advice.md").write_text(text(rows), encoding="utf-8")
    (folder / "advice.svg").write_text(picture(rows), encoding="utf-8")


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
