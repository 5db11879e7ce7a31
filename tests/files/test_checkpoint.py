"""What a checkpoint must hold to be loaded, and what is said when it does not.

Files that attack the reader are in `tests/weights_io`; these are honest files with a wrong network.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.errors import CheckpointError, NotFusibleError
from repvgg_ref.files.checkpoint import open_checkpoint, require_complete
from repvgg_ref.files.opened import Checkpoint
from repvgg_ref.models.graph import Network
from repvgg_ref.models.mobileone import mobileone
from tests.files.checkpoint_files import PLUS, SMALL, SQUEEZED, small_model, small_state, written
from tests.random_networks import random_model


def _refusal(path: Path, **options: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        rr.load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ----------------------------------------------------------------- saving and loading


@pytest.mark.parametrize("arch", [SMALL, SQUEEZED, PLUS], ids=["plain", "se", "plus"])
@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".pth", ".pt"])
def test_save_then_load_is_the_identity(
    tmp_path: Path, arch: Network, form: str, dtype: Any, suffix: str
) -> None:
    model = random_model(arch, 1, dtype)
    model = model if form == "train" else rr.fuse(model)
    rr.save(model, tmp_path / f"m{suffix}")
    again = rr.load(tmp_path / f"m{suffix}")
    assert (again.form, again.arch) == (form, arch)
    assert list(again.state_dict()) == list(model.state_dict())
    for name, array in model.params.items():
        assert again.params[name].dtype == array.dtype, name
        np.testing.assert_array_equal(again.params[name], array, strict=True)


@pytest.mark.parametrize("container", ["npz", "safetensors", "torch-zip", "torch-legacy"])
def test_every_container_gives_the_same_model(tmp_path: Path, container: str) -> None:
    model = rr.load(written(tmp_path, small_state(), container))
    for name, array in small_model().params.items():
        np.testing.assert_array_equal(model.params[name], array, strict=True)


def test_dtype_can_be_asked_for(tmp_path: Path) -> None:
    model = rr.load(written(tmp_path, small_state()), dtype=np.float64)
    weight = model.params["stage0.branch_3x3.conv.weight"]
    assert weight.dtype == np.float64
    np.testing.assert_array_equal(weight, small_model().params["stage0.branch_3x3.conv.weight"])


def test_half_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    halves = {n: a.astype(np.float16) if a.ndim else a for n, a in small_state().items()}
    model = rr.load(written(tmp_path, halves))
    for name, array in model.state_dict().items():
        assert array.dtype == (np.float32 if array.ndim else np.int64)
        np.testing.assert_array_equal(array, halves[name])


def test_step_counters_may_be_absent(tmp_path: Path) -> None:
    """Torch before 0.4.1 and MegEngine have none."""
    state = {n: a for n, a in small_state().items() if not n.endswith("num_batches_tracked")}
    assert rr.load(written(tmp_path, state)).params["stage0.branch_3x3.bn.num_batches_tracked"] == 0


def test_a_suffix_that_says_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"suffix .* wanted one of \.npz"):
        rr.save(small_model(), tmp_path / "model.bin")


# --------------------------------------------------------- not exactly one network


def test_missing_and_unexpected_names_are_listed(tmp_path: Path) -> None:
    state = small_state()
    del state["stage1.1.rbr_identity.running_mean"], state["stage2.0.rbr_1x1.bn.weight"]
    state["ema_decay"] = np.zeros(1, np.float32)
    state["stage9.spare"] = np.zeros(1, np.float32)
    message = _refusal(written(tmp_path, state))
    for name in (
        "stage1.1.rbr_identity.running_mean",
        "stage2.0.rbr_1x1.bn.weight",
        "ema_decay",
        "stage9.spare",
        "2 missing",
        "2 unexpected",
        "nothing was loaded",
    ):
        assert name in message


def test_every_single_missing_array_is_an_error(tmp_path: Path) -> None:
    whole = small_state()
    for name in whole:
        path = written(tmp_path, {other: whole[other] for other in whole if other != name})
        if name.endswith("num_batches_tracked"):
            rr.load(path)
        else:
            assert name.split(".rbr_")[0].split(".weight")[0] in _refusal(path), name


def test_a_long_list_is_cut(tmp_path: Path) -> None:
    state = small_state() | {f"extra.{i}": np.zeros(1, np.float32) for i in range(500)}
    message = _refusal(written(tmp_path, state))
    assert "500 unexpected" in message
    assert "488 more" in message
    assert len(message) < 1000


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.95])
def test_a_partial_file_is_refused(tmp_path: Path, keep: float) -> None:
    names = list(small_state())
    kept = {name: small_state()[name] for name in names[: int(keep * len(names))]}
    _refusal(written(tmp_path, kept))


def test_a_gap_in_the_chain_is_named(tmp_path: Path) -> None:
    state = {n: a for n, a in small_state().items() if not n.startswith("stage2.1.")}
    assert "stage2.1" in _refusal(written(tmp_path, state))


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("stage1.1.rbr_dense.bn.weight", (5,), r"\(5,\) ; wanted \(4,\)"),
        ("stage1.1.rbr_1x1.conv.weight", (4, 4, 3, 3), "stage1.1.rbr_1x1.conv.weight"),
        ("stage1.0.rbr_dense.conv.weight", (4, 4, 5, 5), "stage1.0"),
        ("stage2.0.rbr_dense.conv.weight", (6, 3, 3, 3), "stage2.0"),
        ("stage0.rbr_dense.conv.weight", (4, 3, 3), "dimensions"),
        ("stage1.0.rbr_dense.conv.weight", (4, 0, 3, 3), "stage1.0"),
        ("linear.weight", (5, 4), "linear.weight"),
        ("linear.bias", (6,), "linear.bias"),
        ("linear.bias", (5, 1), "linear.bias"),
        ("stage0.rbr_dense.bn.num_batches_tracked", (2,), "num_batches_tracked"),
        ("stage0.rbr_dense.bn.num_batches_tracked", (1, 1), "num_batches_tracked"),
    ],
)
def test_a_wrong_shape_is_named(
    tmp_path: Path, name: str, shape: tuple[int, ...], said: str
) -> None:
    state = small_state() | {name: np.ones(shape, np.float32)}
    with pytest.raises(CheckpointError, match=said):
        rr.load(written(tmp_path, state))


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.bool_])
def test_integer_weights_are_refused(tmp_path: Path, dtype: Any) -> None:
    name = "stage1.0.rbr_dense.conv.weight"
    message = _refusal(written(tmp_path, small_state() | {name: small_state()[name].astype(dtype)}))
    assert f"{name} does not hold real numbers" in message


def test_train_and_deploy_names_together_are_mixed(tmp_path: Path) -> None:
    state = small_state() | rr.fuse(small_model()).state_dict()
    assert "mixes fused kernels with training branches" in _refusal(written(tmp_path, state))


def test_half_converted_blocks_are_mixed(tmp_path: Path) -> None:
    fused = rr.fuse(small_model()).state_dict()
    state = {n: a for n, a in small_state().items() if not n.startswith("stage1.0.")}
    state |= {n: a for n, a in fused.items() if n.startswith("stage1.0.")}
    assert "not both" in _refusal(written(tmp_path, state))


def test_an_identity_where_the_stride_forbids_it_is_unexpected(tmp_path: Path) -> None:
    """stage1.0 has equal widths but stride 2, as in A0, A1 and B0."""
    state = small_state()
    for field in ("weight", "bias", "running_mean", "running_var"):
        state[f"stage1.0.rbr_identity.{field}"] = np.ones(4, np.float32)
    assert "stage1.0.rbr_identity.weight" in _refusal(written(tmp_path, state))


def test_two_names_for_one_array_are_refused(tmp_path: Path) -> None:
    """``stage01.0`` reads as a number like ``stage1.0``, but is another name."""
    state = small_state()
    twin = {n.replace("stage1.", "stage01."): a + 1 for n, a in state.items() if "stage1." in n}
    assert "stage01." in _refusal(written(tmp_path, state | twin))
    other_digits = {
        n.replace("stage01", "stage\N{ARABIC-INDIC DIGIT ONE}"): a for n, a in twin.items()
    }
    _refusal(written(tmp_path, state | other_digits))


@pytest.mark.parametrize("number", ["9" * 12, "9" * 5000, "-1", "1e3", "\N{SUPERSCRIPT TWO}"])
@pytest.mark.parametrize(
    "name", ["stage{}.0.{}", "stage1.{}.{}", "stage3_first.blocks.{}.{}", "stages.{}.0.{}"]
)
def test_absurd_numbers_are_unexpected_and_cost_nothing(
    tmp_path: Path, name: str, number: str
) -> None:
    odd = name.format(number, "rbr_dense.conv.weight")
    state = small_state() | {odd: np.ones((4, 4, 3, 3), np.float32)}
    assert "1 unexpected" in _refusal(written(tmp_path, state, "safetensors"))


def test_a_stage_in_halves_and_whole_is_refused(tmp_path: Path) -> None:
    state = small_model(PLUS).state_dict()
    name = "stage3_first.blocks.0.rbr_dense.conv.weight"
    state["stage3.blocks.0.rbr_dense.conv.weight"] = state[name]
    assert "1 unexpected" in _refusal(written(tmp_path, state))


def test_squeeze_and_excitation_must_be_in_every_block(tmp_path: Path) -> None:
    state = small_model(SQUEEZED).state_dict()
    kept = {n: a for n, a in state.items() if not n.startswith("stage1.0.se.")}
    assert "stage1.0.se.down.weight" in _refusal(written(tmp_path, kept))


def test_gates_of_a_mobileone_may_begin_late_but_have_no_gap(tmp_path: Path) -> None:
    arch = mobileone(
        "small", widths=(0.25, 0.25, 0.25, 0.25), gates=(0, 0, 1, 1), depths=(1, 1, 2, 1)
    )
    state = rr.build(arch).state_dict()
    assert rr.load(written(tmp_path, state)).arch.blocks == arch.blocks
    kept = {n: a for n, a in state.items() if not n.startswith("stage4.0.se.")}
    assert "stage4.0.se.down.weight" in _refusal(written(tmp_path, kept))


def test_branches_must_be_in_every_block(tmp_path: Path) -> None:
    """Asking for a custom model frees whole networks from a branch, not single blocks."""
    kept = {n: a for n, a in small_state().items() if not n.startswith("stage1.0.rbr_1x1.")}
    assert "stage1.0.rbr_1x1" in _refusal(written(tmp_path, kept), model="custom")


# ----------------------------------------------------------------- foreign files


@pytest.mark.parametrize(
    "names",
    [
        ["backbone.stem.rbr_dense.conv.weight", "backbone.ERBlock_2.0.rbr_dense.conv.weight"],
        ["detect.rbr_dense.0.weight"],
    ],
)
def test_a_detector_with_repvgg_blocks_is_told_apart(tmp_path: Path, names: list[str]) -> None:
    path = written(tmp_path, {name: np.ones((2, 2, 3, 3), np.float32) for name in names})
    assert "RepVGG blocks found, but not a RepVGG classifier" in _refusal(path)


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, {"layer1.0.conv1.weight": np.ones((2, 2, 3, 3), np.float32)})
    assert "holds no RepVGG" in _refusal(path)


def test_names_are_made_printable(tmp_path: Path) -> None:
    path = written(tmp_path, {"\x1b[2Jlayer": np.ones(2, np.float32)}, "npz")
    assert "\x1b" not in _refusal(path)


# --------------------------------------------------------- prefixes and wrappers


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."]
)
def test_a_prefix_on_every_name_is_removed_and_noted(tmp_path: Path, prefix: str) -> None:
    model = rr.load(written(tmp_path, {prefix + n: a for n, a in small_state().items()}))
    np.testing.assert_array_equal(model.params["linear.bias"], small_state()["linear.bias"])
    assert any("module." in note or "_orig_mod." in note for note in model.notes)


def test_a_prefix_on_some_names_is_not_removed(tmp_path: Path) -> None:
    state = {("module." if n.startswith("stage0") else "") + n: a for n, a in small_state().items()}
    _refusal(written(tmp_path, state))


def test_only_prefixes_are_removed(tmp_path: Path) -> None:
    state = {n.replace("stage1.", "stage1.module."): a for n, a in small_state().items()}
    _refusal(written(tmp_path, state))


def _pickled(tmp_path: Path, root: Any) -> Path:
    """A plain pickle: the wrappers that need no torch to write."""
    import pickle

    path = tmp_path / "wrapped.pkl"
    path.write_bytes(pickle.dumps(root, protocol=4))
    return path


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "params"])
def test_a_wrapper_is_opened_and_named(tmp_path: Path, key: str) -> None:
    model = rr.load(_pickled(tmp_path, {key: small_state(), "epoch": 120, "arch": "RepVGG-A0"}))
    assert model.arch == SMALL
    assert f"weights taken from the entry '{key}'" in model.notes


def test_a_wrapper_in_a_wrapper_with_a_prefix(tmp_path: Path) -> None:
    inner = {"state_dict": {"module." + n: a for n, a in small_state().items()}}
    assert rr.load(_pickled(tmp_path, {"model": inner})).arch == SMALL


def test_the_average_is_taken_only_when_asked_for(tmp_path: Path) -> None:
    average = small_model(seed=9).state_dict()
    path = _pickled(tmp_path, {"model": small_state(), "ema": average, "epoch": 3})
    model, ema = rr.load(path), rr.load(path, weights="ema")
    np.testing.assert_array_equal(model.params["linear.bias"], small_state()["linear.bias"])
    np.testing.assert_array_equal(ema.params["linear.bias"], average["linear.bias"])
    assert any("ema" in note and "--weights ema" in note for note in model.notes)
    assert "weights taken from the entry 'ema'" in ema.notes


def test_an_average_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    for root in (
        small_state(),
        {"model": small_state(), "epoch": 1},
        {"model": small_state(), "ema": None},
    ):
        assert "no EMA entry" in _refusal(_pickled(tmp_path, root), weights="ema")


def test_two_sets_of_weights_are_never_confused_in_silence(tmp_path: Path) -> None:
    path = _pickled(
        tmp_path, {"state_dict": small_model(seed=9).state_dict(), "model": small_state()}
    )
    model = rr.load(path)
    assert "weights taken from the entry 'model'" in model.notes
    assert any("not taken: state_dict" in note for note in model.notes)
    np.testing.assert_array_equal(model.params["linear.bias"], small_state()["linear.bias"])


@pytest.mark.parametrize(
    "root", [[1, 2], "text", {}, {"model": {}}, {"model": 3}, {"epoch": 1}, None]
)
def test_a_file_without_named_arrays_is_refused(tmp_path: Path, root: Any) -> None:
    _refusal(_pickled(tmp_path, root))


def test_something_else_among_the_weights_is_refused(tmp_path: Path) -> None:
    message = _refusal(_pickled(tmp_path, small_state() | {"best_acc1": 71.2}))
    assert "best_acc1" in message


# ----------------------------------------------------- what a fused file cannot do


def test_a_fused_file_loads_and_refuses_what_needs_branches(tmp_path: Path) -> None:
    rr.save(rr.fuse(small_model()), tmp_path / "RepVGG-A1-train.pth")  # a name that lies
    model = rr.load(tmp_path / "RepVGG-A1-train.pth")
    assert model.form == "deploy"
    x = np.zeros((2, 3, 8, 8), np.float32)
    assert model.forward(x).shape == (2, 5)
    with pytest.raises(NotFusibleError, match="fuse needs the three branches"):
        rr.fuse(model)
    with pytest.raises(NotFusibleError, match="loss_and_grads needs the three branches"):
        model.loss_and_grads(x, np.zeros(2, np.int64))


# -------------------------------------------------------------- custom networks


def test_ablation_networks_are_told_and_fused(tmp_path: Path) -> None:
    """The paper's Table 6 trains networks without one kind of branch."""
    for branch in ("rbr_1x1", "rbr_identity"):
        path = written(tmp_path, {n: a for n, a in small_state().items() if f".{branch}." not in n})
        model = rr.load(path)
        assert model.notes == rr.load(path, model="custom").notes
        assert f"lost all its {branch.removeprefix('rbr_')} branches" in model.notes[0]
        x = np.random.default_rng(0).normal(size=(1, 3, 16, 16))
        np.testing.assert_allclose(rr.fuse(model).forward(x), model.forward(x), rtol=0, atol=1e-4)


def test_a_model_that_was_asked_for_must_be_met(tmp_path: Path) -> None:
    message = _refusal(written(tmp_path, small_state()), model="RepVGG-A0")
    assert "the shapes are not those of RepVGG-A0" in message
    assert "48,48,48" in message
    assert "no official model" in _refusal(written(tmp_path, small_state()), model="RepVGG-Z9")


def test_inspecting_reads_no_array_and_raises_nothing(tmp_path: Path) -> None:
    """`open_checkpoint` records what is wrong; only `require_complete` makes it an error."""
    state = small_state()
    del state["linear.weight"]
    with open_checkpoint(written(tmp_path, state)) as checkpoint:
        assert isinstance(checkpoint, Checkpoint)
        assert checkpoint.form == "train"
        assert checkpoint.problem is not None
        with pytest.raises(CheckpointError):
            require_complete(checkpoint)
