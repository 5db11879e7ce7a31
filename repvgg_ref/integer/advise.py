"""What quantisation costs in each layer, why, and what to do about it.

The damage depends on the quantiser and on the network: nothing here is a fate. The usual cause is
known: batch norms of the identity and 1x1 branches leave channels that reach far beyond the others
(Chu et al., arXiv 2212.01593). Every remedy is simulated before it is recommended.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy  # its parts are loaded when they are first used: a second of start-up

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import fuse_block
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import ReportedError
from repvgg_ref.integer.equalize import equalize
from repvgg_ref.integer.quantize import as_chain, calibrate
from repvgg_ref.integer.simulate import (
    kernels,
    layer_names,
    rounded_weight,
    sqnr,
)
from repvgg_ref.integer.trial import Simulation, Trial
from repvgg_ref.models.network import Model

_OUTLIER = 4.0  # times the median range: a channel that takes two bits from all others
_WORTH = 1.0  # dB at the logits that a layer in fp16 must gain to be recommended
_MOST_FP16 = 4


@dataclass(frozen=True)
class LayerAdvice:
    """One layer.

    Attributes
    ----------
    sqnr_per_tensor, sqnr_per_channel : float
        Of the fused kernel, dB.
    range_ratio : float
        The widest channel's range over the median one's.
    cause : str
        Which branch makes the widest channel, as far as the file can tell.
    gain_of_equalization : float
        dB of `sqnr_per_tensor`.
    alone : float
        dB at the logits if this layer alone is quantised, one scale for its kernel: simulated.
    keep_fp16 : bool
        Whether leaving it in 16-bit floats pays.
    ranges : (O,) array
        Largest magnitude in each output channel.
    """

    name: str
    sqnr_per_tensor: float
    sqnr_per_channel: float
    range_ratio: float
    cause: str
    gain_of_equalization: float
    alone: float
    keep_fp16: bool
    ranges: Array = field(repr=False, compare=False)


@dataclass(frozen=True)
class Advice:
    """Layers, worst first; remedies simulated, the best last; what to do, in words.

    `images` are those that ranges were measured on and layers looked at, `held_out` others, on
    which the ways were simulated; 0: the same. `rank_correlation` is Spearman's, between the
    kernels' own noise and what each layer costs at the logits: whether looking at kernels alone
    would have ranked the layers right.
    """

    model: str
    images: int
    held_out: int
    layers: tuple[LayerAdvice, ...]
    simulated: tuple[Simulation, ...]
    rank_correlation: float
    steps: tuple[str, ...]

    @property
    def naive(self) -> Simulation:
        """What gains are counted from: one scale for all of a layer's channels."""
        return next(each for each in self.simulated if each.name == "per-tensor")

    @property
    def source(self) -> str:
        """Where ranges and gains come from, in words."""
        images = f"{self.images} image{'s' * (self.images != 1)}"
        if not self.held_out:
            return f"ranges and gains from the same {images}"
        return f"ranges from {images}, gains on {self.held_out} other{'s' * (self.held_out != 1)}"

    def to_json(self) -> dict[str, Any]:
        """What ``repvgg-ref advise --json`` prints."""
        return {
            "model": self.model,
            "images": self.images,
            "held_out": self.held_out,
            "layers": [
                {
                    "name": layer.name,
                    "sqnr_per_tensor": _finite(layer.sqnr_per_tensor),
                    "sqnr_per_channel": _finite(layer.sqnr_per_channel),
                    "range_ratio": _finite(layer.range_ratio),
                    "cause": layer.cause,
                    "gain_of_equalization": _finite(layer.gain_of_equalization),
                    "alone": _finite(layer.alone),
                    "keep_fp16": layer.keep_fp16,
                }
                for layer in self.layers
            ],
            "simulated": {each.name: each.to_json(self.naive) for each in self.simulated},
            "rank_correlation": _finite(self.rank_correlation),
            "advice": list(self.steps),
        }


