"""`convert` and `inspect` of an ONNX graph, as commands: what they print, refuse, and write."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import onnx

from tests.cli.formats_page import require_documented
from tests.cli.runner import invoke
from tests.peers.linear_graphs import Graph, X, operators, run, saved

pytestmark = pytest.mark.peers


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A block, and a batch norm before a padded convolution."""
    g = Graph()
    y = g.relu(g.add(g.conv_bn(X, 4, 4), g.conv_bn(X, 4, 4, 1), g.bn(X, 4)))
    return saved(tmp_path / "net.onnx", g.model(4, g.conv(g.bn(y, 4), 4, 6)))


def test_convert_says_what_it_did(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "convert", "--in", path, "--out", tmp_path / "fused.onnx", "--json")
    assert (done.code, done.err) == (0, "")
    said = done.json()
    require_documented("convert", [said])
    assert (said["form"], said["container"], said["format"]) == ("graph", "onnx", "onnx")
    assert (said["convs_before"], said["convs_after"]) == (3, 2)
    assert [each["output"] for each in said["merged"]] == ["Add6"]
    assert len(said["merged"][0]["nodes"]) == 7
    assert [each["node"] for each in said["left"]] == ["n8", "n9"]
    assert "shifted" in said["left"][1]["reason"]
    assert said["self_check"]["ok"]
    assert said["runtime_check"]["ok"]
    result = onnx.load(tmp_path / "fused.onnx")
    assert operators(result) == ["Conv", "Relu", "BatchNormalization", "Conv"]
    x = np.random.default_rng(0).normal(size=(1, 4, 5, 6)).astype(np.float32)
    (want,), (got,) = run(onnx.load(path), x), run(result, x)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_inspect_says_what_convert_would_do(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = invoke(capsys, "inspect", path, "--json").json()
    require_documented("inspect", [seen])
    done = invoke(capsys, "convert", path, "--out", tmp_path / "fused.onnx", "--json").json()
    for what in ("opset", "nodes_before", "nodes_after", "convs_after", "merged", "left", "form"):
        assert seen[what] == done[what], what


def test_people_read_the_same(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "convert", path)
    assert done.code == 0
    assert "Add6: 7 nodes become one convolution, 172 multiply-accumulates" in done.out
    assert "left   n9: its padding of zeros" in done.out
    assert str(tmp_path / "net-deploy.onnx") in done.out
    shown = invoke(capsys, "inspect", path).out
    assert "3, 2 when fused" in shown
    assert "left   n9: its padding of zeros" in shown
    again = invoke(capsys, "convert", tmp_path / "net-deploy.onnx", "--out", tmp_path / "b.onnx")
    assert "no linear part of it becomes one convolution" in again.out
    assert onnx.load(tmp_path / "b.onnx") == onnx.load(tmp_path / "net-deploy.onnx")


@pytest.mark.parametrize(
    "option",
    [
        ("--eps", "1e-3"),
        ("--block", "acb"),
        ("--size", "8"),
        ("--family", "acb"),
        ("--opset", "12"),
    ],
    ids=lambda option: option[0],
)
def test_options_that_a_graph_cannot_hear_are_refused(
    path: Path, option: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "convert", path, *option)
    assert done.code == 2
    assert f"{option[0]} cannot be given here" in done.err


def test_a_graph_is_written_as_a_graph_only(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = invoke(capsys, "convert", path, "--out", tmp_path / "net.npz")
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert "a graph can be written as a graph only" in done.err
    assert not (tmp_path / "net.npz").exists()
