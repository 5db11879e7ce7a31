"""Golden bundles: complete, honest about themselves, and never half written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.blocks.block import train_block_forward
from repvgg_ref.errors import MissingExtraError, NotFusibleError, ReportedError
from repvgg_ref.models.network import Model, build, fuse
from repvgg_ref.ops import REFERENCE
from repvgg_ref.oracle.golden import arrays as golden_arrays
from repvgg_ref.oracle.golden import write as golden
from repvgg_ref.oracle.golden.arrays import rounded_up
from repvgg_ref.oracle.golden.folder import FORMAT, atomic_folder, is_golden, sha256
from repvgg_ref.oracle.golden.read import read_golden
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.verification import verify, verify_golden
from tests.models.small import SMALL

PLAIN = distinguishing_model(SMALL["plain"])


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("golden") / "plain"
    write_golden(PLAIN, out)
    return out


def manifest_of(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


def test_the_manifest_says_what_everything_is(bundle: Path) -> None:
    manifest = manifest_of(bundle)
    assert (manifest["format"], manifest["format_version"]) == ("repvgg-ref golden", 1)
    assert (manifest["model"], manifest["form"], manifest["eps"]) == ("custom", "train", 1e-5)
    assert manifest["layout"] == "NCHW"
    assert manifest["layers"] == list(PLAIN.arch.layer_names)
    on_disk = {p.relative_to(bundle).as_posix() for p in bundle.rglob("*") if p.is_file()}
    assert on_disk == {*manifest["files"], "manifest.json"}
    for name, about in manifest["files"].items():
        assert sha256(bundle / name) == about["sha256"]
    assert manifest["mutation"]["score"] == 1.0
    assert manifest["mutation"]["survivors"] == []
    assert set(manifest["mutation"]["matrix"]["mean-ignored"]) <= set("BR.")


def test_outputs_are_those_of_the_reference_in_float64(bundle: Path) -> None:
    with np.load(bundle / "outputs.npz") as outputs:
        want = PLAIN.forward(outputs["input"].astype(np.float64), layers=True)
        for name, y in want.items():
            assert outputs[name].dtype == np.float64
            assert not (np.abs(outputs[name] - y).max() > 1e-12 * np.abs(y).max()), name


def test_a_float32_port_is_within_the_bounds_layer_by_layer(bundle: Path) -> None:
    with np.load(bundle / "outputs.npz") as outputs, np.load(bundle / "bounds.npz") as bounds:
        x = outputs["input"]
        for spec in PLAIN.arch.blocks:
            y, _ = train_block_forward(
                spec, PLAIN.params, x.astype(np.float32), ops=REFERENCE, eps=1e-5, training=False
            )
            error = np.abs(y - outputs[spec.name])
            assert (error <= bounds[f"{spec.name}/fp32"]).all()
            sizes = [bounds[f"{spec.name}/{p}"].mean() for p in ("fp32", "fp16", "bf16")]
            assert 500 * sizes[0] < sizes[1] < sizes[2] / 2
            x = outputs[spec.name]


@pytest.mark.parametrize("value", [1 / 3, 1e-46, 3.5e38, 0.0, np.inf, 2.0])
def test_bounds_are_rounded_up(value: float) -> None:
    up = rounded_up(np.array([value]))
    assert up.dtype == np.float32
    assert float(up[0]) >= value
    assert float(np.nextafter(up, np.float32(-1))[0]) < value or float(up[0]) == value


def test_a_port_is_verified_against_the_bundle_alone(bundle: Path) -> None:
    with np.load(bundle / "outputs.npz") as outputs:
        arrays = {name: outputs[name].astype(np.float32) for name in outputs.files}
    assert verify(bundle, arrays).verdict == "agree"
    wrong = dict(arrays)
    wrong["stage1.1"] = np.maximum(arrays["stage1.1"] - 0.01, 0)
    report = verify(bundle, wrong)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage1.1")
    assert verify(bundle, bundle / "outputs.npz").verdict == "agree"


def test_what_no_weights_file_says_comes_from_the_manifest(tmp_path: Path) -> None:
    model = distinguishing_model(SMALL["dilated"])
    write_golden(model, tmp_path / "b")
    found = read_golden(tmp_path / "b").model
    assert found is not None
    assert found.arch == model.arch
    assert verify(tmp_path / "b", tmp_path / "b" / "outputs.npz").verdict == "agree"


def test_a_deploy_reference_has_vectors_but_no_training_steps(tmp_path: Path) -> None:
    summary = write_golden(fuse(PLAIN), tmp_path / "b")
    assert (summary.form, summary.score) == ("deploy", 1.0)
    with pytest.raises(NotFusibleError, match="train-step"):
        write_golden(fuse(PLAIN), tmp_path / "b", train_step=True)


def test_an_untrained_reference_is_called_weak(tmp_path: Path) -> None:
    summary = write_golden(build(SMALL["plain"]), tmp_path / "b")
    assert summary.score < 0.8
    assert any("running_mean is 0 in 12 of 12" in warning for warning in summary.warnings)
    hidden = {mutant.bug for mutant in summary.matrix.survivors}
    assert {"mean-ignored", "beta-ignored", "stale-statistics", "bias-dropped"} <= hidden
    assert manifest_of(tmp_path / "b")["warnings"] == list(summary.warnings)


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interrupted_run_leaves_the_old_bundle(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b"
    write_golden(PLAIN, out)
    before = manifest_of(out)

    def interrupted(*_: object) -> None:
        raise error

    monkeypatch.setattr(golden, "float32_errors", interrupted)  # the last step before the manifest
    with pytest.raises(error):
        write_golden(PLAIN, out)
    assert manifest_of(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_a_new_bundle_replaces_an_old_one_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "b"
    write_golden(PLAIN, out)
    write_golden(PLAIN, out, inputs=np.ones((1, 3, 20, 24), np.float32))
    assert manifest_of(out)["input"]["shape"] == [1, 3, 20, 24]
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter1.txt").write_text("years of work")
    with pytest.raises(ReportedError, match="exists already"):
        write_golden(PLAIN, other)
    assert (other / "chapter1.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("other", "which"),
    [
        (distinguishing_model(SMALL["plain"], 1), "weights_sha256"),
        (distinguishing_model(SMALL["grouped"]), "architecture"),
        (fuse(PLAIN), "form"),
        (replace(PLAIN, eps=1e-3), "eps"),
        (replace(PLAIN, arch=PLAIN.arch.called("another")), "model"),
    ],
)
def test_a_bundle_of_another_model_is_never_replaced(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, other: Model, which: str
) -> None:
    """Nor is anything computed before that is said."""
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    monkeypatch.delattr(golden, "layer_arrays")
    with pytest.raises(ReportedError, match=f"of another model .got custom, .*another {which}"):
        write_golden(other, bundle)
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


def test_who_is_slower_does_not_replace_another_models_bundle(tmp_path: Path) -> None:
    out = tmp_path / "b"
    theirs = json.dumps({"format": FORMAT, "model": "two"})

    def overtaken() -> None:
        with atomic_folder(out, {"model": "one"}):
            out.mkdir()
            (out / "manifest.json").write_text(theirs)

    with pytest.raises(ReportedError, match="another model"):
        overtaken()
    assert (out / "manifest.json").read_text() == theirs
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("name", ["outputs.npz", "weights.npz"])
def test_a_changed_file_is_noticed(name: str, tmp_path: Path) -> None:
    write_golden(PLAIN, tmp_path / "b")
    path = tmp_path / "b" / name
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ReportedError, match="not the file that was written"):
        read_golden(tmp_path / "b")


def test_a_manifest_cannot_point_outside(tmp_path: Path) -> None:
    write_golden(PLAIN, tmp_path / "b")
    manifest = manifest_of(tmp_path / "b")
    manifest["files"]["../secret"] = {"sha256": "0"}
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ReportedError, match="secret"):
        read_golden(tmp_path / "b")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    write_golden(PLAIN, tmp_path / "b", weights=False)
    with pytest.raises(ReportedError, match="not the weights"):
        read_golden(tmp_path / "b", reference=distinguishing_model(SMALL["plain"], 1))
    with pytest.raises(ReportedError, match="without weights"):
        verify_golden(tmp_path / "b", tmp_path / "b" / "outputs.npz")
    report = verify_golden(tmp_path / "b", tmp_path / "b" / "outputs.npz", reference=PLAIN)
    assert report.verdict == "agree"


def test_without_onnx_its_part_is_left_out_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(package: str) -> None:
        raise MissingExtraError(f"needs {package}")

    monkeypatch.setattr(golden_arrays, "require", missing)
    summary = write_golden(PLAIN, tmp_path / "b")
    assert any(part.startswith("test_data_set_0") for part in summary.skipped)
    assert not (tmp_path / "b" / "test_data_set_0").exists()
    assert is_golden(tmp_path / "b")


def test_large_vectors_are_stored_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(golden_arrays, "_MOST_FLOAT64", 0)
    monkeypatch.setattr(golden_arrays, "_MOST_BOUNDS", 0)
    write_golden(PLAIN, tmp_path / "b")
    manifest = manifest_of(tmp_path / "b")
    assert (manifest["outputs"]["dtype"], manifest["bounds"]["per"]) == ("float32", "channel")
    with np.load(tmp_path / "b" / "outputs.npz") as outputs:
        assert (outputs["stage0"].dtype, outputs["linear"].dtype) == (np.float32, np.float64)
    with np.load(tmp_path / "b" / "bounds.npz") as bounds:
        assert bounds["stage0/fp32"].shape == (4,)


@pytest.mark.parametrize("bad", [np.full((1, 3, 8, 8), np.nan), np.zeros((0, 3, 8, 8))])
def test_inputs_that_say_nothing_are_refused(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(ReportedError, match="finite"):
        write_golden(PLAIN, tmp_path / "b", inputs=bad)
    assert not (tmp_path / "b").exists()
