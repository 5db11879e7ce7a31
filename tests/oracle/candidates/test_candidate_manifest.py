from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.oracle.candidates import manifest, npy_files
from repvgg_ref.oracle.candidates.base import CandidateFailure
from tests.oracle.candidates.ports import (
    assert_same,
    channels_last,
    failure,
    images,
    right_outputs,
    run,
)


def write_raw(folder: Path, outputs: dict[str, Any], **common: Any) -> None:
    """Raw little-endian files and the manifest that describes them."""
    entries = {}
    for i, (name, array) in enumerate(outputs.items()):
        (folder / f"{i}.bin").write_bytes(np.ascontiguousarray(array).tobytes())
        entries[name] = {"file": f"{i}.bin", "shape": list(array.shape)}
    said = {"dtype": "float32", "arrays": entries, **common}
    (folder / "manifest.json").write_text(json.dumps(said))


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the manifest's entry for stage0."""
    said = json.loads((folder / "manifest.json").read_text())
    said["arrays"]["stage0"].update(changes)
    (folder / "manifest.json").write_text(json.dumps(said))


def test_a_folder_of_npy_files_needs_no_manifest(tmp_path: Path) -> None:
    for name, array in {"x": images(), **right_outputs()}.items():
        np.save(tmp_path / f"{name}.npy", array)
    outputs = run(tmp_path)
    assert_same(outputs.layers, right_outputs())
    assert outputs.x is not None


def test_raw_files_are_read_as_the_manifest_says(tmp_path: Path) -> None:
    write_raw(tmp_path, channels_last({"input": images(), **right_outputs()}), layout="NHWC")
    outputs = run(tmp_path)
    assert_same(outputs.layers, right_outputs())
    assert outputs.x is not None
    assert np.array_equal(outputs.x, images())


def test_a_manifest_may_be_a_list_with_types_orders_and_offsets(tmp_path: Path) -> None:
    y = right_outputs()["stage0"]
    (tmp_path / "all.bin").write_bytes(b"head" + y.astype(">f2").tobytes())
    entry = {
        "name": "stem",
        "file": "all.bin",
        "shape": list(y.shape),
        "dtype": "fp16",
        "endianness": "big",
        "offset": 4,
    }
    (tmp_path / "manifest.json").write_text(json.dumps({"layers": [entry]}))
    outputs = run(tmp_path)
    assert outputs.precision == "fp16"
    assert_same(outputs.layers, {"stage0": y.astype(np.float16)})


def test_raw_bfloat16_is_widened_exactly(tmp_path: Path) -> None:
    y = right_outputs()["stage0"]
    bits = y.view(np.uint32) >> 16
    write_raw(tmp_path, {"stage0": bits.astype("<u2")}, dtype="bfloat16")
    outputs = run(tmp_path)
    assert outputs.precision == "bf16"
    assert np.array_equal(outputs.layers["stage0"].view(np.uint32), bits << 16)


def test_a_manifest_beside_one_npz_gives_its_layout(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).standard_normal((2, 32, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "outputs.npz", stage0=cube)
    (tmp_path / "manifest.json").write_text('{"layout": "nhwc", "precision": "bf16"}')
    outputs = run(tmp_path)
    assert np.array_equal(outputs.layers["stage0"], np.moveaxis(cube, -1, 1))
    assert outputs.precision == "bf16"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": [2, 32, 10, 7]}, "its size"),
        ({"shape": [2, 32, 10]}, "its size"),
        ({"shape": [-2, 32, 10, -6]}, "its size"),
        ({"shape": "2x32"}, "no shape"),
        ({"shape": [True, 32, 10, 6]}, "no shape"),
        ({"shape": []}, "no shape"),
        ({"shape": None}, "without shape"),
        ({"shape": [1 << 40, 1 << 40]}, "its size"),
        ({"dtype": "float64"}, "its size"),
        ({"dtype": "object"}, "not known"),
        ({"dtype": "O"}, "not known"),
        ({"endianness": "middle"}, "not known"),
        ({"offset": -8}, "not known"),
        ({"offset": 1 << 60}, "its size"),
        ({"offset": "8"}, "no offset"),
        ({"layout": "CHWN"}, "unknown layout"),
        ({"file": "missing.bin"}, "cannot be opened"),
        ({"file": ""}, "names no file"),
        ({"file": 7}, "names no file"),
        ({"file": "../secret.bin"}, "outside"),
        ({"file": "sub/../../secret.bin"}, "outside"),
        ({"file": "/etc/passwd"}, "outside"),
        ({"file": "link.bin"}, "outside"),
        ({"file": "a\0b"}, "outside"),
        ({"file": "."}, "outside"),
    ],
)
def test_a_manifest_that_lies_or_leads_outside_is_refused(
    tmp_path: Path, change: dict[str, Any], says: str
) -> None:
    folder = tmp_path / "dump"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(right_outputs()["stage0"].tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    write_raw(folder, {"stage0": right_outputs()["stage0"]})
    rewrite(folder, **change)
    assert says in str(failure(folder))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no object"),
        ('{"arrays": {}}', "lists no arrays"),
        ('{"arrays": [1]}', "lists no arrays"),
        ('{"layout": 3}', "unknown layout"),
        ('{"precision": "fp8", "arrays": {"stage0": "a.npy"}}', "cannot be opened|precision"),
        ("{}", "no dump in this folder"),
    ],
)
def test_a_broken_manifest_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert re.search(says, str(failure(tmp_path)))


def test_a_manifest_and_an_npy_file_that_differ_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", right_outputs()["stage0"])
    said = {"arrays": {"stage0": {"file": "a.npy", "shape": [2, 32, 5, 5]}}}
    (tmp_path / "manifest.json").write_text(json.dumps(said))
    assert "differ" in str(failure(tmp_path))


def test_an_empty_folder_says_what_a_dump_looks_like(tmp_path: Path) -> None:
    error = failure(tmp_path)
    assert "manifest" in str(error)
    assert "arrays" in str(error)


def test_a_file_that_is_named_nine_times_is_charged_nine_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.zeros((1, 8, 8, 8), np.float32)
    np.save(tmp_path / "one.npy", array)
    monkeypatch.setattr(manifest, "MOST_BYTES", 4 * array.nbytes)
    for times, is_refused in ((3, False), (9, True)):
        entries = {f"stage{i}": "one.npy" for i in range(times)}
        (tmp_path / "manifest.json").write_text(json.dumps({"arrays": entries}))
        if is_refused:
            with pytest.raises(CandidateFailure, match="the dump is too large"):
                manifest.read_folder(tmp_path)
        else:
            assert len(manifest.read_folder(tmp_path).arrays) == times


def test_a_shape_that_is_not_the_files_is_refused_before_the_array_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save(tmp_path / "one.npy", np.zeros((1, 8, 8, 8), np.float32))
    entries = {"stage0": {"file": "one.npy", "shape": [1, 8, 8, 9]}}
    (tmp_path / "manifest.json").write_text(json.dumps({"arrays": entries}))

    def read(*_: Any) -> None:
        raise AssertionError("read")

    monkeypatch.setattr(npy_files, "_exactly", read)
    with pytest.raises(CandidateFailure, match="the manifest and the file differ"):
        manifest.read_folder(tmp_path)
