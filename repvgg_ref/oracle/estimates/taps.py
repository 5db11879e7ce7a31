"""The weights of a channel, estimated from its outputs: which taps are wrong, and by how much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.arithmetic.nuisance import Nuisance
from repvgg_ref.oracle.arithmetic.sample import Sample

_CHANNELS_SHOWN = 2
_OUTPUTS = 512  # of a channel: the equations are as many
_DIGITS = 3


def worst_channels(sample: Sample, nuisance: Nuisance) -> list[int]:
    """The channels whose residual is largest beside what rounding makes it, worst first."""
    on, count = sample.active, np.maximum(sample.active.sum(axis=1), 1)
    size = np.where(on, sample.residual**2 / np.maximum(nuisance.variance, 1e-300), 0.0)
    order = np.argsort(-size.sum(axis=1) / count)
    return [int(o) for o in order[:_CHANNELS_SHOWN]]


def tap_errors(
    sample: Sample, nuisance: Nuisance, channels: Sequence[int], kernel: tuple[int, ...]
) -> dict[str, Any]:
    """Estimate kernel errors from residuals; with fewer outputs than taps, the likeliest ones.

    Taps are taken to err in proportion to their magnitudes, rounding to have the nuisance's
    variance V. Of ``r = sum_k e_k x_k`` the likeliest errors are ``e = s**2 M**2 X (s**2 X' M**2 X
    + V)**-1 r``, with s**2 chosen so that r is as large as expected.

    Returns
    -------
    dict
        "channels": for each, "channel", "bias_error" and "errors", nested lists of shape
        (C/G, Kh, Kw), absolute; "per_tap": root mean square over the channels shown and inputs.
    """
    shown = []
    total = np.zeros(kernel[1:])
    for o in channels:
        errors, bias = _of_channel(sample, nuisance, o)
        grid = errors.reshape(kernel)
        total += (grid**2).sum(axis=0)
        shown.append({"channel": o, "bias_error": _short(bias), "errors": _rounded(grid)})
    rms = np.sqrt(total / max(1, len(channels) * kernel[0]))
    return {"channels": shown, "per_tap": _rounded(rms)}


def _of_channel(sample: Sample, nuisance: Nuisance, o: int) -> tuple[Array, float]:
    on = np.flatnonzero(sample.active[o])
    if len(on) > _OUTPUTS:
        on = on[np.unique(np.linspace(0, len(on) - 1, _OUTPUTS).astype(int))]
    if not len(on):
        return np.zeros(sample.products), 0.0
    x = sample.columns[o * sample.groups // len(sample.y)][:, on]  # (K, P)
    magnitude, beside = sample.magnitude[o], max(float(sample.bias_magnitude[o]), 1e-300)
    drift = nuisance.drift if isinstance(nuisance.drift, float) else nuisance.drift[o, on]
    r = sample.residual[o, on] - drift
    v = nuisance.variance[o, on]
    gram = (x * magnitude[:, None] ** 2).T @ x + beside**2
    excess = max(float((r**2).sum() - v.sum()), 0.01 * float(v.sum()))
    scale = excess / max(float(np.trace(gram)), 1e-300)
    solved = np.linalg.solve(scale * gram + np.diag(v + 1e-300), r)
    return scale * magnitude**2 * (x @ solved), float(scale * beside**2 * solved.sum())


def _short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _rounded(values: Array) -> Any:
    """Nested lists with few digits."""
    if values.ndim == 0:
        return _short(float(values))
    return [_rounded(part) for part in values]
