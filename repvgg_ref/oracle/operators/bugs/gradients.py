"""What ports of gradients get wrong: a convolution's, a linear layer's, a block's, a ReLU's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs.base import Variant, bug, round_to_bits
from repvgg_ref.oracle.operators.block import block_program
from repvgg_ref.oracle.operators.bugs.base import (
    CallSite,
    CallVariants,
    with_outputs_of,
    words_for,
    wrong_block,
)
from repvgg_ref.oracle.operators.catalogue import OPERATORS
from repvgg_ref.oracle.operators.convolution import pair
from repvgg_ref.oracle.operators.operator import Call

_GRADIENTS = ("grad_x", "grad_weight", "grad_bias")


def _has_kernel(call: Call) -> bool:
    return call.operator.is_backward and call.name.startswith("conv")


def _groups_reversed(weight: Array, groups: int) -> Array:
    """(O, ...) with the groups' blocks in reverse order."""
    return np.concatenate(np.split(weight, groups)[::-1])


def _with_weight(call: Call, change: Callable[[Array], Array]) -> Callable[[], dict[str, Array]]:
    """A convolution's gradients with another kernel, masks as they were."""

    def outputs() -> dict[str, Array]:
        plain = replace(call, operator=OPERATORS["conv2d-backward"], finish=None)
        return plain.but({"weight": change(call.arrays["weight"])}).outputs()

    return outputs


@bug(
    "gradient-kernel-not-rotated",
    says="the gradient of x is computed with the kernel as it is, not turned by 180 degrees",
    advice="correlate with the kernel flipped in both directions, or scatter its taps",
)
def kernel_not_rotated(site: CallSite) -> CallVariants:
    call = site.program
    if _has_kernel(call) and call.name == "conv2d-backward":
        yield Variant(
            with_outputs_of(call, _with_weight(call, lambda w: w[:, :, ::-1, ::-1]), "grad_x")
        )


@bug(
    "gradient-axes-swapped",
    says="height and width are exchanged in the {detail}",
    advice="look at the order of the two loops over taps",
)
def axes_swapped(site: CallSite) -> CallVariants:
    call = site.program
    if not _has_kernel(call) or len(set(call.arrays["weight"].shape[2:])) != 1:
        return
    if call.name == "conv2d-backward":
        turned = _with_weight(call, lambda w: w.swapaxes(2, 3))
        yield Variant(with_outputs_of(call, turned, "grad_x"), detail="kernel of the gradient of x")
    swapped = call.then(grad_weight=lambda g: g.swapaxes(2, 3))
    yield Variant(swapped, detail="gradient of the weight")


@bug(
    "gradient-rotated",
    says="the gradient of the weight is turned by 180 degrees",
    advice="the weight's gradient correlates x with grad_y: nothing is flipped",
)
def gradient_rotated(site: CallSite) -> CallVariants:
    if _has_kernel(site.program):
        yield Variant(site.program.then(grad_weight=lambda g: g[:, :, ::-1, ::-1]))


@bug(
    "gradient-displaced",
    says="the gradient of x lies {detail} of where it belongs",
    advice="look at padding and stride in the scatter: x index = output * stride + tap - padding",
)
def gradient_displaced(site: CallSite) -> CallVariants:
    if not _has_kernel(site.program):
        return
    moves = {"down": (1, 0), "up": (-1, 0), "right": (0, 1), "left": (0, -1), "down right": (1, 1)}
    for detail, move in moves.items():
        yield Variant(site.program.then(grad_x=partial(_moved, move=move)), detail=detail)


def _moved(grad: Array, move: tuple[int, int]) -> Array:
    """Shifted by whole pixels, zeros coming in."""
    moved = np.zeros_like(grad)
    here, there = ([], [])
    for step in move:
        here.append(slice(max(step, 0), min(step, 0) or None))
        there.append(slice(max(-step, 0), min(-step, 0) or None))
    moved[:, :, here[0], here[1]] = grad[:, :, there[0], there[1]]
    return moved


@bug(
    "gradient-border-missing",
    says="the gradient of x is 0 on the {detail}",
    advice="pixels of x that only the padding's taps see, or the last window, get gradients too",
)
def border_missing(site: CallSite) -> CallVariants:
    if not _has_kernel(site.program):
        return
    places: dict[str, Any] = {
        "last row": np.s_[:, :, -1:],
        "last column": np.s_[..., -1:],
        "last row and column": (np.s_[:, :, -1:], np.s_[..., -1:]),
        "whole border": (np.s_[:, :, :1], np.s_[:, :, -1:], np.s_[..., :1], np.s_[..., -1:]),
    }
    for detail, where in places.items():
        parts = where if isinstance(where[0], tuple) else (where,)
        yield Variant(site.program.then(grad_x=partial(_zeroed, where=parts)), detail=detail)


def _zeroed(grad: Array, where: tuple[Any, ...]) -> Array:
    grad = grad.copy()
    for part in where:
        grad[part] = 0
    return grad


