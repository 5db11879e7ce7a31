"""Operations of networks that say a class for every pixel: pyramids, resizing, channel dropout.

Sources: PSPNet (Zhao et al., arXiv 1612.01105), section 3.2 and Figure 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.models.gated import kept
from repvgg_ref.models.layers import Extent, Free, Pass

IGNORED = 255  # the label of pixels that no loss and no score counts


@dataclass(frozen=True, slots=True)
class AdaptiveAvgPool(Free):
    """The means of `bins` x `bins` windows that cover the image."""

    bins: int

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.adaptive_avg_pool`."""
        return run.ops.adaptive_avg_pool_forward(x[0], size=(self.bins, self.bins))

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `ops.adaptive_avg_pool`."""
        return [run.ops.adaptive_avg_pool_backward(grad_y, cache)]

    def extent(self, x: list[Extent]) -> Extent:
        """So many windows a side, whatever the image's size."""
        return x[0][0], self.bins, self.bins


@dataclass(frozen=True, slots=True)
class ResizeAs(Free):
    """The first input, bilinear with aligned corners, in the height and width of the second."""

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.bilinear_resize`."""
        return run.ops.bilinear_resize_forward(x[0], size=_size(x[1], run))

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `ops.bilinear_resize`; the second input gave its size alone."""
        return [run.ops.bilinear_resize_backward(grad_y, cache), None]

    def extent(self, x: list[Extent]) -> Extent:
        """Channels of the first, size of the second."""
        return x[0][0], *x[1][1:]


@dataclass(frozen=True, slots=True)
class Zoom(Free):
    """`factor` - 1 new pixels between neighbours, bilinear with aligned corners.

    ``(H - 1) factor + 1`` rows: the size of an image that was halved log2(factor) times, if its
    own is a multiple of the factor, plus 1.
    """

    factor: int

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.bilinear_resize`."""
        height, width = (self._grown(n) for n in _size(x[0], run))
        return run.ops.bilinear_resize_forward(x[0], size=(height, width))

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `ops.bilinear_resize`."""
        return [run.ops.bilinear_resize_backward(grad_y, cache)]

    def extent(self, x: list[Extent]) -> Extent:
        """As the class says."""
        channels, height, width = x[0]
        return channels, self._grown(height), self._grown(width)

    def _grown(self, pixels: int) -> int:
        return (pixels - 1) * self.factor + 1


@dataclass(frozen=True, slots=True)
class Concat(Free):
    """The channels of all inputs, one after another."""

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.concat`."""
        return run.ops.concat_forward(*x)

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `ops.concat`."""
        return list(run.ops.concat_backward(grad_y, cache))

    def extent(self, x: list[Extent]) -> Extent:
        """The sum of the channels."""
        return sum(channels for channels, _, _ in x), *x[0][1:]


@dataclass(frozen=True, slots=True)
class ChannelDropout(Free):
    """Whole channels set to 0 at random in training, the others times ``1 / (1 - rate)``."""

    rate: float

    def forward(self, name: str, x: list[Array], run: Pass) -> tuple[Array, Any]:
        """See `ops.channel_dropout`; one draw an image and a channel."""
        rate = self.rate if run.dropout is None else run.dropout
        channels = x[0].shape[3 if run.ops.layout == "NHWC" else 1]
        chosen = kept(name, rate, (len(x[0]), channels), run)
        if chosen is None:
            return x[0], None
        return run.ops.channel_dropout_forward(x[0], run.ops.from_host(chosen), rate=rate)

    def backward(
        self, name: str, grad_y: Array, cache: Any, run: Pass, *, wants_x: bool
    ) -> list[Array | None]:
        """See `ops.channel_dropout`."""
        return [grad_y if cache is None else run.ops.channel_dropout_backward(grad_y, cache)]

    def extent(self, x: list[Extent]) -> Extent:
        """As the input's."""
        return x[0]


def _size(x: Array, run: Pass) -> tuple[int, int]:
    height, width = x.shape[1:3] if run.ops.layout == "NHWC" else x.shape[2:]
    return height, width
