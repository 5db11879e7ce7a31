"""The convolutions of one layer on one input: values, and what their errors are relative to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, window
from repvgg_ref.oracle.bounds.winograd import (
    Underflow,
    winograd_magnitudes,
    winograd_underflow,
)
from repvgg_ref.oracle.programs.block import BlockProgram

# Numbers, in float64, of the windows of images that are looked at together.
_TOGETHER = 1 << 20


class BranchValues(NamedTuple):
    """A branch ``t (z - mean) + beta`` on some input; vectors are (O,).

    `scaled` (O, P) is ``t z``, z the branch's convolution. `gamma` and `spread` (``var + eps``) say
    how well t survives a rounding of its ingredients. `hidden` (O, P) holds the magnitudes inside a
    branch whose kernel is computed, None in others.
    """

    scaled: Array
    t: Array
    mean: Array
    beta: Array
    gamma: Array
    spread: Array
    hidden: Array | None = None


class LinearPart(NamedTuple):
    """Images through a layer's convolutions, up to SE and ReLU. P is N * Ho * Wo.

    Attributes
    ----------
    value : (O, P) array
        The exact result, bias included.
    magnitude : (O, P) array
        ``sum over branches of |t| (|W| * |x| + |mean|) + |beta|``, or ``|W| * |x| + |b|``; for a
        Winograd algorithm the convolution in it as `winograd_bound` defines it.
    energy : (O, P) array
        ``sqrt(sum of (w x)^2)``; with a Winograd algorithm also that of its products.
    branches : tuple of BranchValues
        Empty for a deploy reference.
    roundings : int
        Those that computed kernels of branches add.
    bias_magnitude : (O,) array
        The part of `magnitude` that does not depend on the input.
    underflow : Underflow
        What absolute errors are multiplied by: of inputs, the sum of weight magnitudes; of weights,
        the sum of ``|x|`` over what an output sees; both through the transforms of Winograd.
    """

    value: Array
    magnitude: Array
    energy: Array
    branches: tuple[BranchValues, ...]
    roundings: int
    bias_magnitude: Array
    underflow: Underflow


class Kernels(NamedTuple):
    """What is computed once for all images of a batch."""

    weight: Array
    bias: Array
    weight_magnitude: Array
    bias_magnitude: Array


def layer_kernels(program: BlockProgram) -> Kernels:
    """The fused kernel, and ``sum |t| |W|`` with each branch on its own taps."""
    weight, bias = program.fused_kernel()
    if not program.branches:
        return Kernels(weight, bias, np.abs(weight), np.abs(bias))
    weight_magnitude, bias_magnitude = np.zeros_like(weight), np.zeros_like(bias)
    for branch in program.branches.values():
        values = _vectors(branch)
        t = np.abs(values.scale(program.eps))
        size = np.abs(values.weight) if values.size is None else np.array(values.size)
        size *= t[:, None, None, None]
        weight_magnitude[:, :, *window(size.shape[2:], program.size)] += size
        bias_magnitude += np.abs(values.beta) + t * (
            np.abs(values.running_mean) + values.before_size
        )
    return Kernels(weight, bias, weight_magnitude, bias_magnitude)


def linear_part(program: BlockProgram, kernels: Kernels, x: Array, winograd: int) -> LinearPart:
    """Compute everything about images `x` (N, C, H, W), float64; images are one after the other.

    `winograd` is m of F(m x m, 3 x 3), then with one image, or 0 for direct summation. The windows
    are laid out once and turned into their absolute values and squares in place: three products.
    """
    size = program.output_size(*x.shape[2:])
    padded = _padded(program, x)
    columns = _columns(program, padded, size)  # (G, K, P)
    value = _times(kernels.weight, columns) + kernels.bias[:, None]
    branches = _branches(program, columns, value - kernels.bias[:, None])
    np.abs(columns, out=columns)
    branches = _with_hidden(program, columns, branches)
    if program.relu_inside:  # it enlarges no error
        value = sum(np.maximum(b.scaled + (b.beta - b.t * b.mean)[:, None], 0) for b in branches)
    if winograd:
        (image,) = padded
        met = np.abs(image), kernels.weight_magnitude, program.groups, size
        magnitude, beside = winograd_magnitudes(*met, winograd, program.stride)
        underflow = winograd_underflow(*met, winograd, program.stride)
        energy = np.hypot(_energy(kernels, columns), beside)
    else:
        magnitude = _times(kernels.weight_magnitude, columns)
        underflow = _direct_underflow(kernels, columns)
        energy = _energy(kernels, columns)
    return LinearPart(
        value,
        magnitude + kernels.bias_magnitude[:, None],
        energy,
        branches,
        max((branch.roundings for branch in program.branches.values()), default=0),
        kernels.bias_magnitude,
        underflow,
    )


def together(program: BlockProgram, kernels: Kernels, x: Array) -> Iterator[Array]:
    """Images in batches whose windows and outputs fit into a few megabytes, (n, C, H, W) each."""
    outputs = max(int(np.prod(program.output_size(*x.shape[2:]))), 1)
    taps = x.shape[1] * program.size[0] * program.size[1]
    most = max(1, _TOGETHER // (outputs * max(taps, len(kernels.weight))))
    for first in range(0, len(x), most):
        yield x[first : first + most]


def _direct_underflow(kernels: Kernels, columns: Array) -> Underflow:
    """Of a direct sum; `columns` holds magnitudes."""
    weight_sum = kernels.weight_magnitude.sum(axis=(1, 2, 3))[:, None]
    input_sum = np.repeat(columns.sum(axis=1), len(weight_sum) // len(columns), axis=0)  # (O, P)
    return Underflow(weight_sum, input_sum, np.full((1, 1), columns.shape[1]), np.ones((1, 1)))


def direct_energy(program: BlockProgram, kernels: Kernels, x: Array) -> Array:
    """``sqrt(sum (w x)^2)`` of images by direct summation, (O, P)."""
    size = program.output_size(*x.shape[2:])
    return _energy(kernels, _columns(program, _padded(program, x), size))


def _energy(kernels: Kernels, columns: Array) -> Array:
    """Root of the sum of squared products; squares `columns` in place."""
    return np.asarray(np.sqrt(_times(kernels.weight_magnitude**2, np.square(columns, out=columns))))


def branch_products(program: BlockProgram, columns: Array, products: Array) -> dict[str, Array]:
    """Every branch's own part ``t z`` of `products`, (O, P), by its name.

    All kernels but the largest are multiplied out; what they leave of the fused result is the
    largest one's. Its float64 error is relative to the layer's magnitude, and disappears beside
    the float32 terms.

    Parameters
    ----------
    columns : (G, K, P) array
        What an output sees.
    products : (O, P) array
        The fused kernel's products with them, without its bias.
    """
    taps = columns.reshape(program.groups, -1, *program.size, columns.shape[-1])
    kernels = {name: branch.weight for name, branch in program.branches.items()}
    largest = max(kernels, key=lambda name: kernels[name].size, default="")
    scaled: dict[str, Array] = {}
    for name, weight in kernels.items():
        if name != largest:
            met = taps[:, :, *window(weight.shape[2:], program.size)]
            met = met.reshape(program.groups, -1, columns.shape[-1])
            scaled[name] = _times(program.branches[name].kernel(program.eps), met)
    rest = products - sum(scaled.values()) if scaled else products
    return {name: scaled.get(name, rest) for name in kernels}


def _branches(program: BlockProgram, columns: Array, products: Array) -> tuple[BranchValues, ...]:
    scaled = branch_products(program, columns, products)
    return tuple(
        BranchValues(
            scaled[name],
            branch.scale(program.eps),
            branch.running_mean - branch.before,
            branch.beta,
            branch.gamma,
            branch.running_var + program.eps,
        )
        for name, branch in ((n, _vectors(b)) for n, b in program.branches.items())
    )


def _vectors(branch: Branch) -> Branch:
    """A branch without a norm as one of a norm that does nothing: its bound is no smaller."""
    one = np.ones(len(branch.weight))
    if branch.before is None:
        branch = branch._replace(before=0 * one, before_size=0 * one)
    if branch.has_norm:
        return branch
    return branch._replace(gamma=one, beta=0 * one, running_mean=0 * one, running_var=one)


def _with_hidden(
    program: BlockProgram, columns: Array, values: tuple[BranchValues, ...]
) -> tuple[BranchValues, ...]:
    """What is summed inside branches of computed kernels; `columns` holds magnitudes."""
    found = []
    for branch, seen in zip(program.branches.values(), values, strict=True):
        if branch.size is not None:
            sizes = program.widened(branch.size * np.abs(seen.t)[:, None, None, None])
            inside = np.abs(seen.t) * branch.before_size
            seen = seen._replace(hidden=_times(sizes, columns) + inside[:, None])
        found.append(seen)
    return tuple(found)


def _padded(program: BlockProgram, x: Array) -> Array:
    top, left, bottom, right = program.pads
    n, c, height, width = x.shape
    padded = np.zeros((n, c, top + height + bottom, left + width + right))
    padded[:, :, top : top + height, left : left + width] = x
    return padded


def _columns(program: BlockProgram, padded: Array, size: tuple[int, ...]) -> Array:
    """What the taps meet at each output pixel, a copy: (G, C/G * Kh * Kw, N * Ho * Wo)."""
    d, s = program.dilation, program.stride
    span = tuple((n - 1) * d + 1 for n in program.size)
    windows = np.lib.stride_tricks.sliding_window_view(padded, span, axis=(2, 3))
    # (N, C, Ho, Wo, Kh, Kw) -> (C, Kh, Kw, N, Ho, Wo)
    windows = windows[:, :, ::s, ::s, ::d, ::d].transpose(1, 4, 5, 0, 2, 3)
    columns = np.empty(windows.shape)
    columns[...] = windows
    return columns.reshape(program.groups, -1, len(padded) * size[0] * size[1])


def _times(weight: Array, columns: Array) -> Array:
    """(G, O/G, K) @ (G, K, P) -> (O, P)."""
    groups = len(columns)
    y = weight.reshape(groups, len(weight) // groups, -1) @ columns
    return np.asarray(y.reshape(len(weight), -1))
