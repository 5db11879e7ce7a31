"""The reference operators: one file each, forward and backward, pure, any dtype, NCHW.

Shape letters, the same in every docstring and comment:

====== ==============================================================
N      images in a batch
C      input channels
H, W   height and width of the input, in pixels
O      output channels
K      kernel size; Kh, Kw where height and width may differ
G      groups: C and O split into G parts that do not meet
Ho, Wo height and width of the output
====== ==============================================================

Read `conv2d` first. Arrays are positional, settings are keywords without defaults. A forward
function returns ``(y, cache)`` and never writes to its inputs; a backward function reads the cache
and returns new arrays. float32, float64, longdouble and exact rationals (`fractions.Fraction` in
object arrays) are computed as they are, float16 in float32 and rounded once. All arrays of a call
share one dtype, which is that of the results.
"""

from repvgg_ref.ops.batch_norm import BatchNormGrads, RunningStats
from repvgg_ref.ops.conv2d import Conv2dGrads, IntOrPair
from repvgg_ref.ops.linear import LinearGrads
from repvgg_ref.ops.squeeze_excitation import SqueezeExcitationGrads
from repvgg_ref.ops.table import (
    REFERENCE,
    BlockPasses,
    BranchArrays,
    BranchesForward,
    BranchGrads,
    FastNetwork,
    Ops,
)

__all__ = [
    "REFERENCE",
    "BatchNormGrads",
    "BlockPasses",
    "BranchArrays",
    "BranchGrads",
    "BranchesForward",
    "Conv2dGrads",
    "FastNetwork",
    "IntOrPair",
    "LinearGrads",
    "Ops",
    "RunningStats",
    "SqueezeExcitationGrads",
]
