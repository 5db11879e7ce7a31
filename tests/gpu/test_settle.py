"""The command that settles everything on a GPU, rehearsed: all runs, and nothing stops the rest."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.gpu import emulator
from tests.studies.gpu.settle.__main__ import main, sections
from tests.studies.gpu.settle.profile import CLASSES, kernel_class
from tests.studies.gpu.settle.sections import Found, OutOfTimeError, Section, run_sections
from tests.studies.gpu.settle.sizes import REAL, REHEARSAL

needs_compiler = pytest.mark.skipif(
    emulator.why_missing() is not None, reason=str(emulator.why_missing())
)
# "tests" starts a pytest of its own, and has a test of its own.
REHEARSED = [section.name for section in sections(REHEARSAL) if section.name != "tests"]


def rehearse(out: Path, *names: str) -> Any:
    only = [word for name in names for word in ("--only", name)]
    done = CliRunner().invoke(main, ["--rehearse", "--out", str(out), *only])
    assert done.exit_code == 0, done.output
    return json.loads(out.read_text(encoding="utf-8"))


@pytest.mark.slow
@needs_compiler
def test_every_section_runs_on_the_fake_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for peer in ("gpu_torch", "gpu_tensorrt"):  # their rehearsal stands in tests/peers
        monkeypatch.setitem(sys.modules, f"tests.peers.{peer}", None)
    told = rehearse(tmp_path / "result.json", *REHEARSED)
    found = told["sections"]
    assert told["ok"]
    assert list(found) == REHEARSED
    assert found["machine"]["device"]["name"] == "Fake device on NumPy"
    verdicts = {
        each["verdict"] for each in found["oracle-inference"].values() if type(each) is dict
    }
    assert verdicts == {"agree"}
    raced = found["inference"]["plain x 2"]
    assert raced["contenders"]["repvgg-ref fp16"]["images_per_s"] > 0
    assert raced["contenders"]["repvgg-ref bf16"]["times_ours"]["median"] > 0
    assert raced["largest_difference"]["repvgg-ref bf16"] < 0.05
    assert "tests.peers.gpu_torch" in raced["left_out"]
    assert raced["path"]["cupy-fp16"] == {"graphs": [True], "cudnn": True, "without_plan": []}
    assert found["training"]["plain x 2"]["contenders"]["repvgg-ref bf16"]["ms"] > 0
    operators = found["profile"]["operators_ms"]
    blocks = {"block forward", "block backward", "block parameter grads"}
    assert blocks | {"global_avg_pool_forward", "linear_backward"} <= set(operators)
    assert "conv2d_forward" not in operators  # no block was composed
    assert all(milliseconds > 0 for milliseconds in operators.values())
    assert found["learning"]["steps"] > 0


@pytest.mark.slow
def test_the_tests_section_reports_what_pytest_says(tmp_path: Path) -> None:
    told = rehearse(tmp_path / "result.json", "tests")
    assert "tests collected" in told["sections"]["tests"]["summary"]


def test_all_fifteen_architectures_are_judged() -> None:
    assert len(REAL.judged) == 15
    assert [s.name for s in sections(REAL)] == [s.name for s in sections(REHEARSAL)]


def test_a_section_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    def fails(found: Found) -> None:
        found["until_then"] = 1
        raise ValueError("broken")

    def lasts(found: Found) -> None:
        time.sleep(5)

    def works(found: Found) -> None:
        found["answer"] = 42

    told: list[str] = []
    out = tmp_path / "deeper" / "result.json"
    three = [Section("a", 1, fails), Section("b", 0.05, lasts), Section("c", 1, works)]
    result = run_sections(three, out=out, seconds=60, tell=told.append)
    assert result == json.loads(out.read_text(encoding="utf-8"))
    assert not result["ok"]
    assert result["sections"]["a"]["until_then"] == 1
    assert result["sections"]["a"]["error"] == "ValueError: broken"
    assert result["sections"]["b"]["error"].startswith(OutOfTimeError.__name__)
    assert result["sections"]["c"]["answer"] == 42
    assert [line.split(":")[0] for line in told] == ["a", "b", "c"]
    late = run_sections(three[2:], out=out, seconds=0, tell=told.append)
    assert late["sections"]["c"]["error"] == "not run: no time left"


def test_without_a_gpu_it_says_so_and_exits_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    from repvgg_ref.errors import BackendError

    # The loaded module: after a fake device has come and gone, the package's attribute is another.
    gpu = importlib.import_module("repvgg_ref.gpu")

    def none() -> None:
        raise BackendError("no NVIDIA driver is loaded")

    monkeypatch.setattr(gpu, "require_device", none)
    done = CliRunner().invoke(main, [])
    assert done.exit_code == 2
    assert "no NVIDIA driver is loaded" in done.output


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("branches_forward", "branches"),
        ("merge_moments", "branches"),
        ("sm90_xmma_fprop_implicit_gemm_bf16bf16", "convolution"),
        ("void cudnn::engines_precompiled::nchwToNhwcKernel", "convolution"),
        ("nvjet_hsh_128x256_64x4", "matrix product"),
        ("cupy_copy__float32_bfloat16", "element-wise"),
        ("Memcpy HtoD (Pinned -> Device)", "copies"),
        ("something new", "other"),
    ],
)
def test_kernels_are_sorted_into_classes(kernel: str, kind: str) -> None:
    assert kernel_class(kernel) == kind
    assert kind in (*CLASSES, "other")
