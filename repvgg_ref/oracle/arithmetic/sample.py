"""One layer's residual laid out for statistics: outputs, what they are sums of, and where they lie.

Everything is before the gate of squeeze-and-excitation: outputs and residuals are divided by it, so
that a layer with one is a layer without whose channels each have one more rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.gates import Gates, gates_of
from repvgg_ref.oracle.arithmetic.single import Along, Single, grouped
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
    single : Single
        `columns` (G, K, P), what an output sees of the candidate's own input, and `magnitude`
        (O, K), the sum of the magnitudes of what each tap was added up from.
    weight : (O, K) array
        The fused kernel.
    bias, bias_magnitude : (O,) arrays
    y, residual : (O, P) arrays
        The reference, and candidate minus reference; both over the gate, if there is one.
    energy : (O, P) array
        ``E**2 = sum_k (M_k x_k)**2 + M_b**2``, what independent errors add up to; with the squares
        of branches, whose own values are rounded, if there are any.
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
    single: Single
    weight: Array
    bias: Array
    bias_magnitude: Array
    y: Array
    residual: Array
    energy: Array
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
    def columns(self) -> Array:
        """What an output sees, (G, K, P)."""
        return self.single.columns

    @property
    def magnitude(self) -> Array:
        """Of each tap, (O, K)."""
        return self.single.magnitude

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
        return grouped(taps, self.columns)

    def along(self, outputs: Array, there: Array | None = None) -> Along:
        """What errors of taps and branches make of ``sum_p outputs[o, p] ..``.

        Parameters
        ----------
        outputs : (O, P) array
        there : (P,) array of bool, optional
            The only outputs that count, if not all; then `outputs` holds them alone.
        """
        taps, size = self.single.weighed(*self.single.along(outputs, there))
        return Along(taps, size, self.by_branches(outputs, there))

    def by_branches(self, outputs: Array, there: Array | None = None) -> Array:
        """``sum_p outputs[o, p] t_b z_b[p]``, (B, O); arguments as of `along`."""
        if not len(self.branches):
            return np.zeros((0, len(outputs)))
        seen = self.branches if there is None else self.branches[:, :, there]
        return np.asarray(np.einsum("op,bop->bo", outputs, seen))

    def met(self, outputs: Array) -> Array:
        """`Along.dot` of outputs (O, P) with themselves: a variance, (O,)."""
        along = self.along(outputs)
        return along.dot(along)

    def jolted(self, rng: np.random.Generator) -> Array:
        """What outputs change by if each tap errs by its magnitude, at random, (O, P)."""
        taps = self.single.jolted(rng)
        of_branches = rng.standard_normal(self.branches.shape[:2])[..., None]
        moved = (of_branches * self.branches).sum(axis=0)
        return np.asarray(taps + moved if len(self.branches) else taps)

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
            single=Single(
                np.ascontiguousarray(self.columns[:, :, positions]), self.single.magnitude
            ),
            energy=self.energy[:, positions],
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
            single=Single(self.columns, self.magnitude[channels]),
            energy=self.energy[channels],
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


def _energy(single: Single) -> Array:
    """``sum_k (M_k x_k)**2``, (O, P)."""
    return grouped(np.square(single.magnitude), np.square(single.columns))


def sums_by_image(images: Array, values: Array, count: int | None = None) -> Array:
    """Sums over the outputs of each image, `count` in all: (O, P) -> (O, N)."""
    there = images[:, None] == np.arange(int(images.max()) + 1 if count is None else count)
    return np.asarray(values @ there.astype(np.float64))


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
    single = Single(np.ascontiguousarray(columns), kernels.weight_magnitude.reshape(o, -1))
    made = Sample(
        program.name,
        single,
        kernels.weight.reshape(o, -1),
        kernels.bias,
        kernels.bias_magnitude,
        at,
        at,
        _energy(single) + kernels.bias_magnitude[:, None] ** 2,
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
        branches = np.stack([*parts.values(), bias])
        energy = _energy(single) + np.square(branches).sum(axis=0)
        made = replace(made, branches=branches, energy=energy)
    return made.beside(at, at_hat, precision.unit)


def head_sample(
    program: HeadProgram, x: Array, y: Array, y_hat: Array, precision: Precision
) -> Sample:
    """Lay out what a linear layer gives, (N, O): sums over the pooled channels."""
    pooled = x.mean(axis=(2, 3))  # (N, C)
    zeros = np.zeros(len(x), int)
    single = Single(pooled.T[None], np.abs(program.weight))
    made = Sample(
        program.name,
        single,
        program.weight,
        program.bias,
        np.abs(program.bias),
        y.T,
        y.T,
        _energy(single) + program.bias[:, None] ** 2,
        y.T > 0,
        np.arange(len(x)),
        zeros,
        zeros,
        (1, 1),
        relu=program.relu,
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
