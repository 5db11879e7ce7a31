"""A layer on which no two schemes agree: what a network's own scales cannot tell apart.

With the multipliers of an ordinary network `single`, `half-away` and `float-even` are one function.
Here accumulators stand on exact halves (M a power of two), beyond 2**24, where float32 skips
numbers, and where the two divisions of float32 round apart.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer, Quantization
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.schemes import SCHEMES

NAME = "rounding"
_INPUTS, _SIDE = 4, 16
_OUTPUT_SCALE = np.float32(0.7)
_FAR = 1 << 24  # the first number behind which float32 has gaps


@cache
def rounding_probe(rounding: str) -> tuple[IntegerNetwork, Array]:
    """A network of one layer, and the numbers to feed it.

    Channel 0 of the input runs through all of int8, so every accumulator of a channel's row of
    neighbours is met.
    """
    rows: list[tuple[Array, int, np.float32]] = []  # weights of the input's channels, bias, M * s_y
    one = np.eye(_INPUTS, dtype=np.int8)
    for exponent in (1, 2, 3, 4, 5):  # halves
        rows.append((one[0], 0, np.float32(2.0**-exponent)))
        rows.append((one[0], 5, np.float32(2.0**-exponent)))
    for whole in (64, 65, -64, -65):  # halves that float32 alone sees, and those that it misses
        rows.append((one[0], whole * (1 << 18) + (1 << 17), np.float32(2.0**-18)))
    rng = np.random.default_rng(1)
    for _ in range(18):  # ordinary multipliers: rounding twice shows
        rows.append(
            (
                rng.integers(-127, 128, _INPUTS).astype(np.int8),
                int(rng.integers(-999, 999)),
                np.float32(rng.uniform(0.001, 0.004)),
            )
        )
    rows += [(one[0], 0, m) for m in _divisions()]
    numerators = [np.float32(m * _OUTPUT_SCALE) for *_, m in rows]
    layer = IntegerLayer(
        NAME,
        "conv",
        Quantization(np.ones((), np.float32), np.zeros((), np.int8)),
        Quantization(np.asarray(_OUTPUT_SCALE), np.zeros((), np.int8)),
        np.stack([weights for weights, *_ in rows])[:, :, None, None],
        np.array([bias for _, bias, _ in rows], np.int32),
        np.array(numerators, np.float32),
    )
    x = rng.integers(-128, 128, (1, _INPUTS, _SIDE, _SIDE)).astype(np.int8)
    x[0, 0] = np.arange(-128, 128).reshape(_SIDE, _SIDE)
    return IntegerNetwork((layer,), rounding), x


def separated(network: IntegerNetwork, x: Array) -> list[tuple[str, ...]]:
    """Schemes in groups that `x` cannot tell apart in any layer of `network`."""
    found: dict[bytes, list[str]] = {}
    numbers = network.entered(x)
    told: dict[str, list[bytes]] = {name: [] for name in SCHEMES}
    for layer in network.layers:
        sums = layer.accumulate(numbers)
        pixels = int(np.prod(numbers.shape[2:]))
        for name, answers in told.items():
            answers.append(layer.finish(sums, name, pixels=pixels).tobytes())
        numbers = layer.finish(sums, "float-even", pixels=pixels)
    for name, answers in told.items():
        found.setdefault(b"".join(answers), []).append(name)
    return [tuple(names) for names in found.values()]


def _divisions() -> list[np.float32]:
    """Multipliers for which ``(a n) / d`` and ``a (n / d)`` round to different integers."""
    rng = np.random.default_rng(2)
    sums = np.arange(-128, 128).astype(np.float32)
    found: list[np.float32] = []
    while len(found) < 3:
        halves = rng.integers(0, 60) + 0.5
        m = np.float32(halves / rng.integers(60, 128))
        n = np.float32(m * _OUTPUT_SCALE)
        if (
            np.rint(sums * n / _OUTPUT_SCALE) != np.rint(sums * np.float32(n / _OUTPUT_SCALE))
        ).any():
            found.append(m)
    return found
