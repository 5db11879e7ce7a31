"""Every term of the bounds is needed: a right candidate breaks each bound with a weaker one."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.oracle.bounds.precision import PRECISIONS, Precision
from tests.oracle.bounds.adversaries import ADVERSARIES, Attack

ATTACKS = {adversary.__name__: adversary() for adversary in ADVERSARIES}

MODULES = (
    "bounds.winograd",
    "bounds.linear_part",
    "bounds.squeeze_excitation",
    "bounds.scale",
    "bounds.block",
)  # each imports earlier ones

_BY_WINOGRAD = "underflow = winograd_underflow(*met, winograd, program.stride)"
_DIRECT = "underflow = _direct_underflow(kernels, columns)"

# Module, the line as it is, the line that says too little.
MUTANTS: list[tuple[str, str, str]] = [
    # how many roundings a product meets
    ("bounds.block", "terms = kernels.weight[0].size\n        if m", "terms = 9\n        if m"),
    ("bounds.block", "steps = terms + _OTHER", "steps = terms**0.5 + _OTHER"),
    ("bounds.block", "steps = terms + _OTHER", "steps = terms / 2"),
    ("bounds.block", "(1 + theta(p.u_accumulate, steps))", "(1 + p.u_accumulate)"),
    ("bounds.block", "(1 + theta(p.u_input, reads))", "1"),
    ("bounds.block", "(1 + theta(p.u_weight, kernels))", "1"),
    # what they are relative to
    ("bounds.block", "relative * part.magnitude", "relative * np.abs(part.value)"),
    ("bounds.block", "relative * part.magnitude", "relative * part.energy"),
    ("bounds.block", "p.u_store * _stored(part)", "0 * part.value"),
    ("bounds.block", "np.asarray(2 * value", "np.asarray(0 * value"),
    ("bounds.linear_part", "bias, weight_magnitude, bias", "bias, np.abs(weight), bias"),
    ("bounds.linear_part", "magnitude + kernels.bias_magnitude[:, None],", "magnitude,"),
    # batch norm's scale
    ("bounds.block", "beside) + coherent)\n\n", "beside))\n\n"),
    ("bounds.scale", "2 * (1 + u) * p.tiny / spread", "0 / spread"),
    ("bounds.scale", "(1 - np.minimum(r, 1)) ** -0.5", "(1 - np.minimum(r, 1)) ** -0.25"),
    ("bounds.scale", "* (1 + lost[0])", ""),
    # underflow
    ("bounds.block", "+ (1 + relative) * _underflow(part, steps, p, m)", ""),
    ("bounds.block", "(spread.inputs + apart", "(apart"),
    ("bounds.block", "(spread.weights + read", "(read"),
    ("bounds.block", "steps * p.tiny_accumulate", "0"),
    ("bounds.block", "(p.tiny + steps", "(steps"),
    ("bounds.block", "+ p.tiny * np.reshape(written, (-1, 1))", ""),
    # SE, pool and linear layer
    ("bounds.squeeze_excitation", "before / 4 +", "before / 16 +"),
    ("bounds.squeeze_excitation", "size * e)", "0 * e)"),
    ("bounds.squeeze_excitation", "(magnitudes @ before", "(0 * before.sum()"),
    (
        "bounds.squeeze_excitation",
        "(1 + g) * before.mean(axis=-1) + g * size",
        "before.mean(axis=-1)",
    ),
    ("bounds.squeeze_excitation", "steps = z.value.shape[-1] + 1", "steps = 1"),
    ("bounds.squeeze_excitation", "steps = len(x.value) + 1", "steps = 1"),
    ("bounds.squeeze_excitation", "own = g * magnitude +", "own = 0 * magnitude +"),
    # Winograd
    ("bounds.block", "m = _OUTPUTS_PER_TILE[algorithm]\n", "m = 0\n"),
    ("bounds.winograd", "np.abs(matrix) for matrix", "matrix for matrix"),
    ("bounds.linear_part", _BY_WINOGRAD, _DIRECT),
]  # fmt: skip

WEAKER: list[tuple[str, str, float]] = [  # precision, field, factor: common mistakes of half a bit
    ("fp32", "u_accumulate", 0.5),
    ("tf32", "u_accumulate", 1 / 3),  # 2**-24 in a matrix unit
    ("tf32", "u_input", 0.5),  # rounded to nearest, not cut
    ("bf16", "u_store", 0.0),
    ("bf16", "u_input", 0.0),
    ("bf16", "u_weight", 0.0),
    ("fp16", "u_store", 0.0),
    ("fp16", "u_input", 0.0),
    ("fp16", "tiny", 0.5),
    ("fp32", "tiny_accumulate", 0.0),
]


def broken(attack: Attack, bounds: Mapping[str, Any], precisions: Mapping[str, Precision]) -> bool:
    """Whether the candidate is outside the bound."""
    p = precisions[attack.precision]
    if attack.exact_data:
        p = replace(p, u_input=0.0, u_weight=0.0)
    if attack.program is None:
        got = bounds["head_bound"](attack.weight, attack.bias, attack.x, attack.y, p)
    else:
        got = bounds["block_bound"](
            attack.program, attack.x, attack.y, p, algorithm=attack.algorithm
        )
    return not bool((np.abs(attack.y_hat - attack.y) <= got.certified).all())


def planted(mutated: str, line: str, weaker: str) -> dict[str, Any]:
    """`bounds` with `line` of one module's source replaced, as a namespace."""
    changed: dict[str, Any] = {}
    for name in MODULES[MODULES.index(mutated) :]:
        module = importlib.import_module(f"repvgg_ref.oracle.{name}")
        source = Path(str(module.__file__)).read_text(encoding="utf-8")
        if name == mutated:
            assert source.count(line) == 1, f"{name}: update the mutant, its line is gone: {line}"
            source = source.replace(line, weaker)
        space: dict[str, Any] = {"__name__": module.__name__}
        exec(compile(source, f"weaker {name}", "exec"), space)
        space |= {key: value for key, value in changed.items() if key in space}
        changed |= {k: v for k, v in space.items() if k in _functions(name)}
    return space


def _functions(name: str) -> set[str]:
    """Functions defined in one of the modules."""
    module = importlib.import_module(f"repvgg_ref.oracle.{name}")
    return {k for k, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}


@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_the_worst_candidates_are_within_the_real_bounds(name: str) -> None:
    bounds = vars(importlib.import_module("repvgg_ref.oracle.bounds.block"))
    assert not broken(ATTACKS[name], bounds, PRECISIONS)


def test_every_weaker_bound_is_broken(record_property: Callable[[str, object], None]) -> None:
    real = vars(importlib.import_module("repvgg_ref.oracle.bounds.block"))
    survivors: list[Any] = []
    for mutant in MUTANTS:
        weaker = planted(*mutant)
        if not any(broken(attack, weaker, PRECISIONS) for attack in ATTACKS.values()):
            survivors.append(mutant)
    for name, field, factor in WEAKER:
        value = getattr(PRECISIONS[name], field) * factor
        less = {**PRECISIONS, name: replace(PRECISIONS[name], **{field: value})}
        if not any(broken(attack, real, less) for attack in ATTACKS.values()):
            survivors.append((name, field, factor))
    total = len(MUTANTS) + len(WEAKER)
    record_property("weakened bounds caught", f"{total - len(survivors)} of {total}")
    assert not survivors
