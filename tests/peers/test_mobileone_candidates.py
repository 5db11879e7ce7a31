"""A small MobileOne with gates, held against every kind of candidate, right and wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.files.onnx import write_onnx
from repvgg_ref.models.mobileone import mobileone
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import golden_inputs

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.peers

BROKEN = "stage3.3"  # a pointwise block with a gate


@cache
def trained() -> Model:
    arch = mobileone(
        "MobileOne",
        widths=(0.1, 0.1, 0.15, 0.1),
        copies=2,
        gates=(0, 0, 1, 1),
        depths=(1, 1, 2, 1),
        num_classes=5,
    )
    return distinguishing_model(arch, seed=3)


@cache
def broken() -> Model:
    """Without one of the two copies of a block's convolution."""
    model = trained()
    params = dict(model.params)
    for field in ("gamma", "beta"):
        name = f"{BROKEN}.branch_kxk.1.bn.{field}"
        params[name] = 0 * params[name]
    return replace(model, params=params)


@cache
def pictures() -> Any:
    return np.asarray(golden_inputs(trained().arch, seed=3), np.float32)


def fused(model: Model) -> Any:
    deploy = rr.fuse(model)
    return {name: np.asarray(a, np.float32) for name, a in deploy.state_dict().items()}


def weights(suffix: str) -> Callable[[Model, Path], Any]:
    def write(model: Model, folder: Path) -> Any:
        path = folder / f"port.{suffix}"
        container = {"pth": "torch-zip"}.get(suffix, suffix)
        weights_io.save_weights(path, fused(model), container=container)  # type: ignore[arg-type]
        return path

    return write


def onnx(model: Model, folder: Path) -> Any:
    deploy = rr.fuse(model)
    write_onnx(folder / "port.onnx", model.arch, deploy.params, metadata={})
    return folder / "port.onnx"


def outputs(model: Model) -> dict[str, Any]:
    found = model.forward(pictures(), layers=True)
    return {name: np.asarray(y, np.float32) for name, y in found.items()}


def dump(model: Model, folder: Path) -> Any:
    np.savez(folder / "port.npz", input=pictures(), **outputs(model))
    return folder / "port.npz"


def arrays(model: Model, folder: Path) -> Any:
    for name, y in ({"input": pictures()} | outputs(model)).items():
        np.save(folder / f"{name}.npy", y)
    return folder


def layers(model: Model, folder: Path) -> Any:
    return lambda x: {
        n: np.asarray(y, np.float32) for n, y in model.forward(x, layers=True).items()
    }


def logits(model: Model, folder: Path) -> Any:
    return lambda x: np.asarray(model.forward(x), np.float32)


CANDIDATES = {
    "onnx": onnx,
    "npz": weights("npz"),
    "pth": weights("pth"),
    "safetensors": weights("safetensors"),
    "dump": dump,
    "callable": layers,
    "folder": arrays,
    "logits alone": logits,
}


SLOW = [pytest.param(k, marks=pytest.mark.slow) if k == "logits alone" else k for k in CANDIDATES]


@pytest.mark.few(4)
@pytest.mark.parametrize("kind", SLOW)
def test_a_right_port_agrees_and_one_without_a_copy_is_named(kind: str, tmp_path: Path) -> None:
    for each, name in ((trained(), "right"), (broken(), "wrong")):
        folder = tmp_path / name
        folder.mkdir()
        report = rr.verify(trained(), CANDIDATES[kind](each, folder))
        if name == "right":
            assert report.verdict == "agree", report.reason
            continue
        assert report.verdict == "disagree"
        found = report.diagnosis[0]
        assert (found.bug, found.layer) == ("branch-missing", BROKEN), report.diagnosis
        assert report.first_bad_layer in (BROKEN, "linear")


def test_golden_vectors_of_it_judge_ports(tmp_path: Path) -> None:
    summary = write_golden(trained(), tmp_path / "golden", inputs=pictures())
    assert summary.matrix.survivors == ()
    port = dump(trained(), tmp_path)
    assert rr.verify(tmp_path / "golden", port).verdict == "agree"
    report = rr.verify(tmp_path / "golden", dump(broken(), tmp_path))
    assert (report.verdict, report.first_bad_layer) == ("disagree", BROKEN)
