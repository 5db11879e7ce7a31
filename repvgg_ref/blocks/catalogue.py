"""Every block as data: the expression that it trains with, and the keys of its arrays.

To add a block, add a function here that says what it computes before its activation, in the words
of `linear`, and under which keys its published code keeps the arrays. Fusion, self check, shapes,
initialisation, cost, identification, conversion, bounds and bugs of the oracle follow from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.average import avg_pool
from repvgg_ref.blocks.constructors import FormulaConv, Pad, Relu, without_relu
from repvgg_ref.blocks.formulas import Dirac
from repvgg_ref.blocks.kinds import KINDS as KINDS
from repvgg_ref.blocks.kinds import RESIDUAL_REORG as RESIDUAL_REORG
from repvgg_ref.blocks.kinds import Kind as Kind
from repvgg_ref.blocks.kinds import block as block
from repvgg_ref.blocks.kinds import block_kind as block_kind
from repvgg_ref.blocks.kinds import block_names as block_names
from repvgg_ref.blocks.kinds import kind as kind
from repvgg_ref.blocks.kinds import require_block as require_block
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.run import Linear, Reader
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError, NotFusibleError

_RBR = {
    "branch_3x3": "rbr_dense",
    "branch_1x1": "rbr_1x1",
    "branch_identity.bn": "rbr_identity",
}


def conv(spec: BlockSpec, name: str, *kernel: int, bias: bool = False) -> Conv:
    """A convolution of the block's stride and groups, its centre where the block's is."""
    return Conv(
        name,
        spec.in_channels,
        spec.out_channels,
        (kernel[0], kernel[-1]),
        (spec.stride, spec.stride),
        (kernel[0] // 2 * spec.dilation, kernel[-1] // 2 * spec.dilation),
        (spec.dilation if kernel[0] > 1 else 1, spec.dilation if kernel[-1] > 1 else 1),
        spec.groups,
        bias,
    )


def conv_bn(spec: BlockSpec, name: str, *kernel: int) -> Chain:
    """``BN(W x)``: the leaves are ``name.conv`` and ``name.bn``."""
    return Chain(conv(spec, f"{name}.conv", *kernel), Norm(f"{name}.bn", spec.out_channels))


def identity(spec: BlockSpec, name: str = "branch_identity") -> Identity:
    """``x``."""
    return Identity(name, spec.in_channels, spec.groups)


def identity_bn(spec: BlockSpec, name: str = "branch_identity") -> list[Linear]:
    """``BN(x)`` where shapes allow it, else nothing."""
    bn = Chain(identity(spec, name), Norm(f"{name}.bn", spec.out_channels))
    return [bn] if spec.can_add_input else []


@block("repvgg", "BN3(W3 x) + BN1(W1 x) + BN0(x)", _RBR, top1=75.14, certain=True)
def repvgg(spec: BlockSpec) -> Linear:
    """The paper's block (section 3.2, figure 4)."""
    k = spec.kernel
    return Sum(conv_bn(spec, "branch_3x3", k), conv_bn(spec, "branch_1x1", 1), *identity_bn(spec))


@block("plain", "BN3(W3 x)", _RBR, auto=False, top1=72.39, certain=True)
def plain(spec: BlockSpec) -> Linear:
    """No branch beside the convolution (Table 6, first row)."""
    return Sum(conv_bn(spec, "branch_3x3", spec.kernel))


@block("identity-only", "BN3(W3 x) + BN0(x)", _RBR, auto=False, top1=74.79, certain=True)
def identity_only(spec: BlockSpec) -> Linear:
    """No 1x1 branch (Table 6)."""
    return Sum(conv_bn(spec, "branch_3x3", spec.kernel), *identity_bn(spec))


@block("1x1-only", "BN3(W3 x) + BN1(W1 x)", _RBR, auto=False, top1=73.15, certain=True)
def point_only(spec: BlockSpec) -> Linear:
    """No identity branch (Table 6)."""
    return Sum(conv_bn(spec, "branch_3x3", spec.kernel), conv_bn(spec, "branch_1x1", 1))


