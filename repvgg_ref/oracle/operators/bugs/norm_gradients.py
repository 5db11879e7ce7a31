"""What ports of batch norm's gradients get wrong, and which statistics it takes."""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs.base import Variant, bug
from repvgg_ref.oracle.operators.bugs.base import (
    CallSite,
    CallVariants,
    batch_mean_and_var,
    with_outputs_of,
    wrong_block,
)
from repvgg_ref.oracle.operators.operator import Call


@bug(
    "statistics-constant",
    says="mean and variance are taken as constants in the backward pass",
    advice="subtract mean(g) and x_hat mean(g x_hat): the batch's statistics depend on x",
)
def statistics_constant(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "repvgg_block-backward":
        yield Variant(wrong_block(call, through_statistics=False))
    if call.name == "batch_norm-backward" and call.settings["training"]:
        seen = batch_mean_and_var(call)
        yield Variant(with_outputs_of(call, _fixed(call, *seen).outputs, "grad_x"))


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
