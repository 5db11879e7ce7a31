"""Does the fused convolution equal its three branches? Checked block by block, with a bound.

One output pixel of a convolution is a product of the kernel with the window below the pixel. On a
few random windows the branches are evaluated as they were trained (convolution, then batch norm;
the 1x1 kernel and the identity see the window's centre) and the fused kernel as it will be written,
both in float64. They may differ by the rounding of the fused taps and by float64's own error, no
more:

    |y_fused - y_branches| <= u * (|W| * |x| + |b|) + 2 n u64 * (magnitudes of all terms)

with u the unit roundoff of the written type and n the terms of one output (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). The windows are dense and signed, so a wrong tap,
statistic or index shows in the output; such a random product misses one with probability zero
(Freivalds, 1977).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv, bn_scale
from repvgg_ref.blocks.repvgg import Branch, block_branches
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import ReportedError

_WINDOWS = 2
_U64 = 2.0**-53

# Output channels are checked in chunks of about this many taps, which stay in a core's L2 cache.
# Times `_WINDOWS` it is also the largest matrix product that OpenBLAS leaves on the calling thread;
# its own threads and those of `convert` would stand in each other's way.
_CHUNK_TAPS = 1 << 17


class _Windows(NamedTuple):
    """What kernels meet, (C, 3, 3, windows), and its magnitudes."""

    values: Array
    sizes: Array

    def of(self, channels: slice, tap: slice) -> _Windows:
        """Some channels of these, and some taps along height and width."""
        return _Windows(*(part[channels, tap, tap] for part in self))


_ALL, _CENTRE = slice(0, 3), slice(1, 2)


class SelfCheckError(ReportedError):
    """The fused network does not equal the trained one; nothing was written."""


@dataclass(frozen=True)
class BlockCheck:
    """The output of one block that used most of its bound."""

    layer: str
    max_error: float
    bound: float

    @property
    def ok(self) -> bool:
        """Whether the error stays within the bound; false for NaN and infinity."""
        return self.max_error <= self.bound < float("inf")

    @property
    def used(self) -> float:
        """Error as a fraction of the bound."""
        return self.max_error / self.bound if self.bound else float(self.max_error > 0)


def check_block(
    spec: BlockSpec, params: Mapping[str, Array], fused: FusedConv, *, eps: float
) -> BlockCheck:
    """Compare the branches in `params` with `fused`, in float64.

    Parameters
    ----------
    params : mapping
        Canonical name -> array, train form.
    fused : FusedConv
        The kernel and bias as they will be written.

    Returns
    -------
    BlockCheck
        At the output element with the largest ratio of error to bound.
    """
    rng = np.random.default_rng(zlib.crc32(spec.name.encode()))
    scale = np.exp(rng.normal(size=(spec.in_channels, 1, 1, 1)))
    values = scale * rng.normal(size=(spec.in_channels, 3, 3, _WINDOWS))
    windows = _Windows(values, np.abs(values))
    branches = block_branches(spec, params)
    with np.errstate(over="ignore", invalid="ignore"):  # the NaN they make fails the check
        return worst(
            _check_rows(spec, rows, inputs, windows, branches, fused, eps)
            for rows, inputs in _parts(spec)
        )


def worst(checks: Iterable[BlockCheck]) -> BlockCheck:
    """The check that used most of its bound; NaN counts as most."""
    return max(checks, key=lambda check: (check.used != check.used, check.used))


def _parts(spec: BlockSpec) -> Iterator[tuple[slice, slice]]:
    """Output channels with the input channels they see: groups, cut to a cache-sized piece."""
    per_group_in, per_group_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    step = max(1, _CHUNK_TAPS // (9 * per_group_in))
    for group in range(spec.groups):
        inputs = slice(group * per_group_in, (group + 1) * per_group_in)
        end = (group + 1) * per_group_out
        for start in range(group * per_group_out, end, step):
            yield slice(start, min(start + step, end)), inputs


def _check_rows(
    spec: BlockSpec,
    rows: slice,
    inputs: slice,
    windows: _Windows,
    branches: Mapping[str, Branch],
    fused: FusedConv,
    eps: float,
) -> BlockCheck:
    """Check output channels `rows`, which see the input channels `inputs`."""
    got, written = _products(fused.weight[rows], windows.of(inputs, _ALL))
    bias = fused.bias[rows].astype(np.float64)[:, None]
    got, written = got + bias, written + np.abs(bias)

    want, terms = np.zeros_like(got), written.copy()
    for branch in branches.values():
        bn = Branch(None, *(field[rows].astype(np.float64) for field in branch[1:]))
        t, beta, mean = (v[:, None] for v in (bn_scale(bn, eps), bn.beta, bn.running_mean))
        if branch.weight is None:
            y, size = (part[:, 0, 0] for part in windows.of(rows, _CENTRE))
        else:
            taps = _CENTRE if branch.weight.shape[2] == 1 else _ALL
            y, size = _products(branch.weight[rows], windows.of(inputs, taps))
        want += (y - mean) * t + beta
        terms += (size + np.abs(mean)) * np.abs(t) + np.abs(beta)

    kind = np.finfo(fused.weight.dtype)
    count = fused.weight[0].size + 16
    bound = (
        float(kind.eps) / 2 * written
        + float(kind.smallest_subnormal) * (windows.of(inputs, _ALL).sizes.sum() + 1)
        + 2 * count * _U64 * terms
    )
    error = np.abs(got - want)
    at = np.unravel_index(np.argmax(error / bound), error.shape)  # argmax returns a NaN if any
    return BlockCheck(spec.name, float(error[at]), float(bound[at]))


def _products(weight: Array, windows: _Windows) -> tuple[Array, Array]:
    """The products of (O, C/G, K, K) kernels with windows, and the sums of their magnitudes."""
    values, sizes = (part.reshape(-1, _WINDOWS) for part in windows)  # -> (C/G*K*K, windows)
    kernel = weight.reshape(len(weight), -1).astype(np.float64)  # (O, C/G, K, K) -> (O, C/G*K*K)
    products = kernel @ values
    return products, np.abs(kernel, out=kernel) @ sizes