@block(
    "identity-without-bn", "BN3(W3 x) + BN1(W1 x) + x", _RBR, auto=False, top1=74.18, certain=True
)
def identity_without_bn(spec: BlockSpec) -> Linear:
    """The identity as it is (Table 7)."""
    same = [identity(spec)] if spec.can_add_input else []
    return Sum(conv_bn(spec, "branch_3x3", spec.kernel), conv_bn(spec, "branch_1x1", 1), *same)


@block("post-addition-bn", "BN(W3 x + W1 x + x)", _RBR | {"bn": "bn"}, top1=73.52, certain=True)
def post_addition_bn(spec: BlockSpec) -> Linear:
    """One batch norm, behind the sum (Table 7)."""
    convs = conv(spec, "branch_3x3.conv", spec.kernel), conv(spec, "branch_1x1.conv", 1)
    same = [identity(spec)] if spec.can_add_input else []
    return Chain(Sum(*convs, *same), Norm("bn", spec.out_channels))


@block(
    "acb",
    "BN(W3 x) + BN(W31 x) + BN(W13 x)",
    {
        "square.conv": "square_conv",
        "square.bn": "square_bn",
        "vertical.conv": "ver_conv",
        "vertical.bn": "ver_bn",
        "horizontal.conv": "hor_conv",
        "horizontal.bn": "hor_bn",
    },
    fused="fused_conv",
    top1=73.58,
)
def asymmetric(spec: BlockSpec) -> Linear:
    """Ding et al., "ACNet" (arXiv 1908.03930): the kernel's middle column and row by themselves."""
    k = spec.kernel
    sizes = {"square": (k, k), "vertical": (k, 1), "horizontal": (1, k)}
    return Sum(*(conv_bn(spec, name, *size) for name, size in sizes.items()))


@block(
    "mobileone",
    "BN(WK x) + ... + BN(WK x) + BN(W1 x) + BN0(x)",
    {"branch_kxk": "rbr_conv", "branch_scale": "rbr_scale", "branch_skip.bn": "rbr_skip"},
    fused="reparam_conv",
    gate={"se.down": "se.reduce", "se.up": "se.expand"},
)
def mobileone(spec: BlockSpec) -> Linear:
    """Vasu et al., "MobileOne" (arXiv 2206.04040, section 3.2); W1 only beside a larger kernel."""
    k = spec.kernel
    copies = [conv_bn(spec, f"branch_kxk.{i}", k) for i in range(spec.copies)]
    point = [conv_bn(spec, "branch_scale", 1)] if k > 1 else []
    return Sum(*copies, *point, *identity_bn(spec, "branch_skip"))


_ONE = {"conv": "conv", "bn": "bn"}


@block("relu-in-branches", "R(BN3(W3 x)) + R(BN1(W1 x)) + R(BN0(x))", _RBR, auto=False, top1=75.69)
def relu_in_branches(spec: BlockSpec) -> Linear:
    """The paper's branches, each with a ReLU of its own (Table 7): no convolution equals them."""
    chains: Any = repvgg(spec)
    return Sum(*(Chain(*branch.parts, Relu()) for branch in chains.parts))


@block("trivial", "BN((W + I) x)", _ONE, top1=73.51)
def trivial(spec: BlockSpec) -> Linear:
    """The identity as a part of the kernel (Table 7); only W, where x cannot be added."""
    same = [identity(spec)] if spec.can_add_input else []
    return Chain(Sum(conv(spec, "conv", spec.kernel), *same), Norm("bn", spec.out_channels))


@block(
    "dirac",
    "BN((a I + b W / |W|) x)",
    _ONE | {"conv.alpha": "conv.alpha", "conv.beta": "conv.beta"},
    top1=73.97,
)
def dirac(spec: BlockSpec) -> Linear:
    """DiracNets' parameterisation (Table 7); a plain convolution, where x cannot be added."""
    plain = conv(spec, "conv", spec.kernel)
    main = FormulaConv(plain, Dirac(plain)) if spec.can_add_input else plain
    return Chain(main, Norm("bn", spec.out_channels))


