"""What ports of gradients and of training-mode batch norm get wrong; forward passes of blocks,
convolutions and heads have the library of `oracle.bugs`.

A bug makes a wrong `Call` of a right one: other arrays or settings for one of its outputs, or an
output changed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.errors import ShapeError
from repvgg_ref.oracle.bugs.base import Site, Variant, bug, round_to_bits
from repvgg_ref.oracle.operators.block import block_backward, block_program
from repvgg_ref.oracle.operators.catalogue import OPERATORS
from repvgg_ref.oracle.operators.convolution import pair
from repvgg_ref.oracle.operators.norms import batch_statistics, given_statistics
from repvgg_ref.oracle.operators.operator import EXACT, Call
from repvgg_ref.oracle.operators.rounding import read

CallSite = Site[Call]
CallVariants = Iterator[Variant[Call]]

_GRADIENTS = ("grad_x", "grad_weight", "grad_bias")


def with_outputs_of(call: Call, other: Callable[[], dict[str, Array]], *names: str) -> Call:
    """`call` with some outputs of another; as it is where that has no outputs of these shapes."""
    before = call.finish

    def finish(outputs: dict[str, Array]) -> dict[str, Array]:
        outputs = outputs if before is None else before(outputs)
        try:
            wrong = other()
        except ShapeError:
            return outputs
        return {n: wrong[n] if n in names else y for n, y in outputs.items()}

    return replace(call, finish=finish)


def words_for(name: str) -> str:
    """An output's name in a sentence."""
    return name.replace("grad_", "gradient of ") if name.startswith("grad_") else name


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
        yield Variant(_block(call, relu=False), detail="the ReLU lets all pass")


@bug(
    "branch-gradient-missing",
    says="{detail} sends no gradient back to x",
    advice="add the gradients of all branches",
)
def branch_missing(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "repvgg_block-backward":
        for name in block_program(call.arrays, call.settings).branches:
            yield Variant(_block(call, left_out=name), detail=name)


def _block(call: Call, **wrong: Any) -> Call:
    return replace(call, operator=replace(call.operator, expect=partial(block_backward, **wrong)))


@bug(
    "statistics-constant",
    says="mean and variance are taken as constants in the backward pass",
    advice="subtract mean(g) and x_hat mean(g x_hat): the batch's statistics depend on x",
)
def statistics_constant(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "repvgg_block-backward":
        yield Variant(_block(call, through_statistics=False))
    if call.name == "batch_norm-backward" and call.settings["training"]:
        seen = batch_mean_and_var(call)
        yield Variant(with_outputs_of(call, _fixed(call, *seen).outputs, "grad_x"))


def batch_mean_and_var(call: Call) -> tuple[Array, Array]:
    """The batch's mean and biased variance, (C,) each."""
    seen = batch_statistics(read(call.arrays["x"], EXACT), 0.0, EXACT)
    return seen.mean.value, seen.var.value


def _fixed(call: Call, mean: Array, var: Array) -> Call:
    """The same in evaluation mode, with these statistics."""
    return call.but({"running_mean": mean, "running_var": var}, training=False)


@bug(
    "statistics-of-the-other-mode",
    says="it uses the {detail} statistics",
    advice="training mode normalises by the batch, evaluation mode by the running averages",
)
def other_mode(site: CallSite) -> CallVariants:
    call = site.program
    if not call.name.startswith("batch_norm") or "running_mean" not in call.arrays:
        return
    names = [n for n in call.output_names if not n.startswith("running")]
    training = call.settings["training"]
    other = call.but(training=not training)
    yield Variant(
        with_outputs_of(call, other.outputs, *names), detail="running" if training else "batch's"
    )


@bug(
    "through-mean-missing",
    says="the gradient through the batch's mean is left out",
    advice="subtract mean(g) over N, H, W",
)
def through_mean_missing(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "batch_norm-backward" and call.settings["training"]:
        yield Variant(_without(call, "grad_beta"))


@bug(
    "through-variance-missing",
    says="the gradient through the batch's variance is left out",
    advice="subtract x_hat times mean(g x_hat) over N, H, W",
)
def through_variance_missing(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "batch_norm-backward" and call.settings["training"]:
        yield Variant(_without(call, "grad_gamma"))


def _without(call: Call, term: str) -> Call:
    """grad_x without the part that goes through one of the two sums."""
    outputs, (mean, var) = call.outputs(), batch_mean_and_var(call)
    inv_std = 1 / np.sqrt(var + call.settings["eps"])
    t = np.asarray(call.arrays["gamma"], np.float64) * inv_std
    x = np.asarray(call.arrays["x"], np.float64)
    part = outputs[term] * t / x[:, 0].size
    back = np.broadcast_to(part[:, None, None], x.shape)
    if term == "grad_gamma":
        back = back * (x - mean[:, None, None]) * inv_std[:, None, None]
    return call.then(grad_x=lambda g: g + back)


@bug(
    "gradient-of-gamma",
    says="the gradient of gamma {detail}",
    advice="grad_gamma = sum(g x_hat), x_hat = (x - mean) / sqrt(var + eps)",
)
def gradient_of_gamma(site: CallSite) -> CallVariants:
    call = site.program
    if call.name != "batch_norm-backward":
        return
    training = call.settings["training"]
    mean, var = (
        batch_mean_and_var(call)
        if training
        else (call.arrays["running_mean"], call.arrays["running_var"])
    )
    std = np.sqrt(np.asarray(var, np.float64) + call.settings["eps"])
    beta = call.outputs()["grad_beta"]
    yield Variant(call.then(grad_gamma=lambda g: g + mean / std * beta), detail="ignores the mean")
    yield Variant(call.then(grad_gamma=lambda g: g * std), detail="is not divided by the deviation")
    yield Variant(call.then(grad_gamma=lambda g: g / std), detail="is divided by the variance")
    gamma = call.arrays["gamma"]
    yield Variant(call.then(grad_gamma=lambda g: g * gamma), detail="is multiplied by gamma")


@bug(
    "gradient-without-gamma",
    says="the gradient of x is not multiplied by gamma",
    advice="grad_x = gamma / sqrt(var + eps) (...)",
)
def without_gamma(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "batch_norm-backward":
        one = np.ones_like(call.arrays["gamma"])
        yield Variant(with_outputs_of(call, call.but({"gamma": one}).outputs, "grad_x"))


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