@bug(
    "gradient-dilation-ignored",
    says="the {detail} ignores the dilation",
    advice="multiply the tap's index by the dilation in the backward pass too",
)
def dilation_ignored(site: CallSite) -> CallVariants:
    call = site.program
    if not _has_kernel(call) or max(pair(call.settings["dilation"])) == 1:
        return
    taps = call.arrays["weight"].shape[2:]
    pads, steps = pair(call.settings["padding"]), pair(call.settings["dilation"])
    less = tuple(p - (d - 1) * (k - 1) // 2 for p, d, k in zip(pads, steps, taps, strict=True))
    for name in ("grad_x", "grad_weight"):
        if min(less) >= 0:
            other = call.but(padding=less, dilation=1).outputs
            yield Variant(with_outputs_of(call, other, name), detail=words_for(name))


@bug(
    "gradient-groups-permuted",
    says="the {detail} takes another group's channels",
    advice="group g reads channels g C/G to (g + 1) C/G and writes rows g O/G to (g + 1) O/G",
)
def groups_permuted(site: CallSite) -> CallVariants:
    call = site.program
    if not _has_kernel(call) or (groups := int(call.settings["groups"])) == 1:
        return
    if call.name == "conv2d-backward":
        other = _with_weight(call, lambda w: _groups_reversed(w, groups))
        yield Variant(with_outputs_of(call, other, "grad_x"), detail=words_for("grad_x"))
    back = call.then(grad_weight=lambda g: _groups_reversed(g, groups))
    yield Variant(back, detail=words_for("grad_weight"))


@bug(
    "gradient-averaged",
    says="the {detail}, not summed",
    advice="the mean belongs to the loss; an operator's backward pass sums",
)
def averaged(site: CallSite) -> CallVariants:
    call = site.program
    if not call.operator.is_backward:
        return
    images = len(call.arrays["grad_y"])
    pixels = call.arrays["grad_y"][:, 0].size
    for name in call.output_names:
        if name != "grad_x":
            for count, over in ((images, "images"), (pixels, "images and pixels")):
                wrong = call.then(**{name: lambda g, count=count: g / count})
                yield Variant(wrong, detail=f"{words_for(name)} is averaged over {over}")


@bug(
    "gradient-of-one-image",
    says="only one image of the batch counts in the {detail}",
    advice="accumulate over the batch: no image may be overwritten or left out",
)
def of_one_image(site: CallSite) -> CallVariants:
    call = site.program
    if not call.operator.is_backward or "rbr_dense.conv.weight" in call.arrays:
        return
    if call.name.startswith("batch_norm"):
        return
    for which in (0, -1):
        only = np.zeros_like(call.arrays["grad_y"])
        only[which] = call.arrays["grad_y"][which]
        for name in _GRADIENTS:
            detail = f"{words_for(name)} (the {'first' if which == 0 else 'last'})"
            yield Variant(
                with_outputs_of(call, call.but({"grad_y": only}).outputs, name), detail=detail
            )


@bug(
    "gradient-times",
    says="the {detail} times what it should be",
    advice="look for an accumulation that happens twice, a sign, or a buffer never set to zero",
)
def times(site: CallSite) -> CallVariants:
    call = site.program
    if not call.operator.is_backward:
        return
    for name in call.output_names:
        for factor, words in ((2.0, "2"), (-1.0, "-1"), (0.0, "0")):
            wrong = call.then(**{name: lambda g, factor=factor: factor * g})
            yield Variant(wrong, detail=f"{words_for(name)} is {words}")


@bug(
    "relu-gradient",
    says="{detail}",
    advice="the gradient passes where the ReLU's input was above 0, and nowhere else",
)
def relu_gradient(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "conv_bias_relu-backward":
        plain = replace(call, operator=OPERATORS["conv2d-backward"], finish=None)
        yield Variant(
            with_outputs_of(call, plain.outputs, *_GRADIENTS), detail="the ReLU lets all pass"
        )
        no_bias = call.but({"bias": np.zeros_like(call.arrays["bias"])})
        detail = "the ReLU's mask is taken before the bias is added"
        yield Variant(with_outputs_of(call, no_bias.outputs, *_GRADIENTS), detail=detail)
        own = call.but({"grad_y": np.maximum(call.arrays["grad_y"], 0)})
        open_to = replace(own, operator=OPERATORS["conv2d-backward"], finish=None)
        detail = "the gradient itself is rectified, by its own sign"
        yield Variant(with_outputs_of(call, open_to.outputs, *_GRADIENTS), detail=detail)
        for name in ("grad_x", "grad_weight", "grad_bias"):
            detail = f"the ReLU is missing in the {words_for(name)}"
            yield Variant(with_outputs_of(call, plain.outputs, name), detail=detail)
    if call.name == "repvgg_block-backward":
        yield Variant(wrong_block(call, relu=False), detail="the ReLU lets all pass")


@bug(
    "branch-gradient-missing",
    says="{detail} sends no gradient back to x",
    advice="add the gradients of all branches",
)
def branch_missing(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "repvgg_block-backward":
        for name in block_program(call.arrays, call.settings).branches:
            yield Variant(wrong_block(call, left_out=name), detail=name)


@bug(
    "fewer-bits",
    says="{detail}",
    advice="keep every operand in float32, and look for a fast-math or mixed-precision switch",
    precision=("tf32", "bf16", "fp16"),
)
def fewer_bits(site: CallSite) -> CallVariants:
    call = site.program
    if not call.name.startswith(("conv", "linear")):
        return
    names = [n for n in call.operator.arrays if n in call.arrays and n != "bias"]
    for bits in range(8, 21):
        for chosen in ([n] for n in names):
            wrong = call.but({n: round_to_bits(call.arrays[n], bits) for n in chosen})
            yield Variant(wrong, detail=f"{chosen[0]} is rounded to {bits} significant bits")
