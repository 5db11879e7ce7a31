"""Draws the figures of the page `afternoon`: small SVG files beside it.

    python -m tests.studies.pages.figures

`bug.svg` shows what `verify` measured on the page's two ports (a few seconds); the others are drawn
from nothing but this file, and a test compares them with what is committed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from xml.sax.saxutils import escape

from repvgg_ref_cli.pages import FOLDER, read_page

BLUE, ORANGE, GREEN, GREY, RED = "#2b6cb0", "#c05621", "#2f855a", "#4a5568", "#c53030"
PALE = {BLUE: "#ebf4fb", ORANGE: "#fdf1e7", GREEN: "#e9f6ee", GREY: "#f3f4f6", RED: "#fdecec"}
CELL = 34


class Drawing:
    """A list of shapes on a white ground, so that it can be read on a dark page too."""

    def __init__(self, width: int, height: int, says: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" font-family="sans-serif">',
            f"<title>{escape(says)}</title>",
            '<marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            f'markerHeight="8" orient="auto"><path d="M0 0 8 4 0 8z" fill="{GREY}"/></marker>',
            f'<rect width="{width}" height="{height}" rx="8" fill="white"/>',
        ]

    def text(
        self, x: float, y: float, words: str, colour: str = "#1a202c", size: int = 14, **more: str
    ) -> None:
        """Centred at x unless `anchor` says otherwise; y is the base line."""
        anchor, weight = more.get("anchor", "middle"), more.get("weight", "normal")
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}" '
            f'font-size="{size}" font-weight="{weight}">{escape(words)}</text>'
        )

    def box(self, x: float, y: float, w: float, h: float, words: str, colour: str) -> None:
        """A rounded box with words in it."""
        self._parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="5" '
            f'fill="{PALE[colour]}" stroke="{colour}" stroke-width="1.5"/>'
        )
        self.text(x + w / 2, y + h / 2 + 5, words)

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points, with a tip at the last one."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self._parts.append(
            f'<polyline points="{path}" fill="none" stroke="{GREY}" stroke-width="1.5" '
            'marker-end="url(#tip)"/>'
        )

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str, dash: str = "") -> None:
        """A straight line."""
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self._parts.append(
            f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" stroke="{colour}"{dashes}/>'
        )

    def circle(self, x: float, y: float, r: float, colour: str) -> None:
        """A filled circle."""
        self._parts.append(f'<circle cx="{x:g}" cy="{y:g}" r="{r:g}" fill="{colour}"/>')

    def grid(
        self, x: float, y: float, rows: Sequence[Sequence[str]], colour: str, cell: int = CELL
    ) -> None:
        """Numbers in cells; an empty one is blank."""
        size = min(13, cell - 4)
        for i, row in enumerate(rows):
            for j, words in enumerate(row):
                left, top = x + j * cell, y + i * cell
                fill = PALE[colour] if words not in ("", "0") else "white"
                self._parts.append(
                    f'<rect x="{left:g}" y="{top:g}" width="{cell}" height="{cell}" '
                    f'fill="{fill}" stroke="{colour}"/>'
                )
                if words:
                    shade = "#a0aec0" if words == "0" else "#1a202c"
                    self.text(left + cell / 2, top + cell / 2 + size // 2 - 1, words, shade, size)

    def svg(self) -> str:
        """The file."""
        return "\n".join([*self._parts, "</svg>"]) + "\n"


def branches() -> str:
    """A block in training, and deployed."""
    d = Drawing(720, 290, "A RepVGG block in training and deployed")
    d.text(245, 30, "in training: three branches", weight="bold")
    d.text(600, 30, "deployed: one", weight="bold")
    d.text(34, 152, "x", size=16)
    rows = ((70, BLUE, "3x3 conv"), (130, ORANGE, "1x1 conv"), (190, GREEN, ""))
    for top, colour, name in rows:
        middle = top + 17
        d.arrow((44, 147), (70, 147), (70, middle), (92, middle))
        if name:
            d.box(92, top, 92, 34, name, colour)
            d.arrow((184, middle), (210, middle))
        else:
            d.arrow((92, middle), (210, middle))
        d.box(210, top, 102, 34, "batch norm", colour)
        d.arrow((312, middle), (346, middle), (346, 147), (362, 147))
    d.box(362, 130, 34, 34, "+", GREY)
    d.arrow((396, 147), (416, 147))
    d.box(416, 130, 56, 34, "ReLU", GREY)
    d.text(
        280,
        250,
        "where a block keeps size and channels; else the green branch is left out",
        GREY,
        12,
    )
    d.line(500, 50, 500, 240, "#cbd5e0")
    d.text(524, 152, "x", size=16)
    d.arrow((534, 147), (552, 147))
    d.box(552, 122, 86, 50, "3x3 + bias", BLUE)
    d.arrow((638, 147), (654, 147))
    d.box(654, 130, 54, 34, "ReLU", GREY)
    d.text(612, 250, "the same function", GREY, 12)
    return d.svg()


def fusion() -> str:
    """Three kernels of one input channel to one output channel, and their sum."""
    threes = ((2, -1, 3), (0, 5, -2), (1, 4, -3))
    centre = {"1x1 kernel": 4, "identity": 1}
    d = Drawing(720, 220, "A 3x3 kernel, a 1x1 kernel and the identity add up to one 3x3 kernel")
    zero = (("0",) * 3, ("0", "{}", "0"), ("0",) * 3)
    shown = [("3x3 kernel", BLUE, tuple(tuple(map(str, row)) for row in threes))]
    for (name, value), colour in zip(centre.items(), (ORANGE, GREEN), strict=True):
        shown.append((name, colour, tuple(tuple(c.format(value) for c in r) for r in zero)))
    total = [list(row) for row in threes]
    total[1][1] += sum(centre.values())
    shown.append(("fused", GREY, tuple(tuple(map(str, row)) for row in total)))
    for index, (name, colour, rows) in enumerate(shown):
        left = 30 + index * 184
        d.text(left + 1.5 * CELL, 40, name, weight="bold")
        d.grid(left, 60, rows, colour)
        if index:
            d.text(left - 41, 60 + 1.5 * CELL + 7, "=" if index == 3 else "+", size=22)
    d.text(360, 200, "each after it was multiplied by its batch norm's s", GREY, 12)
    return d.svg()


def _filled(size: int, words: str = "") -> list[list[str]]:
    """A square grid of one word."""
    return [[words] * size] * size


def winograd() -> str:
    """Four outputs, directly and by F(2 x 2, 3 x 3)."""
    d = Drawing(720, 300, "Four outputs take 36 multiplications directly and 16 by Winograd's way")
    d.text(130, 30, "directly", weight="bold")
    d.grid(30, 60, _filled(4), BLUE)
    d.grid(60 + 4 * CELL + 28, 94, _filled(2, "9"), GREY)
    d.arrow((172, 128), (222, 128))
    d.text(98, 220, "4 x 4 inputs", GREY, 12)
    d.text(258, 186, "2 x 2 outputs", GREY, 12)
    d.text(150, 268, "4 outputs of 9 products: 36", BLUE, 15, weight="bold")
    d.line(318, 50, 318, 250, "#cbd5e0")
    d.text(520, 30, "Winograd", weight="bold")
    d.grid(340, 60, _filled(4, "1"), ORANGE)
    d.text(408, 220, "16 products of transformed", GREY, 12)
    d.text(408, 238, "inputs and transformed taps", GREY, 12)
    d.arrow((482, 128), (580, 128))
    d.text(531, 116, "additions", GREY, 12)
    d.grid(590, 94, _filled(2), GREY)
    d.text(624, 186, "2 x 2 outputs", GREY, 12)
    d.text(520, 268, "4 x 4 products: 16", ORANGE, 15, weight="bold")
    return d.svg()


def bug(ratios: Mapping[str, Mapping[str, float]]) -> str:
    """Error over bound of every layer: `ratios` is port -> layer -> ratio, the wrong port first."""
    (wrong, bad), (right, good) = ratios.items()
    d = Drawing(720, 330, "Error over bound, layer by layer, of a wrong port and a right one")
    low, high, top, bottom = -3.0, 6.0, 60, 260

    def height(ratio: float) -> float:
        return round(bottom - (math.log10(ratio) - low) / (high - low) * (bottom - top))

    d.text(360, 28, "error of each layer over its certified bound", weight="bold")
    for power in range(int(low), int(high) + 1, 3):
        y = height(10.0**power)
        d.line(96, y, 700, y, "#e2e8f0")
        d.text(
            88,
            y + 5,
            {0: "1", 3: "1,000", 6: "1,000,000"}.get(power, "0.001"),
            GREY,
            12,
            anchor="end",
        )
    d.line(96, height(1), 700, height(1), RED, "6 4")
    d.text(104, height(1) - 6, "the bound", RED, 12, anchor="start")
    step = 604 / len(bad)
    for index, layer in enumerate(bad):
        x = 96 + (index + 0.5) * step
        d.text(x, bottom + 22, layer, GREY, 12)
        d.circle(x - 8, height(bad[layer]), 6, RED if bad[layer] > 1 else ORANGE)
        d.circle(x + 8, height(good[layer]), 6, BLUE)
    d.circle(226, 306, 6, ORANGE)
    d.text(238, 311, wrong, anchor="start", size=13)
    d.circle(446, 306, 6, BLUE)
    d.text(458, 311, right, anchor="start", size=13)
    return d.svg()


DRAWN: dict[str, Callable[[], str]] = {"branches": branches, "fusion": fusion, "winograd": winograd}


def main() -> None:
    """Draw all of them; the last from the page's own code."""
    from tests.cli.test_pages import programs

    for name, draw in DRAWN.items():
        (FOLDER / "figures" / f"{name}.svg").write_text(draw(), encoding="utf-8")
    space: dict[str, object] = {}
    ratios: dict[str, dict[str, float]] = {}
    for code, _ in programs("afternoon"):
        exec(compile(code, read_page("afternoon").path, "exec"), space)
        if code.lstrip().startswith(("report = rr.verify", "def wrapped")):
            port = "ones on the diagonal only" if not ratios else "ones wrapped around"
            ratios[port] = {layer.name: layer.ratio for layer in space["report"].layers}  # type: ignore[attr-defined] # the page's report
    (FOLDER / "figures" / "bug.svg").write_text(bug(ratios), encoding="utf-8")


if __name__ == "__main__":
    main()
