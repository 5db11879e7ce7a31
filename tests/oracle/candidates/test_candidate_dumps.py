from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import weights_io
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.network import Model
from repvgg_ref.models.parameters import initial_params
from repvgg_ref.models.repvit import repvit
from repvgg_ref.oracle.candidates import CandidateFailure, WeightsCandidate, computing, resolve
from tests.oracle.candidates.ports import (
    architecture,
    assert_same,
    channels_last,
    failure,
    images,
    network,
    right_outputs,
    run,
    save_npz,
)

arch = architecture()


def test_an_npz_is_read_under_our_names(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", right_outputs())
    outputs = run(tmp_path / "a.npz", images())
    assert_same(outputs.layers, right_outputs())
    assert (outputs.x, outputs.precision, outputs.problem) == (None, None, None)


def test_a_dump_that_brings_its_input_runs_without_one(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", {"input": images(), **right_outputs()}, compressed=True)
    candidate = resolve(str(tmp_path / "a.npz"), arch)
    assert not isinstance(candidate, WeightsCandidate)
    assert candidate.brings_input
    assert candidate.input_shape() is None
    outputs = candidate.run(None)
    assert outputs.x is not None
    assert np.array_equal(outputs.x, images())


def test_nhwc_is_recognised_and_said(tmp_path: Path) -> None:
    dumped = channels_last({"input": images(), **right_outputs()})
    save_npz(tmp_path / "a.npz", dumped)
    outputs = run(tmp_path / "a.npz")
    assert_same(outputs.layers, right_outputs())
    assert outputs.x is not None
    assert np.array_equal(outputs.x, images())
    assert any("NHWC" in note for note in outputs.notes)


def test_a_partial_dump_keeps_what_it_has() -> None:
    some = {name: right_outputs()[name] for name in ("stage1.1", "linear")}
    assert_same(run(some).layers, some)


@pytest.mark.parametrize("suffix", ["npy", "array", "mapping"])
def test_logits_alone_are_a_dump_of_the_linear_layer(tmp_path: Path, suffix: str) -> None:
    logits = right_outputs()["linear"]
    np.save(tmp_path / "a.npy", logits)
    given = {"npy": tmp_path / "a.npy", "array": logits, "mapping": {"logits": logits}}[suffix]
    assert_same(run(given, images()).layers, {"linear": logits})


def test_logits_of_a_1x1_convolution_are_flattened() -> None:
    logits = right_outputs()["linear"]
    assert_same(run({"linear": logits[:, :, None, None]}).layers, {"linear": logits})
    assert_same(run({"linear": logits[:, None, None, :]}).layers, {"linear": logits})


def test_a_dump_of_one_image_may_lack_the_batch_axis() -> None:
    one = {name: array[0] for name, array in right_outputs().items()}
    outputs = run(one, images()[:1])
    assert outputs.layers["stage0"].shape[0] == 1
    assert any("batch" in note for note in outputs.notes)


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(np.float16, "fp16"), (np.float32, None), (np.float64, None), (">f4", None)],
)
def test_the_element_type_declares_the_precision(
    tmp_path: Path, dtype: Any, precision: str
) -> None:
    save_npz(tmp_path / "a.npz", {n: a.astype(dtype) for n, a in right_outputs().items()})
    outputs = run(tmp_path / "a.npz")
    assert outputs.precision == precision
    assert outputs.layers["stage0"].dtype == np.dtype(dtype).newbyteorder("=")


def test_wrong_values_and_shapes_pass_through_for_the_verdict() -> None:
    odd = dict(right_outputs())
    odd["stage0"] = np.full_like(odd["stage0"], np.nan)
    odd["stage1.0"] = odd["stage1.0"][:, :5, :2]
    odd["stage2.0"] = odd["stage2.0"][:, :, 0, 0]
    layers = run(odd, images()).layers
    assert np.isnan(layers["stage0"]).all()
    assert layers["stage1.0"].shape == (2, 5, 2, 3)
    assert layers["stage2.0"].shape == (2, 64)


def test_a_dead_network_compresses_a_thousandfold_and_is_read(tmp_path: Path) -> None:
    dead = {"stage0": np.zeros((8, 32, 64, 128), np.float32)}
    save_npz(tmp_path / "a.npz", dead, compressed=True)
    assert_same(run(tmp_path / "a.npz").layers, dead)


# ------------------------------------------------------------------------------ layout


def test_equal_channels_height_and_width_are_decided_by_the_other_layers() -> None:
    cube = np.random.default_rng(0).standard_normal((2, 32, 32, 32)).astype(np.float32)
    wide = np.zeros((2, 32, 16, 16), np.float32)
    outputs = run(channels_last({"stage0": cube, "stage1.0": wide}))
    assert np.array_equal(outputs.layers["stage0"], cube)


def test_equal_channels_height_and_width_alone_cannot_be_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", stage0=np.zeros((1, 32, 32, 32), np.float32))
    error = failure(tmp_path / "a.npz")
    assert error.verdict == "cannot-judge"
    assert "manifest" in str(error)


def test_arrays_given_in_python_are_nchw_if_nothing_decides() -> None:
    cube = np.random.default_rng(0).standard_normal((2, 32, 32, 32)).astype(np.float32)
    assert np.array_equal(run({"stage0": cube}).layers["stage0"], cube)


