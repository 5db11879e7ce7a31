"""Laws and the cases they are tried on.

A law is a test of a table of operators on one case. Hypothesis draws a case's shapes, settings and
seed (arrays are filled from the seed) and tries the reference; `test_mutants` tries the same laws
on planted bugs, with the fixed examples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from repvgg_ref.arrays import Array
from repvgg_ref.ops import REFERENCE, Ops
from tests.examples import examples
from tests.ops.exact import floats, frozen, rationals

Law = Callable[[Ops, Any], None]
LAWS: dict[str, tuple[Law, Sequence[Any]]] = {}

seeds = st.integers(0, 2**32 - 1)


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@dataclass(frozen=True)
class ConvCase:
    """`extra` pixels are added to the smallest image that the kernel fits in."""

    images: int = 2
    groups: int = 1
    inputs_per_group: int = 2
    outputs_per_group: int = 3
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    extra: tuple[int, int] = (2, 3)
    seed: int = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def arrays(self, fill: Any = rationals) -> tuple[Array, Array, Array]:
        """`x`, `weight` and `bias`."""
        height, width = (
            max(1, d * (k - 1) + 1 - 2 * p) + e
            for k, p, d, e in zip(self.kernel, self.padding, self.dilation, self.extra, strict=True)
        )
        draw = partial(fill, np.random.default_rng(self.seed))
        inputs, outputs = self.groups * self.inputs_per_group, self.groups * self.outputs_per_group
        return (
            draw(self.images, inputs, height, width),
            draw(outputs, self.inputs_per_group, *self.kernel),
            draw(outputs),
        )


conv_cases = st.builds(
    ConvCase,
    images=st.integers(1, 2),
    groups=st.integers(1, 3),
    inputs_per_group=st.integers(1, 3),
    outputs_per_group=st.integers(1, 3),
    kernel=pairs(1, 3),
    stride=pairs(1, 3),
    padding=pairs(0, 2),
    dilation=pairs(1, 2),
    extra=pairs(0, 4),
    seed=seeds,
)
CONV_EXAMPLES = (
    ConvCase(),
    ConvCase(stride=(2, 1), padding=(2, 0), dilation=(1, 2), kernel=(3, 2), seed=1),
    ConvCase(groups=2, stride=(1, 2), dilation=(2, 1), seed=2),
    ConvCase(kernel=(1, 1), padding=(0, 0), images=1, seed=3),
)


@dataclass(frozen=True)
class ImageCase:
    """A batch of images; `classes` doubles as the width of a layer behind it."""

    images: int = 2
    channels: int = 3
    height: int = 2
    width: int = 3
    classes: int = 4
    scale: float = 1.0
    seed: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.images, self.channels, self.height, self.width

    def floats(self, *shapes: tuple[int, ...]) -> list[Array]:
        return [frozen(self.scale * x) for x in self._fill(floats, shapes)]

    def rationals(self, *shapes: tuple[int, ...]) -> list[Array]:
        return self._fill(rationals, shapes)

    def _fill(self, fill: Any, shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
        rng = np.random.default_rng(self.seed)
        return [fill(rng, *shape) for shape in shapes]


image_cases = st.builds(
    ImageCase,
    images=st.integers(1, 3),
    channels=st.integers(1, 4),
    height=st.integers(1, 4),
    width=st.integers(2, 4),  # so that a channel never has just one value
    classes=st.integers(1, 5),
    scale=st.sampled_from([0.01, 1.0, 30.0]),
    seed=seeds,
)
IMAGE_EXAMPLES = (
    ImageCase(),
    ImageCase(images=3, channels=1, height=4, scale=30.0, seed=1),
    ImageCase(images=1, channels=4, height=1, classes=2, seed=2),
)


def conv_law(law: Callable[[Ops, ConvCase], None]) -> Callable[[], None]:
    return _law(law, conv_cases, CONV_EXAMPLES)


def image_law(law: Callable[[Ops, ImageCase], None]) -> Callable[[], None]:
    return _law(law, image_cases, IMAGE_EXAMPLES)


def _law(law: Law, cases: st.SearchStrategy[Any], chosen: Sequence[Any]) -> Callable[[], None]:
    LAWS[f"{law.__module__.rpartition('.')[2]}.{law.__name__}"] = law, chosen
    drawn = given(ops=st.just(REFERENCE), case=cases)(law)
    return examples(50)(drawn)
