"""A layer's residual as pictures: the worst channels, the mean size per pixel and per channel."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.render.words import TIMES, count, number
from repvgg_ref.oracle.report import Finding

_MOST_TILES = 8
_MOST_PIXELS = 128  # a side; larger maps are reduced, their largest values kept
_MOST_CLASSES = 1024

# Blue - white - red (ColorBrewer RdBu) and white - orange - red (OrRd): safe for the colour-blind.
_DIVERGING = ((33, 102, 172), (146, 197, 222), (247, 247, 247), (244, 165, 130), (178, 24, 43))
_SEQUENTIAL = ((255, 247, 236), (253, 212, 158), (252, 141, 89), (215, 48, 31), (127, 0, 0))
# What is not finite is a chequerboard of two colours that neither scale has.
_NOT_FINITE = np.array([(255, 221, 0), (0, 0, 0)], np.uint8)


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI, one pixel a value (or the largest of several)."""

    src: str
    width: int
    height: int
    caption: str


@dataclass(frozen=True)
class ResidualPictures:
    """Everything the page shows of a residual.

    Attributes
    ----------
    tiles : tuple of Picture
        Signed residual of the worst channels, all on the scale -limit ... limit.
    summaries : tuple of Picture
        Mean magnitude over images and channels; per channel. Each on a scale of its own.
    legend, size_legend : Picture
        The two colour scales.
    not_finite : int
        How many values are NaN or infinite.
    """

    tiles: tuple[Picture, ...]
    summaries: tuple[Picture, ...]
    legend: Picture
    size_legend: Picture
    not_finite_swatch: Picture
    limit: float
    not_finite: int
    shape: str


def residual_pictures(residual: Array | None) -> ResidualPictures | None:
    """Draw candidate minus reference.

    Parameters
    ----------
    residual : array, shape (N, O, H, W), or (N, classes) for logits
        NaN and infinities are drawn as what they are.

    Returns
    -------
    ResidualPictures, or None for None, an empty array or another rank
    """
    if residual is None or residual.size == 0 or residual.ndim not in (2, 4):
        return None
    finite = np.isfinite(residual)
    magnitude = np.where(finite, np.abs(residual), 0.0)
    limit = float(magnitude.max())
    draw = _logits if residual.ndim == 2 else _maps
    tiles, summaries = draw(residual, magnitude, finite, limit)
    ramp = np.linspace(-1, 1, 128)[None]
    return ResidualPictures(
        tiles=tuple(tiles),
        summaries=tuple(summaries),
        legend=_signed(ramp, 1.0, "colour scale of the signed residual"),
        size_legend=_sized((ramp + 1) / 2, "colour scale of magnitudes"),
        not_finite_swatch=_signed(np.full((6, 6), np.nan), 1.0, "NaN or infinite"),
        limit=limit,
        not_finite=int(residual.size - finite.sum()),
        shape=f" {TIMES} ".join(map(str, residual.shape)),
    )


def tap_pictures(findings: Iterable[Finding]) -> list[Picture]:
    """The estimated errors of weights, one picture a channel: input channels side by side."""
    drawn = []
    for finding in findings:
        for channel in (finding.taps or {}).get("channels", ()):
            kernels = np.asarray(channel["errors"], np.float64)  # (C/G, Kh, Kw)
            limit = float(np.abs(kernels).max())
            caption = (
                f"{finding.layer}, output channel {channel['channel']}: estimated errors of its"
                f" {len(kernels)} kernels, up to {number(limit)}"
            )
            drawn.append(_signed(_side_by_side(kernels), limit, caption))
    return drawn