def test_the_metadata_of_an_archive_tells_the_layout(tmp_path: Path) -> None:
    cube = np.random.default_rng(0).standard_normal((2, 32, 32, 32)).astype(np.float32)
    said = {"layout": "NHWC", "precision": "tf32"}
    weights_io.save_weights(tmp_path / "a.npz", {"stage0": cube}, container="npz", metadata=said)
    outputs = run(tmp_path / "a.npz")
    assert np.array_equal(outputs.layers["stage0"], np.moveaxis(cube, -1, 1))
    assert outputs.precision == "tf32"


# ---------------------------------------------------------------------- other containers


@pytest.mark.parametrize("suffix", [".npz", ".pth", ".safetensors"])
def test_content_tells_weights_from_dumps(tmp_path: Path, suffix: str) -> None:
    save(network(), tmp_path / f"w{suffix}")
    assert resolve(tmp_path / f"w{suffix}", arch) == WeightsCandidate(tmp_path / f"w{suffix}")
    containers: dict[str, Any] = {".npz": "npz", ".pth": "torch-zip", ".safetensors": "safetensors"}
    path = tmp_path / f"d{suffix}"
    weights_io.save_weights(path, right_outputs(), container=containers[suffix])
    assert_same(run(path).layers, right_outputs())


@pytest.mark.parametrize("name", ["inputs", "x", "data", "logits", "outputs", "fc"])
def test_a_file_of_weights_with_one_stranger_is_no_dump(tmp_path: Path, name: str) -> None:
    """Of a network that is told by all its names, too: most names say what it is."""
    state = network().state_dict() | {name: images()}
    save_npz(tmp_path / "w.npz", state)
    assert resolve(tmp_path / "w.npz", arch) == WeightsCandidate(tmp_path / "w.npz")
    gated = repvit("small", widths=(8,), depths=(1,), num_classes=5)
    model = Model(gated, "train", initial_params(gated, seed=0), 1e-5)
    save_npz(tmp_path / "s.npz", model.state_dict() | {name: images()})
    port = resolve(tmp_path / "s.npz", gated)
    assert isinstance(port, WeightsCandidate)
    with pytest.raises(CandidateFailure, match=f"not exactly a small .*0 missing.*1 un.*: {name}"):
        computing(port, model)


# ---------------------------------------------------------------------------- refusals


def _npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def _pickled() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], object), allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "first bytes|empty"),
        (b"\x93NUMPY", "no readable .npy"),
        (
            _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 7), }", bytes(40)),
            "its size",
        ),
        (_npy("{'descr': '<f4', 'fortran_order': False, 'shape': (9999999, 99999), }"), "its size"),
        (
            _npy("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 7), }", bytes(28)),
            "its size",
        ),
        (_npy("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "code"),
        (
            _npy("{'descr': '<U3', 'fortran_order': False, 'shape': (1,), }", bytes(12)),
            "no numbers",
        ),
        (_npy("{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", bytes(8)), "no numbers"),
        (_npy("__import__('os').system('true')"), "no readable .npy"),
        (_npy("(" * 100), "no readable .npy"),
        (_pickled(), "code"),
        (b"<!doctype html>", "web page"),
    ],
)
def test_a_damaged_or_hostile_npy_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    assert re.search(says, str(failure(tmp_path / "a.npy")))


def test_a_truncated_npz_is_refused(tmp_path: Path) -> None:
    save_npz(tmp_path / "a.npz", right_outputs())
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    assert failure(tmp_path / "a.npz").verdict == "cannot-judge"


def test_object_arrays_in_an_npz_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("stage0.npy", _pickled())
    assert "object" in str(failure(tmp_path / "a.npz"))


@pytest.mark.parametrize(
    ("dump", "says"),
    [
        ({}, "holds no layer output"),
        ({"input": np.zeros((2, 3, 4, 4), np.float32)}, "an input only"),
        ({"stage0": np.zeros(0, np.float32)}, "no array of real numbers"),
        ({"stage0": np.array(1.0)}, "no array of real numbers"),
        ({"stage0": np.array([None])}, "no array of real numbers"),
        ({"stage0": np.array(["a"])}, "no array of real numbers"),
        ({"stage0": np.zeros((1, 2), complex)}, "no array of real numbers"),
        ({"conv_7": np.zeros((1, 2))}, "conv_7"),
        ({"features.\x1b[2J": np.zeros((1, 2))}, r"features\.\\x1b"),
    ],
)
def test_what_is_no_dump_is_refused_with_the_reason(dump: Any, says: str) -> None:
    error = failure(dump)
    assert re.search(says, str(error))
    assert error.verdict == "cannot-judge"


def test_unknown_names_are_listed_with_those_that_are_known() -> None:
    error = failure({f"layer{i}": np.zeros((1, 2)) for i in range(30)})
    assert "layer0" in str(error)
    assert "22 more" in str(error)
    assert "stage1.0" in str(error)


def test_another_batch_than_the_inputs_is_refused() -> None:
    error = failure(right_outputs(), images(n=3))
    assert error.verdict == "cannot-judge"
    assert "2 images" in str(error)


def test_layers_of_different_batches_are_refused() -> None:
    mixed = dict(right_outputs())
    mixed["stage1.0"] = mixed["stage1.0"][:1]
    assert "stage1.0" in str(failure(mixed))


@pytest.mark.parametrize("given", ["nowhere.npz", "C:\\nowhere.onnx", "", "exec", 3, None])
def test_what_is_not_there_is_said_to_be(given: Any) -> None:
    assert failure(given).verdict == "cannot-judge"


def test_a_text_file_is_no_candidate(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("hello")
    assert failure(tmp_path / "a.txt").verdict == "cannot-judge"
