"""A scale and a shift behind a block: folded into its convolution, or kept beside it.

PP-LCNetV3's published deploy form keeps its learnable affine block, which works on what the fused
convolution gives; a file is as right that has it folded. Both at once are not. So it is with
QARepVGG's outer batch norm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.blocks.constructors import Bias, Scale
from repvgg_ref.blocks.linear import Chain, Norm
from repvgg_ref.blocks.parts import norms_in
from repvgg_ref.blocks.run import NORM_VECTORS, Linear
from repvgg_ref.files.modules import STORED, FoundBlock
from repvgg_ref.files.recorded import eps_of
from weights_io import LazyArray


def without_affine(linear: Linear) -> tuple[Linear, tuple[Any, ...]]:
    """An expression without the scales and shifts of all of it at its end, and these."""
    parts = linear.parts if isinstance(linear, Chain) else (linear,)
    count = len(parts)
    while count > 1 and isinstance(parts[count - 1], Scale | Bias):
        count -= 1
    return (parts[0] if count == 1 else Chain(*parts[:count])), parts[count:]


def with_outer(
    block: FoundBlock, ours: Mapping[str, LazyArray], theirs: Mapping[str, LazyArray]
) -> FoundBlock:
    """The block with its outer batch norm, where a file lacks that, since it is folded; else it."""
    name, channels = block.member.outer, block.linear.out_channels
    names = {f"{name}.{v}": f"{block.prefix}{name}.{STORED.get(v, v)}" for v in NORM_VECTORS}
    there = all(key in ours and ours[key].shape == (channels,) for key in names.values())
    if not name or not there or any(key in theirs for key in names.values()):
        return block
    record = ours[f"{block.prefix}{name}.running_var"].module
    is_told = any(each.eps is not None for each in norms_in(block.linear))
    outer = Norm(name, channels, eps_of(record) if record is not None and is_told else None)
    return replace(
        block,
        linear=Chain(block.linear, outer),
        names={**block.names, **names},
        owned=(*block.owned, *names.values()),
    )


def as_kept(block: FoundBlock, theirs: Mapping[str, LazyArray]) -> FoundBlock:
    """The block whose affine part stays as it is, where a file still applies it; else the block."""
    linear, affine = without_affine(block.linear)
    leaves = [leaf for part in affine for leaf in part.shapes()]
    keys = [block.names[leaf] for leaf in leaves]
    if not keys or not all(key in theirs for key in keys):
        return block
    neutral = [float(isinstance(part, Scale)) for part in affine for _ in part.shapes()]
    if all(np.all(theirs[key].read() == n) for key, n in zip(keys, neutral, strict=True)):
        return block  # it does nothing any more
    return replace(
        block,
        linear=linear,
        names={leaf: key for leaf, key in block.names.items() if leaf not in leaves},
        owned=tuple(key for key in block.owned if key not in keys),
    )
