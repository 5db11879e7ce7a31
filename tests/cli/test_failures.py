"""Failures for scripts (JSON) and for people who mistyped something."""

from __future__ import annotations

from pathlib import Path

import pytest
from repvgg_ref_cli import main as program

import repvgg_ref as rr
from repvgg_ref.backends import backend_ops
from repvgg_ref.blocks.selfcheck import SelfCheckError
from repvgg_ref.data.digits import MODEL_PATH
from repvgg_ref.errors import ReportedError, by_kind, did_you_mean
from repvgg_ref.models.registry import network
from tests.cli.runner import invoke, save_small

FIELDS = ["kind", "message", "exit_code", "got", "wanted", "advice"]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ReportedError("no", got=1, wanted=(2,), advice="do"), "input", 2),
        (SelfCheckError("stage1.0: off", got=2, wanted=1), "check-failed", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (PermissionError(13, "Permission denied", "x.npz"), "system", 2),
        (MemoryError(), "memory", 2),
        (ZeroDivisionError("a\nb"), "bug", 2),
    ],
)
def test_json_tells_every_kind_of_failure_beside_the_line(
    error: BaseException,
    kind: str,
    code: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("repvgg_ref.files.inspect.inspect_file", fails)
    shown = invoke(capsys, "inspect", "x", "--json")
    told = shown.json()["error"]
    assert list(told) == FIELDS
    assert (told["kind"], told["exit_code"], shown.code) == (kind, code, code)
    assert shown.err == f"error: {told['message']}\n"
    if kind == "input":
        assert (told["got"], told["wanted"], told["advice"]) == ("1", "(2,)", "do")
        assert told["message"] == "no (got 1 ; wanted (2,) ; do)"


@pytest.mark.parametrize(
    "arguments",
    [
        ["bogus", "--json"],
        ["convert", "--json"],
        ["convert", "--json", "--bogus"],
        ["inspect", "--json", "a", "b"],
        ["verify", "--candidate", "x", "--json"],
        ["demo", "--json"],
    ],
)
def test_wrong_use_is_told_as_json_where_it_was_asked_for(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    shown = invoke(capsys, *arguments)
    shown.error_line()
    assert shown.json()["error"]["kind"] == "usage"


def test_after_two_dashes_it_was_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert invoke(capsys, "inspect", "--", "--json").out == ""


def test_a_report_that_cannot_judge_is_the_only_object(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    reference = save_small(tmp_path / "a.npz")
    shown = invoke(capsys, "verify", "--reference", reference, "--candidate", "nowhere", "--json")
    assert shown.code == 2
    assert shown.json()["verdict"] == "cannot-judge"
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("comvert", "convert"),
        ("verify_op", "verify-op"),
        ("Doctor", "doctor"),
        ("convert --chekpoint x", "--checkpoint"),
        ("convert -i x", "--checkpoint"),
        ("convert x -o y", "--out"),
        ("inspect x --josn", "--json"),
        ("help", "--help"),
        ("version", "--version"),
        ("eval --weights x --data digit", "digits"),
        ("train --weight_decay 1", "--weight-decay"),
        ("predict --weights w --backend numpi x", "numpy"),
        ("convert x --to safetensor", "safetensors"),
        ("convert x --block dbbs", "dbb"),
        ("convert x --block aCb", "acb"),
        ("convert x --model repvgg-b1q2", "RepVGG-B1g2"),
        ("bench --model RepVGGA9", "RepVGG-A"),
        ("bench --model mobileone", "MobileOne-S0"),
        ("bench --against onxruntime", "onnxruntime"),
        ("train --recipe paper120", "paper-120"),
        ("verify-op conv2 --candidate x:y", "conv2d"),
        ("verify-op conv2d --candidate x:y --set strides=2", "stride"),
        ("table --quux", None),
    ],
)
def test_the_nearest_name_is_suggested(
    arguments: str, meant: str | None, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = [str(save_small(tmp_path / "x.npz")) if w == "x" else w for w in arguments.split()]
    line = invoke(capsys, *words).error_line()
    if meant is None:
        assert "did you mean" not in line
    else:
        assert line.count(f"did you mean {meant}") == 1, line
        assert line.count("id you mean") == 1, line  # click's own words are not there, too


def test_python_suggests_as_well() -> None:
    with pytest.raises(ReportedError, match="did you mean RepVGG-B2g4"):
        rr.build("RepVGG-B2-g4x")
    with pytest.raises(ReportedError, match="did you mean ResNet-50"):
        network("resnet51")
    with pytest.raises(ReportedError, match="did you mean reference"):
        backend_ops("referense")


def test_what_resembles_nothing_gets_no_suggestion() -> None:
    assert did_you_mean("xyz", ["convert", "inspect"]) is None
    assert did_you_mean("", ["convert"]) is None
    assert (
        did_you_mean("plus", ["RepVGG-A0", "RepVGGplus-L2pse"]) == "did you mean RepVGGplus-L2pse?"
    )
    assert did_you_mean("vgg", ["RepVGG-A0", "RepVGG-A1"]) is None  # it stands in both


def test_messages_are_of_one_kind_if_only_numbers_and_places_differ() -> None:
    told = [
        ("a", "branch_3x3: 2 of 16 channels"),
        ("b", "branch_1x1: 3 of 24 channels"),
        ("b", "another thing"),
        ("c/1.png", "c/1.png: another thing"),
        ("", "2 of 7 channels"),
    ]
    assert by_kind(told) == [
        ("branch_3x3: 2 of 16 channels", ["a", "b", ""]),
        ("another thing", ["b", "c/1.png"]),
    ]


def test_a_librarys_warning_is_one_note(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import warnings

    from repvgg_ref.files import inspect

    real = inspect.inspect_file

    def warns(*args: object, **kwargs: object) -> object:
        warnings.simplefilter("default")
        warnings.warn("Corrupt\nEXIF data", UserWarning, stacklevel=1)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(inspect, "inspect_file", warns)
    shown = invoke(capsys, "inspect", save_small(tmp_path / "a.npz"), "--json")
    assert (shown.code, shown.err) == (0, "note: Corrupt EXIF data\n")
    assert warnings.showwarning is not program._warned


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["convert", ""], "the name is empty"),
        (["convert", "x", "--out", ""], "the name is empty"),
        (
            ["predict", "--checkpoint", MODEL_PATH, "--classes", ".", MODEL_PATH],
            ".: is a folder (wanted a file)",
        ),
        (["shards", "--check", "nowhere"], "nowhere: no such folder"),
        (["verify-op"], "Choose from: conv2d, conv2d-backward"),
    ],
)
def test_what_newcomers_stumble_over_is_said_plainly(
    arguments: list[object], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in invoke(capsys, *arguments).error_line()


@pytest.mark.parametrize(("command", "called"), [("docs", "NAME"), ("completion", "SHELL")])
def test_the_choices_of_an_argument_are_listed_once(
    command: str, called: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = invoke(capsys, command, "nope").error_line()
    assert f"Invalid value for {called}: 'nope' is not one of" in line
    assert "|" not in line
