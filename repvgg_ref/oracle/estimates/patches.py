"""What would mend a layer: an estimate turned into a change of its outputs, to be tested again.

A patch explains a layer if nothing but rounding is left once it is made. Parameters are what was
estimated; the fewer of them, the better an explanation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.nuisance import Nuisance
from repvgg_ref.oracle.arithmetic.sample import Sample
from repvgg_ref.oracle.estimates.estimate import Estimate, alarms
from repvgg_ref.oracle.estimates.layer import LayerEstimates
from repvgg_ref.oracle.estimates.randomness import OF_CHANNELS, bits_kept, fixed_patterns

_MOST = 3  # causes at once
_ALIKE = 4.0  # parts of a layer may differ by this factor, and still err alike
_SHARE = 0.2  # of errors of weights at random, that the test of taps must show
_COARSEST = 1e-3  # about bfloat16: what is larger is no rounding
_NOTHING = 3.0  # standard errors: a right layer's largest deviation
_ROUNDING = 0.392  # root mean square of one rounding, in unit roundoffs (`bounds.precision`)


@dataclass(frozen=True)
class Patch:
    """One cause with its parameter.

    Attributes
    ----------
    kind : str
        As findings name it: "outputs-scaled", "bias-scaled", "channel-scaled", "bias-altered",
        "taps-altered", "part-scaled", "output-altered", "weights-rounded",
        "outputs-rounded".
    value, error : float
        The parameter and its standard error, relative; of what is rounded: root mean square.
    change : (O, P) array or None
        What it adds to the right outputs; None for errors at random.
    """

    kind: str
    where: str
    value: float
    error: float
    change: Array | None
    says: str


@dataclass(frozen=True)
class Explanation:
    """Patches that together leave nothing, or as little as was found; `left` are the alarms."""

    patches: tuple[Patch, ...]
    left: tuple[Estimate, ...]


def explain_by_patches(sample: Sample, nuisance: Nuisance) -> Explanation:
    """Patch after patch, each the one that leaves least, until nothing is left."""
    patches: tuple[Patch, ...] = ()
    if nuisance.algorithm == "direct":  # what was taken for noise may be the fault
        still = replace(sample, residual=sample.residual - nuisance.drift)
        nuisance = nuisance.fitted_again(still)
    here = LayerEstimates(sample, nuisance)
    left = alarms(here.all(claims=False))
    while left and len(patches) < _MOST:
        tried = [(patch, _after(patch, here)) for patch in _candidates(here, left)]
        if not tried:
            break
        judged = [(patch, after, after.all(claims=False)) for patch, after in tried]
        patch, after, rest = min(judged, key=lambda t: _left_over(t[2]))
        rest = alarms(rest)
        if _badness(rest) >= _badness(left):
            break
        patches, here, left = (*patches, patch), after, rest
    return Explanation(patches, tuple(left))


def _left_over(estimates: Sequence[Estimate]) -> tuple[bool, float, float]:
    """How much is left: alarms, then what is near one; the first of equals has least parameters."""
    left = alarms(estimates)
    largest = max((estimate.deviation for estimate in estimates), default=0.0)
    return bool(left), _badness(left), max(0.0, largest - _NOTHING)


def _badness(left: Sequence[Estimate]) -> float:
    return float(sum(np.log1p(estimate.deviation) for estimate in left))


def _after(patch: Patch, here: LayerEstimates) -> LayerEstimates:
    """The layer once the patch is taken into the reference."""
    sample, nuisance = here.sample, here.nuisance
    if patch.change is not None:
        mended = replace(sample, residual=sample.residual - patch.change)
        if nuisance.algorithm == "direct":  # what was taken for noise was the fault, in part
            left = replace(mended, residual=mended.residual - nuisance.drift)
            nuisance = nuisance.fitted_again(left)
        return LayerEstimates(mended, nuisance)
    square = (patch.value / nuisance.unit) ** 2
    size = sample.energy if patch.kind == "weights-rounded" else sample.y**2
    level = 3 * square * float((size[sample.active] / _direct(sample)[sample.active]).mean())
    loose = replace(
        nuisance,
        taps=nuisance.taps + (3 * square if patch.kind == "weights-rounded" else 0.0),
        variance=nuisance.variance + nuisance.unit**2 * square * size,
        level=nuisance.level + level,
    )
    return LayerEstimates(sample, loose)


def _direct(sample: Sample) -> Array:
    """What the level of a layer's noise is measured in, without u**2 (`LayerEstimates`)."""
    return np.asarray(sample.energy + 0.3 * sample.y**2 + 1e-300)


