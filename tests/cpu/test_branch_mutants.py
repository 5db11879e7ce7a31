"""The tests of the three-branch block are tested: bugs planted in its sources must be caught."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from repvgg_ref.cpu.convolution import conv2d
from repvgg_ref.cpu.training import branches, passes
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
]

MUTANTS = [  # file, the line as it is, the line with a bug
    ("branches", "branch.gamma * stats[name].inv_std for", "stats[name].inv_std for"),
    ("branches", "- factors[name] * means[name] for", "+ factors[name] * means[name] for"),
    ("branches", "(of_x.about_mean @ matrix)", "(of_x.about_mean @ abs(matrix))"),
    ("branches", "sums.total / grid.pixels - slope", "sums.total - slope"),
    ("branches", "factor * inv_std**2 * sums.with_y3", "inv_std**2 * sums.with_y3"),
    ("branches", "factor * inv_std**2 * sums.with_y3", "factor * inv_std * sums.with_y3"),
    ("branches", "- slope * cache.of_y3.mean", ""),
    ("branches", "inv_std * with_z, sums", "with_z, sums"),
    ("branches", "_by_group(inv_std**2 * with_z / pixels", "_by_group(inv_std**2 * with_z"),
    ("branches", "(with_x - spread @ (matrix * slope)) * factor", "with_x * factor"),
    ("branches", "(factor * slope)) @ matrix.swap", "factor) @ matrix.swap"),
    ("branches", "mean_x @ from_x - mean_g @ from_g", "mean_x @ from_x"),
    ("branches", "mean_x @ from_x - mean_g @ from_g", "-mean_g @ from_g"),
    ("branches", "centre[:, kernel**2 // 2] = matrix", "centre[:, 0] = matrix"),
    ("branches", "taps[:, window.kernel**2 // 2 :]", "taps[:, 1:]"),
    ("branches", "np.sqrt(var + float(eps))", "(np.sqrt(var) + 100 * float(eps))"),
    ("passes", "+ sizes @ apart**2", ""),
    ("passes", "dtype=np.float64) + between", "dtype=np.float64)"),
    ("passes", "rows += bias\n            if relu", "if relu"),
    ("passes", "if relu:", "if True:"),
    ("passes", "grid.of(y, piece) != 0", "grid.of(y, piece) > 0.1"),
    ("passes", "centred *= under", "centred *= abs(under)"),
    ("passes", "with_x[item] += product", "with_x[item] = product"),
    ("passes", "products[item] += product", "products[item] = product"),
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


def survives(file: str, module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> bool:
    with monkeypatch.context() as patch:
        if file == "branches":
            for name in ("branches_forward", "branches_backward", "branches_parameter_grads"):
                patch.setattr(test_branches, name, getattr(module, name))
        else:
            patch.setattr(conv2d if file == "phases" else branches, file, module)
        pieces = module if file == "passes" else passes
        patch.setattr(pieces, "PIECE_PIXELS", 8)  # so that there are several
        patch.setattr(pieces, "PIECE_NUMBERS", 8)
        for case in CASES:
            try:
                assert_is_the_reference(case, np.float64, 1e-8)
            except AssertionError:
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
    for file in ("branches", "passes", "phases"):
        assert survives(file, planted(file, "import", "import"), monkeypatch)
