"""Digits in other styles than those that the bundled model learnt: how many does it read?

    python -m tests.studies.data.digit_styles [--out results/digit-styles.json] [--sheet FILE.png]

Typed in every upright and slanted font that matplotlib and Pillow ship, and written by strokes of
our own (two hands, three pens, random slant, size and trembling), each as a clean picture, as
light ink on black with margins, as a scan and as a photograph (uneven light, noise, blur, tinted
paper and ink, off the centre). "before" is the picture made small, as versions up to 0.1 did;
"after" is what `predict` does now. None of these pictures was used to train anything; the constants
of `repvgg_ref.data.digit_pictures` were chosen on seed 0, the committed figures are of seed 1.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.data.digit_pictures import DigitPictureError, record
from repvgg_ref.data.digits import INK, MODEL_PATH, SIDE, to_input
from tests.data.pen import HANDS, written

RESULT = Path(__file__).parent / "results" / "digit-styles.json"
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic"),
    *("DejaVuSansMono", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic"),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
MEDIA = ("clean", "light on dark", "scan", "photograph")


class Drawn(NamedTuple):
    """A picture, the digit that it shows, and how."""

    image: Image.Image
    digit: int
    style: str
    medium: str


def drawn(seed: int) -> Iterator[Drawn]:
    """Every digit in every style on every medium."""
    rng = np.random.default_rng(seed)
    for digit in range(10):
        for font in (*FONTS, "Pillow's own"):
            for medium in MEDIA:
                yield Drawn(on_medium(typed(digit, font), medium, rng), digit, "typed", medium)
        for hand in HANDS:
            for pen in (0.05, 0.09, 0.15):
                for medium in MEDIA:
                    mask = written(digit, hand=hand, pen=pen, rng=rng)
                    yield Drawn(on_medium(mask, medium, rng), digit, "written", medium)


def typed(digit: int, font: str) -> Image.Image:
    """White on black, with margins."""
    if font == "Pillow's own":
        face: Any = ImageFont.load_default(size=200)
    else:
        import matplotlib

        folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        face = ImageFont.truetype(str(folder / f"{font}.ttf"), 200)
    image = Image.new("L", (300, 300))
    ImageDraw.Draw(image).text((150, 150), str(digit), fill=255, font=face, anchor="mm")
    return image


def on_medium(mask: Image.Image, medium: str, rng: np.random.Generator) -> Image.Image:
    """The digit as `medium` shows it."""
    if medium == "light on dark":
        return mask.resize((64, 64))
    if medium == "clean":
        return Image.eval(mask, lambda level: 255 - level)
    if medium == "scan":
        grey = 245 - 0.8 * np.asarray(mask, np.float64) + rng.normal(0, 6, mask.size[::-1])
        return Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8))
    return _photograph(mask, rng)


def _photograph(mask: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Off the centre of a larger sheet, unevenly lit, tinted, blurred and noisy."""
    width, height = 640, 480
    sheet = Image.new("L", (width, height))
    turned = mask.rotate(float(rng.uniform(-6, 6)), resample=Image.Resampling.BILINEAR)
    sheet.paste(turned, (int(rng.integers(0, width - 300)), int(rng.integers(0, height - 300))))
    ink = np.asarray(sheet.filter(ImageFilter.GaussianBlur(1.5)), np.float64)[..., None] / 255
    y, x = np.mgrid[0:height, 0:width]
    angle = rng.uniform(0, 2 * np.pi)
    light = 0.75 + 0.25 * (np.cos(angle) * (x / width - 0.5) + np.sin(angle) * (y / height - 0.5))
    paper, colour = np.array([235, 228, 205]), np.array([40, 50, 120])
    shown = light[..., None] * (paper * (1 - ink) + colour * ink)
    noisy = shown + rng.normal(0, 5, shown.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def before(image: Image.Image) -> Array:
    """As versions up to 0.1 prepared a picture."""
    small = image.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    return np.asarray(small, np.float32) * np.float32(INK / 255)


def after(image: Image.Image) -> Array | None:
    """As it is prepared now; None if it is refused."""
    try:
        return record(image).ink
    except DigitPictureError:
        return None


def study(seeds: list[int], sheet: Path | None) -> dict[str, Any]:
    """How many are read, by style and medium, before and after."""
    model = rr.fuse(rr.load(MODEL_PATH))
    right: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    refused, mistakes, seen = 0, Counter[str](), []
    for seed in seeds:
        for one in drawn(seed):
            inks = {"before": before(one.image), "after": after(one.image)}
            for when, ink in inks.items():
                key = f"{one.style}, {one.medium}: {when}"
                shown[key] += 1
                if ink is None:
                    refused += 1
                    continue
                found = int(model.forward(to_input(ink[None])).argmax())
                right[key] += found == one.digit
                if when == "after" and found != one.digit:
                    mistakes[f"{one.digit} read as {found} ({one.style})"] += 1
                    seen.append((one, ink, found))
    if sheet is not None:
        _sheet(seen[:120]).save(sheet)
    return {
        "seeds": seeds,
        "read": {key: [right[key], shown[key]] for key in sorted(shown)},
        "refused": refused,
        "mistakes": dict(mistakes.most_common()),
    }


def _sheet(seen: list[Any]) -> Image.Image:
    """The misread ones beside what the network saw of them."""
    columns, cell = 12, 100
    page = Image.new("RGB", (columns * cell, -(-len(seen) // columns) * cell // 2 + 60), "white")
    pen = ImageDraw.Draw(page)
    for place, (one, ink, found) in enumerate(seen):
        x, y = place % columns * cell, place // columns * cell // 2
        page.paste(one.image.convert("RGB").resize((40, 40)), (x, y))
        small = Image.fromarray((ink * 15).astype(np.uint8)).resize((40, 40), Image.Resampling.BOX)
        page.paste(small.convert("RGB"), (x + 42, y))
        pen.text((x + 84, y + 12), str(found), fill="red")
    return page


def main() -> None:
    """Write the figures and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--sheet", type=Path, help="draw those that are misread")
    asked = parser.parse_args()
    found = study(asked.seeds, asked.sheet)
    asked.out.write_text(json.dumps(found, indent=1) + "\n")
    for key, (right, shown) in found["read"].items():
        print(f"{key:40} {right:4} of {shown}")
    for when in ("before", "after"):
        pairs = [pair for key, pair in found["read"].items() if key.endswith(when)]
        print(when, sum(right for right, _ in pairs), "of", sum(shown for _, shown in pairs))


if __name__ == "__main__":
    main()
