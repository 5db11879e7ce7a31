"""How wrong a batch norm's factor may be: the same relative error for all that it multiplies."""

from __future__ import annotations

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.squeeze_excitation import theta

# Stands for infinity, which would turn into NaN beside a 0.
_UNBOUNDED = 1e150


def scale_error(gamma: Array, spread: Array, t: Array, p: Precision) -> Array:
    """Largest relative error c_b of ``t = gamma / sqrt(var + eps)``, (O,), all taps alike.

    Worst case: gamma, var and eps are stored in the format, and every step is written to memory.
    Rounding var and eps, two underflows and the sum make ``var + eps`` wrong by
    ``r = (1 + u_store)^2 - 1 + 2 (1 + u_store) tiny / (var + eps)``, its root by (1 - r)**-1/2; for
    r >= 1 it may be 0, and nothing bounds t. gamma, root, quotient and product are four more
    writes, and in registers at most 6 roundings (GPUs approximate 1/sqrt to 2 ulp, which is 4 u).
    An underflow errs by at most the number itself, and by nothing if that is 0.
    """
    u = p.u_store
    with np.errstate(divide="ignore", invalid="ignore"):
        r = u * (2 + u) + 2 * (1 + u) * p.tiny / spread
        root = np.where(r < 1, (1 - np.minimum(r, 1)) ** -0.5, _UNBOUNDED)
        lost = [
            np.where(size > 0, np.minimum(1.0, p.tiny / size), 0.0)
            for size in (np.abs(gamma), spread**-0.5, np.abs(t))
        ]
    rounded = (1 + theta(u, 4)) * (1 + theta(p.u_accumulate, 6))
    return np.asarray(root * rounded * (1 + lost[0]) * (1 + lost[1]) * (1 + lost[2]) - 1)
