"""`repvgg-ref verify`: verdicts, exit codes, what is written, and ports that misbehave."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import repvgg_ref as rr
from repvgg_ref.data.digits import MODEL_PATH, load_digits, sample_paths, to_input
from repvgg_ref.files.checkpoint import save
from tests.cli.runner import Outcome, environment, invoke, run_python

KEYS = {"verdict", "first_bad_layer", "diagnosis", "precision", "layers"}
LAYER_KEYS = {"name", "max_error", "bound", "ratio", "ok"}
FINDING_KEYS = {"bug", "layer", "estimate", "confidence", "explains"}


def batch(n: int = 2) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return to_input(load_digits().test.images[:n])


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "x.npy"
    np.save(path, batch())
    return path


def dump(folder: Path, **changed: object) -> Path:
    """Every layer's output of the digits model, as a port would dump it."""
    outputs = dict(rr.load(MODEL_PATH).forward(batch(), layers=True)) | changed
    path = folder / "dump.npz"
    np.savez(path, **{name: value for name, value in outputs.items() if value is not None})  # type: ignore[arg-type]
    return path


def verify(capsys: pytest.CaptureFixture[str], candidate: object, *more: object) -> Outcome:
    return invoke(capsys, "verify", "--reference", MODEL_PATH, "--candidate", candidate, *more)


def test_a_right_dump_agrees(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, inputs: Path
) -> None:
    shown = verify(capsys, dump(tmp_path), "--inputs", inputs, "--json")
    assert (shown.code, shown.err) == (0, "")
    found = shown.json()
    assert set(found) >= KEYS
    assert (found["verdict"], found["first_bad_layer"], found["diagnosis"]) == ("agree", None, [])
    assert [layer["name"] for layer in found["layers"]] == list(
        rr.load(MODEL_PATH).arch.layer_names
    )
    for layer in found["layers"]:
        assert set(layer) >= LAYER_KEYS
        assert layer["ok"] is True
        assert layer["max_error"] <= layer["bound"]


def test_a_wrong_weight_file_is_found_and_its_bug_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.npz"
    save(rr.fuse(rr.load(MODEL_PATH, eps=1e-3)), wrong)
    shown = verify(capsys, wrong, "--json")
    assert (shown.code, shown.err) == (1, "")
    found = shown.json()
    assert (found["verdict"], found["first_bad_layer"]) == ("disagree", "stage0")
    assert set(found["diagnosis"][0]) >= FINDING_KEYS
    assert found["diagnosis"][0]["bug"] == "eps-value"
    assert found["diagnosis"][0]["estimate"] == pytest.approx(1e-3, rel=1e-3)
    assert verify(capsys, wrong, "--eps", "1e-3").code == 0


def test_people_see_the_layers_the_bug_and_the_verdict(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wrong = tmp_path / "wrong.npz"
    save(rr.fuse(rr.load(MODEL_PATH, eps=1e-3)), wrong)
    shown = verify(capsys, wrong)
    assert (shown.code, shown.err) == (1, "")
    for said in (
        "stage3.1",
        "BAD",
        "eps-value in every layer",
        "DISAGREES: wrong.npz",
        "-> set eps",
    ):
        assert said in shown.out


def test_the_page_and_the_xml_are_written_and_stdout_stays_json(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, inputs: Path
) -> None:
    page, junit = tmp_path / "r.html", tmp_path / "r.xml"
    page.write_text("an older one")
    wrong = dump(tmp_path, linear=np.full((2, 10), np.nan, np.float32))
    more = ("--inputs", inputs, "--json", "--report", page, "--junit", junit)
    shown = verify(capsys, wrong, *more)
    assert shown.code == 1
    assert shown.json()["first_bad_layer"] == "linear"
    assert shown.err == f"note: wrote {page}\nnote: wrote {junit}\n"
    assert "Disagrees" in page.read_text("utf-8")
    suite = ElementTree.parse(junit).getroot()[0]
    assert (suite.attrib["failures"], suite.attrib["tests"]) == ("2", "10")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dump.npz",
        "r.html",
        "r.xml",
        "x.npy",
    ]