@block(
    "qarepvgg",
    "BN(BN3(W3 x) + W1 x + x)",
    {"branch_3x3": "rbr_dense", "branch_point.conv.weight": "rbr_1x1.weight", "bn": "bn"},
)
def quantisation_aware(spec: BlockSpec) -> Linear:
    """Chu et al., "Make RepVGG Greater Again" (arXiv 2212.01593): a norm inside and one behind."""
    dense = conv_bn(spec, "branch_3x3", spec.kernel)
    same = [identity(spec)] if spec.can_add_input else []
    whole = Sum(dense, conv(spec, "branch_point.conv", 1), *same)
    return Chain(whole, Norm("bn", spec.out_channels))


@block(
    "dbb",
    "BN(W x) + BN(W1 x) + BN(mean(BN(V1 x))) + BN(W2 BN((W1 + I) x))",
    {
        "origin": "dbb_origin",
        "pointwise": "dbb_1x1",
        "average.conv": "dbb_avg.conv",
        "average.inner.bn": "dbb_avg.bn.bn",
        "average.bn": "dbb_avg.avgbn",
        "sequence.same.conv": "dbb_1x1_kxk.idconv1",
        "sequence.wide.conv": "dbb_1x1_kxk.conv1",
        "sequence.inner.bn": "dbb_1x1_kxk.bn1.bn",
        "sequence.conv": "dbb_1x1_kxk.conv2",
        "sequence.bn": "dbb_1x1_kxk.bn2",
    },
    fused="dbb_reparam",
)
def diverse(spec: BlockSpec) -> Linear:
    """Ding et al., "Diverse Branch Block" (arXiv 2103.13425); depthwise as in its code."""
    width = spec.in_channels
    depthwise = spec.groups == width == spec.out_channels
    return diverse_of(spec, 2 * width if depthwise else 0)


