"""Means of pooled numbers: every right arithmetic agrees and is named, wrong ones do not."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.schemes import ANY, SCHEMES
from repvgg_ref.oracle.integers.report import IntegerReport
from tests.integer.networks import chain, images, quantization
from tests.oracle.test_integers import dump, judged


def average_pool_of_tensorflow_lite(x: Array) -> Array:
    """As reference_integer_ops::AveragePool adds and divides, one number at a time."""
    N, C, H, W = x.shape
    y = np.zeros((N, C), x.dtype)
    for n, c in np.ndindex(N, C):
        acc, count = sum(int(v) for v in x[n, c].ravel()), H * W
        half = acc + count // 2 if acc > 0 else acc - count // 2
        y[n, c] = abs(half) // count * (1 if half > 0 else -1)  # C's division
    return y


def with_plain_mean(network: IntegerNetwork) -> IntegerNetwork:
    """Pooling that gives numbers of the same meaning as it reads, as in TensorFlow Lite."""
    *convs, pool, linear = network.layers
    pool, linear = replace(pool, output=pool.input), replace(linear, input=pool.input)
    return replace(network, layers=(*convs, pool, linear))


@pytest.mark.parametrize("seed", range(4))
def test_tensorflow_lites_average_pool_is_right(seed: int) -> None:
    network = with_plain_mean(chain(seed=seed, dtype=np.int8, rounding="double"))
    x = images(network, seed=seed, size=20)
    numbers = dump(network, x)
    before = network.layers[[layer.name for layer in network.layers].index("pool") - 1].name
    numbers["pool"] = average_pool_of_tensorflow_lite(numbers[before])
    numbers["linear"] = network["linear"].forward(numbers["pool"], "double")
    assert judged(network, numbers).verdict == "agree"
    assert judged(network.rounded(ANY), numbers).verdict == "agree"
    numbers["pool"] = numbers["pool"] + np.int8(1)
    assert judged(network, numbers).first_bad_layer == "pool"


@pytest.mark.few(4)
@pytest.mark.parametrize("rounding", SCHEMES)
def test_the_mean_of_equal_numbers_is_that_number(rounding: str) -> None:
    """Whatever 31 bits make of 1/n, and whatever the scale that cancels."""
    network = with_plain_mean(chain(seed=5, dtype=np.int8, rounding=rounding))
    x = images(network, seed=5, size=20)
    numbers = dump(network, x)
    names = list(numbers)
    before = names[names.index("pool") - 1]
    numbers[before] = np.broadcast_to(numbers[before][:, :, :1, :1], numbers[before].shape)
    numbers["pool"] = numbers[before][:, :, 0, 0]
    report = judged(network, numbers)
    assert next(row for row in report.layers if row.name == "pool").ok


# A pool whose mean needs a multiplier, and one whose scales cancel.
POOLS = {
    "other": (quantization(0.031, -128), quantization(0.0173, -11)),
    "equal": (quantization(0.05, -128), quantization(0.05, -128)),
    "larger": (quantization(0.05, 3), quantization(0.6, 5)),
}


def pool_of(which: str) -> IntegerLayer:
    return IntegerLayer("pool", "pool", *POOLS[which])


def rows_of(layer: IntegerLayer, side: int) -> Array:
    """Images of many channels: sums differ enough to tell arithmetics apart."""
    rng = np.random.default_rng(side)
    spread = rng.integers(10, 120, (8, 96, 1, 1))
    numbers = rng.normal(int(layer.input.zero_point), spread, (8, 96, side, side))
    return np.clip(np.rint(numbers), -128, 127).astype(np.int8)


def behind_a_copy(layer: IntegerLayer, channels: int, rounding: str) -> IntegerNetwork:
    """A network starts with a convolution: one that changes no number."""
    eye = 64 * np.eye(channels, dtype=np.int8).reshape(channels, channels, 1, 1)
    scale, bias = np.asarray(1 / 64, np.float32), np.zeros(channels, np.int32)
    copy = IntegerLayer("copy", "conv", layer.input, layer.input, eye, bias, scale)
    return IntegerNetwork((copy, layer), rounding)


def pooled(
    layer: IntegerLayer, x: Array, whole: Callable[[int, int], int], rounding: str
) -> IntegerReport:
    """The report on a pool that makes `whole(sum, pixels)` of each sum less its zero points."""
    n, zero = x[0, 0].size, int(layer.input.zero_point)
    y = [[whole(int(c.astype(int).sum()) - n * zero, n) for c in image] for image in x]
    made = np.clip(np.array(y) + int(layer.output.zero_point), -128, 127).astype(np.int8)
    return judged(behind_a_copy(layer, x.shape[1], rounding), {"input": x, "copy": x, "pool": made})


def quantised(real: Fraction) -> tuple[int, int]:
    """``QuantizeMultiplier``: (multiplier, shift), the shift to the left."""
    shift = 0
    while real >= 1:
        real, shift = real / 2, shift + 1
    while real < Fraction(1, 2):
        real, shift = real * 2, shift - 1
    multiplier = int(real * 2**31 + Fraction(1, 2))
    return (multiplier, shift) if multiplier < 2**31 else (multiplier // 2, shift + 1)


def multiplied(acc: int, multiplier: int, shift: int) -> int:
    """``MultiplyByQuantizedMultiplier`` with gemmlowp's two roundings, in whole numbers."""
    high = ((acc << max(shift, 0)) * multiplier + (1 << 30)) >> 31
    right = max(-shift, 0)
    mask = (1 << right) - 1
    return (high >> right) + ((high & mask) > (mask >> 1) + (high < 0))


def ratio(layer: IntegerLayer) -> Fraction:
    return Fraction(float(layer.input.scale)) / Fraction(float(layer.output.scale))


