"""One layer's residual laid out for statistics: outputs, what they are sums of, and where they lie.

Everything is before the gate of squeeze-and-excitation: outputs and residuals are divided by it, so
that a layer with one is a layer without whose channels each have one more rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.gates import Gates, gates_of
from repvgg_ref.oracle.bounds.linear_part import branch_products, layer_kernels
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.head import HeadProgram
from repvgg_ref.oracle.programs.program import all_pixels

# Whole bands of rows are kept, as high as tiles of F(2), F(3), F(4) and F(6) need.
_BAND = 12
_MOST_OUTPUTS = 1600  # of a channel
# What the rounding of the scales of so few leaves in a channel is within its tolerance (measured).
_FEW_BRANCHES = 3
_UNCLEAR = 4.0  # an output this many likely errors above 0 is active whatever the rounding


@dataclass(frozen=True)
class Sample:
    """Outputs of one layer; O channels, K products each, P outputs of a channel in G groups.

    Attributes
    ----------
    columns : (G, K, P) array
        What an output sees of the candidate's own input.
    weight, magnitude : (O, K) arrays
        The fused kernel, and the sum of the magnitudes of what each tap was added up from.
    bias, bias_magnitude : (O,) arrays
    y, residual : (O, P) arrays
        The reference, and candidate minus reference; both over the gate, if there is one.
    active : (O, P) array of bool
        Where ReLU hides nothing.
    images, rows, pixels_across : (P,) arrays of int
        Where an output lies: image, row, column.
    size : (int, int)
        Height and width of the whole output.
    kernel_sides : (int, int)
        Rows and columns of taps.
    tile_stride : int
        1 where Winograd's algorithm may be at work, 2 with stride 2, 0 where it cannot.
    gates : Gates or None
        What outputs and residuals were divided by, image by image.
    relu : bool
        Whether negative outputs are set to 0.
    branches : (B, O, P) array
        Each branch's own part ``t z``, then the bias's magnitude, where there are so many branches
        that large parts may cancel; else B is 0. The rounding of a branch's scale t moves all of
        its taps together.
    """

    name: str
    columns: Array
    weight: Array
    magnitude: Array
    bias: Array
    bias_magnitude: Array
    y: Array
    residual: Array
    active: Array
    images: Array
    rows: Array
    across: Array
    size: tuple[int, int]
    kernel_sides: tuple[int, int] = (1, 1)
    tile_stride: int = 0
    gates: Gates | None = None
    relu: bool = True
    branches: Array = field(default_factory=lambda: np.zeros((0, 1, 1)))

    @property
    def gated(self) -> bool:
        """Whether there is squeeze-and-excitation."""
        return self.gates is not None

    @property
    def gate(self) -> Array | float:
        """What outputs were divided by, (O, P), or 1."""
        return 1.0 if self.gates is None else self.gates.factor.T[:, self.images]

    @property
    def kernel_size(self) -> int:
        """Taps a channel."""
        return self.kernel_sides[0] * self.kernel_sides[1]

    @property
    def groups(self) -> int:
        """Groups of the convolution."""
        return len(self.columns)

    @property
    def products(self) -> int:
        """K: products an output is the sum of."""
        return int(self.columns.shape[1])

    def times(self, taps: Array) -> Array:
        """``sum_k taps[o, k] x_k``: (O, K) -> (O, P)."""
        return _grouped(taps, self.columns)

    def along(self, outputs: Array) -> Array:
        """``sum_p outputs[o, p] x_k[p]``, the transpose of `times`: (O, P) -> (O, K)."""
        return _grouped(outputs, self.columns.transpose(0, 2, 1))

    def met(self, outputs: Array) -> Array:
        """``sum_k (M_k sum_p outputs[o, p] x_k[p])**2``, (O,), in single precision.

        What independent errors of the taps, each in proportion to its magnitude, and of the scales
        of branches, make of a sum over outputs: a variance, of which a few digits are enough.
        """
        columns, of_columns = self._short_columns
        magnitude, of_magnitude = self._short_magnitude
        short, of_outputs = _short(outputs, axis=1)
        seen = _grouped(short, columns.transpose(0, 2, 1))
        seen *= magnitude
        size = of_columns * of_magnitude * of_outputs
        taps = np.einsum("ok,ok->o", seen, seen) * size[:, 0] ** 2
        return np.asarray(taps + self.met_by_branches(outputs))

    def met_by_branches(self, outputs: Array) -> Array:
        """``sum_b (sum_p outputs[o, p] t_b z_b[p])**2``, (O,)."""
        if not len(self.branches):
            return np.zeros(len(outputs))
        return np.asarray(np.square(np.einsum("op,bop->bo", outputs, self.branches)).sum(axis=0))

    def jolted(self, rng: np.random.Generator) -> Array:
        """What outputs change by if each tap errs by its magnitude, at random, (O, P)."""
        columns, of_columns = self._short_columns
        magnitude, of_magnitude = self._short_magnitude
        errors = magnitude * rng.standard_normal(magnitude.shape, np.float32)
        taps = _grouped(errors, columns) * (of_columns * of_magnitude)
        of_branches = rng.standard_normal(self.branches.shape[:2])[..., None]
        moved = (of_branches * self.branches).sum(axis=0)
        return np.asarray(taps + moved if len(self.branches) else taps)

    @cached_property
    def _short_columns(self) -> tuple[Array, Array]:
        return _short(self.columns)

    @cached_property
    def _short_magnitude(self) -> tuple[Array, Array]:
        return _short(self.magnitude, axis=1)

    @cached_property
    def squares(self) -> Array:
        """``x**2``, (G, K, P)."""
        return np.asarray(np.square(self.columns))

    @cached_property
    def magnitude_squared(self) -> Array:
        """``M**2``, (O, K)."""
        return np.asarray(np.square(self.magnitude))

    @cached_property
    def energy(self) -> Array:
        """``E**2 = sum_k (M_k x_k)**2 + M_b**2``, (O, P): what independent errors add up to.

        And the squares of branches, whose own values are rounded.
        """
        products = self.powers(self.magnitude)
        if len(self.branches):
            return np.asarray(products + np.square(self.branches).sum(axis=0))
        return np.asarray(products + self.bias_magnitude[:, None] ** 2)

    def powers(self, taps: Array) -> Array:
        """``sum_k (taps[o, k] x_k)**2``, (O, P)."""
        return _grouped(np.square(taps), self.squares)

    def weighted_squares(self, weights: Array) -> Array:
        """``sum_p weights[o, p] x_k[p]**2``, (O, K)."""
        return _grouped(weights, self.squares.transpose(0, 2, 1))

    def without_gate(self, weights: Array) -> Array:
        """The residual less a factor for each channel and image: whatever errors of gates explain.

        `weights` (O, P) are those of a weighted least squares fit.
        """
        first = sums_by_image(self.images, weights * self.y * self.residual)  # (O, N)
        power = sums_by_image(self.images, weights * self.y**2)
        share = first / np.where(power > 0, power, np.inf)
        return np.asarray(self.residual - share[:, self.images] * self.y)

    def at(self, positions: Array) -> Sample:
        """The same at some output positions only."""
        return replace(
            self,
            columns=np.ascontiguousarray(self.columns[:, :, positions]),
            y=self.y[:, positions],
            residual=self.residual[:, positions],
            active=self.active[:, positions],
            images=self.images[positions],
            rows=self.rows[positions],
            across=self.across[positions],
            branches=self.branches[:, :, positions] if len(self.branches) else self.branches,
        )

    def of_channels(self, channels: Array) -> Sample:
        """The same with some output channels, as many of each group."""
        return replace(
            self,
            weight=self.weight[channels],
            magnitude=self.magnitude[channels],
            bias=self.bias[channels],
            bias_magnitude=self.bias_magnitude[channels],
            y=self.y[channels],
            residual=self.residual[channels],
            active=self.active[channels],
            gates=None if self.gates is None else self.gates.of_channels(channels),
            branches=self.branches[:, channels] if len(self.branches) else self.branches,
        )

    def beside(self, y: Array, y_hat: Array, unit: float) -> Sample:
        """The same outputs held against another reference, (O, P) each, gate divided out."""
        with np.errstate(invalid="ignore"):
            residual = np.where(np.isfinite(y_hat), y_hat - y, 0.0)
        active = _active(y, y_hat, self.energy, self.products, unit, self.relu)
        return replace(self, y=y, residual=residual, active=active)


def sums_by_image(images: Array, values: Array, count: int | None = None) -> Array:
    """Sums over the outputs of each image, `count` in all: (O, P) -> (O, N)."""
    there = images[:, None] == np.arange(int(images.max()) + 1 if count is None else count)
    return np.asarray(values @ there.astype(np.float64))


def _grouped(rows: Array, columns: Array) -> Array:
    """(O, A) times (G, A, B), each group's rows with its own columns: (O, B)."""
    y = rows.reshape(len(columns), -1, rows.shape[-1]) @ columns
    return np.asarray(y.reshape(len(rows), -1))