def advise(
    model: Model, images: Array, labels: Array | None = None, *, ranges_from: Array | None = None
) -> Advice:
    """Look at every layer of `model`, and predict what every remedy gains.

    Layers are looked at, and those to keep in fp16 chosen, on the images of `ranges_from`; what the
    ways gain is counted on `images`, which no range and no choice has seen. An interval is about
    images like these: of such that were trained on, or drawn elsewhere, it says nothing.

    Parameters
    ----------
    model : Model
        In train form its branches tell the cause; a plain chain, see `quantize.as_chain`.
    images : (N, C, H, W) floating array
        Prepared as for training; best such that nothing was trained on.
    labels : (N,) array of int, optional
        Of `images`; then accuracy is predicted, too.
    ranges_from : (M, C, H, W) floating array, optional
        On which ranges of activations are measured. Default: `images`; then nothing is held out.

    Raises
    ------
    ReportedError
        If the network cannot be quantised, or there are no images.
    """
    deploy = as_chain(model)
    even, _ = equalize(deploy)
    seen = images if ranges_from is None else ranges_from
    ranges, evened = (calibrate(each, seen, method="min-max") for each in (deploy, even))
    if not len(images):
        raise ReportedError("a prediction needs images", got="none", wanted="at least 1")
    trial = Trial(deploy, ranges, seen)
    names = layer_names(deploy)
    alone = {name: trial.loss([name], per_tensor=True) for name in names}
    # By noise: each layer's adds up at the logits, so the loudest gain most from staying real.
    kept = _worth_keeping(trial, sorted(names, key=lambda name: alone[name]))
    told = [
        _layer(model, name, kernel, even, alone[name], name in kept)
        for name, kernel in kernels(deploy)
    ]
    told.sort(key=lambda layer: layer.alone)
    plain = Trial(deploy, ranges, images, labels)
    simulated = tuple(_simulations(plain, Trial(even, evened, images, labels, plain.wanted), kept))
    return Advice(
        model.name,
        len(seen),
        0 if ranges_from is None else len(images),
        tuple(told),
        simulated,
        _rank_correlation(told),
        tuple(_steps(told, simulated)),
    )


def _rank_correlation(layers: Sequence[LayerAdvice]) -> float:
    """Spearman's, of the kernels' noise and the costs; NaN of two layers or fewer."""
    told = [(layer.sqnr_per_tensor, layer.alone) for layer in layers if layer.alone < np.inf]
    return float(scipy.stats.spearmanr(told).statistic) if len(told) > 2 else float("nan")


def _worth_keeping(trial: Trial, loudest: Sequence[str]) -> list[str]:
    """The fewest of the loudest layers without which the rest is clearly better."""
    kept: list[str] = []
    names = list(loudest)
    best = trial.loss(names, per_tensor=False)
    for name in loudest[:_MOST_FP16]:
        rest = [each for each in names if each not in (*kept, name)]
        found = trial.loss(rest, per_tensor=False)
        if found - best < _WORTH:
            break
        kept, best = [*kept, name], found
    return kept


def _simulations(plain: Trial, even: Trial, kept: Sequence[str]) -> Iterator[Simulation]:
    names = layer_names(plain.deploy)
    yield plain.judged("float", [], per_tensor=False)
    yield plain.judged("per-tensor", names, per_tensor=True)
    yield even.judged("equalized", names, per_tensor=True)
    yield plain.judged("per-channel", names, per_tensor=False)
    yield even.judged("equalized per-channel", names, per_tensor=False)
    if kept:
        rest = [name for name in names if name not in kept]
        yield plain.judged("mixed", rest, per_tensor=False)


def _layer(
    model: Model, name: str, kernel: Array, even: Model, alone: float, keep: bool
) -> LayerAdvice:
    evened = dict(kernels(even))[name]
    ranges = np.abs(kernel.reshape(len(kernel), -1)).max(axis=1)
    positive = ranges[ranges > 0]
    ratio = float(positive.max() / np.median(positive)) if positive.size else 1.0
    per_tensor = sqnr(kernel, rounded_weight(kernel, per_tensor=True))
    after = sqnr(evened, rounded_weight(evened, per_tensor=True))
    return LayerAdvice(
        name,
        per_tensor,
        sqnr(kernel, rounded_weight(kernel, per_tensor=False)),
        ratio,
        _cause(model, name, int(ranges.argmax()), ratio),
        after - per_tensor if np.isfinite(after) and np.isfinite(per_tensor) else 0.0,
        alone,
        keep,
        ranges,
    )


