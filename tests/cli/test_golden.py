"""`repvgg-ref golden`: the contract's options, what it prints, what it refuses."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.cli.runner import invoke, save_small


def test_json_is_one_object_with_the_score(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = save_small(tmp_path / "a.pth"), tmp_path / "bundle"
    shown = invoke(capsys, "golden", "--reference", source, "--out", out, "--json")
    assert shown.code == 0
    found = shown.json()
    assert list(found) == [
        *("out", "model", "form", "files", "mutation", "train_step", "warnings", "skipped"),
        "assumed",
    ]
    assert found["out"] == str(out)
    assert 0.9 < found["mutation"]["score"] <= 1
    assert set(found["files"]) >= {"manifest.json", "outputs.npz", "bounds.npz", "weights.npz"}
    assert all((out / name).stat().st_size == size for name, size in found["files"].items())


def test_people_are_told_the_score_and_what_hides(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = save_small(tmp_path / "a.pth"), tmp_path / "bundle"
    shown = invoke(capsys, "golden", "--reference", source, "--out", out, "--train-step")
    assert (shown.code, shown.err) == (0, "")
    words = [line.split()[0] for line in shown.out.splitlines() if not line.startswith(" ")]
    left_out = [] if find_spec("onnx") else ["left"]  # the ONNX data set needs the extra
    assert words == ["wrote", "train", "score", "weak", *left_out, "next"]
    assert "hidden: " in shown.out
    for dump in ("train_step.npz", "outputs.npz"):
        judged = invoke(capsys, "verify", "--reference", out, "--candidate", out / dump, "--json")
        assert (judged.code, judged.json()["verdict"]) == (0, "agree")


def test_a_wrong_training_dump_is_named_by_verify(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = save_small(tmp_path / "a.pth"), tmp_path / "bundle"
    invoke(capsys, "golden", "--reference", source, "--out", out, "--train-step")
    with np.load(out / "train_step.npz") as archive:
        # Not the losses of later steps, which would be another port's.
        dump = {n: archive[n] for n in archive.files if n.startswith(("grad/", "logits"))}
        dump["loss"] = archive["loss"]
    dump["loss"] = dump["loss"] * 2
    np.savez(
        tmp_path / "dump.npz", **{n: 2 * a if n[:5] == "grad/" else a for n, a in dump.items()}
    )
    judged = invoke(
        capsys, "verify", "--reference", out, "--candidate", tmp_path / "dump.npz", "--json"
    )
    assert judged.code == 1
    assert judged.json()["diagnosis"][0]["bug"] == "loss-summed"


def test_own_inputs_are_taken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    source, out = save_small(tmp_path / "a.pth"), tmp_path / "bundle"
    x = np.random.default_rng(0).normal(size=(1, 3, 40, 36)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    shown = invoke(
        capsys, "golden", "--reference", source, "--out", out, "--inputs", tmp_path / "x.npy"
    )
    assert shown.code == 0
    with np.load(out / "outputs.npz") as outputs:
        assert np.array_equal(outputs["input"], x)


def test_another_models_bundle_is_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, one = tmp_path / "bundle", save_small(tmp_path / "one.pth")
    assert invoke(capsys, "golden", "--reference", one, "--out", out, "--raw").code == 0
    assert (out / "raw" / "index.txt").is_file()
    before = (out / "manifest.json").read_bytes()
    two = save_small(tmp_path / "two.pth", "grouped")
    refused = invoke(capsys, "golden", "--reference", two, "--out", out)
    assert "holds the golden vectors of another model" in refused.error_line()
    assert (out / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--reference", "nowhere.pth", "--out", "b"], "nowhere.pth"),
        (["--reference", "RepVGG-A0.pth", "--out", "b"], "RepVGG-A0.pth: cannot be opened"),
        (["--reference", "repvgg_a0.npz", "--out", "b"], "repvgg_a0.npz: cannot be opened"),
        (["--reference", "a.pth", "--out", "a.pth"], "exists already"),
        (["--reference", "a.pth", "--out", "b", "--steps", "0"], "--steps"),
        (["--reference", "a.pth"], "--out"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_small(Path("a.pth"))
    assert says in invoke(capsys, "golden", *arguments).error_line()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pth"]


def test_a_bundle_that_is_written_again_keeps_its_raw_numbers(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source, out = save_small(tmp_path / "a.pth"), tmp_path / "bundle"
    invoke(capsys, "golden", "--reference", source, "--out", out, "--raw")
    before = sorted(path.name for path in (out / "raw").iterdir())
    shown = invoke(capsys, "golden", "--reference", source, "--out", out, "--json")
    assert shown.code == 0
    assert "raw/" in shown.err
    assert sorted(path.name for path in (out / "raw").iterdir()) == before
