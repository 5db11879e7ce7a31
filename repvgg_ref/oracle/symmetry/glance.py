"""A block at a few pixels, in float32: enough to see whether its channels are where they should be.

The oracle's own programs hold their weights in float64, which for a large network takes longer to
make than a glance may.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, branches_of, window
from repvgg_ref.blocks.catalogue import is_fusible, reach
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.oracle.programs.program import Pixels


def glance(
    spec: BlockSpec, params: Mapping[str, Array], eps: float, x: Array, pixels: Pixels
) -> Array | None:
    """The block's output (N, O, P) before any gate, for its input `x` (N, C, H, W).

    None where a pixel is outside the output.
    """
    conv = reach(spec)
    size, (top, left) = conv.kernel, conv.padding
    padded = np.pad(x.astype(np.float32, copy=False), ((0, 0), (0, 0), (top, top), (left, left)))
    down, across = (np.arange(n) * d for n, d in zip(size, conv.dilation, strict=True))
    rows = pixels[0][:, None, None] * spec.stride + down[:, None]  # (P, Kh, 1)
    columns = pixels[1][:, None, None] * spec.stride + across  # (P, 1, Kw)
    if rows.max() >= padded.shape[2] or columns.max() >= padded.shape[3]:
        return None
    patches = padded[:, :, rows, columns]  # (N, C, P, Kh, Kw)
    total = np.zeros(())
    for branch in _branches(spec, params, eps):
        seen = patches[..., *window(branch.weight.shape[2:], size)]
        z = _product(branch.weight, seen, conv.groups)  # (O, N, P)
        z = branch.scale(eps)[:, None, None] * z + branch.bias(eps)[:, None, None]
        total = total + (z if is_fusible(spec) else np.maximum(z, 0))
    if f"{spec.name}.fused.bias" in params:
        total = total + params[f"{spec.name}.fused.bias"][:, None, None]
    y = np.moveaxis(total, 0, 1)
    return np.maximum(y, 0) if spec.activation == "relu" else y


def _branches(spec: BlockSpec, params: Mapping[str, Array], eps: float) -> list[Branch]:
    fused = f"{spec.name}.fused.weight"
    if fused in params:
        return [Branch(params[fused])]
    return list(branches_of(spec, params, eps).values())


def _product(weight: Array, patches: Array, groups: int) -> Array:
    """The convolution of gathered patches (N, C, P, Kh, Kw): (O, N, P)."""
    n, _, p = patches.shape[:3]
    # (N, C, P, Kh, Kw) -> (C, Kh, Kw, N, P) -> (G, K, N * P)
    met = patches.transpose(1, 3, 4, 0, 2).reshape(groups, -1, n * p)
    rows = weight.reshape(groups, len(weight) // groups, -1)  # (G, O/G, K)
    return np.asarray(rows @ met).reshape(len(weight), n, p)