def _candidates(here: LayerEstimates, left: Sequence[Estimate]) -> Iterator[Patch]:
    """Patches that alarms suggest, those with fewer parameters first."""
    for estimate in left:
        made = _FROM.get(estimate.kind)
        if made is not None and estimate.where != "channels":
            yield made(here, estimate)
    if any(e.kind in ("taps", "noise") or e.where == "channels" for e in left):
        yield from _rounded_weights(here)
    yield from _fitted_taps(here, left)


def _scaled(here: LayerEstimates, e: Estimate) -> Patch:
    y = here.sample.y
    if not e.where:
        says = f"the layer's outputs are {1 + e.value:.9g} times the right ones"
        return Patch("outputs-scaled", "", e.value, e.error, e.value * y, says)
    chosen = np.arange(len(y)) == int(e.where.split()[1])
    says = f"the outputs of {e.where} are {1 + e.value:.9g} times the right ones"
    change = np.where(chosen[:, None], e.value * y, 0.0)
    return Patch("channel-scaled", e.where, e.value, e.error, change, says)


def _biased(here: LayerEstimates, e: Estimate) -> Patch:
    sample = here.sample
    bias = np.broadcast_to(sample.bias[:, None], sample.y.shape)
    if not e.where:
        value, error = here.regress(bias).pooled()
        says = f"the layer's bias is {1 + value:.9g} times the right one"
        return Patch("bias-scaled", "", value, error, value * bias, says)
    o = int(e.where.split()[1])
    size = max(abs(float(sample.bias[o])), float(sample.bias_magnitude[o]))
    ones = np.broadcast_to(np.where(np.arange(len(bias)) == o, size, 0.0)[:, None], bias.shape)
    value, error = here.regress(ones).pooled()
    says = f"the bias of {e.where} is off by {value * size:.3g}"
    return Patch("bias-altered", e.where, value, error, value * ones, says)


def _in_part(here: LayerEstimates, e: Estimate) -> Patch:
    there = dict(here.places())[e.where]
    direction = here.sample.y * there
    value, error = here.regress(direction).pooled()
    says = f"the outputs of the {e.where} are {1 + value:.9g} times the right ones"
    if e.where.startswith("image"):
        says = says.replace("the image", "image")
    return Patch("part-scaled", e.where, value, error, value * direction, says)


def _one_tap(here: LayerEstimates, e: Estimate) -> Patch:
    channel, tap = (int(part.split()[1]) for part in e.where.split(", "))
    return _tap_patch(here, channel, tap, e.error)


