"""What a network thinks of a street, and which classes it confuses, as pictures for people."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from repvgg_ref.arrays import Array
from repvgg_ref.data.cityscapes import KINDS
from repvgg_ref.data.dense import Colour

_OPACITY = 0.55  # of the classes' colours over the picture
_LINE, _TEXT, _GAP = 20, 12, 8  # pixels: a row of the legend, its letters, what lies between
_CELL = 34  # of a confusion, in pixels
_GOLDEN = 0.61803398875  # a step round the circle of hues that never meets itself
_LEAST_TEXT = 0.005  # a cell with a smaller part has no number


def palette(names: Sequence[str]) -> list[Colour]:
    """Cityscapes' colours for its classes, others spread over the circle of hues."""
    published = {kind.name: kind.colour for kind in KINDS}
    return [published.get(name) or _hue(number) for number, name in enumerate(names)]


def _hue(number: int) -> Colour:
    parts = colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.75, 0.9 if number % 2 else 0.65)
    red, green, blue = (round(255 * part) for part in parts)
    return red, green, blue


def overlay(pixels: Array, classes: Array, names: Sequence[str]) -> Image.Image:
    """The picture (H, W, 3) under the colours of `classes` (H, W), and a legend beside it.

    The legend lists the classes that occur, the most frequent first, with their parts.
    """
    colours = np.array(palette(names), np.float64)
    mixed = (1 - _OPACITY) * pixels + _OPACITY * colours[classes]
    shown = Image.fromarray(np.rint(mixed).astype(np.uint8))
    rows = [(int(c), f"{names[c]}  {part:.1%}") for c, part in shares(classes, len(names))]
    font = ImageFont.load_default(_TEXT)
    width = _LINE + 3 * _GAP + max(round(font.getlength(text)) for _, text in rows)
    height = max(shown.height, _LINE * len(rows) + 2 * _GAP)
    sheet = Image.new("RGB", (shown.width + width, height), "white")
    sheet.paste(shown, (0, 0))
    canvas, left = ImageDraw.Draw(sheet), shown.width + _GAP
    for line, (number, text) in enumerate(rows):
        top = _GAP + line * _LINE
        box = (left, top, left + _LINE - 4, top + _LINE - 4)
        canvas.rectangle(box, fill=tuple(int(c) for c in colours[number]), outline="black")
        canvas.text((left + _LINE + _GAP, top), text, fill="black", font=font)
    return sheet


def shares(classes: Array, count: int) -> list[tuple[int, float]]:
    """Class and part of the pixels of those that occur, the most frequent first."""
    counts = np.bincount(classes.ravel(), minlength=count)
    order = np.argsort(-counts, kind="stable")
    return [(int(c), float(counts[c] / classes.size)) for c in order if counts[c]]


def confusion_picture(counts: Array, names: Sequence[str]) -> Image.Image:
    """Which class (row) was taken for which (column), each row in parts of its own pixels."""
    font = ImageFont.load_default(_TEXT)
    margin = 2 * _GAP + max(round(font.getlength(name)) for name in names)
    side = _CELL * len(names)
    sheet = Image.new("RGB", (margin + side + _GAP, margin + side + _GAP), "white")
    canvas = ImageDraw.Draw(sheet)
    totals = counts.sum(axis=1, keepdims=True)
    parts = counts / np.maximum(totals, 1)
    for row, name in enumerate(names):
        top = margin + row * _CELL
        text = (margin - _GAP - font.getlength(name), top + _CELL / 2 - _TEXT / 2)
        canvas.text(text, name, fill="black", font=font)
        turned = Image.new("RGB", (margin - _GAP, _CELL), "white")
        ImageDraw.Draw(turned).text((0, _CELL / 2 - _TEXT / 2), name, fill="black", font=font)
        sheet.paste(turned.rotate(90, expand=True), (top, _GAP // 2))
        for column in range(len(names)):
            _cell(canvas, margin + column * _CELL, top, float(parts[row, column]), font)
    return sheet


def _cell(
    canvas: ImageDraw.ImageDraw,
    left: int,
    top: int,
    part: float,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    shade = round(255 * (1 - part**0.5))
    box = (left, top, left + _CELL - 2, top + _CELL - 2)
    canvas.rectangle(box, fill=(shade, shade, 255), outline=(220, 220, 220))
    if part >= _LEAST_TEXT:
        text, ink = f"{100 * part:.0f}", "white" if part > 0.4 else "black"  # dark enough
        at = left + (_CELL - 2 - font.getlength(text)) / 2, top + _CELL / 2 - _TEXT / 2 - 2
        canvas.text(at, text, fill=ink, font=font)