def _cause(model: Model, name: str, channel: int, ratio: float) -> str:
    """Which branch's taps are the largest in the widest channel."""
    if ratio < _OUTLIER:
        return "channels reach about as far"
    spec = next((each for each in model.arch.blocks if each.name == name), None)
    if spec is None:
        return f"channel {channel} reaches {ratio:.1f} times as far as the median"
    if model.form == "deploy":
        return f"channel {channel} reaches {ratio:.1f} times as far; the branches are fused already"
    shares = _branches(model, spec, channel)
    if not shares:
        return f"channel {channel} reaches {ratio:.1f} times as far as the median"
    branch = max(shares, key=lambda each: shares[each])
    return f"{branch} in channel {channel}, {ratio:.1f} times the median range"


def _branches(model: Model, spec: BlockSpec, channel: int) -> dict[str, float]:
    """Branch -> its largest fused tap in a channel: the block fused with the others' norms at 0."""
    ours = {k: v for k, v in model.params.items() if k.startswith(f"{spec.name}.")}
    gammas = sorted(key for key in ours if key.endswith(".gamma"))
    found: dict[str, float] = {}
    if len(gammas) < 2:
        return found
    for kept in gammas:
        silent = {key: np.zeros_like(ours[key]) for key in gammas if key != kept}
        fused = fuse_block(spec, ours | silent, eps=model.eps)
        branch = kept.removeprefix(f"{spec.name}.").removesuffix(".gamma").removesuffix(".bn")
        found[branch] = float(np.abs(fused.weight[channel]).max())
    return found


def _steps(layers: Sequence[LayerAdvice], simulated: Sequence[Simulation]) -> list[str]:
    by_name = {each.name: each for each in simulated}
    worst, channels = by_name["per-tensor"], by_name["per-channel"]
    steps: list[str] = []
    if channels.sqnr - worst.sqnr > _WORTH:
        steps.append(f"one scale for each channel, as `quantize` does: {_effect(worst, channels)}")
    even = by_name["equalized"]
    if even.sqnr - worst.sqnr > _WORTH:
        steps.append(
            f"if the device has one scale a tensor, `quantize --per-tensor --equalize`: "
            f"{_effect(worst, even)}"
        )
    if (mixed := by_name.get("mixed")) is not None:
        kept = ", ".join(layer.name for layer in layers if layer.keep_fp16)
        steps.append(f"keep {kept} in fp16: {_effect(channels, mixed)}")
    if not steps:
        steps.append(
            f"no remedy here gains {_WORTH:g} dB: one scale a tensor gives {worst.sqnr:.1f} dB at "
            f"the logits, one a channel {channels.sqnr:.1f} dB; training with --block qarepvgg may"
        )
    outliers = [layer.name for layer in layers if "identity" in layer.cause]
    if outliers:
        steps.append(
            "if it can be trained again: --block qarepvgg, whose identity has no batch norm "
            f"(here it makes the widest channel of {', '.join(outliers[:3])})"
        )
    return steps


def _effect(before: Simulation, after: Simulation) -> str:
    said = f"{before.sqnr:.1f} -> {after.sqnr:.1f} dB"
    if before.top1 is not None and after.top1 is not None:
        rates = f"top-1 {before.top1:.1%} -> {after.top1:.1%}"
    else:
        rates = f"same class {before.same_class:.1%} -> {after.same_class:.1%}"
    gain = after.gain_over(before)
    shown = "" if gain.low > 0 or gain.high < 0 else ": none that so few images show"
    return f"{said}, {rates}, {gain}{shown}"


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
