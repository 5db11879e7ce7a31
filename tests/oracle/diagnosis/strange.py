"""Fifteen bugs that are in no library: a wrong output for a right one, each unlike the others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv
from repvgg_ref.oracle.programs.block import BlockProgram
from repvgg_ref.oracle.programs.program import batch_output

Strange = Callable[[BlockProgram, Array], Array]


def _with_kernel(change: Callable[[Array, Array, int], None]) -> Strange:
    """A change of weight and bias; it is told which input channel carries most signal."""

    def wrong(program: BlockProgram, x: Array) -> Array:
        strongest = int(np.argmax((x**2).sum(axis=(0, 2, 3))[: x.shape[1] // program.groups]))

        def altered(kernel: FusedConv) -> FusedConv:
            weight, bias = kernel.weight.copy(), kernel.bias.copy()
            change(weight, bias, strongest)
            return FusedConv(weight, bias)

        return batch_output(program.with_kernel(altered), x)

    return wrong


def _on_output(change: Callable[[Array], Array]) -> Strange:
    return lambda program, x: change(batch_output(program, x))


def _on_input(change: Callable[[Array], Array]) -> Strange:
    return lambda program, x: batch_output(program, change(x))


def _one_tap(weight: Array, bias: Array, channel: int) -> None:
    weight[0, channel, 0, 2] += 0.3 * np.abs(weight).max()


def _dead_input_channel(weight: Array, bias: Array, channel: int) -> None:
    weight[:, channel] = 0


def _one_bias(weight: Array, bias: Array, channel: int) -> None:
    bias[2] += 0.7


def _last_row_of_taps(weight: Array, bias: Array, channel: int) -> None:
    weight[:, :, 2] *= 0.9


def _duplicated_filter(weight: Array, bias: Array, channel: int) -> None:
    weight[1], bias[1] = weight[0], bias[0]


def _checkerboard(weight: Array, bias: Array, channel: int) -> None:
    weight[:, :, ::2, ::2] *= 1.05


def _noise(weight: Array, bias: Array, channel: int) -> None:
    weight += 1e-3 * np.abs(weight).max() * np.random.default_rng(0).normal(size=weight.shape)


def _last_column_stale(y: Array) -> Array:
    y = y.copy()
    y[..., -1] = y[..., -2]
    return y


def _second_image_is_first(y: Array) -> Array:
    y = y.copy()
    y[1:] = y[:1]
    return y


def _quadrant_lost(y: Array) -> Array:
    y = y.copy()
    y[:, :, : y.shape[2] // 2, : y.shape[3] // 2] = 0
    return y


def _blurred(x: Array) -> Array:
    return (x + np.roll(x, 1, axis=3)) / 2


def _rows_interleaved(y: Array) -> Array:
    return np.concatenate([y[:, :, ::2], y[:, :, 1::2]], axis=2)


STRANGE: dict[str, Strange] = {
    "one tap of one filter": _with_kernel(_one_tap),
    "an input channel never read": _with_kernel(_dead_input_channel),
    "one bias": _with_kernel(_one_bias),
    "the last row of taps a tenth too small": _with_kernel(_last_row_of_taps),
    "one filter stored twice": _with_kernel(_duplicated_filter),
    "corner taps five percent too large": _with_kernel(_checkerboard),
    "noise on the weights": _with_kernel(_noise),
    "the last column copied from its neighbour": _on_output(_last_column_stale),
    "every image of the batch gets the first one's output": _on_output(_second_image_is_first),
    "a quadrant never written": _on_output(_quadrant_lost),
    "the input smeared by one pixel": _on_input(_blurred),
    "rows written in two halves": _on_output(_rows_interleaved),
    "square root of the outputs": _on_output(np.sqrt),
    "outputs above their mean cut off": _on_output(lambda y: np.minimum(y, y.mean())),
    "the input scaled by 1.01": _on_input(lambda x: 1.01 * x),
}
