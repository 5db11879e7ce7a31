"""What is worth knowing about the values in a RepVGG file before it is trusted.

A finding of level "error" means that fusing refuses the file or that its outputs are wrong;
"warning" that it will work, but not as one may expect; "info" is worth reading once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import is_fusible, linear_expression, norms
from repvgg_ref.blocks.fusion import FusedConv, fuse_block
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.blocks.unfuse import leaves
from repvgg_ref.errors import NotFusibleError
from repvgg_ref.models.layers import Block
from weights_io import sanitize, shortened

Level = Literal["error", "warning", "info"]

FP16_MAX = 65504.0
FP16_SMALLEST_NORMAL = 2.0**-14
FP16_ROUNDS_TO_ZERO = 2.0**-25  # half of the smallest subnormal; the tie goes to zero

# Standard deviations that an activation is expected to stay within: values further out have been
# rarer than one in 10**15 in training, if the sums there were normal.
_DEVIATIONS = 8
_OFFICIAL_EPS, _OTHER_EPS = 1e-5, 1e-3
_TINY_SHARE = 0.01
_VECTORS = ("gamma", "beta", "running_mean", "running_var")


@dataclass(frozen=True)
class Finding:
    """One remark; `layer` is None where it is about the whole file."""

    level: Level
    layer: str | None
    message: str

    def __post_init__(self) -> None:
        """A text from the file may be in the message, of any length."""
        object.__setattr__(self, "message", shortened(self.message))


def not_finite(layer: str | None, name: str, array: Array) -> Iterator[Finding]:
    """Report NaN and infinity in `array`, which the file calls `name`."""
    if not np.issubdtype(array.dtype, np.floating) or np.isfinite(array).all():
        return
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    yield Finding(
        "error",
        layer,
        f"{sanitize(name)}: {nan} NaN and {infinite} infinite of {array.size} values",
    )


@dataclass
class Summary:
    """What is counted over all blocks, and said once at the end."""

    eps: float
    told: bool = False  # whether a module or metadata of ours says it
    norms: int = 0
    default_norms: int = 0
    scale_change: float = 0.0
    taps: int = 0
    subnormal: int = 0
    vanishing: int = 0

    def add_norm(self, mean: Array, var: Array) -> None:
        """Count one batch norm's statistics in."""
        self.norms += 1
        self.default_norms += bool((mean == 0).all() and (var == 1).all())
        sound = var[np.isfinite(var) & (var >= 0)].astype(np.float64)
        if sound.size:
            change = np.sqrt((sound.min() + _OTHER_EPS) / (sound.min() + _OFFICIAL_EPS)) - 1
            self.scale_change = max(self.scale_change, float(change))

    def add_taps(self, weight: Array) -> None:
        """Count fused taps that float16 holds badly."""
        size = np.abs(weight)
        self.taps += weight.size
        self.vanishing += int(((size > 0) & (size <= FP16_ROUNDS_TO_ZERO)).sum())
        self.subnormal += int(((size > 0) & (size < FP16_SMALLEST_NORMAL)).sum())

    def findings(self) -> Iterator[Finding]:
        """The remarks about the file as a whole."""
        if self.norms and not self.told:
            yield Finding("info", None, self._about_eps())
        if self.norms and self.default_norms == self.norms:
            yield Finding(
                "warning",
                None,
                "every batch norm still has mean 0 and variance 1: untrained, and weak as a test "
                "(mistakes in the use of the mean or of eps do not show)",
            )
        if self.taps and self.subnormal > _TINY_SHARE * self.taps:
            yield Finding(
                "info",
                None,
                f"in float16 {self.subnormal / self.taps:.1%} of the fused taps lose precision "
                f"(below 6.1e-5) and {self.vanishing / self.taps:.1%} become zero",
            )

    def _about_eps(self) -> str:
        return (
            "torch files do not hold batch norm's eps: official and timm models use 1e-5, Keras "
            f"ports and YOLOv6 1e-3. Here that choice moves a channel's scale by up to "
            f"{self.scale_change:.2%}; right is what gives the outputs of the code it trained in"
        )


def block_findings(
    spec: BlockSpec, form: str, arrays: Mapping[str, Array], summary: Summary
) -> Iterator[Finding]:
    """Judge one block by those of its arrays that are there, under canonical names."""
    if form == "train":
        for name in norms(spec):
            yield from _norm_findings(spec, name, arrays, summary)
        yield from activation_findings(spec, arrays)
    fused, problem = _fused(spec, form, arrays, summary.eps)
    if problem is not None:
        yield problem
    if fused is not None:
        summary.add_taps(fused.weight)
        yield from _fused_findings(spec, fused)


