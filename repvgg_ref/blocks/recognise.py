"""Expressions that a fast table may have passes for: it asks here, and declines what it gets not.

A table that was handed names of branches could leave out one that it does not know. So it is handed
an expression, and only what matches as a whole is computed its way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from repvgg_ref.arrays import Array, Real
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.run import BatchStats
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.ops import BlockPasses, BranchArrays, BranchesForward, BranchGrads

ROLES = ("dense", "point", "identity")


class Branch(NamedTuple):
    """One branch of a sum: a convolution (None: the identity), then a batch norm, by leaf names."""

    conv: str | None
    norm: str


class ThreeBranches(NamedTuple):
    """``BN(W x) + BN(W1 x) + BN(x)``: a square kernel, and the two others where they are there."""

    dense: Branch
    point: Branch | None
    identity: Branch | None
    stride: int
    dilation: int
    groups: int

    @property
    def branches(self) -> dict[str, Branch]:
        """Those that are there, by role."""
        found = zip(ROLES, (self.dense, self.point, self.identity), strict=True)
        return {role: branch for role, branch in found if branch is not None}


def three_branches(linear: Any) -> ThreeBranches | None:
    """`linear` as the paper's block, in any order of branches; None if it is anything else."""
    if not isinstance(linear, Sum):
        return None
    found: dict[str, Branch] = {}
    dense: Conv | None = None
    convs = []
    for part in linear.parts:
        if not (isinstance(part, Chain) and len(part.parts) == 2):
            return None
        leaf, norm = part.parts
        if not isinstance(norm, Norm) or not isinstance(leaf, Conv | Identity):
            return None
        if norm.eps is not None:  # the passes have one eps for all
            return None
        if isinstance(leaf, Identity):
            role, name = "identity", None
        else:
            role, name = ("point" if leaf.kernel == (1, 1) else "dense"), leaf.name
            dense = leaf if role == "dense" else dense
            convs.append(leaf)
        if role in found:
            return None
        found[role] = Branch(name, norm.name)
    if dense is None or not all(_fits(each, dense) for each in convs):
        return None
    if dense.kernel[0] != dense.kernel[1] or ("identity" in found and dense.stride != (1, 1)):
        return None
    if len({branch.norm for branch in found.values()}) < len(found):
        return None
    return ThreeBranches(
        found["dense"],
        found.get("point"),
        found.get("identity"),
        dense.stride[0],
        dense.dilation[0],
        dense.groups,
    )


def _fits(each: Conv, dense: Conv) -> bool:
    """Whether a convolution has no bias, and the dense one's geometry, its centre at (0, 0)."""
    centred = each.padding == tuple(
        d * (k // 2) for d, k in zip(each.dilation, each.kernel, strict=True)
    )
    odd = all(k % 2 for k in each.kernel)
    square = len(set(each.stride)) == len(set(each.dilation)) == 1
    same = (each.stride, each.groups) == (dense.stride, dense.groups)
    return centred and odd and square and same and not each.bias


@dataclass(frozen=True)
class BranchPasses:
    """A table's functions for three branches, as `BlockPasses` of an expression that fits."""

    fits: ThreeBranches
    forward_pass: Callable[..., BranchesForward]
    backward_pass: Callable[[Array, Any], tuple[Array, Mapping[str, BranchGrads]]]
    parameter_pass: Callable[[Array, Any], Mapping[str, BranchGrads]]

    def forward(
        self, x: Array, params: Mapping[str, Array], *, eps: Real, momentum: Real, relu: bool
    ) -> BranchesForward:
        """Output, cache, and what each norm saw; no border is made of running statistics."""
        arrays = {
            role: BranchArrays(
                None if branch.conv is None else params[f"{branch.conv}.weight"],
                params[f"{branch.norm}.gamma"],
                params[f"{branch.norm}.beta"],
            )
            for role, branch in self.fits.branches.items()
        }
        stride, dilation, groups = self.fits[3:]
        y, cache, stats = self.forward_pass(
            x, arrays, stride=stride, dilation=dilation, groups=groups, eps=eps, relu=relu
        )
        norms = {
            self.fits.branches[role].norm: BatchStats(seen.mean, seen.var, y.size // seen.mean.size)
            for role, seen in stats.items()
        }
        return BranchesForward(y, cache, norms)

    def backward(self, grad_y: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        """The gradients of x and, by part name, of the arrays."""
        grad_x, grads = self.backward_pass(grad_y, cache)
        return grad_x, self._named(grads)

    def parameter_grads(self, grad_y: Array, cache: Any) -> dict[str, Array]:
        """`backward` without x."""
        return self._named(self.parameter_pass(grad_y, cache))

    def _named(self, grads: Mapping[str, BranchGrads]) -> dict[str, Array]:
        named: dict[str, Array] = {}
        for role, grad in grads.items():
            branch = self.fits.branches[role]
            named[f"{branch.norm}.gamma"], named[f"{branch.norm}.beta"] = grad.gamma, grad.beta
            if grad.weight is not None:
                named[f"{branch.conv}.weight"] = grad.weight
        return named


def three_branch_passes(
    forward: Callable[..., BranchesForward],
    backward: Callable[[Array, Any], tuple[Array, Mapping[str, BranchGrads]]],
    parameter_grads: Callable[[Array, Any], Mapping[str, BranchGrads]],
) -> Callable[[Any], BlockPasses | None]:
    """What a table that has these functions recognises.

    `forward` gets ``{role: BranchArrays}``, roles "dense", "point", "identity"; gradients come
    back under the same.
    """

    def recognise(linear: Any) -> BlockPasses | None:
        found = three_branches(linear)
        return None if found is None else BranchPasses(found, forward, backward, parameter_grads)

    return recognise


def is_plain(spec: BlockSpec) -> bool:
    """Whether the fused block is a 3x3 convolution that keeps the size but for its stride; ReLU."""
    conv = fused_conv(spec)
    same = conv.padding == conv.dilation == (spec.dilation, spec.dilation)
    square = conv.kernel == (3, 3) and conv.stride == (spec.stride, spec.stride)
    return same and square and conv.groups == spec.groups and spec.activation == "relu"
