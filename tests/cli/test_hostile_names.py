"""Names that hold terminal escapes, line breaks or markup: they reach no terminal and no message.

A file's name may hold any byte but NUL and the slash, an array's name any character.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import repvgg_ref as rr
from repvgg_ref.data.source import DataError
from repvgg_ref.errors import ReportedError
from repvgg_ref.oracle.report import VerificationError
from tests.cli.runner import Outcome, invoke, save_small, small_model
from weights_io import WeightsFileError, printable, sanitize, save_weights

ESCAPE, NEXT, TURNED = "\x1b[31m\x1b]0;x\x07", "a\nb\r\x85\u2028c", "\u202e\u2066txt"
NAMES = {"escape": ESCAPE, "lines": NEXT, "turned": TURNED, "markup": "]]>&<b>[red]"}
HOSTILE = ESCAPE + NEXT + TURNED + "]]>\x00\ud800"

pytestmark = pytest.mark.skipif("os.name != 'posix'", reason="such names are POSIX's")


def assert_plain(text: str) -> None:
    assert all(line.isprintable() for line in text.split("\n")), text


def checked(outcome: Outcome, code: int = 0) -> Outcome:
    assert outcome.code == code, outcome
    assert_plain(outcome.out)
    assert_plain(outcome.err)
    return outcome


@pytest.fixture(params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder whose name is hostile; so will its files' be."""
    made = tmp_path / NAMES[request.param]
    made.mkdir()
    return made


ODD = NAMES | {"back": "\\n", "quotes": "'\"", "bytes": "a\udcff", "long": "a" * 200}


@pytest.mark.parametrize("stem", ODD.values(), ids=ODD)
def test_what_to_do_next_can_be_pasted(
    stem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_small(tmp_path / "train.npz")
    out = tmp_path / f"{stem}.npz"
    told = checked(invoke(capsys, "convert", tmp_path / "train.npz", "--out", out)).out
    (load, numpys), *others = re.findall(r"next   python: (.*)\.forward\(x\), or (.*)", told)
    assert others == []
    names = {"repvgg_ref": rr, "numpy": np, "os": os}
    assert eval(load, names).form == "deploy"
    assert eval(numpys, names).files


@pytest.mark.parametrize("kind", [ReportedError, WeightsFileError, DataError, VerificationError])
def test_no_error_of_ours_carries_what_does_not_print(kind: type[ReportedError]) -> None:
    error = kind(HOSTILE, got=HOSTILE, wanted=Path(HOSTILE), advice=HOSTILE)
    assert_plain(str(error))
    for part in (error.what, error.got, error.advice):
        assert_plain(str(part))
    assert r"\x1b[31m" in str(error)
    assert ("\n" in str(error)) == (kind is VerificationError)  # which tells a whole story


def test_what_is_no_text_stays_what_it_is() -> None:
    error = ReportedError("what", got=3, wanted=(1, 2))
    assert (error.got, error.wanted, error.advice) == (3, (1, 2), None)
    assert str(error) == "what (got 3 ; wanted (1, 2))"
    assert printable("süß 日本") == "süß 日本"
    assert sanitize(printable(ESCAPE)) == sanitize(ESCAPE)


def test_convert_and_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = save_small(folder / f"{folder.name}.pth")
    for out in (folder / f"{folder.name}.npz", folder / f"{folder.name}.safetensors"):
        checked(invoke(capsys, "convert", "--in", source, "--out", out))
        checked(invoke(capsys, "inspect", out))
    checked(invoke(capsys, "convert", "--in", folder / "none", "--out", folder / "x.npz"), 2)
    (folder / "text.pth").write_bytes(b"text" + HOSTILE.encode("utf-8", "replace"))
    checked(invoke(capsys, "inspect", folder / "text.pth"), 2)
    told = checked(invoke(capsys, "inspect", "--json", folder / "text.pth"), 2)
    assert json.loads(told.out)["error"]["kind"] == "input"


def test_predict_and_shards(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_small(folder / "model.pth")
    pictures = folder / "data" / folder.name
    pictures.mkdir(parents=True)
    for number in range(2):
        Image.new("RGB", (40, 40), (9, 99, 200)).save(pictures / f"{folder.name}{number}.png")
    (pictures / f"{folder.name}.png").write_bytes(b"no picture")
    picture = pictures / f"{folder.name}0.png"
    checked(invoke(capsys, "predict", "--weights", model, picture))
    names = folder / "names.txt"
    names.write_text("[" * 100_000)
    bad = invoke(capsys, "predict", "--weights", model, "--image", picture, "--class-names", names)
    checked(bad, 2)
    out = folder / f"{folder.name}.out"
    checked(invoke(capsys, "shards", "--data", folder / "data", "--out", out, "--size", "16"))
    checked(invoke(capsys, "shards", "--check", out))
    checked(invoke(capsys, "shards", "--check", folder), 2)


def test_verify_in_every_format(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reference = save_small(folder / "reference.pth")
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    y = small_model().forward(x, layers=True)
    candidate = folder / f"{folder.name}.npz"
    saved = {name: array + (name == "linear") for name, array in y.items()}
    save_weights(candidate, {"input": x, **saved}, container="npz")
    page, xml = folder / f"{folder.name}.html", folder / f"{folder.name}.xml"
    found = invoke(
        capsys, "verify", "--reference", reference, "--candidate", candidate,
        "--report", page, "--junit", xml,
    )  # fmt: skip
    checked(found, 1)
    assert_plain(page.read_text("utf-8").replace("\t", " "))
    suite = ElementTree.fromstring(xml.read_bytes())
    assert all(text.isprintable() for each in suite.iter() for text in each.attrib.values())
    odd = folder / "odd.npz"
    save_weights(odd, {"input": x, "odd\x1b[2J\u202e": x}, container="npz")
    told = checked(
        invoke(capsys, "verify", "--reference", reference, "--candidate", odd, "--json"), 2
    )
    assert_plain(json.loads(told.out)["reason"])


def test_names_of_arrays_in_the_interface(tmp_path: Path) -> None:
    arrays = {f"odd{HOSTILE[:-2]}": np.zeros(3, np.float32)}
    save_weights(tmp_path / "x.npz", arrays, container="npz")
    with pytest.raises(ReportedError) as raised:
        rr.load(tmp_path / "x.npz")
    assert_plain(str(raised.value))
    with pytest.raises(ReportedError) as raised:
        rr.architecture(HOSTILE)
    assert_plain(str(raised.value))