def mean_of_tensorflow_lite(layer: IntegerLayer) -> Callable[[int, int], int]:
    """As QuantizedMeanOrSum: one integer for scale and number, cut off; then requantised."""

    def whole(acc: int, n: int) -> int:
        multiplier, shift = quantised(ratio(layer))
        longer = min(n.bit_length() - 1, 32, 31 + shift)
        return multiplied(acc, (multiplier << longer) // n, shift - longer)

    return whole


def mean_by_the_nearest(layer: IntegerLayer) -> Callable[[int, int], int]:
    return lambda acc, n: multiplied(acc, *quantised(ratio(layer) / n))


def mean_by_ones(layer: IntegerLayer) -> Callable[[int, int], int]:
    """A convolution by ones of the weight scale 1/n, which float32 holds nearly."""
    return lambda acc, n: multiplied(
        acc, *quantised(ratio(layer) * Fraction(float(np.float32(1) / np.float32(n))))
    )


def with_the_zero_point(layer: IntegerLayer, half: float) -> Callable[[int, int], int]:
    """As Mean of uint8: the sum as it is; then its zero point's share, a float made whole."""
    before, after = layer.input, layer.output
    share = np.float32(int(before.zero_point) * before.scale / after.scale)
    share = share + np.float32(half) if share > 0 else share - np.float32(half)

    def whole(acc: int, n: int) -> int:
        real = np.float32(before.scale / (np.float32(n) * after.scale))
        total = acc + n * int(before.zero_point)
        return multiplied(total, *quantised(Fraction(float(real)))) - int(share)

    return whole


def legacy_mean(layer: IntegerLayer) -> Callable[[int, int], int]:
    return with_the_zero_point(layer, 0.5)


WAYS = [mean_of_tensorflow_lite, mean_by_the_nearest, mean_by_ones, legacy_mean]


@pytest.mark.few(6)
@pytest.mark.parametrize("side", [7, 5, 14, 1, 8])
@pytest.mark.parametrize("which", POOLS)
@pytest.mark.parametrize("way", WAYS)
def test_a_mean_by_other_multipliers_is_right(which: str, side: int, way: Any) -> None:
    layer = pool_of(which)
    x = rows_of(layer, side)
    whole = way(layer)
    for rounding in ("double", ANY):
        report = pooled(layer, x, whole, rounding)
        assert report.verdict == "agree", report.reason
        assert "double" in report.schemes


def test_which_other_mean_it_is_stands_in_the_notes() -> None:
    layer = pool_of("equal")
    x = rows_of(layer, 7)
    said = pooled(layer, x, mean_of_tensorflow_lite(layer), "double").notes
    assert any("as TensorFlow Lite's MEAN does" in note for note in said), said
    own = behind_a_copy(layer, x.shape[1], "double")
    said = judged(own, {"input": x} | own.forward(x)).notes
    assert not any("multipl" in note for note in said)


def test_a_share_of_the_zero_point_that_is_one_off_is_wrong() -> None:
    """As the first releases cut it off, and any other."""
    layer = replace(pool_of("other"), output=quantization(0.0172, -11))
    x = rows_of(layer, 7)
    right = pooled(layer, x, legacy_mean(layer), "double")
    assert right.verdict == "agree"
    assert any("as they are" in note for note in right.notes)
    # By schemes that TensorFlow Lite has not, where a wrong rounding may look like such a share.
    assert pooled(layer, x, legacy_mean(layer), "single").verdict == "disagree"
    for half in (0.0, 1.5, -1.0):
        report = pooled(layer, x, with_the_zero_point(layer, half), "double")
        assert (report.verdict, report.first_bad_layer) == ("disagree", "pool")


WRONG: dict[str, Callable[[IntegerLayer], Callable[[int, int], int]]] = {
    "three steps too much": lambda layer: lambda acc, n: mean_of_tensorflow_lite(layer)(acc + 3, n),
    "three steps too little": lambda layer: (
        lambda acc, n: mean_of_tensorflow_lite(layer)(acc - 3, n)
    ),
    "rounded down": lambda layer: lambda acc, n: int(np.floor(float(ratio(layer)) * acc / n)),
    "cut off": lambda layer: lambda acc, n: int(float(ratio(layer)) * acc / n),
    "mean first": lambda layer: lambda acc, n: multiplied(acc // n, *quantised(ratio(layer))),
    "8 bits": lambda layer: (
        lambda acc, n: multiplied(
            acc, quantised(ratio(layer) / n)[0] >> 23 << 23, quantised(ratio(layer) / n)[1]
        )
    ),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("side", [7, 5, 9])
@pytest.mark.parametrize("which", ["other", "equal"])
@pytest.mark.parametrize("off", [0, 1, -1])
def test_a_sum_one_off_is_seen_where_nothing_is_rounded_twice(
    which: str, side: int, off: int
) -> None:
    """Two roundings, or a multiplier cut off at a half, move a threshold by a step or two."""
    layer = pool_of(which)

    def whole(acc: int, n: int) -> int:
        return math.floor(ratio(layer) * (acc + off) / n + Fraction(1, 2))

    report = pooled(layer, rows_of(layer, side), whole, "single")
    assert report.verdict == ("disagree" if off else "agree")


@pytest.mark.few(4)
@pytest.mark.parametrize("side", [7, 5, 14])
@pytest.mark.parametrize("which", ["other", "equal"])
@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_mean_is_wrong_by_every_arithmetic(which: str, side: int, wrong: str) -> None:
    layer = pool_of(which)
    report = pooled(layer, rows_of(layer, side), WRONG[wrong](layer), "double")
    assert (report.verdict, report.first_bad_layer) == ("disagree", "pool")
