"""Branches, gates and layers that are missing, doubled, or in the wrong order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.branches import Branch, identity_kernel
from repvgg_ref.blocks.catalogue import linear_expression
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.blocks.linear import Identity
from repvgg_ref.blocks.unfuse import leaves
from repvgg_ref.oracle.bugs.base import (
    BlockSite,
    BlockVariants,
    Variant,
    behind,
    bug,
    order_of_channels,
)
from repvgg_ref.oracle.programs.block import DENSE, IDENTITY, POINTWISE, BlockProgram
from repvgg_ref.oracle.programs.inner import inner_terms, without_inner

# A projection left out, as in the paper of residual networks, option A.
_LACKING = ", with zeros for the channels that it lacks"


@bug(
    "identity-missing",
    says="the identity branch is left out{detail}",
    advice="add BN(x) to the sum where input and output widths are equal and the stride is 1",
)
def identity_missing(site: BlockSite) -> BlockVariants:
    yield from _missing(site, IDENTITY)
    for name, (branch, is_identity) in _inner_terms(site):
        if is_identity:
            yield Variant(without_inner(site.program, name), detail=f" inside {branch}")


@bug(
    "identity-without-bn",
    says="the identity branch adds x itself, without its batch norm",
    advice="the identity branch is a batch norm: scale and shift x by it",
)
def identity_without_bn(site: BlockSite) -> BlockVariants:
    if IDENTITY in site.program.norms:
        yield Variant(_identity_added(_left_out(site.program, IDENTITY)))


@bug(
    "identity-always-on",
    says="x is added {detail}",
    advice="only blocks with equal widths AND stride 1 have an identity branch",
)
def identity_always_on(site: BlockSite) -> BlockVariants:
    spec = site.program.spec
    if IDENTITY not in site.program.branches and spec.in_channels == spec.out_channels:
        inside = any(isinstance(leaf, Identity) for leaf, _ in leaves(linear_expression(spec)))
        detail = "behind the batch norm" if inside else "although this block has no identity branch"
        yield Variant(_identity_added(site.program), detail=detail)


@bug(
    "identity-group-index",
    says="the grouped identity kernel has its ones in the wrong input channels ({detail})",
    advice="K[i, i % (C / groups), 1, 1] = 1",
)
def identity_group_index(site: BlockSite) -> BlockVariants:
    program, spec = site.program, site.program.spec
    if IDENTITY not in program.branches or spec.groups == 1:
        return
    rows, per_group = np.arange(spec.out_channels), spec.in_channels // spec.groups
    for detail, columns in {
        "K[i, i // groups]": rows // spec.groups,
        "K[i, i // (C / groups)]": rows // per_group % per_group,
        "K[i, 0]": 0 * rows,
    }.items():
        kernel = np.zeros((spec.out_channels, per_group, 1, 1))
        kernel[rows, columns % per_group, 0, 0] = 1
        yield Variant(_identity_as(program, kernel), detail=detail)
    kernel = np.zeros((spec.out_channels, per_group, 1, 1))
    first = rows < per_group  # as if the kernel had C rows but only the first group fits
    kernel[rows[first], rows[first], 0, 0] = 1
    yield Variant(_identity_as(program, kernel), detail="first group only")


@bug(
    "identity-all-ones",
    says="the identity kernel has a one for every input channel of the group, and so adds them up",
    advice="one output channel takes one input channel: K[i, i % (C / groups), 1, 1] = 1",
)
def identity_all_ones(site: BlockSite) -> BlockVariants:
    program, spec = site.program, site.program.spec
    per_group = spec.in_channels // spec.groups
    if IDENTITY in program.branches and per_group > 1:
        ones = np.ones((spec.out_channels, per_group, 1, 1))
        yield Variant(_identity_as(program, ones))


@bug(
    "branch-1x1-missing",
    says="the 1x1 branch is left out{detail}",
    advice="add the 1x1 kernel to the centre tap of the 3x3 kernel, and its bias",
)
def branch_1x1_missing(site: BlockSite) -> BlockVariants:
    yield from _missing(site, POINTWISE)


@bug(
    "branch-3x3-missing",
    says="the 3x3 branch is left out{detail}",
    advice="add the 3x3 branch's kernel and bias",
)
def branch_3x3_missing(site: BlockSite) -> BlockVariants:
    yield from _missing(site, DENSE)


@bug(
    "branch-missing",
    says="the branch {detail} is left out",
    advice="every branch counts in the sum",
)
def branch_missing(site: BlockSite) -> BlockVariants:
    """Of branches that have no bug of their own."""
    for name in site.program.branches:
        if name not in (DENSE, POINTWISE, IDENTITY):
            for variant in _missing(site, name):
                yield variant._replace(detail=name + variant.detail)
    for name, (_, is_identity) in _inner_terms(site):
        if not is_identity:
            yield Variant(without_inner(site.program, name), detail=name)


@bug(
    "branch-doubled",
    says="one branch is added twice ({detail})",
    advice="each branch counts once in the sum",
)
def branch_doubled(site: BlockSite) -> BlockVariants:
    program = site.program
    for name in program.branches:
        twice = _twice if program.has_own_norm(name) else _kernel_twice
        yield Variant(program.with_branch(name, twice), detail=name)


@bug(
    "block-summed-twice",
    says="the sum of the branches is doubled before the activation: added twice, or times 2",
    advice="a fused convolution stands for all branches: run it or them, not both",
)
def block_summed_twice(site: BlockSite) -> BlockVariants:
    if not site.program.is_skipped:
        twice = site.program.with_kernel(lambda k: FusedConv(2 * k.weight, 2 * k.bias))
        yield Variant(twice)


@bug(
    "bias-dropped",
    says="the fused convolution has no bias",
    advice="create the convolution with bias=True and load it",
)
def bias_dropped(site: BlockSite) -> BlockVariants:
    yield Variant(_bias_times(site.program, 0))


@bug(
    "bias-twice",
    says="the bias is added twice",
    advice="the runtime adds the convolution's bias already",
)
def bias_twice(site: BlockSite) -> BlockVariants:
    yield Variant(_bias_times(site.program, 2))


@bug(
    "bias-negated",
    says="the bias has the wrong sign",
    advice="b = beta - mean * gamma / sqrt(var + eps) is added, not subtracted",
)
def bias_negated(site: BlockSite) -> BlockVariants:
    yield Variant(_bias_times(site.program, -1))


@bug(
    "se-missing",
    says="squeeze-and-excitation is skipped",
    advice="run the SE block in the deploy form too: fusion keeps it",
)
def se_missing(site: BlockSite) -> BlockVariants:
    if site.program.se is not None:
        yield Variant(replace(site.program, activation="relu"))


@bug(
    "se-order",
    says="squeeze-and-excitation and ReLU come in the wrong order",
    advice="D2se: SE, then ReLU; RepVGGplus: ReLU, then SE",
)
def se_order(site: BlockSite) -> BlockVariants:
    if site.program.se is not None:
        flipped = "-".join(reversed(site.program.activation.split("-")))
        yield Variant(replace(site.program, activation=flipped))


@bug(
    "se-before-batch-norm",
    says="squeeze-and-excitation gates every branch's convolution, before its batch norm",
    advice="sum the branches after their batch norms, then gate the sum once",
)
def se_before_batch_norm(site: BlockSite) -> BlockVariants:
    if site.program.se is not None and site.program.branches:
        yield Variant(replace(site.program, se_inside=True, activation="relu"))


@bug(
    "se-pool",
    says="squeeze-and-excitation pools wrongly ({detail})",
    advice="average over height and width, both",
)
def se_pool(site: BlockSite) -> BlockVariants:
    if site.program.se is not None:
        for detail, axes in {
            "maximum instead of mean": "max",
            "over width only": (3,),
            "over height only": (2,),
            "over a W x W square": "square",
            "sum instead of mean": "sum",
        }.items():
            yield Variant(replace(site.program, se_pool=axes), detail=detail)


@bug(
    "se-gate",
    says="squeeze-and-excitation's gate is wrong ({detail})",
    advice="sigmoid(W2 relu(W1 mean + b1) + b2)",
)
def se_gate(site: BlockSite) -> BlockVariants:
    se = site.program.se
    if se is None:
        return
    yield Variant(replace(site.program, se_gate="hard-sigmoid"), detail="hard sigmoid")
    yield Variant(replace(site.program, se_gate="no-relu"), detail="no ReLU between its layers")
    bare = se._replace(down_bias=0 * se.down_bias, up_bias=0 * se.up_bias)
    yield Variant(replace(site.program, se=bare), detail="its biases are dropped")


@bug(
    "layer-skipped",
    says="the layer is skipped: its output is its input{detail}",
    advice="compare the number of blocks per stage",
    scope="layer",
)
def layer_skipped(site: BlockSite) -> BlockVariants:
    spec = site.program.spec
    if spec.in_channels == spec.out_channels and spec.stride == 1:
        yield Variant(replace(site.program, branches={}, fused=None, activation="none", se=None))
    elif spec.kernel == 1 and spec.groups == 1 and spec.activation == "none":
        kernel = np.eye(spec.out_channels, spec.in_channels)[:, :, None, None]
        bare = FusedConv(kernel, np.zeros(spec.out_channels))
        detail = ", its first channels" if spec.out_channels < spec.in_channels else _LACKING
        yield Variant(site.program.with_kernel(lambda _: bare), detail=detail)


@bug(
    "layers-swapped",
    says="the layer computes with the weights of {detail}",
    advice="check the order in which layers are loaded (sorting names as text puts 10 before 2)",
    scope="layer",
)
def layers_swapped(site: BlockSite) -> BlockVariants:
    for name in site.alike:
        yield Variant(site.others[name], detail=name)


@bug(
    "channels-permuted",
    says="the output channels come in another order",
    advice="check the channel order that the layout conversion or the concatenation gives",
    scope="layer",
)
def channels_permuted(site: BlockSite) -> BlockVariants:
    """The order is read off the candidate: each channel is matched to the nearest of ours."""
    order = order_of_channels(site)
    if order is not None:
        yield Variant(behind(site.program, lambda out: out[:, order]))


def _identity_added(program: BlockProgram) -> BlockProgram:
    """The program with the raw input added before the activation (sampled where it strides)."""
    spec = program.spec
    kernel = identity_kernel(spec.out_channels, spec.groups, np.float64)

    def add(fused: FusedConv) -> FusedConv:
        return FusedConv(fused.weight + program.widened(kernel), fused.bias)

    return program.with_kernel(add)


def _bias_times(program: BlockProgram, factor: int) -> BlockProgram:
    return program.with_kernel(lambda k: FusedConv(k.weight, factor * k.bias))


def _missing(site: BlockSite, name: str) -> BlockVariants:
    """The block without one branch, if it has it; then with only that branch's kernel missing."""
    program = site.program
    if name not in program.branches:
        return
    yield Variant(_left_out(program, name))
    own, computed = program.has_own_norm(name), program.branches[name].before is not None
    if own or computed:
        yield Variant(program.with_branch(name, _no_kernel), detail=" but for its bias")
    if own and computed:  # of the bias, what the last norm adds stays
        yield Variant(program.with_branch(name, _nothing), detail=" but for its last norm")