def _norm_findings(
    spec: BlockSpec, norm: str, arrays: Mapping[str, Array], summary: Summary
) -> Iterator[Finding]:
    prefix, branch = f"{spec.name}.{norm}", norm.removesuffix(".bn")
    gamma, _, mean, var = (arrays.get(f"{prefix}.{field}") for field in _VECTORS)
    if var is not None:
        if negative := int((var < 0).sum()):
            yield Finding(
                "error",
                spec.name,
                f"{branch}: running_var is negative in {negative} of {var.size} channels "
                f"(least {np.nanmin(var):g}): its root does not exist",
            )
        if tiny := int(((var >= 0) & (var < summary.eps / 100)).sum()):
            yield Finding(
                "warning",
                spec.name,
                f"{branch}: running_var is below eps/100 in {tiny} of {var.size} channels: they "
                "saw a constant, and eps alone sets their scale",
            )
    if gamma is not None and (dead := int((gamma == 0).sum())):
        yield Finding(
            "warning",
            spec.name,
            f"{branch}: gamma is 0 in {dead} of {gamma.size} channels: the branch adds only a "
            "constant there",
        )
    if mean is not None and var is not None:
        summary.add_norm(mean, var)


def activation_findings(spec: BlockSpec, arrays: Mapping[str, Array]) -> Iterator[Finding]:
    """Could this layer's output exceed float16? Told by batch norm, without any image.

    In training every branch left batch norm with mean beta and standard deviation |gamma|, so the
    sum stays within ``|sum beta| + 8 * sum |gamma|`` unless a value is far out of distribution.
    """
    last = dict.fromkeys(norm for _, norm in leaves(linear_expression(spec)) if norm)
    places = [f"{spec.name}.{norm}" for norm in last]  # norms inside a branch are not summed
    betas, gammas = (
        [arrays[f"{p}.{of}"].astype(np.float64) for p in places if f"{p}.{of}" in arrays]
        for of in ("beta", "gamma")
    )
    if not betas or not gammas:
        return
    with np.errstate(invalid="ignore"):  # infinities are reported by `not_finite`
        spread = sum(np.abs(gamma) for gamma in gammas)
        reach = float(np.max(np.abs(sum(betas)) + _DEVIATIONS * spread))
    if reach > FP16_MAX:
        yield Finding(
            "warning",
            spec.name,
            f"outputs can exceed float16: |sum of beta| + {_DEVIATIONS} * sum of |gamma|, which "
            f"is {_DEVIATIONS} standard deviations in training, reaches {reach:.3g} (most 65504)",
        )


def _fused(
    spec: BlockSpec, form: str, arrays: Mapping[str, Array], eps: float
) -> tuple[FusedConv | None, Finding | None]:
    """The block's one convolution if its arrays are complete and sound."""
    if any(name not in arrays for name in _needed(spec, form)):
        return None, None
    if not is_fusible(spec):
        return None, None  # said of the whole network
    if form == "deploy":
        return FusedConv(*(arrays[f"{spec.name}.fused.{f}"] for f in FusedConv._fields)), None
    if any(not np.isfinite(array).all() for array in arrays.values()):
        return None, None  # said already, with the array's name
    if any((arrays[name] < 0).any() for name in arrays if name.endswith(".running_var")):
        return None, None  # the same
    try:
        return fuse_block(spec, arrays, eps=eps), None
    except NotFusibleError as error:
        return None, Finding("error", spec.name, str(error).removeprefix(f"{spec.name}: "))


def _needed(spec: BlockSpec, form: str) -> list[str]:
    names = Block(spec).shapes("deploy" if form == "deploy" else "train")
    return [f"{spec.name}.{n}" for n in names if not n.endswith(".num_batches_tracked")]


def _fused_findings(spec: BlockSpec, fused: FusedConv) -> Iterator[Finding]:
    weight, bias = fused
    if zero := int((~weight.reshape(len(weight), -1).any(axis=1)).sum()):
        yield Finding(
            "warning",
            spec.name,
            f"{zero} of {len(weight)} output channels have an all-zero fused kernel: they are "
            "constant and could be cut out",
        )
    over = int((np.abs(weight) > FP16_MAX).sum()) + int((np.abs(bias) > FP16_MAX).sum())
    if over:
        yield Finding(
            "warning",
            spec.name,
            f"{over} fused taps or biases exceed 65504, the largest float16: as float16 they "
            "would be infinite",
        )
