"""`quantize`, `advise`, and `verify` and `golden` of integer networks, as commands."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import numpy as np
import pytest
from repvgg_ref_cli.calibration import parted
from repvgg_ref_cli.commands import quantize
from repvgg_ref_cli.pages import read_page

from repvgg_ref.data.digits import MODEL_PATH
from repvgg_ref.files.integer_onnx import STYLES
from repvgg_ref.integer.observers import METHODS
from repvgg_ref.integer.schemes import ANY, SCHEMES
from tests.cli.formats_page import require_documented
from tests.cli.runner import invoke, save_small


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model in integers."""
    from repvgg_ref.data.digits import load_digits, to_input
    from repvgg_ref.files.checkpoint import load
    from repvgg_ref.files.integer_npz import write_network
    from repvgg_ref.integer.quantize import quantize

    path = tmp_path_factory.mktemp("integers") / "net.npz"
    images = to_input(load_digits().train.images[:64])
    write_network(path, quantize(load(MODEL_PATH), images, rounding="double"))
    return path


def test_quantize_writes_a_network_that_verify_holds_to_its_checkpoint(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "net.npz"
    words = ["--in", MODEL_PATH, "--calibrate", "digits", "--limit", 32, "--out", out]
    shown = invoke(capsys, "quantize", *words, "--json")
    assert shown.code == 0
    found = shown.json()
    require_documented("quantize", [found])
    assert (found["images"], found["same_class"]) == (32, 1.0)
    assert found["sqnr"] > 25
    judged = invoke(capsys, "verify", "--reference", MODEL_PATH, "--candidate", out, "--json")
    assert (judged.code, judged.json()["verdict"]) == (0, "agree")
    require_documented("verify", [judged.json()])
    invoke(capsys, "quantize", *words, "--equalize", "--per-tensor")
    judged = invoke(capsys, "verify", "--reference", MODEL_PATH, "--candidate", out, "--json")
    assert judged.json()["verdict"] == "agree", judged.json()["reason"]
    assert judged.json()["equivalences"], "channels were scaled"


def test_golden_and_verify_of_numbers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, network: Path
) -> None:
    out = tmp_path / "bundle"
    shown = invoke(capsys, "golden", "--reference", network, "--out", out, "--json")
    assert shown.code == 0
    require_documented("golden", [shown.json()])
    agreed = invoke(
        capsys, "verify", "--reference", out, "--candidate", out / "vectors.npz", "--json"
    )
    assert (agreed.code, agreed.json()["mismatches"]) == (0, 0)
    assert "double" in agreed.json()["schemes"]
    require_documented("verify", [agreed.json()])
    with np.load(out / "vectors.npz") as plain:
        numbers = dict(plain)
    numbers["stage1.1"] = numbers["stage1.1"][:, ::-1]
    np.savez(tmp_path / "wrong.npz", **numbers)
    wrong = invoke(capsys, "verify", "--reference", network, "--candidate", tmp_path / "wrong.npz")
    assert wrong.code == 1
    assert "channels-permuted in stage1.1" in wrong.out
    page, junit = tmp_path / "page.html", tmp_path / "junit.xml"
    words = ["--reference", network, "--candidate", tmp_path / "wrong.npz"]
    invoke(capsys, "verify", *words, "--report", page, "--junit", junit)
    assert "channels-permuted" in page.read_text()
    assert "channels-permuted" in junit.read_text()


