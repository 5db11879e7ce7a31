"""How rounding in all layers shows in the logits: an estimate, and what it rests on.

Certified bounds through a network are useless (2e20 for RepVGG-A0). What is here is no bound: it
is the deviation of the logits when every layer rounds as a simple port does, times a factor. Every
layer errs, in front of its activation, by three independent parts of unit size

    sqrt((u_input^2 + u_accumulate^2) E^2 + u_store^2 z^2)   anew at every output, E^2 = sum (w x)^2
    u_weight E                                               the same at all pixels: rounded weights
    u_store z                                                the same for the whole layer

and each joint draw is carried to the logits as one difference (`differences`): with as many draws
as `_DRAWS` the deviation of each logit is known to an eighth. Deviations are floored by their root
mean square over the image's logits.

Right ports measure `kappa`, root mean square of error over deviation, at 0.38 to 3.7 in float32 and
at 0.03 to 0.8 with 16 bits in memory, where the one rounding that is certain is most of the noise;
single logits at 13 and 2.3 at most (torch, ONNX Runtime, OpenVINO, ncnn with Winograd to F(6), on 4
networks: tests/studies/NOTES-oracle.md). At least three times that is allowed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.diagnosis.alternatives import Chain
from repvgg_ref.oracle.diagnosis.differences import nhwc

_ALLOWED = 12.0  # kappa of a port that agrees
_ALLOWED_16_BITS = 4.0
_STRANGE = 12.5  # times what is allowed: above this no arithmetic we know of
PEAK = 5.0  # largest error in units of the root mean square, over that of Gaussian errors
_DRAWS = 32
_FLOAT32 = 2.0**-24


@dataclass(frozen=True)
class LogitNoise:
    """What the logits of a right port scatter by.

    Attributes
    ----------
    deviation : (N, classes) array
        Of unit noise; a port's is `kappa` times that.
    freedom : float
        Effective number of independent numbers among the logits' errors, which share layers:
        ``trace(C)^2 / trace(C^2)`` of their covariance C.
    allowed : float
        `kappa` of a port that agrees, at most.
    """

    deviation: Array
    freedom: float
    allowed: float = _ALLOWED

    @property
    def strange(self) -> float:
        """`kappa` from which no arithmetic we know of is an excuse."""
        return _STRANGE * self.allowed

    def of(self, error: Array) -> Array:
        """Errors in deviations, (..., N * classes)."""
        scaled = error / self.deviation
        return scaled.reshape(*scaled.shape[:-2], -1)

    def kappa(self, error: Array) -> float:
        """Root mean square of an error (N, classes) in deviations."""
        return float(np.sqrt((self.of(error) ** 2).mean()))

    def peak(self, error: Array) -> float:
        """The same of the largest error, made comparable to `kappa`."""
        return float(np.abs(self.of(error)).max()) / PEAK

    def chance(self, ratio: float) -> float:
        """Of noise in `freedom` dimensions leaving less than `ratio` of what it is added to."""
        return float(min(1.0, ratio) ** max(self.freedom - 1, 0.5))

    def ratio(self, chance: float) -> float:
        """The ratio that has this chance."""
        return float(chance ** (1 / max(self.freedom - 1, 0.5)))


def logit_noise(chain: Chain, precision: Precision) -> LogitNoise:
    """Estimate it by `_DRAWS` draws in all layers at once."""
    rng = np.random.default_rng(0)
    change: Array | None = None
    for name in chain.blocks:
        block = chain.differences.blocks[name]
        z = block.before
        energy = np.sqrt(block.convolution.squared(nhwc(chain.inputs[name])))
        fresh = np.sqrt(
            (precision.u_input**2 + precision.u_accumulate**2) * energy**2
            + precision.u_store**2 * z**2
        )
        error = fresh * rng.standard_normal((_DRAWS, *z.shape), np.float32)
        channels = rng.standard_normal((_DRAWS, 1, 1, 1, z.shape[-1]), np.float32)
        layer = rng.standard_normal((_DRAWS, 1, 1, 1, 1), np.float32)
        error += np.float32(precision.u_weight) * energy * channels
        error += np.float32(precision.u_store) * z * layer
        error = error.reshape(-1, *z.shape[1:])
        if change is not None:
            error = error + block.convolution(change)
        change = block.activated(error)
    assert change is not None
    last = chain.differences.to_logits(chain.blocks[-1], change)
    drawn = last.reshape(_DRAWS, *chain.logits.shape).astype(np.float64)
    drawn += _of_head(chain, precision) * rng.standard_normal(drawn.shape)
    deviation = np.sqrt((drawn**2).mean(axis=0))
    typical = np.sqrt((deviation**2).mean(axis=1, keepdims=True))
    deviation = np.maximum(deviation, np.maximum(typical, np.finfo(float).tiny))
    is_wide = precision.u_store <= _FLOAT32
    allowed = _ALLOWED if is_wide else _ALLOWED_16_BITS
    return LogitNoise(deviation, _freedom((drawn / deviation).reshape(_DRAWS, -1)), allowed)


def _of_head(chain: Chain, p: Precision) -> Array:
    """Deviation of the linear layer's own rounding, (N, classes)."""
    features = chain.after(chain.blocks[-1]).mean(axis=(2, 3))
    energy = features**2 @ chain.differences.weight.T.astype(np.float64) ** 2
    relative = p.u_input**2 + p.u_weight**2 + p.u_accumulate**2
    return np.asarray(np.sqrt(relative * energy + p.u_store**2 * chain.logits**2))


def _freedom(draws: Array) -> float:
    """Of independent draws: squared length over squared products of different ones."""
    products = draws @ draws.T
    count = len(draws)
    squares = (products**2).sum() - (np.diag(products) ** 2).sum()
    length = float(np.trace(products)) / count
    return float(length**2 / max(squares / (count * (count - 1)), 1e-300))