def _short(values: Array, axis: int | None = None) -> tuple[Array, Array]:
    """Values as float32, and the float64 sizes that they were divided by, so that all fit."""
    size = np.abs(values).max(axis=axis, keepdims=axis is not None, initial=0.0)
    size = np.where(size > 0, size, 1.0)
    return (values / size).astype(np.float32), size


@np.errstate(all="ignore")
def block_sample(
    program: BlockProgram, x: Array, y: Array, y_hat: Array, precision: Precision
) -> Sample:
    """Lay out a block's outputs.

    Parameters
    ----------
    program : BlockProgram
        A right one.
    x, y, y_hat : arrays (N, C, H, W), (N, O, Ho, Wo) twice
        The candidate's input, the reference's and the candidate's output for it.
    precision : Precision
        Of the candidate's numbers.
    """
    kernels = layer_kernels(program)
    o = len(kernels.weight)
    size = y.shape[2], y.shape[3]
    rows, across = _kept(len(x), *size)
    taps = program.gather(x, rows, across)  # (N, P, C, Kh, Kw)
    n, p = taps.shape[:2]
    columns = taps.reshape(n * p, program.groups, -1).transpose(1, 2, 0)

    def outputs(values: Array) -> Array:
        return np.asarray(values[:, :, rows, across].transpose(1, 0, 2).reshape(o, -1))

    gates = gates_of(program, x, precision) if program.se is not None else None
    at, at_hat = outputs(y), outputs(y_hat)
    if gates is not None:
        spread = np.repeat(gates.factor.T, p, axis=1)  # (O, N * P)
        at, at_hat = at / spread, at_hat / spread
    made = Sample(
        program.name,
        np.ascontiguousarray(columns),
        kernels.weight.reshape(o, -1),
        kernels.weight_magnitude.reshape(o, -1),
        kernels.bias,
        kernels.bias_magnitude,
        at,
        at,
        at > 0,
        np.repeat(np.arange(n), p),
        np.tile(rows, n),
        np.tile(across, n),
        size,
        program.size,
        program.stride if program.size == (3, 3) and program.dilation == 1 else 0,
        gates,
        relu="relu" in program.activation,
    )
    if len(program.branches) > _FEW_BRANCHES:
        parts = branch_products(program, made.columns, made.times(made.weight))
        bias = np.broadcast_to(made.bias_magnitude[:, None], made.y.shape)
        made = replace(made, branches=np.stack([*parts.values(), bias]))
    return made.beside(at, at_hat, precision.unit)