def _left_out(program: BlockProgram, name: str) -> BlockProgram:
    """Without a branch, and without its batch norm where that is no other's."""
    if len(program.branches) > 1 and (
        program.has_own_norm(name) or not program.branches[name].has_norm
    ):
        return program.without(name)
    return program.with_branch(name, _silent if program.has_own_norm(name) else _nothing)


def _inner_terms(site: BlockSite) -> Iterator[tuple[str, tuple[str, bool]]]:
    program = site.program
    yield from inner_terms(program.spec).items() if program.parts and not program.lacks else ()


def _nothing(branch: Branch) -> Branch:
    """Before its norm it gives 0."""
    return _no_kernel(branch)._replace(before=None, before_size=None)


def _no_kernel(branch: Branch) -> Branch:
    return branch._replace(weight=np.broadcast_to(np.zeros(()), branch.weight.shape))


def _silent(branch: Branch) -> Branch:
    nothing = 0 * branch.beta
    return _nothing(branch)._replace(beta=nothing, running_mean=nothing)


def _kernel_twice(branch: Branch) -> Branch:
    if branch.has_norm:  # the same by its slope, as beta - mean t stays
        return branch._replace(gamma=2 * branch.gamma, running_mean=branch.running_mean / 2)
    return branch._replace(weight=2 * branch.weight)


def _twice(branch: Branch) -> Branch:
    return branch._replace(gamma=2 * branch.gamma, beta=2 * branch.beta)


def _identity_as(program: BlockProgram, kernel: Array) -> BlockProgram:
    return program.with_branch(IDENTITY, lambda b: b._replace(weight=kernel))
