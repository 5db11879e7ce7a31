"""Calls on which bugs show: odd sizes, no two extents alike, every setting, and numbers chosen.

Three kinds of numbers. *Integers*, so small that every sum is exact in any format and order: a
port that sums products has to be right to the last bit, and any wrong tap, stride or border is off
by 1 at least. *Short* numbers of eight significant bits, which bfloat16, float16 and TF32 hold as
they are: what is left is how sums are rounded. *Full* ones of 24 bits, some of them wide in range,
with zeros, huge and tiny values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import expression
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.names import OFFICIAL
from repvgg_ref.oracle.bugs.base import round_to_bits
from repvgg_ref.oracle.operators.block import STEM
from repvgg_ref.oracle.operators.catalogue import OPERATORS
from repvgg_ref.oracle.operators.operator import EXACT, Arrays, Call, Operator, complete

Fill = Callable[[np.random.Generator, tuple[int, ...]], Array]
Shapes = Mapping[str, tuple[int, ...]]

_LARGEST_INTEGER = 3
_SHORT = 8  # significant bits of bfloat16, the shortest format


def integers(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """From -3 to 3: 200 products of two sum up to less than 2048, the last integer of float16."""
    return rng.integers(-_LARGEST_INTEGER, _LARGEST_INTEGER + 1, shape).astype(np.float64)


def short(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Of order one, eight bits."""
    return round_to_bits(rng.normal(size=shape), _SHORT)


def full(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Of order one, as many bits as float32 has."""
    return np.asarray(rng.normal(size=shape))


def wide(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Over five decades, a fifth of them 0; within float16's range."""
    values = rng.normal(size=shape) * 2.0 ** rng.uniform(-10, 4, shape)
    return np.asarray(np.where(rng.random(shape) < 0.2, 0.0, values))


def huge(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Some 1e12, some 1e-12: for formats of float32's range only."""
    return np.asarray(rng.normal(size=shape) * 10.0 ** rng.choice([-12, 0, 12], shape))


def calls(
    operator: Operator, fixed: Mapping[str, Any], shapes: Shapes, *, extremes: bool, seed: int = 0
) -> list[Call]:
    """Every call that a port is asked; settings that are `fixed` stay so.

    Parameters
    ----------
    shapes : mapping
        Array name -> shape; empty for shapes that separate bugs.
    extremes : bool
        Only the calls whose numbers leave float16's range; else only the others.
    """
    rng = np.random.default_rng(seed)
    kind = operator.name.removesuffix("-backward")
    made = _MAKERS[kind](operator, fixed, shapes, extremes, rng)
    return [_with_gradient(call, rng) for call in made]


def integers_like(call: Call, seed: int) -> list[Call]:
    """The same call on integers, for operators that sum products; nothing for others."""
    if not call.operator.name.startswith(("conv", "linear")):
        return []
    rng = np.random.default_rng(seed)
    drawn = {n: integers(rng, np.shape(a)).astype(np.float32) for n, a in call.arrays.items()}
    return [replace(call, arrays=drawn, label="integers of those shapes", integers=True)]


def _fills(extremes: bool, *, exact: bool) -> dict[str, Fill]:
    if extremes:
        return {"huge and tiny": huge}
    first: dict[str, Fill] = {"integers": integers} if exact else {}
    return {**first, "short": short, "full": full, "wide": wide}


def _conv_settings(fixed: Mapping[str, Any], shapes: Shapes) -> Iterator[dict[str, Any]]:
    """Settings that no bug of geometry survives, the plain 3x3 first."""
    usual: tuple[dict[str, Any], ...] = (
        {"stride": 1, "padding": 1, "dilation": 1, "groups": 1},
        {"stride": 2, "padding": 1, "dilation": 1, "groups": 1},
        {"stride": 1, "padding": 2, "dilation": 2, "groups": 1},
        {"stride": 1, "padding": 1, "dilation": 1, "groups": 2},
        {"stride": 2, "padding": 0, "dilation": 2, "groups": 2},
    )
    if shapes:
        usual = usual[:1]
    seen = []
    for settings in usual:
        chosen = {**settings, **fixed}
        if chosen not in seen:
            seen.append(chosen)
            yield chosen


def _convolutions(
    operator: Operator,
    fixed: Mapping[str, Any],
    shapes: Shapes,
    extremes: bool,
    rng: np.random.Generator,
) -> Iterator[Call]:
    for at, settings in enumerate(_conv_settings(fixed, shapes)):
        groups = int(settings["groups"])
        weight_shape = shapes.get("weight", (3 * groups * 2, 4, 3, 3))
        x_shape = shapes.get("x", (3 - at % 2, weight_shape[1] * groups, 13, 10 + at % 2))
        for name, fill in _fills(extremes, exact=True).items():
            arrays = {"x": fill(rng, x_shape), "weight": fill(rng, weight_shape)}
            if fill is not integers:
                arrays["weight"] = _scaled(arrays["weight"], np.prod(weight_shape[1:]) ** -0.5)
            arrays["bias"] = fill(rng, weight_shape[:1])
            words = ", ".join(f"{key} {settings[key]}" for key in settings)
            yield _call(operator, arrays, settings, f"{name}, {words}", fill is integers)


def _linears(
    operator: Operator,
    fixed: Mapping[str, Any],
    shapes: Shapes,
    extremes: bool,
    rng: np.random.Generator,
) -> Iterator[Call]:
    weight_shape = shapes.get("weight", (37, 53))
    x_shape = shapes.get("x", (19, weight_shape[1]))
    for name, fill in _fills(extremes, exact=True).items():
        arrays = {"x": fill(rng, x_shape), "weight": fill(rng, weight_shape)}
        arrays["bias"] = fill(rng, weight_shape[:1])
        yield _call(operator, arrays, fixed, name, fill is integers)


def _norms(
    operator: Operator,
    fixed: Mapping[str, Any],
    shapes: Shapes,
    extremes: bool,
    rng: np.random.Generator,
) -> Iterator[Call]:
    """Few values a channel, so that n and n - 1 differ; variances from far below eps to above 1."""
    if extremes:
        return
    modes = [bool(fixed["training"])] if "training" in fixed else [False, True]
    for training in modes:
        for at, eps in enumerate((fixed.get("eps", 1e-5), fixed.get("eps", 1e-3))):
            x_shape = shapes.get("x", (3, 24, 5 - at, 4 + at))
            channels = x_shape[1]
            sigma = np.exp(rng.uniform(np.log(0.02), np.log(3), channels))
            mean = sigma * rng.normal(0, 1, channels)
            values = rng.normal(size=x_shape) * sigma[:, None, None] + mean[:, None, None]
            arrays = {
                "x": round_to_bits(values, _SHORT) if at else values,
                "gamma": rng.uniform(0.3, 1.5, channels) * rng.choice([-1, 1, 1], channels),
                "beta": rng.normal(0, 0.5, channels),
                "running_mean": mean + 0.3 * sigma * rng.normal(size=channels),
                "running_var": sigma**2 * rng.uniform(0.5, 2, channels),
            }
            settings = {"training": training, "momentum": 0.1 + 0.2 * at, "eps": eps, **fixed}
            settings = {k: v for k, v in settings.items() if k in operator.settings}
            words = "batch statistics" if training else "running statistics"
            yield _call(operator, arrays, settings, f"{words}, eps {eps:g}", False)


def _blocks(
    operator: Operator,
    fixed: Mapping[str, Any],
    shapes: Shapes,
    extremes: bool,
    rng: np.random.Generator,
) -> Iterator[Call]:
    if extremes:
        return
    usual: tuple[tuple[int, int, int, int], ...]
    usual = ((8, 8, 1, 1), (6, 10, 2, 1), (8, 8, 1, 2))
    if "weight" in shapes:
        out, per_group = shapes["weight"][:2]
        groups, stride = int(fixed.get("groups", 1)), int(fixed.get("stride", 1))
        usual = ((per_group * groups, out, stride, groups),)
    for at, (inputs, outputs, stride, groups) in enumerate(usual):
        settings = {"stride": stride, "groups": groups, "eps": 1e-5, **fixed}
        spec = BlockSpec("stage0", inputs, outputs, settings["stride"], settings["groups"])
        x_shape = shapes.get("x", (2 + at % 2, inputs, 9, 7))
        arrays = {"x": rng.normal(size=x_shape) + 0.3, **_block_arrays(spec, rng)}
        words = ", ".join(f"{key} {settings[key]}" for key in settings)
        yield _call(operator, arrays, settings, words, False)


def _block_arrays(spec: BlockSpec, rng: np.random.Generator) -> dict[str, Array]:
    """A block's arrays under their official names, as trained networks have them."""
    drawn: dict[str, Callable[[tuple[int, ...]], Array]] = {
        "gamma": lambda shape: rng.uniform(0.4, 1.3, shape) * rng.choice([-1, 1, 1, 1], shape),
        "beta": lambda shape: rng.normal(0, 0.3, shape),
        "running_mean": lambda shape: rng.normal(0, 0.3, shape),
        "running_var": lambda shape: np.exp(rng.normal(0, 0.7, shape)),
    }
    arrays: dict[str, Array] = {}
    for part, shape in expression(spec).shapes().items():
        field = part.rpartition(".")[2]
        name = OFFICIAL.names([STEM + part])[STEM + part].removeprefix(STEM)
        if field in drawn:
            arrays[name] = np.asarray(drawn[field](shape))
        elif len(shape) == 4:
            arrays[name] = rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))
    return arrays


