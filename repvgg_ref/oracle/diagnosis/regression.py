"""How much of a residual a suspected bug explains, and how surely.

For a suspected bug with predicted output y_h the residual r = y_hat - y is regressed on the
direction d = y_h - y. A candidate with exactly that bug has coefficient 1; a correct one has a
residual of rounding errors, which knows nothing of d. Both are divided by the probabilistic error
bound first, so that outputs with little rounding count for more (weighted least squares).

Rounding errors share weights within an output channel and so are not independent: the standard
error is cluster-robust with channels as clusters (Liang & Zeger, "Longitudinal data analysis using
generalized linear models", Biometrika 73, 1986). In training steps arrays are the clusters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import scipy  # its parts are loaded when they are first used: a second of start-up

from repvgg_ref.arrays import Array

_VOTE = 0.2  # how near to its prediction a channel must be to vote for it
_CHANCE = 0.1  # of a channel of a right candidate being so near


@dataclass(frozen=True)
class Fit:
    """Regression of a residual on one direction.

    Attributes
    ----------
    coefficient, standard_error : float
        1 means "exactly this bug".
    p_value : float
        Of rounding alone giving this, by the better of two tests (doubled for having two).
        Student's t of the coefficient, clusters - 1 degrees of freedom; and a vote: in how many
        clusters the direction itself, coefficient 1, leaves less than 4 % of its energy. An error
        that scales a channel's outputs at random lies within 20 % of any given factor with
        probability 0.1 at most (Gaussian, at the worst factor), so votes are binomial.
    explains : float
        Fraction of the residual's weighted energy that vanishes with the coefficient held at 1.
    remaining : float
        Root mean square of what is left then, in units of the probabilistic bound.
    """

    coefficient: float
    standard_error: float
    p_value: float
    explains: float
    remaining: float

    @property
    def is_this(self) -> bool:
        """Whether the coefficient is 1 for all that can be told, give or take a twentieth."""
        return abs(self.coefficient - 1) <= max(0.05, 4 * self.standard_error)


def regress(residual: Array, direction: Array, scale: Array) -> Fit | None:
    """Fit `residual` by `direction`; None if the direction changes nothing.

    Parameters
    ----------
    residual, direction, scale : arrays, shape (N, O, P)
        Candidate minus reference, prediction minus reference, probabilistic error bound.
    """
    r, d = residual / scale, direction / scale
    left = r - d
    sums = (np.einsum("nop,nop->o", a, b) for a, b in ((r, d), (d, d), (left, left), (r, r)))
    return fitted(Sums(*sums), r.size)


class Sums(NamedTuple):
    """What a fit is made of, each of shape (clusters,): sums of r d, d**2, (r - d)**2, r**2."""

    cross: Array
    power: Array
    left: Array
    energy: Array


def fitted(sums: Sums, count: int) -> Fit | None:
    """The fit of `count` numbers in clusters; None if the direction changes nothing."""
    cross, power, left = sums.cross, sums.power, sums.left
    total, remaining, energy = float(power.sum()), float(left.sum()), float(sums.energy.sum())
    if not 0 < total < np.inf:
        return None
    coefficient, error, freedom = clustered(cross, power)
    # Rounding alone cannot make the coefficient surer than this many independent outputs do.
    unexplained = max(0.0, remaining - (1 - coefficient) ** 2 * total)  # sum of (r - c d)**2
    error = max(error, float(np.sqrt(unexplained / count / total)), 1e-300)
    agree = left < _VOTE**2 * power
    chance = min(
        _two_sided(coefficient / error, freedom),
        float(scipy.special.bdtrc(agree.sum() - 1, (power > 0).sum(), _CHANCE)),
    )
    return Fit(
        coefficient,
        error,
        min(1.0, 2 * chance),
        1 - remaining / energy if energy > 0 else 0.0,
        float(np.sqrt(remaining / count)),
    )


def clustered(cross: Array, power: Array) -> tuple[float, float, float]:
    """Coefficient, its cluster-robust standard error, and the degrees of freedom.

    Parameters
    ----------
    cross, power : arrays, shape (clusters,)
        ``sum r d`` and ``sum d d`` in each cluster.
    """
    total = power.sum()
    coefficient = cross.sum() / total
    spread = cross - coefficient * power
    clusters = total**2 / (power**2).sum()  # those that carry the direction
    freedom = max(clusters - 1, 0.5)
    error = np.sqrt((spread**2).sum() * (clusters / freedom)) / total
    return float(coefficient), float(error), float(freedom)


def _two_sided(t: float, freedom: float) -> float:
    return float(2 * scipy.special.stdtr(freedom, -abs(t)))


def posterior(remaining: list[float], outputs: int) -> list[float]:
    """Probability of each explanation, priors equal, errors Gaussian with unknown variance.

    ``log p_h = -n/2 log(remaining_h**2)`` up to a constant (profile likelihood); `outputs` is the
    number n of independent outputs.
    """
    floor = 1e-12
    log: Any = np.array([-outputs * np.log(max(value, floor)) for value in remaining])
    weight = np.exp(log - log.max())
    return [float(value) for value in weight / weight.sum()]
