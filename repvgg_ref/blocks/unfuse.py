"""What a fused file can and cannot tell about the branches it came from.

Fusion is a map from the arrays of a block to one kernel and one bias. With ``t = gamma /
sqrt(var + eps)`` for each batch norm, output channel ``o`` and input channel ``c`` it reads

    W[o, c, tap] = t3[o] W3[o, c, tap]                                        off the centre
    W[o, c, 1,1] = t3[o] W3[o, c, 1,1] + t1[o] W1[o, c] + t0[o] [c is o]      at the centre
    b[o]         = sum over branches of (beta[o] - mean[o] t[o])

**Told.** Off the centre only the 3x3 branch writes, so the file holds its kernel up to one unknown
factor ``t3[o]`` an output channel: ratios of off-centre taps within a channel are those of W3,
exactly. At the centre and in the bias it holds the sums.

**Not told.** Who contributed what. Any W1, any slopes t and any means may be chosen freely and the
rest adjusted to give the same W and b; and (gamma, var) enter through t alone. So the blocks with
one fused form make a family, whose dimension is counted here. The map is onto
(`branches_from_fused` proves it), so the told and the untold add up to all numbers of the block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array, Real, scalar_like
from repvgg_ref.blocks.catalogue import expression, fused_conv, linear_expression, part_of
from repvgg_ref.blocks.fusion import fuse_exactly
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.run import Linear, Reader
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import NotFusibleError, require_equal


def branches_from_fused(
    spec: BlockSpec, weight: Array, bias: Array, *, eps: Real
) -> dict[str, Array]:
    """*A* three-branch block that fuses to `weight` and `bias`; one of infinitely many.

    The 3x3 branch carries everything; the 1x1 branch has a zero kernel and the identity branch a
    zero gamma. Each ``var + eps`` is made a perfect square s**2 with gamma = s, so t = 1.

    Parameters
    ----------
    spec : BlockSpec
        Says which branches there are to be.
    weight, bias : array, shape (O, C/G, 3, 3) and (O,)
        Rationals (exact throughout) or floats.
    eps : float or Fraction
        Batch norm's eps that the branches are to have.

    Returns
    -------
    dict
        Canonical name -> array of the dtype given: the block's train form, without SE. Exact
        rationals fuse to `weight` and `bias` by ``==``. In floats var carries one rounding, which
        moves t by less than half an ulp, so `fuse_block` gives back every tap bit for bit.

    Raises
    ------
    ShapeError
        If `weight` or `bias` is not of the shape that `spec` asks for.
    """
    linear, fused = expression(spec), fused_conv(spec)
    shape = fused.shapes()["fused.weight"]
    require_equal(spec.name, "weight.shape", weight.shape, "(O, C/G, Kh, Kw)", shape)
    require_equal(spec.name, "bias.shape", bias.shape, "(O,)", shape[:1])
    root = _root_above(eps)
    start = {"gamma": root, "running_var": root * root - scalar_like(eps, weight)}
    params = {
        f"{spec.name}.{name}": np.full(
            of, scalar_like(start.get(name.rpartition(".")[2], 0), weight), weight.dtype
        )
        for name, of in linear.shapes().items()
        if not name.endswith(".num_batches_tracked")
    }
    paths = list(leaves(linear))
    for leaf, norm in paths:
        if isinstance(leaf, Identity) and norm and [n for _, n in paths].count(norm) == 1:
            params[f"{spec.name}.{norm}.gamma"][...] = 0 * weight.flat[0]
    whole = [
        (leaf, norm)
        for leaf, norm in paths
        if isinstance(leaf, Conv) and leaf.lattice == fused.lattice and norm
    ]
    if not whole:
        raise NotFusibleError(f"{spec.name}: no branch can carry the whole fused kernel")
    main, norm = whole[0]
    rest = fuse_exactly(linear, part_of(spec, params), eps).weight
    params[f"{spec.name}.{main.name}.weight"] = weight - rest if rest.any() else weight.copy()
    params[f"{spec.name}.{norm}.beta"] = bias.copy()
    return {
        name: params[name] if name in params else np.zeros((), np.int64)
        for name in (f"{spec.name}.{part}" for part in linear.shapes())
    }


def leaves(linear: Any, norm: str | None = None) -> Iterable[tuple[Linear, str | None]]:
    """What is summed, each with the last norm behind it: mostly convolutions and identities.

    A chain of more than one of them and a norm is not taken apart further.
    """
    if isinstance(linear, Chain):
        *before, last = linear.parts
        if not before:
            yield from leaves(last, norm)
        elif isinstance(last, Norm) and norm is None:
            yield from leaves(Chain(*before), last.name)
        else:
            yield linear, norm
    elif type(linear) is Sum:
        for part in linear.parts:
            yield from leaves(part, norm)
    else:
        yield linear, norm


def leaf_name(leaf: Any) -> str:
    """What a branch is called: its convolution's name, or what its arrays' names have in common."""
    if name := getattr(leaf, "name", ""):
        return str(name).removesuffix(".conv")
    owners = [name.split(".") for name in leaf.shapes()]
    alike = (found[0] for found in zip(*owners, strict=False) if len(set(found)) == 1)
    return ".".join(alike) or type(leaf).__name__.lower()


@dataclass(frozen=True, slots=True)
class Untold:
    """Numbers of one block in evaluation mode: what its fused form tells, and what it does not.

    Attributes
    ----------
    off_centre, centre_sums, bias_sums : int
        Told: taps of W3 up to a factor a channel; centre taps and biases as sums.
    kernel_split : int
        Not told: how much of each centre tap is the 1x1 branch's.
    slopes : int
        Not told: t of every branch and channel.
    gamma_var_split : int
        Not told: gamma and var, of which t is all that shows.
    bias_split : int
        Not told: beta and mean of every branch but for their sum.
    """

    layer: str
    off_centre: int
    centre_sums: int
    bias_sums: int
    kernel_split: int
    slopes: int
    gamma_var_split: int
    bias_split: int

    @property
    def told(self) -> int:
        """Independent numbers in the fused block."""
        return self.off_centre + self.centre_sums + self.bias_sums

    @property
    def free(self) -> int:
        """Dimension of the family of blocks with this fused form."""
        return self.kernel_split + self.slopes + self.gamma_var_split + self.bias_split


def what_is_lost(blocks: Iterable[BlockSpec]) -> tuple[Untold, ...]:
    """Count, for every block, what fusion keeps and what it forgets."""
    return tuple(_count(spec) for spec in blocks)


def _count(spec: BlockSpec) -> Untold:
    linear, pairs = linear_expression(spec), spec.out_channels * (spec.in_channels // spec.groups)
    shapes = linear.shapes()
    read = Reader({name: np.broadcast_to(0.0, of) for name, of in shapes.items()}, 1.0)
    forms = [leaf.form(read, slice(0, 1)) for leaf, _ in leaves(linear)]
    makers = Counter(offset for form in forms for offset in form.lattice.offsets())
    shared = {offset for offset, count in makers.items() if count > 1}
    normed = {n.rpartition(".")[0] for n in shapes if n.endswith(".gamma")}
    norms = sum(prod(shapes[f"{name}.gamma"]) for name in normed)
    others = (prod(of) for name, of in shapes.items() if name.rpartition(".")[0] not in normed)
    return Untold(
        layer=spec.name,
        off_centre=len(makers.keys() - shared) * pairs,
        centre_sums=len(makers.keys() & shared) * pairs,
        bias_sums=spec.out_channels,
        kernel_split=sum(others) - len(makers) * pairs,
        slopes=norms,
        gamma_var_split=norms,
        bias_split=2 * norms - spec.out_channels,
    )


def _root_above(eps: Real) -> int:
    """The smallest power of two whose square exceeds `eps`; at least 1."""
    root = 1
    while root * root <= eps:
        root *= 2
    return root
