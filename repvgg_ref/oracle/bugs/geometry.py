"""Where the kernel's taps land: padding, flips, layouts, groups, strides, dilation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import combinations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.bugs.base import BlockSite, BlockVariants, Variant, bug
from repvgg_ref.oracle.programs.block import POINTWISE, BlockProgram

Changed = Callable[[Array], Array]  # of a kernel (O, C/G, Kh, Kw)


def _reread(weight: Array, order: tuple[int, ...]) -> Array:
    """Memory written in another axis order and read as if it were OIHW."""
    return np.ascontiguousarray(weight.transpose(order)).reshape(weight.shape)


def _reread_back(weight: Array, order: tuple[int, ...]) -> Array:
    """OIHW memory read as if it were written in another axis order."""
    return weight.reshape([weight.shape[axis] for axis in order]).transpose(np.argsort(order))


FLIPS: dict[str, Changed] = {
    "both ways": partial(np.flip, axis=(2, 3)),
    "top to bottom": partial(np.flip, axis=2),
    "left to right": partial(np.flip, axis=3),
}
LAYOUTS: dict[str, Changed] = {
    detail: partial(change, order=order)
    for name, order in {"HWIO": (2, 3, 1, 0), "OHWI": (0, 2, 3, 1), "IHWO": (1, 2, 3, 0)}.items()
    for detail, change in (
        (f"{name} as OIHW", _reread),
        (f"OIHW as {name}", _reread_back),
    )
}
_NEIGHBOURS = [(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]


def _kernel(program: BlockProgram, change: Changed) -> BlockProgram:
    return program.with_kernel(lambda k: FusedConv(np.ascontiguousarray(change(k.weight)), k.bias))


@bug(
    "padding-missing",
    says="the convolution has no padding, so its output is smaller",
    advice="build the fused convolution with padding=1",
)
def padding_missing(site: BlockSite) -> BlockVariants:
    if max(site.program.pads) > 0:
        yield Variant(replace(site.program, pad_mode="none"))


@bug(
    "padding-reflect",
    says="the border is reflected instead of zero",
    advice="pad with zeros",
)
def padding_reflect(site: BlockSite) -> BlockVariants:
    if min(site.x.shape[2:]) > max(site.program.pads) > 0:
        yield Variant(replace(site.program, pad_mode="reflect"))


@bug(
    "padding-replicate",
    says="the border repeats the edge pixels instead of zeros",
    advice="pad with zeros",
)
def padding_replicate(site: BlockSite) -> BlockVariants:
    if max(site.program.pads) > 0:
        yield Variant(replace(site.program, pad_mode="edge"))


@bug(
    "padding-asymmetric",
    says="padding lies on one side only ({detail})",
    advice="pad 1 on every side; TensorFlow's SAME with stride 2 pads bottom and right only",
)
def padding_asymmetric(site: BlockSite) -> BlockVariants:
    p = site.program.pads[0]
    for detail, pads in {
        "bottom and right": (0, 0, 2 * p, 2 * p),
        "top and left": (2 * p, 2 * p, 0, 0),
        "right": (p, 0, p, 2 * p),
        "bottom": (0, p, 2 * p, p),
    }.items():
        if p > 0:
            yield Variant(replace(site.program, pads=pads), detail=detail)


@bug(
    "tf-same-padding",
    says="TensorFlow's SAME padding: the 3x3 kernel starts one pixel later, the 1x1 does not",
    advice="with stride 2 pad (1, 1) explicitly and use padding='valid'",
)
def tf_same_padding(site: BlockSite) -> BlockVariants:
    if len(site.program.branches) > 1 and site.program.stride == 2:
        program, p = site.program, site.program.pads[0]
        shifted = {
            name: (-room[0], -room[1])
            for name in program.branches
            if any(room := program.room(name))
        }
        yield Variant(replace(site.program, pads=(0, 0, 2 * p, 2 * p), offsets=shifted))


@bug(
    "branch-1x1-on-wrong-tap",
    says="the 1x1 kernel sits {detail} of the centre tap",
    advice="pad the 1x1 kernel by one on every side: it belongs on tap (1, 1)",
)
def branch_1x1_on_wrong_tap(site: BlockSite) -> BlockVariants:
    if POINTWISE in site.program.branches:
        for row, column in _NEIGHBOURS:
            moved = replace(site.program, offsets={POINTWISE: (row, column)})
            yield Variant(moved, detail=f"({row:+d}, {column:+d})")


@bug(
    "branch-on-wrong-taps",
    says="a branch's kernel does not sit in the middle of the fused one: {detail}",
    advice="pad every kernel by the same number of zeros on both sides, and keep all of its taps",
)
def branch_on_wrong_taps(site: BlockSite) -> BlockVariants:
    """Of branches that have no bug of their own: one tap off."""
    program = site.program
    for name in program.branches:
        for row, column in _NEIGHBOURS if name != POINTWISE else ():
            if abs(row) < program.size[0] and abs(column) < program.size[1]:
                moved = _displaced(program, name, row, column)
                yield Variant(moved, detail=f"{name} by ({row:+d}, {column:+d})")


def _displaced(program: BlockProgram, name: str, row: int, column: int) -> BlockProgram:
    """One branch's kernel one tap off; the taps that leave the block's kernel are dropped."""
    room = program.room(name)
    (rows, down), (columns, right) = _taps_left(row, room[0]), _taps_left(column, room[1])
    # A view: kernels of wide layers take half a gigabyte, and tried programs keep theirs.
    kernel = program.branches[name].weight[:, :, rows, columns]
    moved = program.with_branch(name, lambda b: b._replace(weight=kernel))
    return replace(moved, offsets={**program.offsets, name: (down, right)})


def _taps_left(step: int, room: int) -> tuple[slice, int]:
    """Along one axis: the taps of a displaced kernel that are left, and their offset."""
    if room or step == 0:
        return slice(None), step
    return (slice(None, -1), 1) if step > 0 else (slice(1, None), 0)


@bug(
    "branch-kernels-swapped",
    says="two branches compute with each other's kernel ({detail})",
    advice="check which kernel belongs to which branch: k x 1 and 1 x k hold equally many numbers",
)
def branch_kernels_swapped(site: BlockSite) -> BlockVariants:
    """Of kernels of the same shape it is their batch norms that are swapped: another bug."""
    branches = site.program.branches
    for one, other in combinations(branches, 2):
        turned = {name: branches[name].weight.swapaxes(2, 3) for name in (one, other)}
        if turned[other].shape == branches[one].weight.shape != turned[one].shape:
            pair = f"{one} and {other}"
            swapped = {one: turned[other], other: turned[one]}
            yield Variant(_with_kernels(site.program, swapped), detail=pair)
            yield Variant(_with_kernels(site.program, turned), detail=f"{pair}, norms as well")


def _with_kernels(program: BlockProgram, kernels: Mapping[str, Array]) -> BlockProgram:
    return program.with_branches(lambda name, b: b._replace(weight=kernels.get(name, b.weight)))


@bug(
    "kernel-flipped",
    says="the kernel is flipped ({detail}): a true convolution instead of cross-correlation",
    advice="do not flip kernels",
)
def kernel_flipped(site: BlockSite) -> BlockVariants:
    for detail, change in FLIPS.items():
        yield Variant(_kernel(site.program, change), detail=detail)


@bug(
    "kernel-height-width-swapped",
    says="the kernel's height and width are exchanged",
    advice="keep (O, I, kH, kW); check the transposition that the layout conversion applies",
)
def kernel_height_width_swapped(site: BlockSite) -> BlockVariants:
    yield Variant(_kernel(site.program, lambda w: w.transpose(0, 1, 3, 2)))


@bug(
    "kernel-in-out-swapped",
    says="the kernel's input and output channels are exchanged",
    advice="keep (O, I, kH, kW)",
)
def kernel_in_out_swapped(site: BlockSite) -> BlockVariants:
    spec = site.program.spec
    if spec.groups == 1 and spec.in_channels == spec.out_channels:
        yield Variant(_kernel(site.program, lambda w: w.transpose(1, 0, 2, 3)))


@bug(
    "kernel-memory-layout",
    says="the kernel's memory is read in another layout ({detail})",
    advice="transpose the kernel to the runtime's layout instead of reshaping its memory",
)
def kernel_memory_layout(site: BlockSite) -> BlockVariants:
    for detail, change in LAYOUTS.items():
        yield Variant(_kernel(site.program, change), detail=detail)


@bug(
    "input-memory-layout",
    says="the layer's input is read in the wrong memory layout ({detail})",
    advice="transpose NHWC to NCHW instead of reshaping",
)
def input_memory_layout(site: BlockSite) -> BlockVariants:
    if site.x.shape[2] * site.x.shape[3] == 1:
        return
    yield Variant(site.program.with_input(_as_nhwc), detail="NCHW memory read as NHWC")
    yield Variant(site.program.with_input(_as_nchw), detail="NHWC memory read as NCHW")


def _as_nhwc(x: Array) -> Array:
    n, c, h, w = x.shape
    return x.reshape(n, h, w, c).transpose(0, 3, 1, 2)


def _as_nchw(x: Array) -> Array:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(x.shape)


@bug(
    "height-width-swapped",
    says="height and width of the image are exchanged",
    advice="check the order (N, C, H, W); PIL sizes are (width, height)",
)
def height_width_swapped(site: BlockSite) -> BlockVariants:
    if site.x.shape[2] == site.x.shape[3] and site.x.shape[2] > 1:
        yield Variant(site.program.with_input(lambda x: x.transpose(0, 1, 3, 2)))


@bug(
    "groups-ignored",
    says="the groups are ignored ({detail})",
    advice="pass groups to the fused convolution; its kernel is (O, C / groups, 3, 3)",
)
def groups_ignored(site: BlockSite) -> BlockVariants:
    groups = site.program.groups
    if groups == 1:
        return
    dense = replace(site.program, groups=1)
    yield Variant(
        _kernel(dense, lambda w: np.tile(w, (1, groups, 1, 1))),
        detail="every output reads every group",
    )
    yield Variant(
        dense.with_input(lambda x: x[:, : x.shape[1] // groups]),
        detail="every output reads the first group",
    )


@bug(
    "groups-permuted",
    says="the groups read each other's input channels ({detail})",
    advice="group g reads channels g * C/G ... (g + 1) * C/G - 1",
)
def groups_permuted(site: BlockSite) -> BlockVariants:
    groups, channels = site.program.groups, site.x.shape[1]
    if groups == 1:
        return
    index = np.arange(channels).reshape(groups, -1)
    for detail, order in {
        "in reverse": index[::-1].ravel(),
        "rotated by one": np.roll(index, -1, 0).ravel(),
        "interleaved, channel c in group c % G": index.T.ravel(),
        "shuffled back": np.arange(channels).reshape(-1, groups).T.ravel(),
    }.items():
        if (order != np.arange(channels)).any():
            yield Variant(
                site.program.with_input(partial(np.take, indices=order, axis=1)), detail=detail
            )


@bug(
    "dilation-ignored",
    says="the dilation is ignored",
    advice="pass dilation (and padding = dilation) to the fused convolution",
)
def dilation_ignored(site: BlockSite) -> BlockVariants:
    if site.program.dilation > 1:
        yield Variant(replace(site.program, dilation=1, pads=(1, 1, 1, 1)))


@bug(
    "dilation-added",
    says="the convolution is dilated by {parameter:.0f}",
    advice="this layer has no dilation",
)
def dilation_added(site: BlockSite) -> BlockVariants:
    if site.program.dilation == 1:
        for dilation in (2, 4):
            yield Variant(
                replace(site.program, dilation=dilation, pads=(dilation,) * 4), float(dilation)
            )


@bug(
    "dilation-other",
    says="the convolution is dilated by {parameter:.0f} here",
    advice="stage 3 is dilated by 2, stage 4 by 4 (of the fast form the last five layers alone)",
)
def dilation_other(site: BlockSite) -> BlockVariants:
    if site.program.dilation > 1:
        for dilation in sorted({2, 3, 4, 8} - {site.program.dilation}):
            yield Variant(
                replace(site.program, dilation=dilation, pads=(dilation,) * 4), float(dilation)
            )


@bug(
    "dilation-padding",
    says="the border is {parameter:.0f} pixel wide, too narrow for the dilation",
    advice="pad as many pixels as the convolution is dilated by",
    scope="layer",
)
def dilation_padding(site: BlockSite) -> BlockVariants:
    if site.program.dilation > 1:
        yield Variant(replace(site.program, pads=(1, 1, 1, 1)), 1.0)


@bug(
    "not-dilated",
    says="the stage is the classifier's: stride 2 and no dilation",
    advice="stages 3 and 4 keep the size of stage 2, with dilation 2 and 4 in their stride's place",
    scope="layer",
)
def not_dilated(site: BlockSite) -> BlockVariants:
    if site.program.dilation > 1 and site.program.stride == 1:
        yield Variant(replace(site.program, stride=2, dilation=1, pads=(1, 1, 1, 1)))


@bug(
    "stride-moved",
    says="the stride is {parameter:.0f} here",
    advice="official networks have stride 2 in the first block of every stage, and there only",
    scope="layer",
)
def stride_moved(site: BlockSite) -> BlockVariants:
    other = 3 - site.program.stride
    yield Variant(replace(site.program, stride=other), float(other))


@bug(
    "stride-phase",
    says="the strided convolution starts at pixel {detail} instead of (0, 0)",
    advice="pad 1 on every side; do not crop the input first",
)
def stride_phase(site: BlockSite) -> BlockVariants:
    if site.program.stride == 1:
        return
    for row, column in ((1, 0), (0, 1), (1, 1)):
        yield Variant(
            site.program.with_input(partial(_shifted, rows=row, columns=column)),
            detail=f"({row}, {column})",
        )


def _shifted(x: Array, rows: int, columns: int) -> Array:
    """The image moved up and left, zeros entering below and at the right."""
    moved = np.zeros_like(x)
    h, w = x.shape[2:]
    moved[:, :, : h - rows, : w - columns] = x[:, :, rows:, columns:]
    return moved
