"""Right ways to convolve that do not sum products, and err more: Winograd's and Fourier's.

They are looked for only where a port is beyond the bound or the tests of sums. Transforms with
thirds or roots of unity cannot be right to the last bit on integers, so a port that was is excused
by F(2 x 2) alone, whose constants are halves.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bounds.block import WINOGRAD, block_bound
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.bounds.winograd import applies, roundings
from repvgg_ref.oracle.operators.convolution import (
    conv_program,
    convolved,
    correlated,
    pair,
    sent_back,
)
from repvgg_ref.oracle.operators.operator import Call, Expected
from repvgg_ref.oracle.operators.rounding import Product
from repvgg_ref.oracle.programs.block import BlockProgram

# A transform of n points errs by at most log2(n) (mu + gamma_4 (sqrt 2 + mu)) of its norm, mu the
# error of the twiddle factors (Higham, theorem 24.2): 8 u with mu = u. Three of them, and the
# products; lengths that are no powers of 2 pay three times the logarithm.
_TRANSFORMS, _STAGE = 3, 3 * 8
_NEAR_BORDERS = 4  # an output in the corner meets a quarter of the taps, with strides fewer


def fast_ways(
    call: Call, name: str, expected: Expected, p: Precision, *, exact: bool | None
) -> Iterator[tuple[str, Array, Array]]:
    """Each way's words, bound, and unit of the two tests, for one output of a call.

    `exact` is what the port was on integers: where it was right to the last bit, only F(2 x 2),
    whose constants are halves, is left.
    """
    if not call.name.startswith("conv") or name == "grad_bias":
        return
    x, program = _as_forward(call, name)
    if program is not None and program.size == (3, 3):
        for way in WINOGRAD:
            m = int(way[-1])
            if (exact and m > 2) or not applies(m, program.stride, program.dilation):
                continue
            y = expected[name].value
            bound = block_bound(program, x, y, p, algorithm=way).certified
            steps = roundings(m, program.stride, x.shape[1] // program.groups)
            yield f"{way} arithmetic", bound, bound / np.sqrt(steps)
    if not exact:
        bound = _fourier(call, name, p)
        yield "transforms (Fourier's or Winograd's)", bound, bound / _STAGE


def _as_forward(call: Call, name: str) -> tuple[Array, BlockProgram | None]:
    """The convolution that gives this output, with its input; no program where there is none.

    The gradient of x, with stride 1, convolves that of y with the kernel turned and transposed. A
    mask only takes numbers away, so its bound is not less.
    """
    x = np.asarray(call.arrays["x"], np.float64)
    if name == "y":
        activation = "relu" if call.name == "conv_bias_relu" else "none"
        return x, conv_program(call.arrays, call.settings, activation)
    if name != "grad_x" or pair(call.settings["stride"]) != (1, 1):
        return x, None
    grad, weight = (np.asarray(call.arrays[n], np.float64) for n in ("grad_y", "weight"))
    groups = int(call.settings["groups"])
    split = weight[:, :, ::-1, ::-1].reshape(groups, -1, *weight.shape[1:]).swapaxes(1, 2)
    turned = split.reshape(-1, weight.shape[0] // groups, *weight.shape[2:])  # (C, O/G, Kh, Kw)
    reach = zip(pair(call.settings["dilation"]), weight.shape[2:], strict=True)
    padding = tuple(
        d * (k - 1) - p for (d, k), p in zip(reach, pair(call.settings["padding"]), strict=True)
    )
    if min(padding) < 0:
        return grad, None
    return grad, conv_program(
        {"x": grad, "weight": turned}, {**call.settings, "padding": padding}, "none"
    )


def _fourier(call: Call, name: str, p: Precision) -> Array:
    """Normwise: Cauchy and Schwarz for the two operands of each output, whole images at a time."""
    a, b, product, meetings = _operands(call, name)
    pixels = float(a.shape[2] * a.shape[3] * 4)
    u = p.u_accumulate + p.u_store + p.u_input
    factor = u * (_TRANSFORMS * _STAGE * (np.log2(pixels) + 2) + a.shape[1])
    size = product(_norms(a), _norms(b)) / meetings
    return np.asarray(_NEAR_BORDERS * factor * size + p.tiny * pixels)


def _operands(call: Call, name: str) -> tuple[Array, Array, Product, float]:
    """Both, how they are multiplied, and how often two of their planes meet in one output."""
    arrays = {key: np.asarray(value, np.float64) for key, value in call.arrays.items()}
    weight, x = arrays["weight"], arrays["x"]
    taps = float(weight.shape[2] * weight.shape[3])
    if name == "y":
        return x, weight, convolved(call.settings), taps
    grad = arrays["grad_y"]
    if name == "grad_x":
        return grad, weight, sent_back(call.settings, x.shape), taps
    return grad, x, correlated(call.settings, weight.shape), float(grad[0, 0].size)


def _norms(array: Array) -> Array:
    """Every number replaced by the norm of its plane, (N, C, H, W)."""
    norm = np.sqrt((array**2).sum(axis=(2, 3), keepdims=True))
    return np.broadcast_to(norm, array.shape).copy()
