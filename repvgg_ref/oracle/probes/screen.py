"""Many calls held against the reference in one walk over the layers.

A layer is fused once and then asked for a few hundred pixels of each call, computed in float64
from the candidate's own input. Only where those differ by more than good arithmetic does is the
layer compared in full, with its certified bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import INPUT
from repvgg_ref.oracle.blas import in_threads
from repvgg_ref.oracle.bounds.comparison import compare
from repvgg_ref.oracle.bounds.precision import Precision
from repvgg_ref.oracle.diagnosis.alternatives import Chain
from repvgg_ref.oracle.diagnosis.logit_noise import logit_noise
from repvgg_ref.oracle.programs.layers import Programs
from repvgg_ref.oracle.programs.program import Pixels, Program, layer_output, plain
from repvgg_ref.oracle.report import LayerReport

_MOST_PIXELS = 256  # of one layer and image
# Float32 ports err by 2**-24 to 2**-17 of a layer's largest output (Winograd the most).
_USUAL = 2.0**-17
# What a call may use more of a bound than the first did: another shape, another algorithm.
_WORSE = 4.0
# A constant image rounds alike everywhere, so its errors do not average out as random ones do.
_CONSTANT = 4.0
_SINGLE = 3.0  # a single logit errs more than their root mean square


@dataclass(frozen=True)
class Called:
    """A call that gave outputs: its batch, and layer name -> array."""

    x: Array
    layers: Mapping[str, Array]


@dataclass(frozen=True)
class Deviation:
    """Where a call goes wrong first: that layer's comparison, and it in words."""

    layer: LayerReport
    says: str


def deviations(
    programs: Programs, calls: Sequence[Called], precision: Precision, worst: float
) -> list[Deviation | None]:
    """The first layer of each call that is wrong, or None.

    Parameters
    ----------
    programs : Programs
    calls : sequence of Called
        Of the same port; where it shows logits only they are judged end to end.
    precision : Precision
        What the first call was held to.
    worst : float
        The most that the first call used of any bound.
    """
    if all(set(call.layers) == {"linear"} for call in calls):
        return _of_logits(programs, calls, precision, worst)
    names, channels = list(programs), programs.model.arch.channels
    known = [_known(call, channels) for call in calls]

    def in_layer(name: str) -> list[Deviation | None]:
        program = programs[name]
        fused = plain(program)
        found: list[Deviation | None] = []
        for call, inputs in zip(calls, known, strict=True):
            x, y_hat = programs.input_of(name, inputs), call.layers.get(name)
            if x is None or y_hat is None:
                found.append(None)
            else:
                y_hat = np.asarray(y_hat, np.float64)
                found.append(_deviates(program, fused, x, y_hat, precision, worst))
        return found

    by_layer = in_threads(in_layer, names)
    return [next(filter(None, of_call), None) for of_call in zip(*by_layer, strict=True)]


def _known(call: Called, channels: Mapping[str, int]) -> dict[str, Array]:
    """What layers can have been given; not what cannot, where the layer before is wrong."""
    found = {}
    for name, given in {**call.layers, INPUT: call.x}.items():
        if np.ndim(given) == 4 and given.shape[1] == channels.get(name):
            x = np.asarray(given)
            if np.isfinite(x).all():
                found[name] = x
    return found


def _deviates(
    program: Program, fused: Program, x: Array, y_hat: Array, precision: Precision, worst: float
) -> Deviation | None:
    size = program.output_size(*x.shape[2:])
    if y_hat.shape[2:] == size and _is_usual(fused, x, y_hat, _sampled(size), precision):
        return None
    layer = compare(program, x, y_hat, precision).report
    if layer.ratio <= max(1.0, _WORSE * worst):
        return None
    what = layer.note or f"error {layer.max_error:.3g}, {layer.ratio:.3g} times its bound"
    return Deviation(layer, f"{layer.name}: {what}")


