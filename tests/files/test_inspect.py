"""Every lint finding has a file that shows it, and a sound file shows none of them."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.files.checkpoint import save
from repvgg_ref.files.inspect import Inspection, inspect_file
from repvgg_ref.files.lint import Finding
from repvgg_ref.models.architectures import architecture, plain_architecture
from repvgg_ref.models.network import Model, build
from tests.files.checkpoint_files import written
from tests.models.small import SMALL, distinct_model

DENSE, SKIP = "stage1.0.branch_3x3", "stage1.1.branch_identity"


def model() -> Model:
    return distinct_model(SMALL["plain"], dtype=np.float32)


def inspected(path: Path, edit: Callable[[Model], Any] | None = None) -> Inspection:
    changed = model()
    if edit is not None:
        edit(changed)
    save(changed, path)
    return inspect_file(path)


def of_level(found: Inspection, *levels: str) -> list[Finding]:
    return [finding for finding in found.findings if finding.level in levels]


def setting(name: str, value: float, channels: Any = 0) -> Callable[[Model], Any]:
    return lambda changed: changed.params[name].__setitem__(channels, value)


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
@pytest.mark.parametrize("name", ["plain", "grouped", "se-before-relu", "plus"])
def test_a_sound_file_has_neither_errors_nor_warnings(
    suffix: str, name: str, tmp_path: Path
) -> None:
    whole = distinct_model(SMALL[name], dtype=np.float32)
    for form in (whole, rr.fuse(whole)):
        path = tmp_path / f"{form.form}.{suffix}"
        save(form, path)
        found = inspect_file(path)
        assert of_level(found, "error", "warning") == []
        assert (found.form, found.model) == (form.form, "custom")
        assert found.tensors == len(form.params)
        assert (found.missing, found.unexpected) == ((), ())


ONE_FINDING: dict[str, tuple[Callable[[Model], Any], str, str, str]] = {
    "negative variance": (
        setting(f"{DENSE}.bn.running_var", -2.0, slice(3)),
        "error",
        "stage1.0",
        "branch_3x3: running_var is negative in 3 of 6 channels (least -2)",
    ),
    "tiny variance": (
        setting(f"{DENSE}.bn.running_var", 0.0),
        "warning",
        "stage1.0",
        "branch_3x3: running_var is below eps/100 in 1 of 6 channels",
    ),
    "dead gamma": (
        setting(f"{SKIP}.bn.gamma", 0.0, slice(2)),
        "warning",
        "stage1.1",
        "branch_identity: gamma is 0 in 2 of 6 channels",
    ),
    "NaN in a kernel": (
        setting(f"{DENSE}.conv.weight", np.nan),
        "error",
        "stage1.0",
        "stage1.0.rbr_dense.conv.weight: 36 NaN and 0 infinite of 216 values",
    ),
    "infinity in the head": (
        setting("linear.weight", np.inf, (0, 0)),
        "error",
        "linear",
        "linear.weight: 0 NaN and 1 infinite of 24 values",
    ),
    "taps too large for float16": (
        setting(f"{DENSE}.conv.weight", 1e6, (0, 0, 0, 0)),
        "warning",
        "stage1.0",
        "1 fused taps or biases exceed 65504",
    ),
    "activations too large for float16": (
        setting(f"{DENSE}.bn.beta", 7e4),
        "warning",
        "stage1.0",
        "outputs can exceed float16",
    ),
    "taps too large for float32": (
        setting(f"{DENSE}.conv.weight", 3e38, (0, 0, 0, 0)),
        "error",
        "stage1.0",
        "a fused value exceeds the range of float32",
    ),
}


@pytest.mark.parametrize("case", ONE_FINDING)
def test_what_is_wrong_is_found_where_it_is(case: str, tmp_path: Path) -> None:
    edit, level, layer, words = ONE_FINDING[case]
    if case == "taps too large for float32":
        original, edit = edit, lambda m: (original(m), setting(f"{DENSE}.bn.gamma", 1e3)(m))
    found = inspected(tmp_path / "a.npz", edit)
    matching = [f for f in found.findings if words in f.message]
    assert len(matching) == 1, found.findings
    assert (matching[0].level, matching[0].layer) == (level, layer)


def test_an_all_zero_fused_channel_is_found_in_both_forms(tmp_path: Path) -> None:
    def kill(changed: Model) -> None:
        for branch in ("branch_3x3", "branch_1x1"):
            changed.params[f"stage1.0.{branch}.bn.gamma"][1] = 0

    changed = model()
    kill(changed)
    save(rr.fuse(changed), tmp_path / "fused.npz")
    for found in (inspected(tmp_path / "a.npz", kill), inspect_file(tmp_path / "fused.npz")):
        zero = [f for f in found.findings if "all-zero fused kernel" in f.message]
        assert [(f.level, f.layer) for f in zero] == [("warning", "stage1.0")]
        assert zero[0].message.startswith("1 of 6 output channels")


def test_default_statistics_are_called_weak(tmp_path: Path) -> None:
    save(build(SMALL["plain"], seed=0), tmp_path / "a.npz")
    (finding,) = of_level(inspect_file(tmp_path / "a.npz"), "warning")
    assert "still has mean 0 and variance 1" in finding.message


def test_underflow_in_float16_is_counted(tmp_path: Path) -> None:
    def shrink(changed: Model) -> None:
        for spec in changed.arch.blocks:
            for name in changed.params:
                if name.startswith(spec.name) and name.endswith(".gamma"):
                    changed.params[name] *= 1e-6

    found = inspected(tmp_path / "a.npz", shrink)
    assert any("in float16" in f.message and "lose precision" in f.message for f in found.findings)


def test_eps_is_explained_with_what_it_matters_here(tmp_path: Path) -> None:
    ours = inspected(tmp_path / "a.npz", setting(f"{DENSE}.bn.running_var", 1e-5))
    assert any("metadata says eps = 1e-05" in f.message for f in ours.findings)
    assert not any("do not hold batch norm's eps" in f.message for f in ours.findings)
    with weights_io.open_weights(tmp_path / "a.npz") as archive:
        assert isinstance(archive.root, dict)
        state = {name: array.read() for name, array in archive.root.items()}
    found = inspect_file(written(tmp_path, state))  # bare, as other people's files are
    (note,) = [f for f in found.findings if "files do not hold batch norm's eps" in f.message]
    change = np.sqrt((1e-5 + 1e-3) / 2e-5) - 1
    assert note.level == "info"
    assert f"up to {change:.2%}" in note.message


@pytest.mark.parametrize(("name", "form"), [("A1-train", "deploy"), ("A1_deploy", "train")])
def test_a_name_that_contradicts_the_keys_is_found(name: str, form: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.npz"
    save(rr.fuse(model()) if form == "deploy" else model(), path)
    found = inspect_file(path)
    assert found.form == form
    (finding,) = of_level(found, "warning")
    assert "the file's name says" in finding.message


def test_a_fused_file_says_what_it_cannot_tell(tmp_path: Path) -> None:
    save(rr.fuse(model()), tmp_path / "a.npz")
    found = inspect_file(tmp_path / "a.npz")
    (finding,) = [f for f in found.findings if f.message.startswith("fused: ")]
    assert "cannot be told" in finding.message
    assert not any("files do not hold batch norm's eps" in f.message for f in found.findings)


def test_a_custom_head_on_official_blocks_is_named(tmp_path: Path) -> None:
    arch = architecture("RepVGG-A0", num_classes=7)
    save(build(replace(arch, name="custom"), seed=0), tmp_path / "a.npz")
    found = inspect_file(tmp_path / "a.npz")
    assert found.model == "custom"
    messages = [f.message for f in found.findings]
    assert "the blocks are those of RepVGG-A0, with 7 classes and 3 input channels" in messages


def test_other_widths_are_listed(tmp_path: Path) -> None:
    arch = plain_architecture(depths=[1], channels=[4, 6], num_classes=3)
    save(distinct_model(arch, dtype=np.float32), tmp_path / "a.npz")
    messages = [f.message for f in inspect_file(tmp_path / "a.npz").findings]
    assert any("no official model has these blocks" in m and "4, 6" in m for m in messages)


def pickled(path: Path, state: Any) -> Inspection:
    path.write_bytes(pickle.dumps(state, protocol=2))
    return inspect_file(path)


def test_wrappers_prefixes_ema_and_missing_counters_are_told(tmp_path: Path) -> None:
    state = {
        f"module.{name}": array
        for name, array in model().state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    found = pickled(tmp_path / "a.pth", {"model": state, "ema": state, "epoch": 1})
    messages = " | ".join(f.message for f in of_level(found, "info"))
    assert found.model == "custom"
    assert "prefix 'module.' removed" in messages
    assert "ema" in messages
    assert "batch norms lack num_batches_tracked" in messages
    assert (found.missing, of_level(found, "error")) == ((), [])


def test_half_precision_is_told(tmp_path: Path) -> None:
    half = {
        name: array.astype(np.float16) if array.dtype == np.float32 else array
        for name, array in model().state_dict().items()
    }
    np.savez(tmp_path / "a.npz", **half)  # type: ignore[arg-type]
    messages = [f.message for f in inspect_file(tmp_path / "a.npz").findings]
    assert any("stored as float16" in message for message in messages)


def incomplete(without: Iterable[str]) -> dict[str, Any]:
    state = dict(model().state_dict())
    for name in without:
        del state[name]
    state["surprise"] = np.zeros(2, np.float32)
    return state


def test_an_incomplete_file_is_still_judged(tmp_path: Path) -> None:
    state = incomplete(["stage1.1.rbr_1x1.bn.weight", "stage0.rbr_dense.bn.running_var"])
    state["linear.bias"] = np.full(3, np.nan, np.float32)
    state["stage1.1.rbr_dense.bn.running_var"] = np.full(6, -1, np.float32)
    np.savez(tmp_path / "a.npz", **state)
    found = inspect_file(tmp_path / "a.npz")
    assert sorted(found.missing) == [
        "stage0.rbr_dense.bn.running_var",
        "stage1.1.rbr_1x1.bn.weight",
    ]
    assert found.unexpected == ("surprise",)
    errors = " | ".join(f.message for f in of_level(found, "error"))
    assert "2 arrays are missing, 1 are unexpected" in errors
    assert "linear.bias: 3 NaN" in errors
    assert "running_var is negative in 6 of 6" in errors


def test_a_file_of_another_network_is_still_searched_for_nan(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=np.array([1, np.inf]), b=np.arange(3))
    found = inspect_file(tmp_path / "a.npz")
    assert (found.dialect, found.model, found.form) == (None, None, "unknown")
    errors = [f.message for f in of_level(found, "error")]
    assert "a: 0 NaN and 1 infinite of 2 values" in errors


def test_memory_stays_near_the_largest_block(tmp_path: Path) -> None:
    import tracemalloc

    arch = plain_architecture(depths=[12], channels=[64, 64], num_classes=3)
    save(distinct_model(arch, dtype=np.float32), tmp_path / "a.npz")
    size = (tmp_path / "a.npz").stat().st_size
    tracemalloc.start()
    inspect_file(tmp_path / "a.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < size, f"{peak / 1e6:.1f} MB for a file of {size / 1e6:.1f} MB"


def _in_parts(state: dict[str, Any], name: str, parts: Iterable[str]) -> dict[str, Any]:
    return {n: a for n, a in state.items() if n != name} | dict.fromkeys(parts, state[name])


UNTOLD: dict[str, tuple[str, tuple[str, ...]]] = {
    "head gone": ("linear.weight", ()),
    "weight norm": ("linear.weight", ("linear.weight_g", "linear.weight_v")),
    "parametrised": (
        "linear.weight",
        ("linear.parametrizations.weight.original0", "linear.parametrizations.weight.original1"),
    ),
    "spectral norm": ("linear.weight", ("linear.weight_orig", "linear.weight_u")),
    "fused kernel": (
        "stage1.0.rbr_reparam.weight",
        ("stage1.0.rbr_reparam.parametrizations.weight.original",),
    ),
}


@pytest.mark.parametrize("what", UNTOLD)
@pytest.mark.parametrize("timm", [False, True], ids=["official", "timm"])
def test_what_is_missing_for_the_network_to_be_told_is_listed(
    what: str, timm: bool, tmp_path: Path
) -> None:
    name, parts = UNTOLD[what]
    held = rr.fuse(model()) if "rbr_reparam" in name else model()
    state = _in_parts(held.state_dict(), name, parts)
    if timm:
        words = {"linear.": "head.fc.", "rbr_reparam": "reparam_conv", "stage0": "stem"}
        words |= {"rbr_dense": "conv_kxk", "rbr_1x1": "conv_1x1", "rbr_identity": "identity"}
        words |= {f"stage{i}": f"stages.{i - 1}" for i in (1, 2)}
        names = [name, *parts, *state]
        for old, new in words.items():
            names = [each.replace(old, new) for each in names]
        name, parts = names[0], tuple(names[1 : 1 + len(parts)])
        state = dict(zip(names[1 + len(parts) :], state.values(), strict=True))
    np.savez(tmp_path / "a.npz", **state)
    found = inspect_file(tmp_path / "a.npz")
    assert found.missing == (name,)
    assert sorted(found.unexpected) == sorted(parts)
    errors = " | ".join(f.message for f in of_level(found, "error"))
    assert f"{name} is missing" in errors
    assert f"at least 1 missing, {len(parts)} unexpected" in errors
    assert ("remove_parametrizations" in errors) == bool(parts)
    assert ("incomplete" in errors) == (not parts)


def test_nothing_is_said_to_be_whole_where_a_block_is_missing(tmp_path: Path) -> None:
    state: dict[str, Any] = {"surprise": np.zeros(2), **model().state_dict()}
    state = {name: array for name, array in state.items() if not name.startswith("stage1.0.")}
    np.savez(tmp_path / "a.npz", **state)
    errors = " | ".join(f.message for f in of_level(inspect_file(tmp_path / "a.npz"), "error"))
    assert "blocks are missing" in errors
    assert "it cannot be told (1 unexpected)" in errors
