"""23. Outputs without their input.

The "ports": a runner's saved outputs, a folder of layer arrays, without the batch they belong to
(NVIDIA/TensorRT issues 2055 and 3850); the batch saved beside them by `polygraphy run
--save-inputs`; an engine built for one shape, asked for another (NVIDIA/TensorRT issue 1289).

Why no test saw it: compared with outputs for some other batch everything differs, so that the
port is called wrong from the first layer on, by a judge who never saw what it was given.

What says so here: "cannot judge", and what is missing. With the batch the port is judged, and an
engine that takes one shape is answered with the shape that was tried and how to give another.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from repvgg_ref_cli.main import main

from repvgg_ref.arrays import Array
from repvgg_ref.files.checkpoint import save
from tests.museum.reports import images, layers, model

pytest.importorskip("torch")
pytestmark = pytest.mark.peers


def _polygraphy(array: Array) -> dict[str, str]:
    file = io.BytesIO()
    np.save(file, array)
    return {"array": base64.b64encode(file.getvalue()).decode()}


def _saved_outputs(path: Path) -> Path:
    outputs = {name: {"values": _polygraphy(array)} for name, array in layers().items()}
    run = {"outputs": outputs, "runtime": 0.1, "runner_name": "trt"}
    path.write_text(json.dumps({"lst": [["trt", [run]]], "polygraphy_class": "RunResults"}))
    return path


def _verified(capsys: pytest.CaptureFixture[str], folder: Path, *arguments: Any) -> tuple[int, str]:
    save(model(), folder / "trained.npz")
    reference = ["--reference", folder / "trained.npz"]
    code = main([str(a) for a in ("verify", *reference, "--candidate", *arguments)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_nobody_can_know_the_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "layers.npz", **layers())  # type: ignore[arg-type]
    np.save(tmp_path / "logits.npy", layers()["linear"])
    _saved_outputs(tmp_path / "out.json")
    for name in ("layers.npz", "logits.npy", "out.json"):
        code, said = _verified(capsys, tmp_path, tmp_path / name)
        assert code == 2, (name, said)
        assert "--inputs" in said or "input" in said


def test_inputs_saved_beside_them_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs = _saved_outputs(tmp_path / "out.json")
    (tmp_path / "in.json").write_text(json.dumps([{"input": _polygraphy(images())}]))
    code, said = _verified(capsys, tmp_path, outputs, "--inputs", tmp_path / "in.json")
    assert code == 0 or ".npy" in said, said


def test_an_engine_of_one_shape_is_told_how_to_be_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "engine.py").write_text(
        "def run(x):\n"
        "    if x.shape != (1, 3, 224, 224):\n"
        "        raise ValueError('engine: bad binding 0')\n"
        "    return x.mean((2, 3))\n"
    )
    code, said = _verified(capsys, tmp_path, f"{tmp_path / 'engine.py'}:run")
    assert code == 2
    assert "--inputs" in said, said
