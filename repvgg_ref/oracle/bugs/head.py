"""The pool and the linear layer done differently, the last or a hidden one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs.base import (
    Site,
    Variant,
    behind,
    bug,
    order_of_channels,
    round_to_bits,
)
from repvgg_ref.oracle.bugs.rounding import NARROWED, TF32
from repvgg_ref.oracle.programs.activation import log_softmax, sigmoid, softmax
from repvgg_ref.oracle.programs.head import HeadProgram

HeadSite = Site[HeadProgram]
HeadVariants = Iterator[Variant[HeadProgram]]

_EPS = (0.0, 1e-5, 1e-3)
_SHOWN = 6  # classes out of their places


@bug(
    "head-pool",
    says="the features are pooled by {detail} instead of the mean",
    advice="average over height and width",
)
def head_pool(site: HeadSite) -> HeadVariants:
    for pool, detail in {
        "max": "the maximum",
        "sum": "the sum",
        "corner": "the first pixel",
    }.items():
        yield Variant(replace(site.program, pool=pool), detail=detail)


@bug(
    "flatten-order",
    says="the map is made features of in another order: pixel by pixel, not channel by channel",
    advice="flatten (N, C, H, W); of (N, H, W, C) transpose first, or reorder the matrix",
)
def flatten_order(site: HeadSite) -> HeadVariants:
    weight, channels = site.program.weight, site.program.flattened
    if 1 < channels < weight.shape[1]:
        pixels = weight.reshape(len(weight), -1, channels)  # (O, H W, C)
        read = np.ascontiguousarray(pixels.transpose(0, 2, 1)).reshape(weight.shape)
        yield Variant(replace(site.program, weight=read))


@bug("head-bias", says="the linear layer's bias is {detail}", advice="logits = W f + b")
def head_bias(site: HeadSite) -> HeadVariants:
    program = site.program
    own = program.bias if program.norm is None else program.norm.bias
    for factor, detail in {0: "left out", 2: "added twice", -1: "subtracted"}.items():
        yield Variant(replace(program, bias=program.bias + (factor - 1) * own), detail=detail)
    if program.norm is not None:
        yield Variant(
            replace(program, bias=0 * program.bias),
            detail="left out, and what the batch norm before it adds as well",
        )


@bug(
    "head-norm",
    says="of the batch norm before the linear layer {detail}",
    advice="logits = W (gamma (f - mean) / sqrt(var + eps) + beta) + b",
)
def head_norm(site: HeadSite) -> HeadVariants:
    if (norm := site.program.norm) is None:
        return
    wrong = {
        "nothing is computed": (norm.weight, norm.bias),
        "the mean is not subtracted": norm._replace(mean=0 * norm.mean).folded(),
        "beta is not added": norm._replace(beta=0 * norm.beta).folded(),
        "gamma is not multiplied": norm._replace(gamma=0 * norm.gamma + 1).folded(),
        "the variance is taken for the deviation": norm._replace(var=norm.var**2).folded(),
        "the scale alone is taken into the matrix": (norm.folded()[0], norm.bias),
    }
    wrong |= {f"eps is {eps:g}": norm._replace(eps=eps).folded() for eps in _EPS if eps != norm.eps}
    for detail, (weight, bias) in wrong.items():
        yield Variant(replace(site.program, weight=weight, bias=bias), detail=detail)


@bug(
    "head-output",
    says="the output is not logits but {detail}",
    advice="compare logits, before any softmax",
)
def head_output(site: HeadSite) -> HeadVariants:
    if site.program.relu:
        return
    for detail, change in {
        "softmax": softmax,
        "log-softmax": log_softmax,
        "sigmoid": sigmoid,
        "ReLU": lambda y: np.maximum(y, 0),
    }.items():
        yield Variant(behind(site.program, change), detail=detail)


@bug(
    "relu-missing",
    says="no ReLU follows the linear layer",
    advice="a hidden linear layer is followed by a ReLU",
)
def relu_missing(site: HeadSite) -> HeadVariants:
    if site.program.relu:
        yield Variant(replace(site.program, relu=False))


@bug(
    "head-weight-layout",
    says="the linear weight's memory is read in the wrong order ({detail})",
    advice="transpose the matrix instead of reshaping it",
)
def head_weight_layout(site: HeadSite) -> HeadVariants:
    weight = site.program.weight
    for detail, reread in {
        "(in, out) as (out, in)": weight.T.reshape(weight.shape),
        "(out, in) as (in, out)": np.ascontiguousarray(weight.reshape(weight.shape[::-1]).T),
    }.items():
        yield Variant(replace(site.program, weight=reread), detail=detail)


@bug(
    "head-classes-permuted",
    says="the outputs come in another order ({detail})",
    advice="check the class list (1001 classes with background?)",
)
def head_classes_permuted(site: HeadSite) -> HeadVariants:
    """Shifted, reversed, or in the order that is read off the candidate."""
    places = np.arange(len(site.program.bias))
    orders = {
        "by +1": np.roll(places, 1),
        "by -1": np.roll(places, -1),
        "reversed": places[::-1],
    }
    theirs = order_of_channels(site)
    if theirs is not None and not any((theirs == each).all() for each in orders.values()):
        orders[listed_order(theirs.tolist())] = theirs
    for detail, order in orders.items():
        reordered = partial(np.take, indices=order, axis=1)
        yield Variant(behind(site.program, reordered), detail=detail)


def listed_order(order: Sequence[int]) -> str:
    """Which classes stand at whose place: the first few that moved."""
    moved = [(at, int(was)) for at, was in enumerate(order) if at != was]
    shown = ", ".join(f"{was} at the place of {at}" for at, was in moved[:_SHOWN])
    return shown + (f", and {len(moved) - _SHOWN} more" if len(moved) > _SHOWN else "")


@bug(
    "weights-bf16",
    says="the linear weights were rounded to bfloat16 ({detail})",
    advice="keep the weights in float32, or say --precision bf16",
    precision=("bf16",),
)
def weights_bf16(site: HeadSite) -> HeadVariants:
    yield _rounded(site.program, 8)


@bug(
    "weights-fp16",
    says="the linear weights were rounded to float16 ({detail})",
    advice="keep the weights in float32, or say --precision fp16",
    precision=("fp16", "tf32", "bf16"),
)
def weights_fp16(site: HeadSite) -> HeadVariants:
    yield _rounded(site.program, 11)


@bug(
    "weights-int8",
    says="the linear weights were quantised to 8 bits, {detail}",
    advice="compare the float model; a quantised one is another network",
)
def weights_int8(site: HeadSite) -> HeadVariants:
    weight = site.program.weight
    for detail, axis in {"one scale a tensor": None, "one scale a class": 1}.items():
        step = np.abs(weight).max(axis=axis, keepdims=True) / 127
        step = np.where(step > 0, step, 1)
        quantised = np.clip(np.rint(weight / step), -128, 127) * step
        yield Variant(replace(site.program, weight=quantised), detail=detail)


@bug(
    "tf32-arithmetic",
    says="features and weights are rounded to TF32 in the multiplication ({detail})",
    advice="switch TF32 off for the comparison, or say --precision tf32",
    precision=("tf32", "bf16", "fp16"),
)
def tf32_arithmetic(site: HeadSite) -> HeadVariants:
    for detail, (bits, truncate) in TF32.items():
        yield _operands_rounded(site.program, bits, truncate, detail)


@bug(
    "bf16-arithmetic",
    says="features and weights are rounded to bfloat16 in the multiplication ({detail})",
    advice="switch the fast-math mode off, or say --precision bf16",
    precision=("bf16",),
)
def bf16_arithmetic(site: HeadSite) -> HeadVariants:
    yield _operands_rounded(site.program, 8)


@bug(
    "output-rounded",
    says="the logits are kept in {detail}",
    advice="keep them in float32, or give --precision",
    precision=("fp16", "bf16"),
)
def output_rounded(site: HeadSite) -> HeadVariants:
    for detail, change in NARROWED.items():
        yield Variant(behind(site.program, change), detail=detail)


def _rounded(
    head: HeadProgram, bits: int, truncate: bool = False, detail: str = "to nearest"
) -> Variant[HeadProgram]:
    weight = round_to_bits(head.weight, bits, truncate=truncate)
    return Variant(replace(head, weight=weight), detail=detail)


def _operands_rounded(
    head: HeadProgram, bits: int, truncate: bool = False, detail: str = "to nearest"
) -> Variant[HeadProgram]:
    """The pooled features are what meets the weights, so they are what is rounded."""

    def pooled(x: Array) -> Array:
        return round_to_bits(x.mean(axis=(2, 3), keepdims=True), bits, truncate=truncate)

    rounded = _rounded(head, bits, truncate, detail)
    return rounded._replace(program=replace(rounded.program, input_map=pooled))
