"""What ports of batch norm get wrong in training mode: statistics, eps, running averages."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs.base import EPS_ADMISSIBLE, Variant, bug
from repvgg_ref.oracle.operators.bugs.base import (
    CallSite,
    CallVariants,
    batch_mean_and_var,
    with_outputs_of,
)
from repvgg_ref.oracle.operators.operator import Call

_EPS = (1e-3, 1e-5, 1e-7, 1e-12)


def _in_training(call: Call) -> bool:
    return call.name.startswith("batch_norm") and bool(call.settings["training"])


def _by(call: Call, var: Callable[[Array, float], Array]) -> Call:
    """As if ``sqrt(var + eps)`` were the root of what `var` gives of the batch's variance and eps.

    Written as another eps for each channel; running averages stay right.
    """
    seen = batch_mean_and_var(call)[1]
    eps = var(seen, call.settings["eps"]) - seen
    names = [n for n in call.outputs() if not n.startswith("running")]
    return with_outputs_of(call, call.but(eps=eps).outputs, *names)


@bug(
    "variance-unbiased",
    says="the batch is normalised by the unbiased variance, n / (n - 1) of the right one",
    advice="normalise by the biased variance; the unbiased one belongs to the running average",
)
def variance_unbiased(site: CallSite) -> CallVariants:
    call = site.program
    if _in_training(call) and (n := call.arrays["x"][:, 0].size) > 1:
        yield Variant(_by(call, lambda var, eps: var * n / (n - 1) + eps))


@bug(
    "batch-eps-outside-root",
    says="eps is added to the standard deviation: 1 / (sqrt(var) + eps)",
    advice="add eps to the variance, inside the root",
)
def eps_outside(site: CallSite) -> CallVariants:
    if _in_training(site.program):
        yield Variant(_by(site.program, lambda var, eps: (np.sqrt(var) + eps) ** 2))


@bug(
    "batch-eps-value",
    says="batch norm adds eps = {parameter:.3g} where it was told another",
    advice="pass eps on",
    continuous=True,
    admissible=EPS_ADMISSIBLE,
)
def eps_value(site: CallSite) -> CallVariants:
    call = site.program
    if not call.name.startswith("batch_norm"):
        return

    def at(eps: float) -> Call:
        names = [n for n in call.output_names if not n.startswith("running")]
        return with_outputs_of(call, call.but(eps=eps).outputs, *names)

    for eps in _EPS:
        if eps != call.settings["eps"]:
            yield Variant(at(eps), eps, at=at)


@bug(
    "variance-used-as-deviation",
    says="the variance is used where its square root belongs: 1 / (var + eps)",
    advice="take the square root",
)
def variance_as_deviation(site: CallSite) -> CallVariants:
    if _in_training(site.program):
        yield Variant(_by(site.program, lambda var, eps: (var + eps) ** 2))


@bug(
    "statistics-of-each-image",
    says="every image is normalised by its own statistics",
    advice="take mean and variance over N, H and W",
)
def statistics_of_each_image(site: CallSite) -> CallVariants:
    call = site.program
    if not _in_training(call) or len(call.arrays["x"]) < 2:
        return

    def apart() -> dict[str, Array]:
        names = [n for n in ("x", "grad_y") if n in call.arrays]
        found = []
        for i in range(len(call.arrays["x"])):
            found.append(call.but({n: call.arrays[n][i : i + 1] for n in names}).outputs())
        joined = {}
        for name in found[0]:
            parts = [each[name] for each in found]
            whole = parts[0].ndim == 4
            joined[name] = np.concatenate(parts) if whole else np.mean(parts, axis=0)
        return joined

    names = [n for n in call.output_names if n in ("y", "grad_x")]
    yield Variant(with_outputs_of(call, apart, *names))


@bug(
    "affine-ignored",
    says="{detail} is left out",
    advice="y = gamma x_hat + beta",
)
def affine_ignored(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "batch_norm" and call.settings["training"]:
        for name, value in (("gamma", 1.0), ("beta", 0.0)):
            plain = call.but({name: np.full_like(call.arrays[name], value)})
            yield Variant(with_outputs_of(call, plain.outputs, "y"), detail=name)


@bug(
    "running-average-reversed",
    says="the running averages keep the share that they should give up: momentum the other way",
    advice="new = (1 - momentum) old + momentum batch (torch; ONNX and Keras the other way round)",
)
def momentum_reversed(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "batch_norm" and call.settings["training"]:
        other = call.but(momentum=1 - call.settings["momentum"]).outputs
        yield Variant(with_outputs_of(call, other, "running_mean", "running_var"))


@bug(
    "running-variance-biased",
    says="the running variance takes in the biased variance of the batch",
    advice="multiply by n / (n - 1) before averaging",
)
def running_biased(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "batch_norm" and call.settings["training"]:
        part = (
            call.settings["momentum"]
            * batch_mean_and_var(call)[1]
            / max(call.arrays["x"][:, 0].size - 1, 1)
        )
        yield Variant(call.then(running_var=lambda v: v - part))


@bug(
    "running-mean-unbiased",
    says="the batch's mean enters the running one times n / (n - 1)",
    advice="the factor belongs to the variance alone",
)
def running_mean_unbiased(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "batch_norm" and call.settings["training"]:
        part = (
            call.settings["momentum"]
            * batch_mean_and_var(call)[0]
            / max(call.arrays["x"][:, 0].size - 1, 1)
        )
        yield Variant(call.then(running_mean=lambda m: m + part))


@bug(
    "running-average-is-the-batch",
    says="the batch's statistics are kept instead of a running average ({detail})",
    advice="average with what was there before",
)
def running_replaced(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "batch_norm" and call.settings["training"]:
        now = call.but(momentum=1.0).outputs
        for names in (("running_mean", "running_var"), ("running_mean",), ("running_var",)):
            yield Variant(with_outputs_of(call, now, *names), detail=" and ".join(names))


@bug(
    "running-average-unchanged",
    says="the running averages are not updated ({detail})",
    advice="new = (1 - momentum) old + momentum batch",
)
def running_unchanged(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "batch_norm" and call.settings["training"]:
        then = call.but(momentum=0.0).outputs
        for names in (("running_mean", "running_var"), ("running_mean",), ("running_var",)):
            yield Variant(with_outputs_of(call, then, *names), detail=" and ".join(names))


@bug(
    "running-average-of-the-deviation",
    says="the running variance holds standard deviations of the batch",
    advice="average variances",
)
def running_deviation(site: CallSite) -> CallVariants:
    call = site.program
    if call.name == "batch_norm" and call.settings["training"]:
        old = np.asarray(call.arrays["running_var"], np.float64)
        n = call.arrays["x"][:, 0].size
        seen = np.sqrt(batch_mean_and_var(call)[1] * n / max(n - 1, 1))
        momentum = call.settings["momentum"]
        wrong = (1 - momentum) * old + momentum * seen
        yield Variant(call.then(running_var=lambda v: wrong))