def test_advise_prints_json_a_table_and_a_page(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["--in", MODEL_PATH, "--calibrate", "digits", "--limit", 16, "--held-out", 24]
    shown = invoke(capsys, "advise", *words, "--json", "--report", tmp_path / "page.html")
    assert shown.code == 0
    found = shown.json()
    require_documented("advise", [found])
    costs = [layer["alone"] for layer in found["layers"]]
    assert costs == sorted(costs)
    assert (found["images"], found["held_out"]) == (16, 24)
    assert found["simulated"]["float"]["top1"] == 1.0
    assert found["simulated"]["float"]["interval"] == [pytest.approx(24 / (24 + 1.96**2), 1e-3), 1]
    assert found["simulated"]["per-channel"]["sqnr"] > found["simulated"]["per-tensor"]["sqnr"]
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == len(found["layers"])
    assert "<script" not in page
    table = invoke(capsys, "advise", *words)
    assert all(layer["name"] in table.out for layer in found["layers"])


@pytest.mark.parametrize(
    ("count", "limit", "held_out", "expected"),
    [
        (1000, 128, 512, (128, 512)),
        (640, 128, 512, (128, 512)),
        (30, 10, 20, (10, 20)),
        (30, 20, 10, (20, 10)),
        (100, 10, 20, (10, 20)),
        (30, 128, 512, (15, 15)),
        (31, 128, 512, (16, 15)),
        (30, 128, 4, (26, 4)),
        (3, 1, 1, (1, 1)),
        (2, 1, 1, (1, 1)),
        (1, 5, 5, (0, 1)),
    ],
)
def test_images_without_parts_are_parted_as_asked(
    count: int, limit: int, held_out: int, expected: tuple[int, int]
) -> None:
    """At most as many as asked for each, no image in both, and none of a far end left out."""
    parts = parted(count, limit, held_out)
    assert tuple(map(len, parts)) == expected
    used = np.concatenate(parts)
    assert len(np.unique(used)) == len(used)
    assert used.max() < count <= used.max() + count / len(used) + 1


def test_advise_says_how_a_file_of_images_is_parted(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    small = save_small(tmp_path / "small.npz", name="plain")
    for count, found, says in (
        (9, (3, 4), "ranges from 3 of them, gains on 4 others"),
        (1, (1, 0), "one image, which serves for ranges and gains"),
    ):
        images = np.random.default_rng(0).normal(size=(count, 3, 16, 16)).astype(np.float32)
        np.save(tmp_path / "images.npy", images)
        words = ["--in", small, "--calibrate", tmp_path / "images.npy", "--json"]
        shown = invoke(capsys, "advise", *words, "--limit", 3, "--held-out", 4)
        assert shown.code == 0, shown.err
        assert (shown.json()["images"], shown.json()["held_out"]) == found
        assert says in shown.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--out", "net.bin"], ".npz or .onnx"),
        (["--out", "net.onnx", "--rounding", "floor"], "round in one way"),
        (["--out", "net.npz", "--calibrate", "nowhere"], "nowhere"),
    ],
)
def test_what_quantize_cannot_do_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ["--in", MODEL_PATH, *([] if "--calibrate" in words else ["--calibrate", "digits"])]
    shown = invoke(capsys, "quantize", *asked, "--limit", 4, *words)
    assert shown.code == 2
    assert says in shown.err
    assert not list(tmp_path.iterdir())


def test_squeeze_and_excitation_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = save_small(tmp_path / "se.pth", "se-before-relu")
    x = tmp_path / "x.npy"
    np.save(x, np.zeros((1, 2, 32, 32), np.float32))
    words = ["--in", source, "--calibrate", x, "--out", tmp_path / "net.npz"]
    assert "squeeze-and-excitation" in invoke(capsys, "quantize", *words).err


def test_the_page_shows_what_the_commands_print(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(MODEL_PATH, tmp_path)
    sessions = re.findall(
        r"^\$ repvgg-ref ((?:quantize|golden) .*)\n((?:.+\n)+?)```",
        read_page("integers").text,
        re.M,
    )
    assert [command.split()[0] for command, _ in sessions] == ["quantize", "golden"]
    for command, shown in sessions:
        done = invoke(capsys, *shlex.split(command))
        # Scales depend on the order of the processor's sums: so do decibels, and who is alike.
        told, wanted = (
            re.sub(r"(alike  on this network).*\n", "", re.sub(r"[\d.]+ dB", "# dB", text))
            for text in (done.out, shown)
        )
        assert (done.code, told) == (0, wanted)


def test_the_choices_are_those_of_the_library() -> None:
    offered = {
        param.name: tuple(param.type.choices)
        for param in quantize.command.params
        if isinstance(param.type, click.Choice)
    }
    assert set(offered["rounding"]) == {*SCHEMES, ANY}
    assert offered["method"] == METHODS
    assert offered["style"] == STYLES
