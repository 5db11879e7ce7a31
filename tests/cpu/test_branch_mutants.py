"""The tests of sums of branches are tested: bugs planted in its sources must be caught."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from repvgg_ref.cpu.convolution import conv2d
from repvgg_ref.cpu.training import branches, parts, passes
from tests.cpu import test_branches
from tests.cpu.test_branches import Case, assert_is_the_reference

CASES = [
    Case(identity=True),
    Case(outputs=10, stride=2, groups=2),
    Case(channels=2, outputs=20, stride=2, size=(9, 7)),
    Case(pointwise=False, offset=3.0),
    Case(2, (14, 14), 16, 16, identity=True, groups=2),
    Case(size=(8, 9), stride=2),
    Case(identity=True, relu=False),
    Case(identity=True, second=True, bare=("branch_identity", "branch_1x1")),
    Case(identity=True, pointwise=False, bare=("branch_3x3",)),
    Case(bare=("branch_3x3",)),
    Case(channels=1, outputs=30, second=True, bare=("branch_1x1",), offset=1.0),
]

MUTANTS = [  # file, the line as it is, the line with a bug
    ("branches", "branch.gamma * stats[name].inv_std for", "stats[name].inv_std for"),
    ("branches", "- factors[name] * means[name] for", "+ factors[name] * means[name] for"),
    ("branches", "(of_x.about_mean @ matrix)", "(of_x.about_mean @ abs(matrix))"),
    ("branches", "total / grid.pixels - slope", "total - slope"),
    ("branches", "factor * inv_std**2 * with_z", "inv_std**2 * with_z"),
    ("branches", "factor * inv_std**2 * with_z", "factor * inv_std * with_z"),
    ("branches", "- slope * cache.of_outputs[name].mean", ""),
    ("branches", "(inv_std * with_z).astype(dtype), sums", "with_z.astype(dtype), sums"),
    ("branches", "with_z / cache.parts.grid.pixels, groups", "with_z, groups"),
    ("branches", "(with_x - moved) * factor", "with_x * factor"),
    ("branches", "(factor * slope)) @ narrow.swap", "factor) @ narrow.swap"),
    ("branches", " - mean_g @ normed.swap", " - 0 * mean_g @ normed.swap"),
    ("branches", "mean_x.swapaxes(1, 2) @ from_x", "0"),
    ("branches", "plain += narrow", "plain -= narrow"),
    ("branches", "about_0 = with_x + ", "about_0 = with_x + 0 * "),
    ("branches", "mean_x * _by_group(sums.total, groups)", "mean_x * sums.total.mean()"),
    ("branches", "passes.accumulate(total, other)", "pass"),
    ("branches", "grad_x = into", "grad_x = None"),
    ("parts", "around = (kernel - weight", "around = 0 * (kernel - weight"),
    ("parts", "around = (window.kernel - kernel) // 2", "around = 0"),
    ("branches", "np.sqrt(var + float(eps))", "(np.sqrt(var) + 100 * float(eps))"),
    ("moments", "+ sizes @ apart**2", ""),
    ("moments", "dtype=np.float64) + between", "dtype=np.float64)"),
    ("moments", "products[item] += product", "products[item] = product"),
    ("passes", "rows += bias\n            if relu", "if relu"),
    ("passes", "if relu:", "if True:"),
    ("passes", "grid.of(y, piece) != 0", "grid.of(y, piece) > 0.1"),
    ("passes", "centred *= under", "centred *= abs(under)"),
    ("passes", "with_x[item] += product", "with_x[item] = product"),
    ("passes", "rows += held", "rows -= held"),
    ("passes", "flat[span] += added[span]", "flat[span] = added[span]"),
    ("passes", "removed += shift", "removed -= shift"),
    ("passes", "rows -= removed", "rows += removed"),
    ("passes", "total -= other", "total += other"),
    ("phases", "(1, ((1, 2), (1, 0)))", "(1, ((1, 0), (1, 2)))"),
    ("phases", "columns[:, -1, :, 2:] = 0", "columns[:, -1, :, 2:] = 1"),
    ("phases", "columns[below:, :, :, (0, 3)] = 0", "columns[below:, :, :, (0, 3)] = 1"),
]  # fmt: skip


def planted(file: str, line: str, bug: str) -> ModuleType:
    """A copy of a module of `repvgg_ref.cpu` with a bug."""
    room = "convolution" if file == "phases" else "training"
    original = importlib.import_module(f"repvgg_ref.cpu.{room}.{file}")
    source = Path(str(original.__file__)).read_text(encoding="utf-8")
    assert source.count(line) >= 1, f"{file}: update the mutant, its line is gone: {line}"
    module = ModuleType(original.__name__)
    exec(compile(source.replace(line, bug), f"mutant of {file}", "exec"), module.__dict__)
    return module


_TAKEN = {
    "branches": ("branches_forward", "branches_backward"),
    "parts": ("sort_branches", "as_kernel"),
}


def survives(file: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> bool:
    with monkeypatch.context() as patch:
        where = {"branches": test_branches, "parts": branches}.get(file)
        if where is None:
            for user in (conv2d,) if file == "phases" else (branches, parts):
                patch.setattr(user, file, module)
        else:
            for name in _TAKEN[file]:
                patch.setattr(where, name, getattr(module, name))
        for pieces in {passes, module if file == "passes" else passes}:
            patch.setattr(pieces, "PIECE_PIXELS", 8)  # so that there are several
            patch.setattr(pieces, "PIECE_NUMBERS", 8)
        for case in CASES:
            try:
                assert_is_the_reference(case, np.float64, 1e-8)
            except (AssertionError, ValueError):  # or arrays that do not fit together
                return False
    return True


def test_every_planted_bug_is_caught(
    monkeypatch: pytest.MonkeyPatch, record_property: Callable[[str, object], None]
) -> None:
    survivors = [each for each in MUTANTS if survives(each[0], planted(*each), monkeypatch)]
    caught = f"{len(MUTANTS) - len(survivors)} of {len(MUTANTS)}"
    record_property("planted branch bugs caught", caught)
    assert not survivors


def test_without_a_bug_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    for file in ("branches", "parts", "moments", "passes", "phases"):
        assert survives(file, planted(file, "import", "import"), monkeypatch)
