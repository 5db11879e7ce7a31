"""Raw golden vectors: read by a C program that shares nothing with us, and by our own oracle."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.models.network import fuse
from repvgg_ref.oracle.golden import arrays as golden_arrays
from repvgg_ref.oracle.golden.write import write_golden
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.verification import verify
from tests.models.small import SMALL

MODELS = {name: distinguishing_model(SMALL[name]) for name in ("grouped", "dilated", "plus")}


def written(out: Path, name: str) -> Path:
    model = MODELS[name]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, model.arch.in_channels, 18, 14)).astype(np.float32)
    write_golden(model, out, inputs=x, raw=True)
    return out


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("raw") / "grouped", "grouped")


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    program = tmp_path_factory.mktemp("c") / "reader"
    source = Path(__file__).with_name("raw_reader.c")
    flags = ["-std=c99", "-Wall", "-Werror", "-O1", "-ffp-contract=off"]
    subprocess.run([compiler, *flags, source, "-o", program, "-lm"], check=True, timeout=60)
    return program


def judged(program: Path, *arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout


def test_a_c_port_reads_them_and_is_within_the_bounds(bundle: Path, reader: Path) -> None:
    with np.load(bundle / "outputs.npz") as outputs:
        count = sum(outputs[name].size for name in outputs.files if name != "input")
    assert judged(reader, bundle / "raw") == (
        0,
        f"0 of {count} outputs are outside their bounds\n",
    )


@pytest.mark.parametrize("bug", ["padding", "tap"])
def test_a_wrong_c_port_is_outside_them(bundle: Path, reader: Path, bug: str) -> None:
    code, said = judged(reader, bundle / "raw", bug)
    assert code == 1
    assert int(said.split()[0]) > 0


def test_a_damaged_folder_is_no_success(bundle: Path, reader: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(bundle / "raw", raw)
    (raw / "stage0.bin").write_bytes((raw / "stage0.bin").read_bytes()[:-1])
    assert judged(reader, raw)[0] == 2
    assert judged(reader, tmp_path / "nowhere")[0] == 1


def test_dilation_and_channel_bounds_reach_a_c_port(
    reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden_arrays, "_MOST_BOUNDS", 0)
    raw = written(tmp_path / "b", "dilated") / "raw"
    (line,) = (t for t in (raw / "index.txt").read_text().splitlines() if "stage0/fp32" in t)
    assert line == "bound stage0/fp32 float32 1 4 bounds/stage0.fp32.bin"
    assert judged(reader, raw)[0] == 0


def test_files_hold_exactly_what_the_archives_hold(bundle: Path) -> None:
    raw = bundle / "raw"
    manifest: dict[str, Any] = json.loads((raw / "manifest.json").read_text())
    tables = {"arrays": "outputs.npz", "bounds": "bounds.npz"}
    for table, archive in tables.items():
        with np.load(bundle / archive) as arrays:
            assert set(manifest[table]) == set(arrays.files)
            for name, entry in manifest[table].items():
                flat = np.fromfile(raw / entry["file"], np.dtype(entry["dtype"]).newbyteorder("<"))
                np.testing.assert_array_equal(flat.reshape(entry["shape"]), arrays[name])
    fused = fuse(MODELS["grouped"]).state_dict()
    assert list(manifest["weights"]) == list(fused)
    for name, entry in manifest["weights"].items():
        flat = np.fromfile(raw / entry["file"], "<f4")
        np.testing.assert_array_equal(flat.reshape(entry["shape"]), fused[name], strict=True)


def test_the_index_names_every_file_once_and_the_sums_hold(bundle: Path) -> None:
    raw = bundle / "raw"
    lines = (raw / "index.txt").read_text().splitlines()
    named = sorted(line.split()[-1] for line in lines if not line.startswith("layer"))
    assert named == sorted(p.relative_to(raw).as_posix() for p in raw.rglob("*.bin"))
    layers = [line.split()[1] for line in lines if line.startswith("layer")]
    assert layers == list(MODELS["grouped"].arch.layer_names)
    assert "layer stage2.1 conv 3 3 1 1 1 1 1 1 2 none 1" in lines
    if shutil.which("sha256sum"):
        subprocess.run(
            ["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=raw, check=True, timeout=60
        )


def test_a_port_that_writes_such_a_folder_is_judged(bundle: Path, tmp_path: Path) -> None:
    raw = bundle / "raw"
    assert verify(bundle, raw).verdict == "agree"
    port = tmp_path / "port"
    shutil.copytree(raw, port)
    y = np.fromfile(port / "stage1.1.bin", "<f8")
    (port / "stage1.1.bin").write_bytes(np.maximum(y - 0.01, 0).tobytes())
    report = verify(bundle, port)
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage1.1")


def test_squeeze_and_excitation_is_described_where_it_stands(tmp_path: Path) -> None:
    raw = written(tmp_path / "b", "plus") / "raw"
    lines = (raw / "index.txt").read_text().splitlines()
    at = lines.index("layer stage0 conv 3 3 2 2 1 1 1 1 1 after_relu 1")
    kinds = [line.split()[0] for line in lines[at + 1 : at + 11]]
    assert kinds == [*["weight"] * 6, "array", *["bound"] * 3]
    assert verify(tmp_path / "b", raw).verdict == "agree"
