"""Files of networks that are no chain: fused, as trained, wrong, of another network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.models.network import Model
from repvgg_ref.oracle.weights.graph_file import is_graph_file, judge_graph_file
from tests.cli.runner import invoke
from tests.models.small import distinct_model

State = dict[str, Any]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State, State]:
    """A ResNet-18's training file, and its arrays in both forms."""
    model = distinct_model(rr.build("ResNet-18", num_classes=3).arch, dtype=np.float32)
    path = tmp_path_factory.mktemp("resnet") / "train.safetensors"
    rr.save(model, path)
    return path, held(model), held(rr.fuse(model))


def held(model: Model) -> State:
    return {name: np.asarray(array) for name, array in model.state_dict().items()}


def test_which_files_are_judged_so(files: tuple[Path, State, State], tmp_path: Path) -> None:
    assert is_graph_file(files[0])
    rr.save(rr.build("RepVGG-A0", num_classes=2), tmp_path / "chain.npz")
    assert not is_graph_file(tmp_path / "chain.npz")
    assert not is_graph_file(tmp_path / "none.npz")


def scaled(key: str) -> Callable[[State], State]:
    return lambda state: state | {key: state[key] * np.float32(1.001)}


@pytest.mark.few(4)
@pytest.mark.parametrize(
    ("form", "change", "verdict", "where"),
    [
        ("deploy", dict, "agree", None),
        ("deploy", lambda s: {k: a.astype(np.float16) for k, a in s.items()}, "agree", None),
        ("train", dict, "agree", None),
        ("deploy", scaled("layer2.0.downsample.0.weight"), "disagree", "layer2.0.downsample.0"),
        ("deploy", scaled("fc.bias"), "disagree", "fc.bias"),
        ("train", scaled("layer1.1.bn2.weight"), "disagree", "layer1.1.bn2.weight"),
        ("deploy", lambda s: s | {"extra": np.ones(2, np.float32)}, "cannot-judge", None),
        ("deploy", lambda s: {f"x.{k}": a for k, a in s.items()}, "cannot-judge", None),
    ],
)
def test_verdicts(
    files: tuple[Path, State, State],
    form: str,
    change: Callable[[State], State],
    verdict: str,
    where: str | None,
    tmp_path: Path,
) -> None:
    path, trained, fused = files
    weights_io.save_weights(
        tmp_path / "c.npz", change(trained if form == "train" else fused), container="npz"
    )
    report = judge_graph_file(path, tmp_path / "c.npz")
    assert (report.verdict, report.first_bad_layer) == (verdict, where), report.reason


def test_the_command_does_so(
    files: tuple[Path, State, State], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    weights_io.save_weights(tmp_path / "c.npz", files[2], container="npz")
    words = ["verify", "--reference", files[0], "--candidate", tmp_path / "c.npz"]
    judged = invoke(capsys, *words, "--json")
    assert (judged.code, judged.json()["verdict"]) == (0, "agree")
    assert len(judged.json()["layers"]) == 20
    assert "--precision cannot be given" in invoke(capsys, *words, "--precision", "fp16").err
