"""The sizes of one convolution, checked once; NHWC."""

from __future__ import annotations

from math import prod
from typing import NamedTuple

from repvgg_ref.errors import ShapeError, require_equal
from repvgg_ref.ops import IntOrPair

Pair = tuple[int, int]


class Geometry(NamedTuple):
    """Images (N, H, W, C), kernels (O, C/G, Kh, Kw), outputs (N, Ho, Wo, O)."""

    images: int
    size: Pair
    channels: int
    outputs: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    @property
    def out_size(self) -> Pair:
        """(Ho, Wo)."""
        height, width = (
            (n + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
            for n, padding, dilation, kernel, stride in zip(
                self.size, self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        )
        return height, width

    @property
    def is_pointwise(self) -> bool:
        """Whether the kernel is 1x1 without padding: no window overlaps another."""
        return self.kernel == (1, 1) and self.padding == (0, 0)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        """(N, H, W, C)."""
        return (self.images, *self.size, self.channels)

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        """(N, Ho, Wo, O)."""
        return (self.images, *self.out_size, self.outputs)

    @property
    def columns_shape(self) -> tuple[int, int, int]:
        """(G, N*Ho*Wo, Kh*Kw*C/G): every window as a row."""
        pixels = self.images * prod(self.out_size)
        return self.groups, pixels, prod(self.kernel) * (self.channels // self.groups)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(O, C/G, Kh, Kw)."""
        return (self.outputs, self.channels // self.groups, *self.kernel)


def geometry(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    bias_shape: tuple[int, ...] | None = None,
    *,
    stride: IntOrPair,
    padding: IntOrPair,
    dilation: IntOrPair,
    groups: int,
) -> Geometry:
    """The sizes of ``conv2d(x, weight)``, with the checks of `ops.conv2d.conv2d_forward`.

    Raises
    ------
    ShapeError
        If the shapes do not fit together, or if Ho or Wo would be less than 1.
    """
    require_equal("conv2d", "x.ndim", len(x_shape), "len((N, H, W, C))", 4)
    require_equal("conv2d", "weight.ndim", len(weight_shape), "len((O, C/G, Kh, Kw))", 4)
    (images, height, width, channels), (outputs, inputs, *kernel) = x_shape, weight_shape
    if groups < 1:
        raise ShapeError(f"conv2d: groups (={groups}) must be at least 1")
    require_equal("conv2d", "C % groups", channels % groups, "no remainder", 0)
    require_equal("conv2d", "O % groups", outputs % groups, "no remainder", 0)
    require_equal("conv2d", "weight.shape[1]", inputs, "C / groups", channels // groups)
    if bias_shape is not None:
        require_equal("conv2d", "bias.shape", bias_shape, "(O,)", (outputs,))
    found = Geometry(
        images,
        (height, width),
        channels,
        outputs,
        (kernel[0], kernel[1]),
        _pair("stride", stride, minimum=1),
        _pair("padding", padding, minimum=0),
        _pair("dilation", dilation, minimum=1),
        groups,
    )
    if min(found.out_size) < 1:
        raise ShapeError(
            f"conv2d: no output pixel: a kernel of {found.kernel} with dilation {found.dilation} "
            f"does not fit into {found.size} pixels with a padding of {found.padding}"
        )
    return found


def _pair(name: str, value: IntOrPair, *, minimum: int) -> Pair:
    pair = value if isinstance(value, tuple) else (value, value)
    if len(pair) != 2 or min(pair) < minimum:
        raise ShapeError(
            f"conv2d: {name} (={value}) must be an int or a (height, width) pair, "
            f"at least {minimum}"
        )
    return pair
