"""Does the fused convolution equal its three branches? Checked block by block, with a bound.

The branches are evaluated as they were trained (three convolutions, three batch norms, the
identity as itself), the fused kernel as it will be written, both in float64 on the same random
input. They may differ by the rounding of the fused taps and by float64's own error, no more:

    |y_fused - y_branches| <= u * (|W| * |x| + |b|) + 2 n u64 * (magnitudes of all terms)

with u the unit roundoff of the written type and n the terms of one output (Higham, Accuracy and
Stability of Numerical Algorithms, section 3.1). The input is dense and signed, the image smaller
than two kernels, so that every tap, every border and every statistic shows in the output.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.repvgg import Branch, block_branches
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import ReportedError
from repvgg_ref.fusion import FusedConv, bn_scale
from repvgg_ref.ops.conv2d import conv2d_forward

_HEIGHT, _WIDTH = 3, 4
_U64 = 2.0**-53
_CHUNK_TAPS = 1 << 17


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
        """Whether the error stays within the bound; false for NaN."""
        return self.max_error <= self.bound

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
    scale = np.exp(rng.normal(size=(1, spec.in_channels, 1, 1)))
    x = scale * rng.normal(size=(1, spec.in_channels, _HEIGHT, _WIDTH))
    branches = block_branches(spec, params)
    found = [
        _check_rows(spec, rows, inputs, x, branches, fused, eps) for rows, inputs in _parts(spec)
    ]
    return worst(found)


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
    x: Array,
    branches: Mapping[str, Branch],
    fused: FusedConv,
    eps: float,
) -> BlockCheck:
    weight, bias = fused.weight[rows].astype(np.float64), fused.bias[rows].astype(np.float64)
    bias = bias[:, None, None]
    got = _conv(spec, x[:, inputs], weight) + bias
    written = _conv(spec, np.abs(x[:, inputs]), np.abs(weight)) + np.abs(bias)

    want, terms = np.zeros_like(got), written.copy()
    for branch in branches.values():
        part = Branch(*(None if f is None else f[rows].astype(np.float64) for f in branch))
        seen = x[:, rows] if part.weight is None else _conv(spec, x[:, inputs], part.weight)
        size = (
            np.abs(seen)
            if part.weight is None
            else _conv(spec, np.abs(x[:, inputs]), np.abs(part.weight))
        )
        t, beta, mean = (v[:, None, None] for v in (bn_scale(part, eps), part.beta, part.running_mean))
        want += (seen - mean) * t + beta
        terms += (size + np.abs(mean)) * np.abs(t) + np.abs(beta)

    kind = np.finfo(fused.weight.dtype)
    count = 9 * weight.shape[1] + 16
    bound = (
        float(kind.eps) / 2 * written
        + float(kind.smallest_subnormal) * (np.abs(x[:, inputs]).sum() + 1)
        + 2 * count * _U64 * terms
    )
    error = np.abs(got - want)
    at = np.unravel_index(np.argmax(error / bound), error.shape)  # argmax returns a NaN if any
    return BlockCheck(spec.name, float(error[at]), float(bound[at]))


def _conv(spec: BlockSpec, x: Array, weight: Array) -> Array:
    reach = weight.shape[-1] // 2
    y, _ = conv2d_forward(
        x,
        weight,
        None,
        stride=spec.stride,
        padding=reach * spec.dilation,
        dilation=spec.dilation,
        groups=1,
    )
    return y