def _side_by_side(kernels: Array) -> Array:
    """(C, Kh, Kw) -> one map, as many kernels across as down, a pixel of 0 between them."""
    count, height, width = kernels.shape
    across = int(np.ceil(np.sqrt(count)))
    down = -(-count // across)
    grid = np.zeros((down * across, height + 1, width + 1))
    grid[:count, :height, :width] = kernels
    grid = grid.reshape(down, across, height + 1, width + 1).transpose(0, 2, 1, 3)
    return np.asarray(grid.reshape(down * (height + 1), across * (width + 1)))


def _maps(
    residual: Array, magnitude: Array, finite: Array, limit: float
) -> tuple[list[Picture], list[Picture]]:
    lost = (~finite).sum(axis=(2, 3))  # (N, O)
    largest = magnitude.max(axis=(2, 3))  # (N, O)
    images = np.lexsort((largest, lost), axis=0)[-1]  # (O,): where each channel is worst
    channels = np.arange(residual.shape[1])
    order = np.lexsort((largest[images, channels], lost[images, channels]))[::-1]
    tiles = []
    for o in order[:_MOST_TILES]:
        n = images[o]
        says = f"{count(int(lost[n, o]), 'value')} not finite" if lost[n, o] else ""
        size = f"max |r| {number(float(largest[n, o]))}"
        caption = f"channel {o}, image {n}: {says or size}"
        tiles.append(_signed(_shrunk(residual[n, o]), limit, caption))
    mean = _mean(magnitude, finite, axis=(0, 1))
    per_channel = _mean(magnitude, finite, axis=(0, 2, 3))[None]
    return tiles, [
        _sized(
            _shrunk(mean),
            f"where: mean |r| over {count(residual.shape[0], 'image')} and "
            f"{count(residual.shape[1], 'channel')}, up to {_largest(mean)}",
        ),
        _sized(
            per_channel,
            f"which channels: mean |r| of channels 0 to {residual.shape[1] - 1}, "
            f"up to {_largest(per_channel)}",
        ),
    ]


def _logits(
    residual: Array, magnitude: Array, finite: Array, limit: float
) -> tuple[list[Picture], list[Picture]]:
    shown = residual[:_MOST_TILES, :_MOST_CLASSES]
    caption = (
        f"logits: {count(shown.shape[0], 'image')} (rows), classes 0 to {shown.shape[1] - 1}"
        f" (columns), max |r| {number(limit)}"
    )
    return [], [_signed(shown, limit, caption)]


def _mean(magnitude: Array, finite: Array, axis: tuple[int, ...]) -> Array:
    """Mean of the finite magnitudes; NaN where there is none."""
    n = np.maximum(finite.sum(axis=axis, keepdims=True), 1)
    mean = (magnitude / n).sum(axis=axis)  # divided first: a sum of large values may overflow
    return np.where(finite.any(axis=axis), mean, np.nan)


def _largest(values: Array) -> str:
    finite = values[np.isfinite(values)]
    return number(float(finite.max())) if finite.size else "nothing finite"


def _shrunk(values: Array) -> Array:
    """Blocks of a large map replaced by their value of largest magnitude, NaN first."""
    step = -(-max(values.shape) // _MOST_PIXELS)
    if step <= 1:
        return values
    h, w = (-(-extent // step) for extent in values.shape)
    padded = np.zeros((h * step, w * step))
    padded[: values.shape[0], : values.shape[1]] = values
    # (h * step, w * step) -> (h, step, w, step) -> (h, w, step * step)
    blocks = padded.reshape(h, step, w, step).transpose(0, 2, 1, 3).reshape(h, w, -1)
    size = np.where(np.isfinite(blocks), np.abs(blocks), np.inf)
    chosen: Array = np.take_along_axis(blocks, size.argmax(-1)[..., None], -1)[..., 0]
    return chosen


def _signed(values: Array, limit: float, caption: str) -> Picture:
    return _picture((values / (limit or 1.0) + 1) / 2, _DIVERGING, caption)


def _sized(values: Array, caption: str) -> Picture:
    """Magnitudes from 0 to their largest."""
    finite = values[np.isfinite(values)]
    limit = float(finite.max()) if finite.size else 0.0
    return _picture(values / (limit or 1.0), _SEQUENTIAL, caption)


def _picture(scaled: Array, colours: Sequence[tuple[int, int, int]], caption: str) -> Picture:
    """Values in 0 ... 1 as a PNG."""
    from PIL import Image

    finite = np.isfinite(scaled)
    at = np.where(finite, scaled, 0.0)
    stops = np.linspace(0, 1, len(colours))
    channels = [np.interp(at, stops, [colour[i] for colour in colours]) for i in range(3)]
    pixels = np.stack(channels, axis=-1).round().astype(np.uint8)  # (H, W, 3)
    chequers = _NOT_FINITE[np.indices(scaled.shape).sum(axis=0) % 2]
    pixels = np.where(finite[..., None], pixels, chequers)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    encoded = base64.b64encode(stream.getvalue()).decode("ascii")
    height, width = scaled.shape
    return Picture(f"data:image/png;base64,{encoded}", width, height, caption)
