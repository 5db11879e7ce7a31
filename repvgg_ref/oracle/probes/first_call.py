"""The first call of a port: on the user's batch, on ours, or on one of the shape that it takes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from repvgg_ref.arrays import Array, one_line
from repvgg_ref.errors import ShapeError
from repvgg_ref.models.arguments import arrangement, fixed_side, is_floating
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates import Candidate, CandidateFailure, Outputs
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs

Extents = tuple[int, int, int]  # images, height, width

# Four images: with two, the last layers have too few outputs to show weights kept to 20 bits. A
# square hides what confuses height with width.
DEFAULT: Extents = (4, 96, 80)
# Sides of images that networks are compiled for, the most usual first; then batches.
_SIDES = (224, 32, 28, 64, 96, 128, 256, 299, 160, 192, 320, 384)
_BATCHES = (2, 4, 8, 16, 32)
_USUAL_SIDES = (224, 32)
_SECONDS = 8.0  # after which no further shape is tried
_SECONDS_A_CALL = 60.0
_MOST_NUMBERS = 16  # of a message
_LARGEST_SIDE = 2048
_MOST_PIXELS = 32 * 384 * 384


@dataclass(frozen=True)
class FirstCall:
    """One call, and the seconds that it took.

    Attributes
    ----------
    x : array, shape (N, C, H, W)
        What entered the network.
    fed : array or None
        What the port was called with, another batch where it normalises by itself; None for a dump.
    """

    x: Array
    outputs: Outputs
    seconds: float
    fed: Array | None = None

    __repr__ = one_line

    @property
    def is_normalised(self) -> bool:
        """Whether another batch entered the network than the port was called with."""
        return self.fed is not None and not np.array_equal(self.fed, self.x)


def first_call(port: Candidate, arch: Network, inputs: Array | None) -> FirstCall:
    """Run the port once.

    Parameters
    ----------
    port : Candidate
    arch : Network
        The reference's.
    inputs : array, shape (N, C, H, W), optional
        The user's batch. Without it a dump must bring its own, and a port that can be called gets
        `distinguishing_inputs`, in the shape it declares or else in one found by trying.

    Raises
    ------
    CandidateFailure
        If it gives nothing to compare; "cannot-judge" for a dump without its input.
    ShapeError
        If `inputs` are no images for this network.
    """
    started = time.monotonic()
    if inputs is not None or port.brings_input:
        if inputs is not None:
            require_images(arch, inputs)
        found = _called(port, inputs, started)
        return found if port.is_called or inputs is None else _with_own_input(port, found, inputs)
    if not port.is_called:
        raise CandidateFailure(
            f"{port.name}: holds outputs, but not the input they belong to",
            wanted="the batch that was run, (N, C, H, W)",
            advice="give the input with --inputs, or dump it along as 'input'",
        )
    declared = port.input_shape()
    batch, _, *size = declared if declared is not None and len(declared) == 4 else (None,) * 4
    usual = DEFAULT[1:] if (side := fixed_side(arch)) is None else (side, side)
    extents = (batch or DEFAULT[0], size[0] or usual[0], size[1] or usual[1])
    try:
        found = _called(port, port.images(_images(arch, extents)), started)
    except CandidateFailure as failure:
        if not failure.refused:
            raise
        return _by_trying(port, arch, extents, failure)
    if batch or size[0] or size[1]:
        shape = ("any" if n is None else str(n) for n in declared or ())
        note = f"its input has the fixed shape {'x'.join(shape)}; --inputs gives other images"
        return replace(found, outputs=_with_note(found.outputs, note))
    return found


def require_images(arch: Network, x: Array) -> None:
    """Raise `ShapeError` unless `x` is a batch of images for the network, in numbers."""
    if x.dtype.kind not in "fiu" and not is_floating(x.dtype):
        raise ShapeError("the inputs hold no real numbers", got=x.dtype, wanted="float32")
    if x.ndim == 4 and 0 in x.shape:
        raise ShapeError(
            "the inputs hold no image",
            got=f"shape {tuple(x.shape)}",
            wanted=f"at least one image, (N, {arch.in_channels}, H, W)",
        )
    if x.ndim != 4 or x.shape[1] != arch.in_channels:
        raise ShapeError(
            "the inputs are no batch of images for this network",
            got=f"shape {tuple(x.shape)}",
            wanted=f"(N, {arch.in_channels}, H, W)",
            advice=arrangement(tuple(x.shape), arch.in_channels) or "save the batch in NCHW",
        )


def _called(port: Candidate, x: Array | None, started: float) -> FirstCall:
    outputs = port.run(x)
    own = outputs.x if outputs.x is not None else x
    if own is None:
        raise CandidateFailure(
            f"{port.name}: brings outputs but no input",
            wanted="the batch they belong to",
            advice="give the input with --inputs",
        )
    return FirstCall(own, outputs, time.monotonic() - started, x)


def _with_own_input(port: Candidate, found: FirstCall, inputs: Array) -> FirstCall:
    """A dump's first call, its own input held against the one that was given beside it.

    Its own is the one that its outputs belong to.
    """
    own = found.outputs.x
    if own is None or np.array_equal(own, inputs):
        return found
    if own.shape != inputs.shape:
        raise CandidateFailure(
            f"{port.name}: was made from another input than the one given",
            got=f"shape {tuple(own.shape)} in the dump, {tuple(inputs.shape)} given",
            wanted="one and the same batch",
            advice="leave --inputs out: the dump has its own",
        )
    return replace(
        found,
        outputs=_with_note(found.outputs, "judged on the dump's own input, not the given one"),
    )


def _images(arch: Network, extents: Extents) -> Array:
    batch, height, width = extents
    return distinguishing_inputs(arch, batch=batch, height=height, width=width)


def _by_trying(
    port: Candidate, arch: Network, refused: Extents, first: CandidateFailure
) -> FirstCall:
    """Call with the shapes that the failure names, then with usual ones, until one is taken."""
    until, tried = time.monotonic() + _SECONDS, 0
    for extents in _shapes(str(first.got or first), arch.in_channels, refused):
        started = time.monotonic()
        if started > until:
            break
        tried += 1
        x = port.images(_images(arch, extents))
        try:
            outputs = port.run_again(x, _SECONDS_A_CALL)
        except CandidateFailure as failure:
            if failure.refused:
                continue
            break
        if not _looks_right(outputs, arch):
            raise CandidateFailure(
                f"{port.name}: takes {_shown(arch, extents)}, found by trying, but gives no output "
                "of this network for it",
                got=", ".join(str(tuple(a.shape)) for a in outputs.layers.values())[:80],
                wanted=f"logits (N, {arch.num_classes})",
                advice="give a batch of the shape it was made for with --inputs",
            )
        note = (
            f"it refused a batch of {_shown(arch, refused)}; judged on {_shown(arch, extents)}, "
            "found by trying: --inputs gives another"
        )
        seconds = time.monotonic() - started
        own = outputs.x if outputs.x is not None else x
        return FirstCall(own, _with_note(outputs, note), seconds, x)
    raise CandidateFailure(
        first.what,
        got=first.got,
        wanted=first.wanted,
        advice=f"it refused a batch of {_shown(arch, refused)} and {tried} other shapes: "
        "give one that it takes with --inputs",
    )


def _looks_right(outputs: Outputs, arch: Network) -> bool:
    """Whether anything in the outputs has as many channels or classes as it should."""
    wanted = {**arch.channels, arch.head.name: arch.num_classes}
    return any(a.ndim > 1 and a.shape[1] == wanted.get(n) for n, a in outputs.layers.items())


def _shapes(message: str, channels: int, refused: Extents) -> Iterator[Extents]:
    """Extents to try, each once: what the message names, then what is usual."""
    seen = {refused}
    for extents in (*_named(message, channels, refused), *_usual(refused)):
        batch, height, width = extents
        if extents not in seen and batch * height * width <= _MOST_PIXELS:
            seen.add(extents)
            yield extents


def _named(message: str, channels: int, refused: Extents) -> Iterator[Extents]:
    """What a message says of shapes: (1, 3, 224, 224), 3x224x224, 224x224, 224, batch 4."""
    numbers = [int(n) for n in re.findall(r"(?<![\w.])\d{1,4}(?![\w.]*\.\d)", _spaced(message))]
    numbers = numbers[:_MOST_NUMBERS]
    for i, n in enumerate(numbers):
        if n == channels and len(numbers[i + 1 : i + 3]) >= 2:
            height, width = numbers[i + 1 : i + 3]
            if not (1 <= height <= _LARGEST_SIDE and 1 <= width <= _LARGEST_SIDE):
                continue
            batches = [numbers[i - 1]] if i and 1 <= numbers[i - 1] <= 64 else []
            yield from ((batch, height, width) for batch in (*batches, 1, 2))
    sides = [n for n in numbers if 8 <= n <= _LARGEST_SIDE]
    for height, width in pairwise(sides):
        yield from ((batch, height, width) for batch in (1, 2))
    for side in sides:
        yield from ((batch, side, side) for batch in (1, 2))
    for batch in numbers:
        if 1 <= batch <= 64:
            yield batch, *refused[1:]
            yield from ((batch, side, side) for side in _USUAL_SIDES)


def _spaced(message: str) -> str:
    """With the crosses between extents taken out: 3x224x224, 224 x 224."""
    return re.sub(r"(?<=\d)\s*[x\N{MULTIPLICATION SIGN}*]\s*(?=\d)", " ", message)


def _usual(refused: Extents) -> Iterator[Extents]:
    _, height, width = refused
    yield 1, height, width
    yield 2, height, height
    yield 1, height, height
    for batch in (1, 2):
        yield from ((batch, side, side) for side in _SIDES)
    for batch in _BATCHES:
        yield batch, height, width
        yield from ((batch, side, side) for side in _USUAL_SIDES)


def _shown(arch: Network, extents: Extents) -> str:
    batch, height, width = extents
    return f"{batch}x{arch.in_channels}x{height}x{width}"


def _with_note(outputs: Outputs, note: str) -> Outputs:
    return replace(outputs, notes=(*outputs.notes, note))
