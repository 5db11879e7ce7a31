"""The tests are tested: one-line bugs planted in the operators' sources, each must break a law."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from repvgg_ref.errors import ReportedError
from repvgg_ref.ops import REFERENCE, Ops
from tests.ops.cases import LAWS

# Importing them fills LAWS.
for _file in Path(__file__).parent.glob("test_*.py"):
    if _file != Path(__file__):
        importlib.import_module(f"tests.ops.{_file.stem}")

MUTANTS = [  # operator, the line as it is, the line with a bug
    # conv2d: geometry
    ("conv2d", "y = _kernel_rows(cache) @", "y = _kernel_rows(cache)[:, :, ::-1] @"),  # flipped
    ("conv2d", "((0, 0), (0, 0), (ph, ph), (pw, pw))", "((0, 0), (0, 0), (0, 2 * ph), (pw, pw))"),
    ("conv2d", "(ph, ph), (pw, pw))", "(pw, pw), (ph, ph))"),
    ("conv2d", ":: cache.stride[0], :: cache.stride[1]", ":: cache.stride[1], :: cache.stride[0]"),
    ("conv2d", ":: cache.stride[1], ::dh, ::dw]", ":: cache.stride[1], ::dh, ::dh]"),
    ("conv2d", "windows.transpose(0, 1, 4, 5, 2, 3)", "windows.transpose(0, 1, 5, 4, 2, 3)"),
    ("conv2d", "y if bias is None else y + bias", "y if bias is None else y - bias"),
    # conv2d: gradients
    ("conv2d", "padded[:, :, rows, columns] +=", "padded[:, :, rows, columns] ="),
    ("conv2d", "padded[:, :, ph : ph + H, pw : pw + W]", "padded[:, :, :H, :W]"),
    ("conv2d", "rows = slice(i * dh, i * dh +", "rows = slice(i, i +"),
    ("conv2d", "grad_rows.transpose(1, 2, 0, 3)", "grad_rows[::-1].transpose(1, 2, 0, 3)"),
    ("conv2d", "grad_y.sum(axis=(0, 2, 3)) if", "grad_y.sum(axis=(0, 2, 3)) / len(grad_y) if"),
    # batch norm
    ("batch_norm", "3)) / count  # (N, C, H, W) -> (C,)\n    inv", "3)) / (count - 1)\n    inv"),
    ("batch_norm", "sqrt(var + scalar_like(eps, x))", "(sqrt(var) + scalar_like(eps, x))"),
    ("batch_norm", "sqrt(var + scalar_like(eps, var))", "sqrt(var)"),
    ("batch_norm", "(x - _per_channel(mean)) * _per", "x * _per"),
    ("batch_norm", "x - through_mean - through_var", "x - through_mean"),
    ("batch_norm", "x - through_mean - through_var", "x - through_var"),
    ("batch_norm", "fixed.grad_beta / count", "fixed.grad_beta"),
    ("batch_norm", "_per_channel(gamma * inv_std) * grad_y", "_per_channel(inv_std) * grad_y"),
    ("batch_norm", "new * mean)", "new * mean * count / (count - 1))"),  # in a framework, 2015
    ("batch_norm", "new * unbiased_var)", "new * var)"),
    ("batch_norm", "(1 - new) * running_mean + new", "new * running_mean + (1 - new)"),
    # the rest
    ("relu", "maximum(x, 0)", "maximum(x, -1)"),
    ("relu", "ReluCache(x <= 0)", "ReluCache(x < 0)"),
    ("gelu", "return x * phi,", "return phi,"),
    ("gelu", "cache.phi + x * density", "cache.phi - x * density"),
    ("gelu", "-math.sqrt(2)", "math.sqrt(2)"),
    ("gelu", " / 2).astype", " / 1).astype"),
    ("silu", "return x * gate,", "return x * (1 - gate),"),
    ("silu", "* (1 + cache.x * (1 - cache.gate))", ""),
    ("silu", "(1 + cache.x * (1 - cache.gate))", "(1 - cache.x * (1 - cache.gate))"),
    ("global_avg_pool", "grad_y / scalar_like(H * W", "grad_y / scalar_like(W * W"),
    ("global_avg_pool", "x.sum(axis=(2, 3)) / scalar_like(H * W, x)", "x.max(axis=(2, 3))"),
    ("linear", "grad_y.sum(axis=0)", "grad_y.mean(axis=0)"),
    ("linear", "grad_y.T @ x,", "grad_y.T @ abs(x),"),
    ("squeeze_excitation", "+ through_gate", ""),
    ("squeeze_excitation", "(grad_y * cache.x).sum(", "grad_y.sum("),
    ("squeeze_excitation", "relu_backward(up.grad_x, cache.relu)", "up.grad_x"),
    ("squeeze_excitation", "linear_forward(active, up", "linear_forward(middle, up"),
    ("cross_entropy", ".sum() / len(logits)", ".sum()"),
    ("cross_entropy", "- targets) / len(targets)", "- targets)"),
    ("cross_entropy", "mass * probabilities", "probabilities"),
    ("cross_entropy", "targets + label_smoothing / classes", "targets + label_smoothing"),
    ("cross_entropy", "(1 - label_smoothing) * targets", "targets"),
]  # fmt: skip


def planted(operator: str, line: str, bug: str) -> Ops:
    """The reference table with `line` of one operator's source replaced by `bug`."""
    module = importlib.import_module(f"repvgg_ref.ops.{operator}")
    source = Path(str(module.__file__)).read_text(encoding="utf-8")
    assert source.count(line) == 1, f"{operator}: update the mutant, its line is gone: {line}"
    namespace: dict[str, Any] = {"__name__": f"mutant_of_{operator}"}
    exec(compile(source.replace(line, bug), f"mutant of {operator}", "exec"), namespace)
    functions = {f.name: namespace[f.name] for f in fields(Ops) if f.name in namespace}
    return replace(REFERENCE, **functions)


def killer(ops: Ops, operator: str = "") -> str | None:
    """The first law that `ops` breaks, `operator`'s own first; a mere typo (NameError) raises."""
    own_first = sorted(LAWS.items(), key=lambda law: operator not in law[1][0].__module__)
    for name, (law, examples) in own_first:
        for case in examples:
            try:
                law(ops, case)
            except (AssertionError, ReportedError, ValueError):  # ValueError: NumPy on shapes
                return name
    return None


def test_the_reference_itself_breaks_no_law() -> None:
    assert killer(REFERENCE) is None


def test_every_planted_bug_breaks_a_law(record_property: Callable[[str, object], None]) -> None:
    killers = {mutant: killer(planted(*mutant), mutant[0]) for mutant in MUTANTS}
    survivors = [mutant for mutant, name in killers.items() if name is None]
    caught = f"{len(MUTANTS) - len(survivors)} of {len(MUTANTS)}"
    record_property("planted operator bugs caught", caught)
    assert not survivors
