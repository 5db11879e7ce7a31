"""What authors of integer ports do wrong, each found by users of real devices (INT8.md)."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.scaling import Scaling
from repvgg_ref.integer.schemes import SCHEMES
from repvgg_ref.oracle.bugs.base import Bug, Site, Variant, bug, library
from repvgg_ref.oracle.integers.fitted import MOST_MATCHED, order_of, scales_taken
from repvgg_ref.oracle.integers.products import as_other, in_pairs, reread
from repvgg_ref.oracle.integers.program import Finish, IntegerProgram, Sums

IntegerSite: TypeAlias = Site[IntegerProgram]
Variants: TypeAlias = Iterator[Variant[IntegerProgram]]
_SHOWN = 4  # channels that have another's scale


def _sums(site: IntegerSite, **changes: object) -> IntegerProgram:
    sums: Sums = replace(site.program.sums, **changes)  # type: ignore[arg-type]
    return replace(site.program, sums=sums)


def _finish(site: IntegerSite, **changes: object) -> IntegerProgram:
    finish: Finish = replace(site.program.finish, **changes)  # type: ignore[arg-type]
    return replace(site.program, finish=finish)


@bug(
    "padding-zero",
    says="zeros stand in the padding instead of the input's zero point",
    advice="fill the padding with the input's zero point: it is what means 0",
)
def padding_zero(site: IntegerSite) -> Variants:
    if site.program.sums.padded and np.any(site.program.sums.pads):
        yield Variant(_sums(site, padded=0))


@bug(
    "input-zero-point-ignored",
    says="the input's zero point is not subtracted",
    advice="subtract it, or add its share, -zero_point * sum(weights), to the bias",
)
def input_zero_point_ignored(site: IntegerSite) -> Variants:
    if site.program.sums.subtracted:
        yield Variant(_sums(site, subtracted=0))
        if np.any(site.program.sums.pads):
            yield Variant(_sums(site, subtracted=0, padded=0), detail="padding too")


@bug(
    "output-zero-point-ignored",
    says="the output's zero point is not added",
    advice="add it after rounding, before saturation",
)
def output_zero_point_ignored(site: IntegerSite) -> Variants:
    finish = site.program.finish
    if finish.added:
        yield Variant(_finish(site, added=0))
        if site.program.layer.relu:
            yield Variant(_finish(site, added=0, low=0), detail="ReLU at 0")


@bug(
    "relu-at-zero",
    says="ReLU clips at 0 instead of the output's zero point",
    advice="clip at the zero point: it is what means 0",
)
def relu_at_zero(site: IntegerSite) -> Variants:
    finish = site.program.finish
    if site.program.layer.relu and finish.added:
        yield Variant(_finish(site, low=max(0, int(np.iinfo(finish.dtype).min))))


@bug("relu-missing", says="there is no ReLU", advice="clip at the output's zero point")
def relu_missing(site: IntegerSite) -> Variants:
    lowest = int(np.iinfo(site.program.finish.dtype).min)
    if site.program.layer.relu and site.program.finish.low != lowest:
        yield Variant(_finish(site, low=lowest))


@bug(
    "relu-superfluous",
    says="a ReLU stands where none should",
    advice="clip at the type's ends alone",
)
def relu_superfluous(site: IntegerSite) -> Variants:
    finish = site.program.finish
    if not site.program.layer.relu and finish.added > finish.low:
        yield Variant(_finish(site, low=finish.added))


@bug(
    "one-scale-for-all",
    says="one weight scale serves all channels ({detail})",
    advice="multiply each output channel by its own",
)
def one_scale_for_all(site: IntegerSite) -> Variants:
    scaling = site.program.finish.scaling
    if scaling.numerator.ndim:
        order = np.argsort(scaling.numerator)
        for detail, place in (
            ("the first", 0),
            ("the largest", order[-1]),
            ("the smallest", order[0]),
            ("the last", len(order) - 1),
        ):
            everywhere = np.full(len(order), place)
            yield Variant(_finish(site, scaling=_taken(scaling, everywhere)), detail=detail)


@bug(
    "neighbours-scale",
    says="each channel is multiplied by another channel's scale ({detail})",
    advice="index the scales by the output channel",
)
def neighbours_scale(site: IntegerSite) -> Variants:
    scaling = site.program.finish.scaling
    if scaling.numerator.ndim:
        places = np.arange(len(scaling.numerator))
        for step, whose in ((1, "the one before's"), (-1, "the next one's")):
            shifted = _taken(scaling, np.roll(places, step))
            yield Variant(_finish(site, scaling=shifted), step, whose)
        found = scales_taken(site.program, site.x, site.y_hat)
        if found is not None and (found != places).any():
            moved = np.flatnonzero(found != places)
            shown = ", ".join(f"{c} has {found[c]}'s" for c in moved[:_SHOWN])
            more = ", ..." if len(moved) > _SHOWN else ""
            yield Variant(_finish(site, scaling=_taken(scaling, found)), detail=shown + more)


@bug(
    "shift-off",
    says="the multiplier's shift is off by {detail}",
    advice="M = multiplier * 2**-(31 + shift); mind the sign of the shift, and what it counts from",
)
def shift_off(site: IntegerSite) -> Variants:
    scaling = site.program.finish.scaling
    for step in (1, -1, 2, -2):
        moved = replace(
            scaling,
            numerator=(scaling.numerator * np.float32(2.0**-step)).astype(np.float32),
            shift=np.clip(scaling.shift + step, -30, 31),
        )
        yield Variant(_finish(site, scaling=moved), step, f"{step:+d}")


@bug("bias-dropped", says="the bias is not added", advice="add it to the accumulator")
def bias_dropped(site: IntegerSite) -> Variants:
    if site.program.sums.bias.any():
        yield Variant(_sums(site, bias=np.zeros_like(site.program.sums.bias)))


@bug(
    "bias-scale",
    says="the bias is in units of {detail}",
    advice="bias_scale = input_scale * weight_scale of its channel",
)
def bias_scale(site: IntegerSite) -> Variants:
    layer, bias = site.program.layer, site.program.sums.bias
    if layer.weight_scale is None or not bias.any():
        return
    scale, before = layer.weight_scale.astype(np.float64), float(layer.input.scale)
    real = bias * before * scale
    for detail, unit in (
        ("weight_scale alone", np.broadcast_to(scale, bias.shape)),
        ("input_scale alone", np.broadcast_to(before, bias.shape)),
        ("the largest channel's scale", np.broadcast_to(before * np.max(scale), bias.shape)),
        ("the first channel's scale", np.broadcast_to(before * scale.flat[0], bias.shape)),
        ("half of what it should be", 2 * before * np.broadcast_to(scale, bias.shape)),
        ("twice what it should be", before * np.broadcast_to(scale, bias.shape) / 2),
    ):
        wrong = np.clip(np.rint(real / unit), -(2**31), 2**31 - 1).astype(np.int64)
        if (wrong != bias).any():
            yield Variant(_sums(site, bias=wrong), detail=detail)
    yield Variant(_sums(site, bias=bias * 2), detail="half of what it should be, or added twice")


@bug("bias-sign", says="the bias is subtracted", advice="add it")
def bias_sign(site: IntegerSite) -> Variants:
    if site.program.sums.bias.any():
        yield Variant(_sums(site, bias=-site.program.sums.bias))


@bug(
    "weight-zero-point",
    says="the weights' zero point is not subtracted ({detail})",
    advice="subtract it, or add its share, -zero_point * sum(inputs), to the accumulator",
)
def weight_zero_point(site: IntegerSite) -> Variants:
    held = site.program.layer.weight_zero_point
    zero = np.reshape(0 if held is None else held, (-1, 1, 1, 1))
    for detail, more in (("held as int8", 0), ("held as uint8, where it is 128 more", 128)):
        if (zero + more).any():
            yield Variant(_sums(site, weight=site.program.sums.weight + zero + more), detail=detail)


@bug(
    "weights-unsigned",
    says="the weights are read as unsigned bytes",
    advice="read them as int8: 255 means -1",
)
def weights_unsigned(site: IntegerSite) -> Variants:
    yield Variant(_sums(site, weight=site.program.sums.weight & 255))


@bug(
    "input-unsigned",
    says="the input is read as the other type of 8 bits",
    advice="int8 and uint8 differ by 256 above 127",
)
def input_unsigned(site: IntegerSite) -> Variants:
    sums, dtype = site.program.sums, site.x.dtype
    is_padded = bool(np.any(sums.pads))
    yield Variant(_sums(site, products=partial(reread, sums, dtype, None)))
    if is_padded:
        padding = partial(reread, sums, dtype, sums.subtracted)
        yield Variant(_sums(site, products=padding), detail="no padding")
    zero = int(as_other(np.asarray(sums.subtracted), dtype))
    if zero != sums.subtracted:
        other = replace(sums, subtracted=zero)
        yield Variant(
            _sums(site, products=partial(reread, other, dtype, zero if is_padded else None)),
            detail="its zero point, too",
        )


@bug(
    "accumulator-16-wraps",
    says="the accumulator has 16 bits and wraps",
    advice="accumulate in 32 bits",
)
def accumulator_16_wraps(site: IntegerSite) -> Variants:
    yield Variant(_sums(site, narrow=lambda s: s.astype(np.int16).astype(np.int64)))


@bug(
    "accumulator-16-saturates",
    says="the accumulator has 16 bits and saturates at the end",
    advice="accumulate in 32 bits",
)
def accumulator_16_saturates(site: IntegerSite) -> Variants:
    yield Variant(_sums(site, narrow=lambda s: np.clip(s, -(2**15), 2**15 - 1)))


@bug(
    "pairs-saturate-16",
    says="sums of two products saturate at 16 bits, as AVX2's vpmaddubsw does ({detail})",
    advice="keep weights within 7 bits, use VNNI, or, in ONNX Runtime with uint8 activations, "
    'the session entry "session.x64quantprecision" = "1"',
)
def pairs_16(site: IntegerSite) -> Variants:
    for detail in ("pairs of channels", "pairs along the kernel"):
        channels_last = detail == "pairs of channels"
        products = partial(in_pairs, site.program.sums, site.x.dtype, channels_last)
        yield Variant(_sums(site, products=products), detail=detail)


@bug("output-wraps", says="numbers out of range wrap", advice="saturate before the cast to 8 bits")
def output_wraps(site: IntegerSite) -> Variants:
    yield Variant(_finish(site, outside="wrap"))
    if site.program.layer.relu:  # that was before it; this is behind
        yield Variant(_finish(site, outside="wrap-above"))


@bug(
    "other-rounding",
    says="accumulators are requantised as {detail}",
    advice="round as the network says, or say --rounding any",
)
def other_rounding(site: IntegerSite) -> Variants:
    for name in SCHEMES:
        if name != site.program.finish.rounding:
            yield Variant(site.program.with_rounding(name), detail=name)


@bug("kernel-flipped", says="the kernel is flipped ({detail})", advice="cross-correlate")
def kernel_flipped(site: IntegerSite) -> Variants:
    weight = site.program.sums.weight
    if weight.shape[2] > 1:
        for detail, flip in (("both ways", (2, 3)), ("top to bottom", (2,)), ("sideways", (3,))):
            yield Variant(_sums(site, weight=np.flip(weight, flip)), detail=detail)


@bug("kernel-transposed", says="the kernel is transposed", advice="rows come before columns")
def kernel_transposed(site: IntegerSite) -> Variants:
    weight = site.program.sums.weight
    if weight.shape[2] > 1:
        yield Variant(_sums(site, weight=weight.swapaxes(2, 3)))
    elif site.program.flat and weight.shape[0] == weight.shape[1]:
        yield Variant(_sums(site, weight=weight.swapaxes(0, 1)))


@bug(
    "stride-phase",
    says="the strided convolution starts one pixel off ({detail})",
    advice="pad 1 on every side; TensorFlow's SAME with stride 2 pads bottom and right only",
)
def stride_phase(site: IntegerSite) -> Variants:
    sums = site.program.sums
    (top, bottom), (left, right) = sums.pads
    if sums.stride > 1 and top:
        for detail, dy, dx in (("both ways", 1, 1), ("rows", 1, 0), ("columns", 0, 1)):
            pads = ((top - dy, bottom + dy), (left - dx, right + dx))
            yield Variant(_sums(site, pads=pads), detail=detail)


@bug(
    "channels-permuted",
    says="the output channels stand in another order",
    advice="order the channels as the reference does",
)
def channels_permuted(site: IntegerSite) -> Variants:
    if site.y_hat is None or site.y_hat.shape[1] > MOST_MATCHED:
        return
    finish = site.program.finish
    if finish.order is None:
        y = finish.of(site.program.sums.of(site.x))
        if y.shape == site.y_hat.shape:
            order = order_of(y, site.y_hat)
            if (order != np.arange(len(order))).any():
                yield Variant(_finish(site, order=order))


@bug(
    "groups-ignored",
    says="the groups' weights meet the first channels instead of their own",
    advice="group g of the outputs reads group g of the inputs",
)
def groups_ignored(site: IntegerSite) -> Variants:
    sums = site.program.sums
    if sums.groups > 1:
        outputs, per_group, *kernel = sums.weight.shape
        dense = np.zeros((outputs, per_group * sums.groups, *kernel), np.int64)
        dense[:, :per_group] = sums.weight
        yield Variant(_sums(site, weight=dense, groups=1), detail="the first group's")
        turned = np.roll(np.arange(sums.groups), 1)
        grouped = sums.weight.reshape(sums.groups, outputs // sums.groups, per_group, *kernel)
        yield Variant(_sums(site, weight=grouped[turned].reshape(sums.weight.shape)), detail="+1")


BUGS: tuple[Bug[IntegerProgram], ...] = library(sys.modules[__name__])
_OF_SUMS = frozenset(
    {"weight-zero-point", "weights-unsigned", "accumulator-16-wraps", "accumulator-16-saturates"}
    | {"pairs-saturate-16", "output-wraps", "kernel-flipped", "kernel-transposed", "groups-ignored"}
)  # a mean of 8-bit numbers has no weights, and never leaves their range


def bugs_of(layer: IntegerLayer) -> tuple[Bug[IntegerProgram], ...]:
    """The bugs that a layer of its kind can have."""
    is_pool = layer.kind == "pool"
    return tuple(each for each in BUGS if not (is_pool and each.name in _OF_SUMS))


def _taken(scaling: Scaling, places: Array) -> Scaling:
    """Each channel's multiplier from the channel in its place."""
    fixed = (scaling.multiplier, scaling.shift)
    multiplier, shift = (each[places] if each.ndim else each for each in fixed)
    return Scaling(scaling.numerator[places], scaling.denominator, multiplier, shift)
