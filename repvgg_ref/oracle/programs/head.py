"""The last layer as somebody's port computes it: global average pool, then linear."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.bugs.base import round_to_bits


@dataclass(frozen=True)
class HeadProgram:
    """``logits = output_map(weight @ pool(input_map(x)) + bias)``; float64.

    `pool` is "mean", "max", "sum", "corner" (the first pixel) or "none" (no pool at all).
    """

    weight: Array
    bias: Array
    pool: str = "mean"
    input_map: Callable[[Array], Array] | None = None
    output_map: Callable[[Array], Array] | None = None


@dataclass(frozen=True)
class HeadBug:
    """A named way to get the head wrong."""

    name: str
    says: str
    advice: str
    variants: Callable[[HeadProgram], Iterator[tuple[HeadProgram, str]]]
    precision: frozenset[str] = frozenset()


def evaluate_head(program: HeadProgram, x: Array) -> Array:
    """Logits (N, classes) from the last block's output (N, C, H, W), in float64."""
    x = np.asarray(x, np.float64)
    if program.input_map is not None:
        x = program.input_map(x)
    features = _POOLS[program.pool](x)
    logits = features @ program.weight.T + program.bias  # (N, K) = (N, C) @ (C, K)
    return logits if program.output_map is None else program.output_map(logits)


_POOLS: dict[str, Callable[[Array], Array]] = {
    "mean": lambda x: x.mean(axis=(2, 3)),
    "max": lambda x: x.max(axis=(2, 3)),
    "sum": lambda x: x.sum(axis=(2, 3)),
    "corner": lambda x: x[:, :, 0, 0],
}


def _pools(head: HeadProgram) -> Iterator[tuple[HeadProgram, str]]:
    for pool, says in {
        "max": "the maximum",
        "sum": "the sum",
        "corner": "the first pixel",
    }.items():
        yield replace(head, pool=pool), says


def _biases(head: HeadProgram) -> Iterator[tuple[HeadProgram, str]]:
    yield replace(head, bias=0 * head.bias), "left out"
    yield replace(head, bias=2 * head.bias), "added twice"
    yield replace(head, bias=-head.bias), "subtracted"


def _outputs(head: HeadProgram) -> Iterator[tuple[HeadProgram, str]]:
    yield replace(head, output_map=_softmax), "softmax"
    yield replace(head, output_map=_log_softmax), "log-softmax"
    yield replace(head, output_map=lambda y: 0.5 * (1 + np.tanh(y / 2))), "sigmoid"
    yield replace(head, output_map=lambda y: np.maximum(y, 0)), "ReLU"


def _softmax(y: Array) -> Array:
    e = np.exp(y - y.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def _log_softmax(y: Array) -> Array:
    """The logarithm of `_softmax`, also where that underflows to 0."""
    shifted = y - y.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def _layouts(head: HeadProgram) -> Iterator[tuple[HeadProgram, str]]:
    yield replace(head, weight=head.weight.T.reshape(head.weight.shape)), "(in, out) as (out, in)"
    n_out, n_in = head.weight.shape
    back = np.ascontiguousarray(head.weight.reshape(n_in, n_out).T)
    yield replace(head, weight=back), "(out, in) as (in, out)"


def _classes(head: HeadProgram) -> Iterator[tuple[HeadProgram, str]]:
    for shift in (1, -1):
        yield replace(head, output_map=partial(np.roll, shift=shift, axis=1)), f"by {shift:+d}"
    yield replace(head, output_map=lambda y: y[:, ::-1]), "reversed"


def _weights_in(
    bits: int, *, operands: bool, truncate: bool = False
) -> Callable[[HeadProgram], Iterator[tuple[HeadProgram, str]]]:
    def variants(head: HeadProgram) -> Iterator[tuple[HeadProgram, str]]:
        weight = round_to_bits(head.weight, bits, truncate=truncate)
        if operands:
            # The pooled features are what meets the weights, so they are what is rounded.
            yield (
                replace(
                    head,
                    weight=weight,
                    input_map=lambda x: round_to_bits(
                        x.mean(axis=(2, 3), keepdims=True), bits, truncate=truncate
                    ),
                ),
                "truncated" if truncate else "to nearest",
            )
        else:
            yield replace(head, weight=weight), "to nearest"

    return variants


def _int8(head: HeadProgram) -> Iterator[tuple[HeadProgram, str]]:
    for detail, axis in {"one scale a tensor": None, "one scale a class": 1}.items():
        step = np.abs(head.weight).max(axis=axis, keepdims=True) / 127
        step = np.where(step > 0, step, 1)
        yield replace(head, weight=np.clip(np.rint(head.weight / step), -128, 127) * step), detail


HEAD_BUGS: tuple[HeadBug, ...] = (
    HeadBug(
        "head-pool",
        "the features are pooled by {detail} instead of the mean",
        "average over height and width",
        _pools,
    ),
    HeadBug("head-bias", "the linear layer's bias is {detail}", "logits = W f + b", _biases),
    HeadBug(
        "head-output",
        "the output is not logits but {detail}",
        "compare logits, before any softmax",
        _outputs,
    ),
    HeadBug(
        "head-weight-layout",
        "the linear weight's memory is read in the wrong order ({detail})",
        "transpose the matrix instead of reshaping it",
        _layouts,
    ),
    HeadBug(
        "head-classes-permuted",
        "the classes come in another order ({detail})",
        "check the class list (1001 classes with background?)",
        _classes,
    ),
    HeadBug(
        "weights-bf16",
        "the linear weights were rounded to bfloat16 ({detail})",
        "keep the weights in float32, or say --precision bf16",
        _weights_in(8, operands=False),
        frozenset({"bf16"}),
    ),
    HeadBug(
        "weights-fp16",
        "the linear weights were rounded to float16 ({detail})",
        "keep the weights in float32, or say --precision fp16",
        _weights_in(11, operands=False),
        frozenset({"fp16", "tf32", "bf16"}),
    ),
    HeadBug(
        "weights-int8",
        "the linear weights were quantised to 8 bits, {detail}",
        "compare the float model; a quantised one is another network",
        _int8,
    ),
    HeadBug(
        "tf32-arithmetic",
        "features and weights are rounded to TF32 in the multiplication ({detail})",
        "switch TF32 off for the comparison, or say --precision tf32",
        _weights_in(11, operands=True),
        frozenset({"tf32", "bf16", "fp16"}),
    ),
    HeadBug(
        "bf16-arithmetic",
        "features and weights are rounded to bfloat16 in the multiplication ({detail})",
        "switch the fast-math mode off, or say --precision bf16",
        _weights_in(8, operands=True),
        frozenset({"bf16"}),
    ),
)
