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
from repvgg_ref.oracle.families.graph_file import judge_graph_file
from repvgg_ref.oracle.families.kind import kind_of
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
    assert kind_of(files[0]) == "network"
    rr.save(rr.build("RepVGG-A0", num_classes=2), tmp_path / "chain.npz")
    assert kind_of(tmp_path / "chain.npz") == "other"
    assert kind_of(tmp_path / "none.npz") == "other"


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


ORDER = np.random.default_rng(3).permutation(64)
FACTOR = np.exp2(np.random.default_rng(4).uniform(-1, 1, 64)).astype(np.float32)


def written(state: State, layer: str, order: Any, factor: Any) -> None:
    """The outputs of a layer in another order and scale."""
    weight, bias = state[f"{layer}.weight"], state[f"{layer}.bias"]
    state[f"{layer}.weight"] = (weight[order] * factor[:, None, None, None]).astype(np.float32)
    state[f"{layer}.bias"] = (bias[order] * factor).astype(np.float32)


def read(state: State, layer: str, order: Any, factor: Any) -> None:
    weight = state[f"{layer}.weight"][:, order]
    factor = factor.reshape(1, -1, *(1,) * (weight.ndim - 2))
    state[f"{layer}.weight"] = (weight / factor).astype(np.float32)


def changed(state: State, order: Any, factor: Any, writers: str, readers: str) -> State:
    """A network whose channels differ between `writers` and `readers`, all in layer1."""
    state = dict(state)
    for layer in writers.split():
        written(state, layer, order, factor)
    for layer in readers.split():
        read(state, layer, order, factor)
    return state


HIDDEN = ("layer1.1.conv1", "layer1.1.conv2")
STREAM = ("conv1 layer1.0.conv2 layer1.1.conv2", "layer1.0.conv1 layer1.1.conv1 layer2.0.conv1")
ONE = np.ones(64, np.float32)


@pytest.mark.few(1)
@pytest.mark.parametrize("kind", ["permutation", "scaling"])
def test_channels_inside_a_residual_block_may_come_otherwise(
    files: tuple[Path, State, State], kind: str, tmp_path: Path
) -> None:
    """As long as the next convolution takes that back; a wrong tap is still seen in it."""
    order, factor = (ORDER, ONE) if kind == "permutation" else (np.arange(64), FACTOR)
    equal = changed(files[2], order, factor, *HIDDEN)
    x = np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32)
    for wrong in (False, True):
        if wrong:
            equal["layer1.1.conv2.weight"][3, 5, 1, 1] *= np.float32(1.001)
        weights_io.save_weights(tmp_path / "c.npz", equal, container="npz")
        report = judge_graph_file(files[0], tmp_path / "c.npz")
        assert [(e.layer, e.kind) for e in report.equivalences] == [("layer1.1.conv1", kind)]
        if wrong:
            assert (report.verdict, report.first_bad_layer) == ("disagree", "layer1.1.conv2")
            assert [f.bug for f in report.diagnosis] == ["taps-altered"]
        else:
            assert report.verdict == "agree", report.reason
            y, ours = (rr.load(path).forward(x) for path in (tmp_path / "c.npz", files[0]))
            np.testing.assert_allclose(y, ours, rtol=0, atol=1e-4 * np.abs(ours).max())


@pytest.mark.few(1)
@pytest.mark.parametrize("how", [(ORDER, ONE), (np.arange(64), FACTOR)], ids=["order", "scale"])
def test_of_a_stream_in_another_order_nothing_is_called_wrong(
    files: tuple[Path, State, State], how: tuple[Any, Any], tmp_path: Path
) -> None:
    """Unless a layer that reads it does not take it so."""
    writers, readers = STREAM
    for last in ("layer2.0.downsample.0", ""):
        state = changed(files[2], *how, writers, f"{readers} {last}")
        weights_io.save_weights(tmp_path / "c.npz", state, container="npz")
        report = judge_graph_file(files[0], tmp_path / "c.npz")
        assert (report.verdict, report.first_bad_layer) == (
            ("cannot-judge", None) if last else ("disagree", "conv1")
        ), report.reason
    assert "none that rounding explains" in report.reason


def test_an_order_that_the_next_layer_does_not_take_is_named(
    files: tuple[Path, State, State], tmp_path: Path
) -> None:
    state = changed(files[2], ORDER, ONE, HIDDEN[0], "")
    weights_io.save_weights(tmp_path / "c.npz", state, container="npz")
    report = judge_graph_file(files[0], tmp_path / "c.npz")
    assert report.verdict == "disagree"
    assert [(f.bug, f.layer) for f in report.diagnosis] == [("channels-permuted", HIDDEN[0])]


def test_another_eps_in_all_layers_is_one_finding(
    files: tuple[Path, State, State], tmp_path: Path
) -> None:
    rr.save(rr.fuse(rr.load(files[0], eps=1e-3)), tmp_path / "c.npz")
    report = judge_graph_file(files[0], tmp_path / "c.npz", eps=1e-5)
    (found,) = report.diagnosis
    assert (found.bug, found.layer, found.estimate) == ("eps-value", "all", 1e-3)
    assert report.first_bad_layer == "conv1"