def _is_usual(
    fused: Program, x: Array, y_hat: Array, pixels: Pixels | None, precision: Precision
) -> bool:
    """Whether each image's sampled outputs are as exact as good arithmetic makes them."""
    y = fused.evaluate(x, pixels)  # (N, O, P)
    got = y_hat.reshape(*y_hat.shape[:2], -1)  # (N, O, Ho * Wo)
    if pixels is not None:
        got = got[:, :, pixels[0] * y_hat.shape[3] + pixels[1]]
    if got.shape != y.shape or not np.isfinite(y_hat).all():
        return False
    return _is_as_usual(got - y, y, precision)


def _is_as_usual(error: Array, y: Array, precision: Precision) -> bool:
    """Whether good arithmetic errs so, relative to each image's largest value; NaN is not."""
    worst, largest = (np.abs(a).reshape(len(a), -1).max(axis=1) for a in (error, y))
    return bool((worst <= max(_USUAL, 4 * precision.u_input) * largest).all())


def is_the_same(
    layers: Mapping[str, Array],
    first: Mapping[str, Array],
    images: Sequence[int],
    precision: Precision,
) -> bool:
    """Whether a call gave, up to rounding, what the first call gave for the same images."""
    if layers.keys() != first.keys():
        return False
    for name, array in layers.items():
        y_hat, y = np.asarray(array, np.float64), np.asarray(first[name], np.float64)[[*images]]
        if y_hat.shape != y.shape or not _is_as_usual(y_hat - y, y, precision):
            return False
    return True


def _sampled(size: tuple[int, ...]) -> Pixels | None:
    """Pixels of a large output: its last rows and columns, and some of every part."""
    if not size or size[0] * size[1] <= _MOST_PIXELS:
        return None
    height, width = size
    rng = np.random.default_rng(0)
    some = rng.choice(height * width, _MOST_PIXELS // 2, replace=False)
    edge = _MOST_PIXELS // 4
    last_row = (height - 1) * width + np.linspace(0, width - 1, edge).astype(int)
    last_column = np.linspace(0, height - 1, edge).astype(int) * width + width - 1
    rows, columns = np.divmod(np.unique(np.concatenate([some, last_row, last_column])), width)
    return rows, columns


def _of_logits(
    programs: Programs, calls: Sequence[Called], precision: Precision, worst: float
) -> list[Deviation | None]:
    """The same for logits: held to the usual error, else to the network's own sensitivity."""
    right = [np.asarray(call.x, np.float64) for call in calls]
    for program in programs.values():
        fused = plain(program)
        right = [layer_output(fused, x) for x in right]
    found = []
    for call, y in zip(calls, right, strict=True):
        y_hat = np.asarray(call.layers["linear"], np.float64)
        usual = y_hat.shape == y.shape and _is_as_usual(y_hat - y, y, precision)
        layer = None if usual else _logits(programs, call, y, y_hat, precision)
        fine = layer is None or layer.ratio <= max(1.0, _WORSE * worst)
        found.append(None if layer is None or fine else Deviation(layer, f"linear: {layer.note}"))
    return found


def _logits(
    programs: Programs, call: Called, y: Array, y_hat: Array, precision: Precision
) -> LayerReport:
    if y_hat.shape != y.shape or not np.isfinite(y_hat).all():
        why = "not all finite" if y_hat.shape == y.shape else f"of shape {y_hat.shape}"
        return LayerReport.incomparable("linear", f"logits {why}, wanted {y.shape}")
    noise = logit_noise(Chain(programs, call.x), precision)
    constant = 1.0 if np.ptp(call.x, axis=(2, 3)).any() else _CONSTANT
    allowed = constant * _SINGLE * noise.allowed * noise.deviation
    ratios = np.abs(y_hat - y) / allowed
    at = np.unravel_index(np.argmax(ratios), ratios.shape)
    ratio, error = float(ratios[at]), float(np.abs(y_hat - y)[at])
    note = f"end to end: error {error:.3g}, {ratio:.3g} times what rounding could do"
    return LayerReport("linear", error, float(allowed[at]), ratio, ok=ratio <= 1, note=note)