def diverse_of(spec: BlockSpec, wide: int) -> Linear:
    """`diverse` with `wide` channels inside its sequence; 0: the input's, behind W1 + I."""
    k, width, out = spec.kernel, spec.in_channels, spec.out_channels
    depthwise, window = spec.groups == width == out, (k, k)
    origin, stride = conv_bn(spec, "origin", k), (spec.stride, spec.stride)
    border, straight = (k // 2, k // 2), replace(spec, stride=1)
    average = [
        conv(straight, "average.conv", 1),
        inner := Norm("average.inner.bn", out),
        Pad(border, inner),
        avg_pool(out, window, stride, (0, 0)),
    ]
    if depthwise:
        average = [avg_pool(out, window, stride, border)]
    same = replace(straight, out_channels=width)
    first: Linear = Sum(
        replace(conv(same, "sequence.same.conv", 1), starts_at_zero=True), identity(same, "same")
    )
    if wide:
        first = conv(replace(straight, out_channels=wide), "sequence.wide.conv", 1)
    after = conv(replace(spec, in_channels=first.out_channels), "sequence.conv", k)
    between = Norm("sequence.inner.bn", first.out_channels)
    sequence = [first, between, Pad(after.padding, between), replace(after, padding=(0, 0))]
    pointwise = [] if depthwise else [conv_bn(spec, "pointwise", 1)]
    return Sum(
        origin,
        *pointwise,
        Chain(*average, Norm("average.bn", out)),
        Chain(*sequence, Norm("sequence.bn", out)),
    )


@block("repvit", "BN(BN3(W3 x) + W1 x + b + x)", {}, fused="")
def repvit(spec: BlockSpec) -> Linear:
    """RepVGGDW of RepViT (arXiv 2307.09283, section 3.3), whose 1x1 convolution has a bias."""
    dense, point = conv_bn(spec, "dense", spec.kernel), conv(spec, "point", 1, bias=True)
    same = [identity(spec, "same")] if spec.can_add_input else []
    return Chain(Sum(dense, point, *same), Norm("bn", spec.out_channels))


@block("conv-bn", "BN(W x)", {}, fused="conv")
def plain_conv_bn(spec: BlockSpec) -> Linear:
    """A convolution and its batch norm, as residual networks and auxiliary heads have it."""
    k = spec.kernel
    return Chain(conv(spec, "conv", k), Norm("bn", spec.out_channels))


@block("conv-bias", "W x + b", {}, fused="conv")
def conv_bias(spec: BlockSpec) -> Linear:
    """No batch norm, as networks from before it have it."""
    return conv(spec, "conv", spec.kernel, bias=True)


@lru_cache(maxsize=1024)
def expression(spec: BlockSpec) -> Linear:
    """What the block computes before SE and ReLU, in train form.

    Raises
    ------
    CheckpointError
        If the catalogue has no such kind, or not under which keys its arrays are kept.
    """
    found = kind(spec.kind)
    linear = found.build(spec)
    for name in linear.shapes() if found.keys else ():
        leaf = name.rpartition(".")[0]
        starts = any(name == start or name.startswith(start + ".") for start in found.keys)
        if not starts or (name.endswith(".running_var") and leaf.rpartition(".")[2] != "bn"):
            raise CheckpointError(
                f"the catalogue's {found.name} cannot be written to a file",
                got=f"an array {name}",
                wanted="names that start as one of its keys; batch norms called bn",
            )
    return linear


@lru_cache(maxsize=1024)
def linear_expression(spec: BlockSpec) -> Linear:
    """`expression`, with ReLUs before the sum left out."""
    linear: Linear = without_relu(expression(spec))
    return linear


def is_fusible(spec: BlockSpec) -> bool:
    """Whether what the block computes before its activation is linear."""
    return expression(spec) == linear_expression(spec)


def fused_conv(spec: BlockSpec) -> Conv:
    """The one convolution that equals the block; its leaf is ``fused``.

    Raises
    ------
    NotFusibleError
        If no single convolution does, or none whose padding is the same on both sides.
    """
    if not is_fusible(spec):
        raise NotFusibleError(
            f"{spec.name}: a ReLU stands before the sum, and relu(a) + relu(b) is not relu(a + b)",
            got=f"{spec.kind}: {kind(spec.kind).says}",
            wanted="nothing but linear operations before the sum",
            advice="evaluate, verify and train its train form",
        )
    return reach(spec)


@lru_cache(maxsize=1024)
def reach(spec: BlockSpec) -> Conv:
    """The convolution that has all of the block's taps, whether or not it equals the block."""
    return one_conv(linear_expression(spec), spec.name)


def one_conv(linear: Linear, name: str) -> Conv:
    """The convolution that an expression fuses to; its leaf is ``fused``.

    Raises
    ------
    NotFusibleError
        If its padding would not be the same on both sides.
    """
    nothing = {
        name: np.broadcast_to(np.zeros(()), shape) for name, shape in linear.shapes().items()
    }
    form = linear.form(Reader(nothing, 1.0), slice(0, 1))
    first, step, size = form.lattice
    if any(f + s * (n - 1) != -f for f, s, n in zip(first, step, size, strict=True)):
        raise NotFusibleError(
            f"{name}: the fused kernel is not centred", got=form.lattice, wanted="odd extents"
        )
    padding = -first[0], -first[1]
    channels = linear.in_channels, linear.out_channels
    return Conv("fused", *channels, size, form.stride, padding, step, form.groups, bias=True)


def part_of(spec: BlockSpec, params: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays that the block's expression computes with, by part name."""
    return {part: params[f"{spec.name}.{part}"] for part in _part_names(spec)}


@lru_cache(maxsize=1024)
def _part_names(spec: BlockSpec) -> tuple[str, ...]:
    return tuple(n for n in expression(spec).shapes() if not n.endswith(".num_batches_tracked"))


def norms(spec: BlockSpec) -> list[str]:
    """The part names of the block's batch norms, in order."""
    ends = ".running_var"
    return [name.removesuffix(ends) for name in _part_names(spec) if name.endswith(ends)]
