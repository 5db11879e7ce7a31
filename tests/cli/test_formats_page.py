"""The page `formats` is true: a C program made from its words reads bundles, and every field of
every command's JSON stands in its tables, with its type."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import repvgg_ref_cli.main
from repvgg_ref_cli.pages import read_page

import repvgg_ref
import weights_io
from repvgg_ref.data.digits import MODEL_PATH
from repvgg_ref.files.checkpoint import save
from repvgg_ref.oracle.golden.summary import GoldenSummary
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.operators.reporting import OperatorReport
from repvgg_ref.oracle.power import Power, Seen
from repvgg_ref.oracle.report import Equivalence, Finding, LayerReport, ProbeReport, Report
from tests.cli.formats_page import documented, require_documented
from tests.cli.runner import ROOT, invoke, save_small, small_model
from tests.data.datasets import make_folder

DIGIT = MODEL_PATH.with_name("digit-7-test001.png")
SOURCE = Path(__file__).with_name("golden_reader.c")
BENCHMARKS = ROOT / "tests" / "studies" / "bench" / "results"
# Of ONNX graphs, which tests/peers/test_onnx_graph_command.py has.
OF_GRAPHS = {"runtime_check", "merged", "left"}
OF_GRAPHS |= {f"{what}_{when}" for what in ("nodes", "convs") for when in ("before", "after")}
# In the page, and not in every object: of a finished training (tests/test_platforms.py has one),
# and of files that say more.
SELDOM = {
    "*": {"assumed"},
    "bench": {"claims", "density", "memory"},  # memory: not in figures of 0.1.0
    "convert": {"dtype", "opset", "family", "untouched", "blocks", *OF_GRAPHS},
    "doctor": {"extras"},
    # of pixels: tests/cli/test_segmentation.py has them
    "eval": {"miou", "macc", "allacc", "void", "iou", "classes", "window", "flip", "confusion"}
    | {"same_pixels"},
    "golden": {"kind", "rounding", "layers", "score"},
    "inspect": {"metadata", "family", "untouched", "blocks", "opset", *OF_GRAPHS},
    "train": {"stopped", "trained", "fused", "difference", "largest_difference", "tolerance"}
    | {"files", "seconds", "data", "init"},
    "verify": {"scheme", "schemes", "mismatches", "max_lsb"},
    "verify-op": {"scheme", "schemes", "mismatches", "max_lsb"},
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path_factory.mktemp("reader") / "golden_reader"
    words = ["-O1", "-std=c11", "-Wall", "-Wextra", "-Werror", "-D_DEFAULT_SOURCE"]
    subprocess.run([compiler, *words, "-o", program, SOURCE, "-lm"], check=True)
    return program


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> GoldenSummary:
    """A small grouped network, its training steps included."""
    return write_golden(
        small_model("grouped"),
        tmp_path_factory.mktemp("golden") / "bundle",
        train_step=True,
        steps=1,
    )


@pytest.fixture(scope="module")
def fused() -> repvgg_ref.Model:
    return repvgg_ref.fuse(small_model("grouped"))


def checked(reader: Path, bundle: GoldenSummary, weights: Path) -> tuple[int, dict[str, float]]:
    done = subprocess.run(
        [reader, "check", bundle.out, weights], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    lines = (line.split() for line in done.stdout.splitlines())
    return done.returncode, {layer: float(ratio) for layer, ratio in lines}


def test_a_reader_in_c_finds_every_layer_within_its_bound(
    reader: Path, bundle: GoldenSummary, fused: repvgg_ref.Model, tmp_path: Path
) -> None:
    save(fused, tmp_path / "fused.npz")
    code, ratios = checked(reader, bundle, tmp_path / "fused.npz")
    assert code == 0
    assert list(ratios) == list(fused.arch.layer_names)
    assert all(0 < ratio < 0.5 for ratio in ratios.values())


@pytest.mark.parametrize("wrong", [1.001, np.nan])
def test_a_reader_in_c_finds_the_wrong_layer(
    wrong: float, reader: Path, bundle: GoldenSummary, fused: repvgg_ref.Model, tmp_path: Path
) -> None:
    weights = fused.state_dict()
    name = next(name for name in weights if name.startswith("stage2.") and "weight" in name)
    weights[name] = weights[name].copy()
    weights[name][..., 1, 1] *= wrong
    weights_io.save_weights(tmp_path / "wrong.npz", weights, container="npz")
    code, ratios = checked(reader, bundle, tmp_path / "wrong.npz")
    assert code == 1
    layer = name.removesuffix(".rbr_reparam.weight")
    assert [each for each, ratio in ratios.items() if not ratio <= 1] == [layer]


def test_raw_numbers_with_a_manifest_from_c_are_judged(
    reader: Path, fused: repvgg_ref.Model, tmp_path: Path
) -> None:
    save(fused, tmp_path / "fused.npz")
    x = np.random.default_rng(0).standard_normal((2, fused.arch.in_channels, 16, 12))
    x = x.astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    words = [str(reader), "run", "fused.npz", "x.npy", "out"]
    subprocess.run(words, cwd=tmp_path, check=True)
    report = repvgg_ref.verify(small_model("grouped"), tmp_path / "out", inputs=x)
    assert report.verdict == "agree", report.reason
    assert len(report.layers) == len(fused.arch.layer_names)


def test_the_bundle_holds_what_the_page_says(bundle: GoldenSummary) -> None:
    page = read_page("formats").text
    manifest = json.loads((bundle.out / "manifest.json").read_text(encoding="utf-8"))
    table = page.split("`manifest.json`:")[1].split("`train_step.npz`")[0]
    listed = {name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row[:60])}
    assert set(manifest) <= listed
    block = next(line for line in table.splitlines() if "architecture.blocks[]" in line)
    assert set(manifest["architecture"]["blocks"][0]) <= set(re.findall(r"`(\w+)`", block))
    with np.load(bundle.out / "train_step.npz") as arrays:
        kinds = {name.partition("/")[0] for name in arrays.files}
    described = json.loads((bundle.out / "train_step.json").read_text(encoding="utf-8"))
    words = page.split("`train_step.npz`: ")[1].split("## JSON of every command")[0]
    assert all(f"`{name}" in words for name in kinds | set(described))


def test_a_tensor_proto_is_what_the_page_says(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    raw = bytes([8, 2, 8, 3, 16, 1, 66, 6]) + b"linear" + bytes([74, 24]) + array.tobytes()
    tensor = onnx.TensorProto()
    tensor.ParseFromString(raw)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor), array)
    assert onnx.numpy_helper.from_array(array, "linear").SerializeToString() == raw


# --- JSON of every command ---------------------------------------------------------------------


def said_of_verdicts() -> tuple[dict[str, Any], dict[str, Any]]:
    finding = Finding("eps-value", "all", 1e-3, 1.0, 0.9, "says", "advice", 1e-6, ("other",))
    taps = Finding("unknown", "stage0", None, 0.5, float("nan"), taps={"channels": []})
    layer = LayerReport("stage0", 1.0, 2.0, 0.5, ok=True, detects={"channel bias": 1e-6})
    power = Power(1.0, 2.0, 3.0, (Seen("eps-value", 2, 1, 0.5, ("stage0",)),), {"a": 1}, {"b": 1})
    given: dict[str, Any] = {
        "verdict": "disagree",
        "reason": "r",
        "model": "m",
        "candidate": "c",
        "precision": "fp32",
        "layers": (layer, LayerReport.incomparable("linear", "another shape")),
        "diagnosis": (finding, taps),
        "first_bad_layer": "stage0",
        "notes": ("n",),
        "equivalences": (Equivalence("stage0", "scaling", "s"),),
        "probes": (ProbeReport("a square image", None),),
        "power": power,
    }
    operator = OperatorReport(
        **given,
        calls=("c",),
        exact=True,
        tests={"y": {"bias": 0.1, "variance": 0.1}},
        detectable={"y": 1e-6},
    )
    return Report(**given).to_json(), operator.to_json()


def objects(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> list[Any]:
    """What the command prints, in all its ways."""
    out, trained = tmp_path / "out", save_small(tmp_path / "trained.pth")
    make_folder(tmp_path / "data", each=2)
    (tmp_path / "data" / "broken.png").write_bytes(b"no picture")
    if command == "bench":  # and one of now in test_bench.py
        return [json.loads(path.read_text()) for path in sorted(BENCHMARKS.glob("*.json"))]
    digits = ("--in", MODEL_PATH, "--calibrate", DIGIT)
    ways: dict[str, list[tuple[object, ...]]] = {
        "convert": [("convert", "--in", trained, "--out", tmp_path / "d.npz")],
        "inspect": [("inspect", trained)],
        "table": [("table",), ("table", "--blocks")],
        "predict": [("predict", "--weights", MODEL_PATH, DIGIT)],
        "eval": [("eval", "--weights", MODEL_PATH, "--data", "digits", "--form", "both")],
        "shards": [("shards", "--data", tmp_path / "data", "--out", out, "--size", 8)],
        "train": [("train", "--dry-run", "--out", out)],
        "doctor": [("doctor",)],
        "docs": [("docs",), ("docs", "formats")],
        "quantize": [("quantize", *digits, "--out", tmp_path / "net.npz")],
        "advise": [("advise", *digits)],
    }
    return [invoke(capsys, *way, "--json").json() for way in ways[command]]


COMMANDS = [name for name in repvgg_ref_cli.main.COMMANDS if name not in ("demo", "completion")]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_field_of_a_commands_json_is_in_its_table(
    command: str,
    bundle: GoldenSummary,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if command in ("verify", "verify-op"):
        found = [said_of_verdicts()[command == "verify-op"]]
    elif command == "golden":
        found = [json.loads(json.dumps(bundle.to_json()))]
    else:
        found = objects(command, tmp_path, capsys)
    seen = require_documented(command, found)
    stale = {name for name in set(documented(command)) - seen if "." not in name}
    assert stale <= SELDOM["*"] | SELDOM.get(command, set())


def test_every_command_with_json_has_its_table() -> None:
    assert all(documented(command) for command in COMMANDS)
