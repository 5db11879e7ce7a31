"""What a graph does to its input in front of the first block.

Normalisation is the input's affair, whatever its constants: then the network is judged from the
tensor that enters its first block, and the images are chosen so that the usual ones arrive there.
What brings pixels of no kind to where networks expect them is none, and nothing is judged: times
255 behind images that are normalised would agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.candidates.base import CandidateFailure
from repvgg_ref.oracle.candidates.names import listed
from repvgg_ref.oracle.candidates.onnx_chain import Chain, Step
from repvgg_ref.oracle.candidates.onnx_reading import Reading, channel_map, unread
from repvgg_ref.oracle.candidates.onnx_rules import reader
from repvgg_ref.oracle.candidates.onnx_walk import (
    CARRIERS,
    QUANTISERS,
    STRAIGHT,
    Perm,
    Tap,
    before,
    inverse,
    walked_back,
)

_PIXELS = (1.0, 255.0)  # the brightest, of floats and of bytes; the darkest is 0
_FARTHEST, _NARROWEST = 10.0, 0.5  # what normalised pixels lie within, and cover


@dataclass(frozen=True)
class Normalisation:
    """``y[o] = scale[o] * x[source[o]] + shift[o]``, found at `tap`.

    `source` is a permutation of the channels: BGR for RGB, mostly the identity.
    """

    tap: Tap
    source: tuple[int, ...]
    scale: tuple[float, ...]
    shift: tuple[float, ...]

    @property
    def is_of_pixels(self) -> bool:
        """Whether each channel's pixels come to lie about 0, or only lose their mean."""
        return all(map(_is_of_pixels, self.scale, self.shift))

    def judged(self, y: Array) -> Array:
        """The batch (N, C, H, W) that the first block should see: `y`, in the image's order."""
        return y[:, list(inverse(self.source))]

    def images(self, x: Array) -> Array:
        """What to feed so that `x` is judged."""
        source = list(self.source)
        scale, shift = (np.reshape(v, (1, -1, 1, 1)) for v in (self.scale, self.shift))
        images = np.empty_like(x)
        images[:, source] = (x[:, source] - shift) / scale
        return images

    def __str__(self) -> str:
        shown = (", ".join(f"{value:.5g}" for value in v) for v in (self.scale, self.shift))
        return "times {}, plus {}".format(*shown)


@dataclass(frozen=True)
class Entrance:
    """`perm` makes the graph's input NCHW, if it could be followed."""

    perm: Perm | None
    normalisation: Normalisation | None = None
    notes: tuple[str, ...] = ()

    @property
    def start(self) -> Tap | None:
        """Where the first block's input is, if not at the graph's own."""
        return self.normalisation.tap if self.normalisation else None


def find_entrance(chain: Chain, first: int, channels: int, *, integers: bool) -> Entrance:
    """Read the steps in front of the step `first`, the first block's.

    Raises
    ------
    CandidateFailure
        If the graph takes a channel of the image away.
    """
    steps = chain.steps
    carried = walked_back(steps, first - 1, -1, STRAIGHT, CARRIERS | QUANTISERS)
    if carried.step < 0 and not integers:
        return Entrance(carried.perm)
    if first == len(steps):  # no block was found at all
        return Entrance(None)
    perms = [STRAIGHT]  # behind each step, the last first
    for step in reversed(steps[:first]):
        perms.append(before(step, perms[-1]) or STRAIGHT)
    perms.reverse()
    found = _normalisation(chain, first, channels, perms)
    done = 0 if found is None else found.tap.step + 1
    rest = [step for step in steps[done:first] if step.single not in CARRIERS | QUANTISERS]
    if found is not None and not found.is_of_pixels:
        raise CandidateFailure(
            "the graph changes its input before the first block as no normalisation of pixels does",
            got=str(found),
            wanted=f"pixels 0 to 1 or to 255 within +-{_FARTHEST:g}, or less their mean",
            advice="take it out of the graph, or hand the port over as a callable with --inputs",
        )
    notes = []
    if found is not None and (own := _named(steps[:done])):
        says = f"the graph normalises its input before the first block: {own} ({found})"
        notes.append(says + "; judged is what enters the block, not this")
    if rest:
        notes.append(f"the graph changes its input before the first block: {_named(rest)}")
    followed = found is not None or all(step.single for step in steps[:first])
    return Entrance(perms[0] if followed else None, found, tuple(notes))


def _is_of_pixels(scale: float, shift: float) -> bool:
    if not np.isfinite((scale, shift)).all():
        return True  # its outputs say enough
    for brightest in _PIXELS:
        low, high = sorted((shift, scale * brightest + shift))
        is_near = low >= -_FARTHEST and high <= _FARTHEST and high - low >= _NARROWEST
        if is_near or (scale == 1 and low < 0 < high):
            return True
    return False


def _normalisation(
    chain: Chain, first: int, channels: int, perms: list[Perm]
) -> Normalisation | None:
    """Up to the last step whose reading is one number a channel."""
    axes = inverse(perms[0])
    read = reader(chain.constants, {chain.entrance.name: unread(channels, axes)})
    found = None
    for i, step in enumerate(chain.steps[:first]):
        read.read(step.nodes)
        reading = read.found.get(step.tensor)
        mapped = None if reading is None else _channelwise(reading, channels)
        if reading is None or mapped is None:
            break
        source, scale = mapped
        shift = tuple(map(float, reading.form.bias))
        tap = Tap(step.tensor, perms[i + 1], i)
        found = Normalisation(tap, tuple(map(int, source)), tuple(map(float, scale)), shift)
    return found


def _channelwise(reading: Reading, channels: int) -> tuple[Array, Array] | None:
    if not reading.is_linear or any(reading.border) or len(reading.form.bias) != channels:
        return None
    mapped = channel_map(reading.form)
    if mapped is None:
        return None
    source, scale = mapped
    if (scale == 0).any():
        raise CandidateFailure(
            "the graph takes a channel of the image away before the first block",
            got=f"channel {int(np.argmin(np.abs(scale)))} times 0",
        )
    return mapped if sorted(source) == list(range(channels)) else None


def _named(steps: tuple[Step, ...] | list[Step]) -> str:
    done = [node.op_type for step in steps for node in step.nodes]
    plain = [name for name in done if name not in CARRIERS - {"Cast"}]
    return listed(plain)