def _tap_patch(here: LayerEstimates, channel: int, tap: int, error: float) -> Patch:
    sample = here.sample
    seen = sample.columns[channel * sample.groups // len(sample.y), tap]
    rows = np.zeros(sample.y.shape)
    rows[channel] = seen * sample.weight[channel, tap]
    value, spread = here.regress(rows).pooled()
    input_channel, position = divmod(tap, sample.kernel_size)
    says = (
        f"one weight is {1 + value:.6g} times the right one: output channel {channel}, input"
        f" {input_channel} of its group, tap {position}"
    )
    where = f"channel {channel}, tap {tap}"
    return Patch("taps-altered", where, value, max(error, spread), value * rows, says)


def _one_output(here: LayerEstimates, e: Estimate) -> Patch:
    channel = int(e.where.split(",")[0].split()[1])
    sample = here.sample
    score = np.where(sample.active[channel], np.abs(here.perpendicular[channel]), 0)
    at = int(score.argmax())
    change = np.zeros(sample.y.shape)
    change[channel, at] = here.residual[channel, at]
    says = f"one output is off by {change[channel, at]:.3g}: {e.where}"
    return Patch("output-altered", e.where, e.value, e.error, change, says)


_FROM: dict[str, Callable[[LayerEstimates, Estimate], Patch]] = {
    "scale": _scaled,
    "bias": _biased,
    "contrast": _in_part,
    "tap": _one_tap,
    "output": _one_output,
}


def _rounded_weights(here: LayerEstimates) -> Iterator[Patch]:
    """All weights, or all outputs, wrong at random: as much as the residual is."""
    sample, nuisance = here.sample, here.nuisance
    if not _is_everywhere(here):
        return
    patterns = fixed_patterns(sample, here.perpendicular)
    bits = 0 if sample.gated else bits_kept(sample.y + sample.residual, nuisance.unit)
    on = sample.active
    squares = float((here.residual[on] ** 2).sum())
    excess = squares - float(nuisance.variance[on].sum())
    energy, outputs = float(sample.energy[on].sum()), float((sample.y[on] ** 2).sum())
    taps = next(here.tap_noise(), None)
    # The fitted noise may hold all of it already: then the mean square of what was seen does.
    for left in (max(excess, 0.0), 0.7 * squares):
        of_weights, of_outputs = (left / max(size, 1e-300) for size in (energy, outputs))
        if not 0 < of_weights < _COARSEST**2:
            continue
        unclear = taps is None and not patterns and not bits
        shown = taps is not None and taps.value * nuisance.unit**2 > _SHARE * of_weights
        if unclear or (shown and OF_CHANNELS not in patterns):
            yield _at_random("weights-rounded", "weights", of_weights, on)
        elif bits or not patterns:  # errors that no weight has: they differ at all outputs
            patch = _at_random("outputs-rounded", "outputs", of_outputs, on)
            yield replace(patch, says=f"all outputs have {bits} bits at most") if bits else patch


def _at_random(kind: str, what: str, square: float, on: Array) -> Patch:
    value = float(np.sqrt(square))
    bits = -np.log2(value / _ROUNDING)
    says = f"the {what} err at random by {value:.2g} of themselves, as if kept to {bits:.0f} bits"
    return Patch(kind, "", value, value / float(np.sqrt(2 * max(on.sum(), 1))), None, says)


def _is_everywhere(here: LayerEstimates) -> bool:
    """Whether channels, images, rows and columns all err alike, beside what they are sums of.

    Errors of weights at random do; what explains everything else as well explains nothing.
    """
    sample = here.sample
    on = sample.active
    ratio = np.where(on, here.residual**2 / (sample.energy + 1e-300), 0.0)
    count = np.maximum(on.sum(axis=1), 1)
    channels = ratio.sum(axis=1)[on.any(axis=1)] / count[on.any(axis=1)]
    mean = float(ratio.sum() / max(on.sum(), 1))
    if float(np.median(channels)) < mean / _ALIKE:
        return False
    for _, there in here.places():
        inside = float(ratio[:, there].sum() / max(on[:, there].sum(), 1))
        outside = float(ratio[:, ~there].sum() / max(on[:, ~there].sum(), 1))
        if not outside / _ALIKE < inside < outside * _ALIKE:
            return False
    return True


def _fitted_taps(here: LayerEstimates, left: Sequence[Estimate]) -> Iterator[Patch]:
    """The tap of a suspected channel that explains most of its residual."""
    named = {int(e.where.split(",")[0].split()[1]) for e in left if e.where.startswith("channel ")}
    for channel in sorted(named)[:4]:
        sample = here.sample
        x = sample.columns[channel * sample.groups // len(sample.y)]
        w, r = here.weights[channel], here.residual[channel]
        cross, power = x @ (w * r), (x**2) @ w
        gain = np.where(power > 0, cross**2 / np.where(power > 0, power, 1.0), 0.0)
        gain = np.where(sample.weight[channel] != 0, gain, 0.0)
        for tap in np.argsort(-gain)[:2]:
            yield _tap_patch(here, channel, int(tap), 0.0)
