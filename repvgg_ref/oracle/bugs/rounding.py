"""Numbers kept or multiplied in fewer bits than the candidate claims.

The rounding of weights and inputs is deterministic, so a lower precision is a bug like any other:
with the rounded operands the reference reproduces the candidate's output.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.bugs.base import (
    BlockSite,
    BlockVariants,
    Variant,
    behind,
    bug,
    round_to_bits,
)
from repvgg_ref.oracle.programs.block import BlockProgram

_BF16, _HALF = 8, 11
_LARGEST_HALF = 65504.0
# TF32 is 11 significant bits, of which 10 are stored; who counts the stored ones keeps one less.
# Libraries round to nearest; units that are handed float32 ignore the lower bits.
TF32 = {
    "to nearest": (11, False),
    "truncated": (11, True),
    "to nearest, to 10 significant bits": (10, False),
    "truncated, to 10 significant bits": (10, True),
}


def _weights(change: Callable[[Array], Array]) -> Callable[[FusedConv], FusedConv]:
    return lambda k: FusedConv(change(k.weight), k.bias)


@bug(
    "weights-bf16",
    says="the weights were rounded to bfloat16 ({detail})",
    advice="keep the weights in float32, or say --precision bf16",
    precision=("bf16",),
)
def weights_bf16(site: BlockSite) -> BlockVariants:
    for detail, truncate in {"to nearest": False, "truncated": True}.items():
        change = _weights(partial(round_to_bits, bits=_BF16, truncate=truncate))
        yield Variant(site.program.with_kernel(change), detail=detail)


@bug(
    "weights-fp16",
    says="the weights were rounded to float16",
    advice="keep the weights in float32, or say --precision fp16",
    precision=("fp16", "tf32", "bf16"),
)
def weights_fp16(site: BlockSite) -> BlockVariants:
    yield Variant(site.program.with_kernel(_weights(_to_half)))


def _to_half(values: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.clip(values, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16).astype(float)


NARROWED: dict[str, Callable[[Array], Array]] = {
    "float16": _to_half,
    "bfloat16": partial(round_to_bits, bits=_BF16),
}


@bug(
    "weights-int8",
    says="the weights were quantised to 8 bits, {detail}",
    advice="compare the float model; a quantised one is another network",
)
def weights_int8(site: BlockSite) -> BlockVariants:
    for detail, axes in {"one scale a tensor": None, "one scale a channel": (1, 2, 3)}.items():
        for levels in (127, 128):
            change = _weights(partial(_quantised, axes=axes, levels=levels))
            yield Variant(site.program.with_kernel(change), detail=f"{detail}, max/{levels}")


def _quantised(weight: Array, axes: tuple[int, ...] | None, levels: int) -> Array:
    step = np.abs(weight).max(axis=axes, keepdims=True) / levels
    return np.asarray(np.clip(np.rint(weight / np.where(step > 0, step, 1)), -128, 127) * step)


@bug(
    "tf32-arithmetic",
    says="inputs and weights are rounded to TF32 in the multiplication ({detail})",
    advice="switch TF32 off for the comparison, or say --precision tf32",
    precision=("tf32", "bf16", "fp16"),
)
def tf32_arithmetic(site: BlockSite) -> BlockVariants:
    for detail, (bits, truncate) in TF32.items():
        yield Variant(_operands(site, bits, truncate), detail=detail)


@bug(
    "bf16-arithmetic",
    says="inputs and weights are rounded to bfloat16 in the multiplication",
    advice="switch the fast-math mode off, or say --precision bf16",
    precision=("bf16",),
)
def bf16_arithmetic(site: BlockSite) -> BlockVariants:
    yield Variant(_operands(site, _BF16, truncate=False))


def _operands(site: BlockSite, bits: int, truncate: bool) -> BlockProgram:
    def rounded(v: Array) -> Array:
        return round_to_bits(v, bits, truncate=truncate)

    return site.program.with_input(rounded).with_kernel(_weights(rounded))


@bug(
    "output-rounded",
    says="the layer's output is kept in {detail}",
    advice="keep activations in float32, or give --precision",
    precision=("fp16", "bf16"),
)
def output_rounded(site: BlockSite) -> BlockVariants:
    for detail, change in NARROWED.items():
        yield Variant(behind(site.program, change), detail=detail)


@bug(
    "fp16-overflow",
    says="values beyond float16's range are lost ({detail})",
    advice="activations exceed 65504: scale them, or run this layer in float32",
)
def fp16_overflow(site: BlockSite) -> BlockVariants:
    if np.abs(site.program.evaluate(site.x)).max() > _LARGEST_HALF:
        yield Variant(
            behind(site.program, lambda y: np.minimum(y, _LARGEST_HALF)),
            detail="saturated",
        )
        yield Variant(
            behind(site.program, lambda y: np.where(y > _LARGEST_HALF, 0, y)),
            detail="set to zero",
        )
        yield Variant(
            behind(site.program, lambda y: np.where(y > _LARGEST_HALF, 0, _to_half(y))),
            detail="set to zero, the rest rounded to float16",
        )
    yield Variant(behind(site.program, lambda y: 0 * y), detail="all outputs are zero")


@bug(
    "activations-int8",
    says="the layer's output is quantised to 8 bits",
    advice="compare the float model; a quantised one is another network",
)
def activations_int8(site: BlockSite) -> BlockVariants:
    signed = partial(_quantised, axes=None, levels=127)
    yield Variant(behind(site.program, signed), detail="max/127")
    yield Variant(behind(site.program, _unsigned), detail="max/255")


def _unsigned(y: Array) -> Array:
    step = y.max() / 255 or 1.0
    return np.clip(np.rint(y / step), 0, 255) * step
