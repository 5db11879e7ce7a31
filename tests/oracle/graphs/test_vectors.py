"""Golden vectors of PSPNets: what they hold, what they would notice, and ports judged by them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.checkpoint import save
from repvgg_ref.oracle.golden.read import read_golden
from repvgg_ref.oracle.golden.summary import GoldenSummary
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.graphs.vectors import dense_matrix
from repvgg_ref.oracle.verification import verify_golden
from tests.models.segmenters import small_model
from tests.oracle.graphs.ports import FUSED, MODEL, RIGHT, X, hiding, port


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GoldenSummary]:
    out = tmp_path_factory.mktemp("golden") / "bundle"
    return out, write_golden(MODEL, out, raw=True)


def dump(path: Path, outputs: dict[str, Any]) -> Path:
    np.savez(path, input=X, **outputs)
    return path


def test_chosen_weights_hide_no_bug(
    bundle: tuple[Path, GoldenSummary], record_property: Any
) -> None:
    matrix = bundle[1].matrix
    assert matrix.layers == MODEL.arch.layer_names
    assert not matrix.survivors
    assert matrix.killed == matrix.counted > 1500
    record_property(
        "planted bugs noticed by golden vectors, PSPNet", f"{matrix.killed} of {matrix.counted}"
    )
    rows = matrix.rows()
    column = matrix.layers.index
    assert rows["concat-order"][column("ppm")] == "B"
    assert rows["concat-order"][column("cls.0")] == "."
    assert rows["resize-missing"][column("logits")] == "S"
    assert rows["pool-windows"][column("ppm.0.pool")] == "."  # one bin is the whole image


def test_a_reference_that_hides_bugs_is_said_to() -> None:
    """Means of 0 hide that they are ignored; a head whose weights are 0 hides its inputs."""
    params = {
        n: 0 * a if n.startswith("cls.4") or n.endswith("running_mean") else a
        for n, a in MODEL.params.items()
    }
    found = {(m.bug, m.layer) for m in dense_matrix(replace(MODEL, params=params), X).survivors}
    assert ("mean-ignored", "cls.0") in found
    assert ("corners-not-aligned", "logits") in found


def test_exact_outputs_and_who_feeds_whom(bundle: tuple[Path, GoldenSummary]) -> None:
    folder, _ = bundle
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["inputs"]["ppm"] == ["stage4.0", *(f"ppm.{n}.resize" for n in range(4))]
    with np.load(folder / "outputs.npz") as outputs, np.load(folder / "bounds.npz") as bounds:
        wide = rr.load(folder / "weights.npz", dtype=np.float64)
        exact = wide.forward(outputs["input"].astype(np.float64), backend="reference", layers=True)
        for name in manifest["layers"]:
            assert outputs[name].dtype == np.float64
            np.testing.assert_allclose(outputs[name], exact[name], rtol=0, atol=1e-10)
            error = np.abs(RIGHT[name] - outputs[name]).max()
            assert 0 < bounds[f"{name}/fp32"].max() < 1e-3 * np.abs(exact[name]).max()
            assert error < 1e-3 * np.abs(exact[name]).max()


def test_ports_are_judged_by_the_bundle_alone(
    bundle: tuple[Path, GoldenSummary], tmp_path: Path
) -> None:
    folder, _ = bundle
    assert rr.verify(folder, dump(tmp_path / "a.npz", hiding(RIGHT))).verdict == "agree"
    wrong = port({"ppm": lambda xs: np.concatenate([*xs[1:], xs[0]], axis=1)})
    report = rr.verify(folder, dump(tmp_path / "b.npz", hiding(wrong)))
    assert (report.first_bad_layer, report.diagnosis[0].bug) == ("cls.0", "concat-order")
    assert rr.verify(folder, lambda x: FUSED.forward(x, layers=True)).verdict == "agree"


def test_a_bundle_without_weights_takes_the_checkpoint_and_no_other(tmp_path: Path) -> None:
    fast = small_model(dtype=np.float32, fast=True)
    write_golden(fast, tmp_path / "bundle", weights=False)
    assert read_golden(tmp_path / "bundle").model is None
    x = read_golden(tmp_path / "bundle").x
    outputs: dict[str, Any] = fast.forward(x, layers=True)
    np.savez(tmp_path / "a.npz", input=x, **outputs)
    save(fast, tmp_path / "fast.pth")  # which says no dilations: the bundle does
    report = verify_golden(tmp_path / "bundle", tmp_path / "a.npz", reference=tmp_path / "fast.pth")
    assert report.verdict == "agree", report.reason
    with pytest.raises(CheckpointError, match="not the weights"):
        read_golden(tmp_path / "bundle", reference=small_model(dtype=np.float32))


def test_raw_numbers_say_each_layer_and_what_feeds_it(bundle: tuple[Path, GoldenSummary]) -> None:
    lines = (bundle[0] / "raw" / "index.txt").read_text().splitlines()
    at = lines.index("layer ppm concat")
    assert lines[at + 1].split() == ["inputs", "stage4.0", *(f"ppm.{n}.resize" for n in range(4))]
    assert lines[at + 2].startswith("array ppm ")  # no weights, though ppm.0's begin with its name
    assert "layer logits bilinear-aligned 8" in lines
    assert sum(line.startswith("weight ") for line in lines) == 2 * len(MODEL.arch.blocks)