@pytest.mark.parametrize(
    ("candidate", "options", "holds"),
    [
        ("nowhere.npz", [], "verdict"),
        ("nowhere.onnx", [], "verdict"),
        ("nowhere", [], "verdict"),
        ("nowhere.py:run", [], "verdict"),
        ("exec:./nowhere {input} {output}", [], "verdict"),
        (MODEL_PATH, ["--inputs", "nowhere.npy"], "error"),
        (MODEL_PATH, ["--strides", "nowhere=2"], "error"),
        (MODEL_PATH, ["--checkpoint", "nowhere.pth"], "error"),
    ],
)
def test_the_object_on_2_is_the_one_that_the_page_names(
    candidate: object, options: list[object], holds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = verify(capsys, candidate, *options, "--json")
    assert shown.code == 2
    found = json.loads(shown.out)
    assert holds in found
    if holds == "verdict":
        assert found["verdict"] == "cannot-judge"
        assert "nowhere" in found["reason"]


def test_what_cannot_be_judged_is_reported_too_and_is_no_pass(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, inputs: Path
) -> None:
    junit = tmp_path / "r.xml"
    partial = dump(tmp_path, **{"stage2.1": None})
    shown = verify(capsys, partial, "--inputs", inputs, "--json", "--junit", junit)
    assert shown.code == 2
    assert json.loads(shown.out)["verdict"] == "cannot-judge"
    error = shown.err.splitlines()[0 if shown.err.startswith("error") else -1]
    assert error.startswith("error: cannot judge: dump.npz: ")
    assert "stage2.1" in error
    assert ElementTree.parse(junit).getroot()[0].attrib["errors"] == "1"


PORTS = """
import os, sys, time
import numpy as np
def crashes(x): os._exit(9)
def raises(x): raise RuntimeError("boom\\x1b[31m")
def hangs(x): time.sleep(600)
def prints(x): print("noise on stdout"); raise SystemExit(3)
def returns_nothing(x): return None
def returns_words(x): return "logits"
def returns_nan(x): return np.full((len(x), 10), np.nan, np.float32)
def returns_too_few_classes(x): return np.zeros((len(x), 9), np.float32)
def loses_an_image(x): return np.zeros((len(x) - 1, 10), np.float32)
def returns_nothing_named(x): return {}
def returns_zeros(x): return np.zeros((len(x), 10), np.float32)
"""


@pytest.mark.few(4)
@pytest.mark.parametrize(
    "name",
    [
        "crashes",
        "raises",
        "hangs",
        "prints",
        "returns_nothing",
        "returns_words",
        "returns_nan",
        "returns_too_few_classes",
        "loses_an_image",
        "returns_nothing_named",
        "returns_zeros",
        "is_not_there",
    ],
)
def test_a_bad_port_never_passes_and_never_shows_a_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, inputs: Path, name: str
) -> None:
    ports = tmp_path / "ports.py"
    ports.write_text(PORTS)
    more = ("--inputs", inputs, "--timeout", 3 if name == "hangs" else 60, "--json")
    shown = verify(capsys, f"{ports}:{name}", *more)
    assert shown.code in (1, 2)
    found = shown.json()
    assert found["verdict"] == {1: "disagree", 2: "cannot-judge"}[shown.code]
    assert found["reason"]
    assert "Traceback" not in shown.err
    assert shown.err.count("\n") == (shown.code == 2)
    assert shown.err.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--inputs", "missing.npy"), "missing.npy: No such file"),
        (("--inputs", MODEL_PATH), "which array is the batch?"),
        (("--precision", "fp8"), "fp8"),
        (("--timeout", "0"), "timeout"),
        (("--eps", "nan"), "eps"),
        (("--report", "no/such/folder/r.html"), "cannot be written"),
    ],
)
def test_unusable_arguments_are_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: tuple[object, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    wrong = tmp_path / "right.npz"
    save(rr.fuse(rr.load(MODEL_PATH)), wrong)
    assert said in verify(capsys, wrong, *more).error_line()


def test_a_reference_that_is_none_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.pth").write_bytes(b"\x00" * 100)
    for name in ("a.pth", "missing.pth"):
        shown = invoke(capsys, "verify", "--reference", tmp_path / name, "--candidate", MODEL_PATH)
        assert name in shown.error_line()


def test_inputs_are_an_array_an_archive_or_a_picture(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from repvgg_ref_cli.batches import read_batch

    ports = tmp_path / "ports.py"
    ports.write_text(
        f"import repvgg_ref\nmodel = repvgg_ref.load({str(MODEL_PATH)!r})\n"
        "def run(x): return model.forward(x, layers=True)\n"
    )
    x, model = batch(), rr.load(MODEL_PATH)
    np.savez(tmp_path / "one.npz", whatever=x)
    np.savez(tmp_path / "two.npz", input=x, labels=np.zeros(2, np.float32))
    np.savez(tmp_path / "unclear.npz", a=x, b=x)
    np.save(tmp_path / "bytes.npy", np.zeros((1, 1, 32, 32), np.uint8))
    np.save(tmp_path / "colour.npy", np.zeros((1, 3, 32, 32), np.float32))
    for good in ("one.npz", "two.npz"):
        np.testing.assert_array_equal(read_batch(tmp_path / good, model), x)
    assert read_batch(sample_paths()[3], model).shape == (1, *x.shape[1:])
    assert verify(capsys, f"{ports}:run", "--inputs", tmp_path / "one.npz").code == 0
    for bad, said in (
        ("unclear.npz", "which array is the batch?"),
        ("bytes.npy", "not of floating-point numbers"),
        ("colour.npy", "no batch of images for this network"),
    ):
        assert said in verify(capsys, f"{ports}:run", "--inputs", tmp_path / bad).error_line()


def test_a_colour_picture_is_prepared_as_for_validation(tmp_path: Path) -> None:
    from repvgg_ref_cli.batches import read_batch

    Image.new("RGB", (300, 260), (120, 130, 140)).save(tmp_path / "grey.png")
    model = rr.build("RepVGG-A0", seed=0)
    assert read_batch(tmp_path / "grey.png", model).shape == (1, 3, 224, 224)


def test_an_old_report_survives_a_run_that_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "r.html"
    page.write_text("old")
    page.chmod(stat.S_IRUSR | stat.S_IWUSR)
    more = ("--inputs", tmp_path / "missing.npy", "--report", page)
    verify(capsys, MODEL_PATH, *more).error_line()
    assert page.read_text() == "old"


def test_help_is_quick_to_load_and_lists_the_candidates(capsys: pytest.CaptureFixture[str]) -> None:
    program = (
        "import os, sys; os.environ.pop('REPVGG_NUM_THREADS', None); "  # a training may have set it
        "from repvgg_ref_cli.main import main; main(['verify', '--help']); "
        "sys.exit('numpy' in sys.modules)"
    )
    done = run_python("-c", program)
    assert done.returncode == 0
    for said in ("module:callable", "exec:COMMAND", ".onnx", "--junit", "Exit codes: 0 agrees"):
        assert said in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals are a thing of POSIX")
def test_on_a_terminal_the_layers_are_counted(tmp_path: Path, inputs: Path) -> None:
    main_side, terminal = os.openpty()
    arguments = ["--reference", MODEL_PATH, "--candidate", dump(tmp_path), "--inputs", inputs]
    run = subprocess.Popen(
        [sys.executable, "-m", "repvgg_ref_cli", "verify", *map(str, arguments), "--json"],
        env=environment() | {"TERM": "xterm", "LC_ALL": "C.UTF-8", "NO_COLOR": ""},
        stdout=subprocess.PIPE,
        stderr=terminal,
    )
    os.close(terminal)
    seen = b""
    try:
        while part := os.read(main_side, 4096):
            seen += part
    except OSError:
        pass  # how Linux says that the other end is closed
    os.close(main_side)
    out, _ = run.communicate(timeout=60)
    assert json.loads(out)["verdict"] == "agree"
    assert b"running" in seen
    assert b"comparing" in seen
