"""Texts of any length in a file: every command is quick over them, and repeats none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.errors import CheckpointError, ReportedError, by_kind, did_you_mean
from repvgg_ref.files.integer_npz import FORMAT, VERSION, read_network
from repvgg_ref.files.metadata import describe
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.models.about import UNKNOWN, About, Assumed
from repvgg_ref.models.geometry import Geometry
from tests.cli.runner import invoke, small_model

N = 300_000  # what is quadratic in it takes minutes at the least
SECONDS = 3.0  # of this process alone, more than ten times what they take
LINE = 5_000
FIELDS: tuple[str, ...] = (
    "writer",
    "model",
    "form",
    "block",
    "eps",
    "strides",
    "dilations",
    "assumed",
    "classes",
)
FIELDS += ("input_size", "mean", "crop_ratio", "source", "format")
TEXTS = {
    "letters": "a" * N,
    "brackets": "[" * N,
    "digits": "1" * N,
    "hyphens": "a-" * (N // 2),
    "words": " a" * (N // 2),
    "unprintable": "\u202e" * N,
}
NESTED: dict[str, dict[str, Any]] = {
    "a stride's name": {"strides": {"a" * N: 2}},
    "many strides": {"strides": {f"a{i}": 2 for i in range(N // 10)}},
    "many assumed strides": {
        "strides": {f"a{i}": 2 for i in range(N // 10)},
        "assumed": {"strides": [f"b{i}" for i in range(N // 10)]},
    },
    "a dilation": {"dilations": {"stage0": "a" * N}},
    "names of classes": {"classes": ["a" * N] * 3},
    "unprintable classes": {"classes": ["\u202e" * N] * 3},
    "many classes": {"classes": ["c"] * (N // 5)},
    "many means": {"mean": [0.5] * (N // 5)},
}
SAID: dict[str, dict[str, str]] = {
    f"{field}: {kind}": {field: ("repvgg-ref " if field == "writer" else "") + text}
    for field in FIELDS
    for kind, text in TEXTS.items()
}
SAID |= {f"key: {kind}": {text: "1"} for kind, text in TEXTS.items()}
SAID |= {
    case: {name: json.dumps(value) for name, value in table.items()}
    for case, table in NESTED.items()
}


def written(folder: Path, said: dict[str, str], suffix: str = "safetensors") -> Path:
    model = small_model()
    ours = describe(model.arch, model.form, model.eps, UNKNOWN, Assumed())
    path = folder / f"m.{suffix}"
    container: Any = "npz" if suffix == "npz" else "safetensors"
    weights_io.save_weights(path, model.state_dict(), container=container, metadata=ours | said)
    return path


def quick(run: Callable[[], Any]) -> Any:
    """What `run` gives, or the error that it raises, in time."""
    begun = time.process_time()
    try:
        found = run()
    except ReportedError as error:
        found = error
    assert time.process_time() - begun < SECONDS
    return found


@pytest.mark.parametrize("case", SAID)
@pytest.mark.few(12)
def test_a_long_text_in_metadata_is_passed_in_linear_time_and_not_repeated(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, SAID[case])
    found = quick(lambda: rr.load(path))
    if isinstance(found, ReportedError):
        said = [str(found)]
    else:
        said = [repr(found), repr(found.about), *found.notes]
    assert max(map(len, said)) < LINE
    for arguments in (["inspect", path], ["convert", "--in", path, "--out", tmp_path / "o.npz"]):
        shown = quick(partial(invoke, capsys, *arguments))
        assert shown.code in (0, 2)
        assert max(map(len, (shown.out + shown.err).splitlines())) <= LINE + 100


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("case", ["eps: letters", "a stride's name", "unprintable classes"])
def test_the_same_goes_for_what_uses_the_network(
    case: str, suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, SAID[case], suffix)
    for arguments in (
        ["predict", "--weights", path, tmp_path / "no.png"],
        ["eval", "--weights", path, "--data", tmp_path / "none"],
        ["verify", "--reference", path, "--candidate", tmp_path / "none.npz"],
        ["train", "--init", path, "--data", "digits", "--out", tmp_path / "out"],
    ):
        shown = quick(partial(invoke, capsys, *arguments))
        assert len(shown.error_line()) < LINE


def test_an_error_says_the_beginning_of_a_text_and_how_long_it_is() -> None:
    error = ReportedError("w" * N, got="g" * N, wanted=["x" * N], advice="a" * N)
    assert f"{'g' * 1000}... ({N} characters)" in str(error)
    assert len(str(error)) < LINE
    assert len(error.what) == len(str(error.got)) < 1100
    again = ReportedError("x", got=error.got)
    assert again.got == error.got
    assert str(ReportedError("x", got="g" * 1000)) == f"x (got {'g' * 1000})"
    assert len(str(ReportedError("\u202e" * 900))) < 1100


def test_a_caller_s_long_name_is_not_repeated() -> None:
    calls: list[Callable[[], object]] = [
        lambda: rr.build("a" * N),
        lambda: rr.build("RepVGG-A0", block="a" * N),
        lambda: IntegerNetwork((), "a" * N),
        lambda: Geometry({"a" * N: 2}).require_blocks([f"b{i}" for i in range(N)]),
    ]
    for call in calls:
        assert 0 < len(str(quick(call))) < LINE
    with pytest.raises(CheckpointError):
        Geometry({"a" * N: 2}).require_blocks([])


@pytest.mark.parametrize("layers", ["a" * N, "1" * N, "[" * 5_000, [{"name": "a" * N}]])
def test_an_integer_network_of_long_texts_is_refused(layers: Any, tmp_path: Path) -> None:
    said = {"format": FORMAT, "version": VERSION, "layers": layers}
    path = tmp_path / "i.npz"
    weights_io.save_weights(path, {"a": np.zeros(1)}, container="npz", metadata=said)
    found = quick(lambda: read_network(path))
    assert isinstance(found, CheckpointError)
    assert len(str(found)) < LINE


def test_long_names_resemble_nothing_and_many_are_not_all_compared() -> None:
    assert quick(lambda: did_you_mean("a" * N, ["a" * N])) is None
    assert quick(lambda: did_you_mean("abcd", ["a" * N, "abce"])) == "did you mean abce?"
    quick(lambda: did_you_mean("b" * 100, [f"{i}" * 20 for i in range(N)]))


def test_remarks_are_sorted_by_kind_in_linear_time() -> None:
    pairs = [("", f"{'a' * N} 1"), ("", f"{'a' * N} 2"), ("", "b" * N)]
    assert [len(places) for _, places in quick(lambda: by_kind(pairs))] == [2, 1]


def test_what_a_model_says_of_itself_is_short() -> None:
    assert len(repr(replace(small_model(), about=About(classes=("a" * N,) * 3)).about)) < 1100
