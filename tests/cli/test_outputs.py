"""No file is called what it is not, and no two outputs go into one file."""

from __future__ import annotations

from pathlib import Path

import pytest

import repvgg_ref as rr
from repvgg_ref.files.convert import FORMATS, convert
from repvgg_ref.files.suffixes import SuffixError
from tests.cli.runner import invoke, save_small

SUFFIXES = {
    "npz": (".npz", ".NPZ"),
    "safetensors": (".safetensors",),
    "pth": (".pth", ".pt", ".ckpt", ".pth.tar"),
    "onnx": (".onnx",),
}
FOREIGN = (".h5", ".tflite", ".npy", ".xml", ".json", ".png", ".zip", ".engine", ".pt2", ".html")
CONTRADICTIONS = [
    (suffix, kind)
    for kind in FORMATS
    for suffix in (*FOREIGN, *(s for k, own in SUFFIXES.items() if k != kind for s in own))
]


@pytest.mark.parametrize(("suffix", "kind"), CONTRADICTIONS)
def test_a_suffix_of_another_format_is_refused_and_nothing_written(
    suffix: str, kind: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = save_small(tmp_path / "a.pth"), tmp_path / f"b{suffix}"
    shown = invoke(capsys, "convert", "--in", source, "--out", out, "--to", kind)
    assert out.name in shown.error_line()
    assert kind in shown.error_line()
    with pytest.raises(SuffixError):
        convert(source, out, to=kind)  # type: ignore[arg-type]  # one of the formats
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]


@pytest.mark.parametrize("kind", ["npz", "safetensors", "pth"])
@pytest.mark.parametrize("own", [True, False])
def test_a_suffix_that_agrees_or_says_nothing_is_taken(
    kind: str, own: bool, tmp_path: Path
) -> None:
    source = save_small(tmp_path / "a.pth")
    for suffix in SUFFIXES[kind] if own else ("", ".weights", ".v2", ".bin"):
        out = tmp_path / f"b{suffix}"
        assert convert(source, out, to=kind).format == kind  # type: ignore[arg-type]  # as above
        assert rr.load(out).form == "deploy"


@pytest.mark.parametrize(
    "arguments",
    [
        ("golden", "--reference", "a.pth", "--out", "b.npz"),
        ("golden", "--reference", "a.pth", "--out", "b.onnx"),
        ("train", "--out", "b.pth", "--epochs", "1"),
        ("train", "--out", "b.npz", "--dry-run"),
        ("shards", "--data", "digits", "--out", "b.tar"),
        ("bench", "--out", "b.svg"),
        ("bench", "--picture", "b.png"),
        ("bench", "--out", "b", "--picture", "b"),
        ("verify", "--reference", "a.pth", "--candidate", "a.pth", "--report", "b.pdf"),
        ("verify", "--reference", "a.pth", "--candidate", "a.pth", "--report", "b.xml"),
        ("verify", "--reference", "a.pth", "--candidate", "a.pth", "--junit", "b.html"),
        ("verify", "--reference", "a.pth", "--candidate", "a.pth", "--junit", "a.pth"),
        ("verify", "--reference", "a.pth", "--candidate", "a.pth", "--report", "b", "--junit", "b"),
    ],
    ids=" ".join,
)
def test_every_command_refuses_such_names(
    arguments: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = save_small(tmp_path / "a.pth").read_bytes()
    assert "--" in invoke(capsys, *arguments).error_line()
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    assert (tmp_path / "a.pth").read_bytes() == before


def test_a_folder_that_is_there_may_have_any_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "run.pt"
    out.mkdir()
    shown = invoke(capsys, "train", "--out", out, "--dry-run", "--json")
    assert (shown.code, shown.err) == (0, "")
