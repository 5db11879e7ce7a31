"""A benchmark document as an SVG picture: bars with their spread, and where the ceiling is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

WIDTH, LEFT, RIGHT, ROW, HEAD = 880, 230, 175, 22, 58  # pixels
_SPAN = WIDTH - LEFT - RIGHT


@dataclass(frozen=True)
class Bar:
    """`low` and `high` are drawn as a whisker, `mark` as a tick; `text` stands at the right."""

    label: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    mark: float | None = None
    ours: bool = False


@dataclass(frozen=True)
class Panel:
    """Bars on one scale from 0, and a `line` across them."""

    title: str
    bars: tuple[Bar, ...]
    line: float | None = None
    line_label: str = ""

    @property
    def height(self) -> int:
        """In pixels."""
        return HEAD + ROW * len(self.bars) + 12

    def x(self, value: float) -> float:
        """Where `value` is, in pixels."""
        ends = [end for bar in self.bars for end in (bar.value, bar.high or 0, bar.mark or 0)]
        return round(LEFT + _SPAN * value / max([*ends, self.line or 0]), 1)


def render_picture(made: Mapping[str, Any]) -> str:
    """The picture of a `document`."""
    panels = {
        "table4": _table4,
        "conversion": _ratios,
        "training": _ratios,
        "inference": _inference,
    }[made["kind"]](made)
    return render_panels(heading(made), panels, _foot(made["machine"], busy=made["busy"]))


def render_panels(heading: str, panels: Sequence[Panel], foot: str = "") -> str:
    """Panels one below the other, a line of text above and one below them."""
    tops = [sum(panel.height for panel in panels[:k]) + 40 for k in range(len(panels))]
    return (
        _environment()
        .get_template("picture.svg.j2")
        .render(
            heading=heading,
            foot=foot,
            panels=list(zip(tops, panels, strict=True)),
            width=WIDTH,
            text_at=WIDTH - RIGHT + 4,
            left=LEFT,
            row=ROW,
            head=HEAD,
            height=sum(panel.height for panel in panels) + 64,
        )
    )


def _foot(machine: Mapping[str, Any], *, busy: bool) -> str:
    noisy = "; the machine was busy, these figures are noisy" if busy else ""
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['blas']}, "
        f"NumPy {machine['numpy']}{noisy}"
    )


def heading(made: Mapping[str, Any]) -> str:
    """What was timed, in a line."""
    if made["kind"] == "conversion":
        return f"conversion of {made['network']}, whole process, {made['rounds']} rounds"
    what = "speed order of the paper's Table 4" if made["kind"] == "table4" else made["network"]
    step = "training step, " if made["kind"] == "training" else ""
    return (
        f"{what}, {step}batch {made['batch']}, {made['size']} x {made['size']}, "
        f"float32, {made['threads']} threads, {made['rounds']} rounds"
    )


def label(one: Mapping[str, Any]) -> str:
    """A contender's name, and which of its variants it was if it had several."""
    return f"{one['name']} ({one['variant']})" if len(one["tried"]) > 1 else str(one["name"])


def _inference(made: Mapping[str, Any]) -> list[Panel]:
    panels = _ratios(made)
    if made["layers"]:
        panels.append(_layers(made["layers"]))
    return panels


def _ratios(made: Mapping[str, Any]) -> list[Panel]:
    bars = tuple(
        Bar(
            label(one),
            one["ratio"]["median"],
            f"{one['ratio']['median']:.2f}",
            one["ratio"]["low"],
            one["ratio"]["high"],
            ours=index == 0,
        )
        for index, one in enumerate(made["contenders"])
    )
    title = "time of each over ours: median and quartiles of the rounds (beyond 1 ours is faster)"
    return [Panel(title, bars, 1.0, "ours")]


def _layers(layers: Mapping[str, Any]) -> Panel:
    bars = tuple(
        Bar(
            f"{row['layer']}  {row['channels']}-{'x'.join(map(str, row['output']))}",
            row["gflops"],
            f"{row['gflops']:.0f}  {row['algorithm']}  {100 * row['share']:.0f} %",
            mark=row["done_gflops"],
            ours=True,
        )
        for row in layers["rows"]
    )
    ceiling = layers["ceiling_gflops"]
    title = "effective GFLOP/s of each layer (tick: products really done), algorithm, share of time"
    return Panel(title, bars, ceiling, f"GEMM ceiling {ceiling:.0f}")


def _table4(made: Mapping[str, Any]) -> list[Panel]:
    """Scaled so that both slowest networks are at 1."""
    rows = made["rows"]
    here, paper = (min(row[key] for row in rows if row[key]) for key in (_HERE, _PAPER))
    bars = tuple(
        Bar(
            row["name"],
            row[_HERE] / here,
            f"{row[_HERE]:.1f} img/s" + (f", paper {row[_PAPER]}" if row[_PAPER] else ""),
            mark=row[_PAPER] / paper if row[_PAPER] else None,
            ours=row["name"].startswith("RepVGG"),
        )
        for row in rows
    )
    title = (
        "speed over that of the slowest network, here (bar) and in the paper (tick); "
        f"rank correlation {made['rank_correlation']:.3f}"
    )
    return [Panel(title, bars)]


_HERE, _PAPER = "images_per_second", "paper_images_per_second"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("repvgg_ref.bench"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