_MAKERS: Mapping[str, Callable[..., Iterator[Call]]] = {
    "conv2d": _convolutions,
    "conv_bias_relu": _convolutions,
    "linear": _linears,
    "batch_norm": _norms,
    "repvgg_block": _blocks,
}


def _call(
    operator: Operator, arrays: Arrays, settings: Mapping[str, Any], label: str, exact: bool
) -> Call:
    """A call with what the operator takes of `arrays`, in float32."""
    kept = {
        name: np.asarray(array, np.float32)
        for name, array in arrays.items()
        if operator.bundle or name in operator.arrays
    }
    return Call(operator, kept, complete(operator, settings), label, exact)


def _with_gradient(call: Call, rng: np.random.Generator) -> Call:
    """The same with a gradient of its output, of the same kind of numbers, for a backward pass."""
    if not call.operator.is_backward:
        return call
    shape = output_shape(call)
    if call.integers:
        grad = integers(rng, shape)
    else:
        fill = wide if call.label.startswith("wide") else full
        grad = short(rng, shape) if call.label.startswith("short") else fill(rng, shape)
    return call.but({"grad_y": np.asarray(grad, np.float32)})


def output_shape(call: Call) -> tuple[int, ...]:
    """The shape of the forward pass's output."""
    forward = OPERATORS[call.operator.name.removesuffix("-backward")]
    settings = {k: v for k, v in call.settings.items() if k in forward.settings}
    zero = np.zeros(call.arrays["weight"].shape[0] if "weight" in call.arrays else 1)
    arrays = {"bias": zero, "beta": call.arrays.get("gamma", zero), **call.arrays}
    y = forward.expect(arrays, complete(forward, settings), EXACT)["y"]
    return y.value.shape


def _scaled(values: Array, factor: float) -> Array:
    """Times the nearest power of two, which no format rounds."""
    return np.asarray(values * 2.0 ** np.rint(np.log2(factor)))