def head_sample(
    program: HeadProgram, x: Array, y: Array, y_hat: Array, precision: Precision
) -> Sample:
    """Lay out the logits, (N, classes): sums over the pooled channels."""
    pooled = x.mean(axis=(2, 3))  # (N, C)
    zeros = np.zeros(len(x), int)
    made = Sample(
        program.name,
        pooled.T[None],
        program.weight,
        np.abs(program.weight),
        program.bias,
        np.abs(program.bias),
        y.T,
        y.T,
        y.T > 0,
        np.arange(len(x)),
        zeros,
        zeros,
        (1, 1),
        relu=False,
    )
    return made.beside(y.T, y_hat.T, precision.unit)


def spread_channels(channels: int, groups: int, most: int) -> Array:
    """Some output channels, as many of each group, evenly spread."""
    in_group = channels // groups
    count = min(in_group, max(1, most // groups))
    offsets = np.unique(np.linspace(0, in_group - 1, count).astype(int))
    return np.asarray((np.arange(groups)[:, None] * in_group + offsets).reshape(-1))


def sample_of(program: Any, x: Array, y: Array, y_hat: Array, precision: Precision) -> Sample:
    """Lay out any layer's outputs."""
    make: Any = head_sample if isinstance(program, HeadProgram) else block_sample
    made: Sample = make(program, x, y, y_hat, precision)
    return made


def _active(y: Array, y_hat: Array, energy: Array, products: int, unit: float, relu: bool) -> Array:
    shown = np.isfinite(y_hat) & (energy > 0)  # sums of zeros tell nothing of how others err
    if not relu:
        return np.asarray(shown)
    unclear = _UNCLEAR * unit * np.sqrt(products * energy)
    return np.asarray(shown & (y_hat > 0) & (y > unclear))


def _kept(images: int, height: int, width: int) -> tuple[Array, Array]:
    """Rows and columns of the outputs to look at: all, or bands of rows with both ends."""
    most = max(_BAND, _MOST_OUTPUTS // max(1, images * width))
    if height <= most:
        return all_pixels(height, width)
    bands = max(2, most // _BAND)
    last = (height - 1) // _BAND
    chosen = sorted({round(k * last / (bands - 1)) for k in range(bands)})
    rows = np.concatenate([np.arange(b * _BAND, min((b + 1) * _BAND, height)) for b in chosen])
    return np.repeat(rows, width), np.tile(np.arange(width), len(rows))
