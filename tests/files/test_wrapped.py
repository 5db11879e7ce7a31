"""Networks as trainers leave them: behind prefixes and entries, with other arrays beside them.

Every case must give the arrays of the plain file, bit by bit, or an error that lists the choice.
"""

from __future__ import annotations

import enum
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.files.inspect import inspect_file
from tests.files.checkpoint_files import State, small_model, small_state, written
from tests.files.wrapped_files import LOSS, ONE, assert_is, behind, pickled, refusal, renamed

MMPRETRAIN = {
    "stage0.": "backbone.stem.",
    **{f"stage{i}.": f"backbone.stage_{i}." for i in (1, 2)},
    "linear.": "head.fc.",
    ".rbr_dense.": ".branch_3x3.",
    ".rbr_1x1.": ".branch_1x1.",
    ".rbr_identity.": ".branch_norm.",
    ".bn.": ".norm.",
}


# ------------------------------------------------------------------------------ prefixes

PREFIXES = (
    *("model.", "module.", "_orig_mod.", "backbone.", "net.", "student.", "encoder.", "0."),
    *("model._orig_mod.", "_orig_mod.model.", "module.model.", "model.module.backbone."),
    *("lightning.model.net._orig_mod.", "online_network.", "model.model.model."),
)


@pytest.mark.few
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("beside", [{}, LOSS, {"n_averaged": np.array(7)}], ids=len)
def test_a_network_behind_any_prefix_is_taken_out(
    tmp_path: Path, prefix: str, beside: State
) -> None:
    state = behind(prefix, small_state()) | beside
    model = rr.load(written(tmp_path, state))
    assert_is(model)
    assert any("prefix" in note or "removed" in note for note in model.notes)


@pytest.mark.few
@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "model._orig_mod."])
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_other_dialects_and_forms_stand_behind_prefixes_too(
    tmp_path: Path, prefix: str, form: str
) -> None:
    model = small_model() if form == "train" else rr.fuse(small_model())
    words = {**MMPRETRAIN, ".rbr_reparam.": ".branch_reparam."}
    state = behind(prefix, renamed(model.state_dict(), words)) | LOSS
    assert_is(rr.load(written(tmp_path, state)), model.state_dict())


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_words_that_torch_puts_inside_names_are_taken_out(tmp_path: Path, prefix: str) -> None:
    words = {"stage1.0.": "stage1.0._orig_mod.", "stage2.": "stage2._fsdp_wrapped_module."}
    state = behind(prefix, renamed(small_state(), words))
    assert_is(rr.load(written(tmp_path, state)))


def test_a_network_without_stages_stands_behind_a_prefix_too(tmp_path: Path) -> None:
    model = rr.build("ResNet-18", num_classes=3, seed=1)
    state = behind("model.module.", model.state_dict()) | LOSS
    found = rr.load(written(tmp_path, state))
    assert found.arch == model.arch
    assert_is(found, model.state_dict())


def test_a_prefix_does_not_excuse_what_is_missing(tmp_path: Path) -> None:
    state = behind("model.", small_state()) | LOSS
    del state["model.stage1.1.rbr_1x1.conv.weight"]
    assert "1 missing: stage1.1.rbr_1x1.conv.weight" in refusal(written(tmp_path, state))


def test_what_is_left_beside_is_said(tmp_path: Path) -> None:
    state = behind("model.", small_state()) | LOSS
    notes = rr.load(written(tmp_path, state)).notes
    assert f"prefix 'model.' removed from {len(state) - 2} of {len(state)} names" in notes
    assert "beside the network, not taken: criterion.weight, train_acc.tp" in notes


# ----------------------------------------------------------- several networks in one file

OTHER = small_model(seed=9).state_dict()


@pytest.mark.few
@pytest.mark.parametrize("average", ["ema.", "model_ema.", "ema_model.module.", "swa_model."])
@pytest.mark.parametrize("own", ["", "model.", "online."])
def test_an_average_beside_the_network_is_taken_when_asked_for(
    tmp_path: Path, average: str, own: str
) -> None:
    path = written(tmp_path, behind(own, small_state()) | behind(average, OTHER))
    model = rr.load(path)
    assert_is(model)
    assert any("not taken" in note and "ema" in note for note in model.notes) or "swa" in average
    assert_is(rr.load(path, weights="ema"), OTHER)
    assert_is(rr.load(path, weights=average.rstrip(".")), OTHER)


def test_two_networks_are_listed_and_one_can_be_named(tmp_path: Path) -> None:
    path = written(tmp_path, behind("student.", small_state()) | behind("teacher.", OTHER))
    message = refusal(path)
    assert "student." in message
    assert "teacher." in message
    assert "--weights" in message
    assert_is(rr.load(path, weights="student"))
    assert_is(rr.load(path, weights="teacher"), OTHER)
    assert "there is no entry 'pupil'" in refusal(path, weights="pupil")
    assert "no EMA entry" in refusal(path, weights="ema")


def test_an_average_alone_is_taken(tmp_path: Path) -> None:
    assert_is(rr.load(written(tmp_path, behind("ema_model.", small_state()))))


# -------------------------------------------------------------------------------- entries


@pytest.mark.parametrize(
    "entry",
    [
        *("model_state_dict", "model_state", "net_state_dict", "weights", "params", "net"),
        *("student", "generator", "my network", "état", "pytorch-model"),
    ],
)
def test_an_entry_of_any_name_is_found(tmp_path: Path, entry: str) -> None:
    moments = {"momentum_buffer": np.ones((4, 3, 3, 3), np.float32)}
    root = {
        "epoch": 7,
        "optimizer_state_dict": {"state": {0: moments, 1: moments}, "param_groups": [{"lr": 0.1}]},
        entry: small_state(),
        "loss": np.float32(0.3),
        "rng": np.arange(7),
    }
    model = rr.load(pickled(tmp_path, root))
    assert_is(model)
    assert f"weights taken from the entry '{entry}'" in model.notes


def test_entries_in_entries_are_found(tmp_path: Path) -> None:
    root = {"run": {"best": {"state": behind("module.", small_state()), "step": 3}}, "epoch": 1}
    model = rr.load(pickled(tmp_path, root))
    assert_is(model)
    assert "weights taken from the entry 'run'" in model.notes
    assert "and its entry 'best'" in model.notes


def test_several_entries_are_listed_and_one_can_be_named(tmp_path: Path) -> None:
    path = pickled(tmp_path, {"student": small_state(), "teacher": {"net": OTHER}, "epoch": 1})
    message = refusal(path)
    assert "several entries of the file hold weights (got student, teacher" in message
    assert_is(rr.load(path, weights="student"))
    assert_is(rr.load(path, weights="teacher"), OTHER)
    assert_is(rr.load(path, weights="teacher.net"), OTHER)
    assert "several entries" in refusal(path, weights="ema")


@pytest.mark.parametrize(
    "entry", ["ema", "state_dict_ema", "model_ema", "ema_state_dict", "params_ema", "swa_model"]
)
def test_an_average_of_any_name_is_taken_when_asked_for(tmp_path: Path, entry: str) -> None:
    path = pickled(tmp_path, {"params": small_state(), entry: OTHER})
    assert_is(rr.load(path))
    assert_is(rr.load(path, weights="ema"), OTHER)
    assert_is(rr.load(path, weights=entry), OTHER)


@pytest.mark.parametrize("entry", ["schema", "gemma", "swamp", "lemma_state"])
def test_a_name_that_only_contains_the_letters_is_no_average(tmp_path: Path, entry: str) -> None:
    path = pickled(tmp_path, {entry: small_state()})
    assert "no EMA entry" in refusal(path, weights="ema")


def test_an_averaged_model_with_its_counter(tmp_path: Path) -> None:
    """`torch.optim.swa_utils.AveragedModel`: a counter beside the names, all others prefixed."""
    state = {"n_averaged": np.array(100), **behind("module.", small_state())}
    assert_is(rr.load(written(tmp_path, state)))


def test_a_state_that_torch_leaves_empty_is_no_array(tmp_path: Path) -> None:
    state = {**small_state(), "stage0._extra_state": None}
    assert_is(rr.load(pickled(tmp_path, {"model": state})))


def test_a_paddle_checkpoint_is_told_as_such(tmp_path: Path) -> None:
    root = {**small_state(), "StructuredToParameterName@@": {}}
    assert "PaddlePaddle" in refusal(pickled(tmp_path, root))


def test_a_shard_alone_is_told_as_such(tmp_path: Path) -> None:
    names = list(small_state())
    for count in (60, len(names) - 2):  # without its last block; without its head
        part = {name: small_state()[name] for name in names[:count]}
        path = written(tmp_path, part, "safetensors")
        path = path.rename(tmp_path / "model-00001-of-00002.safetensors")
        assert "one of several shards" in refusal(path)
    whole = written(tmp_path, small_state(), "safetensors")
    assert_is(rr.load(whole.rename(tmp_path / "model-00001-of-00001.safetensors")))


# ---------------------------------------------------------------------------- attachments


def test_profilers_counters_are_listed_and_ignored(tmp_path: Path) -> None:
    counts = {
        f"{module}{count}": np.zeros(1)
        for module in ("", "stage0.", "stage0.rbr_dense.", "stage0.rbr_dense.conv.", "linear.")
        for count in ("total_ops", "total_params")
    }
    path = written(tmp_path, small_state() | counts)
    assert_is(rr.load(path))
    messages = [finding.message for finding in inspect_file(path).findings]
    assert any("10 arrays of profilers" in m and "stage0.total_ops" in m for m in messages)


def test_a_loss_beside_bare_names_is_ignored(tmp_path: Path) -> None:
    metrics = {"val_acc.tp": ONE, "train_loss.value": ONE[0], "test_top5.correct": ONE}
    path = written(tmp_path, small_state() | {"criterion.weight": ONE} | metrics)
    model = rr.load(path)
    assert_is(model)
    assert any("val_acc.tp" in note and "4 arrays" in note for note in model.notes)
    for strange in ("lossless.weight", "criterion", "training.weight", "validate.0.weight"):
        assert strange in refusal(written(tmp_path, small_state() | {strange: ONE}))


def _pruned(dtype: Any = np.float32) -> tuple[State, State]:
    """A file as torch prunes, and what it stands for."""
    rng = np.random.default_rng(4)
    held: State = {}
    meant = dict(small_state())
    for name, array in small_state().items():
        if name.endswith("conv.weight") or name == "linear.weight":
            mask = rng.random(array.shape) < 0.7
            held[f"{name}_orig"], held[f"{name}_mask"] = array, mask.astype(dtype)
            meant[name] = np.where(mask, array, np.float32(0) * array)
        else:
            held[name] = array
    return held, meant


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.float64])
def test_pruned_weights_are_multiplied_by_their_masks(tmp_path: Path, dtype: Any) -> None:
    held, meant = _pruned(dtype)
    model = rr.load(written(tmp_path, held))
    assert_is(model, meant)
    assert any("pruned: weight_orig times weight_mask" in note for note in model.notes)


def test_a_mask_beside_its_whole_array_is_ignored(tmp_path: Path) -> None:
    state = small_state()
    name = next(name for name in state if name.endswith("conv.weight"))
    held = state | {f"{name}_mask": np.zeros_like(state[name])}
    model = rr.load(written(tmp_path, held))
    np.testing.assert_array_equal(model.state_dict()[name], state[name])
    assert any("1 masks ignored" in note for note in model.notes)


def test_a_mask_of_another_shape_or_alone_is_refused(tmp_path: Path) -> None:
    held, _ = _pruned()
    name = "stage0.rbr_dense.conv.weight"
    other = held | {f"{name}_mask": np.ones(3, np.float32)}
    assert "mask has another shape" in refusal(written(tmp_path, other))
    alone = {n: a for n, a in held.items() if n != f"{name}_mask"}
    assert f"{name}_orig" in refusal(written(tmp_path, alone))
    both = held | {name: small_state()[name]}
    assert f"{name}_orig" in refusal(written(tmp_path, both))


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32])
def test_counters_of_one_dimension_are_counters(tmp_path: Path, dtype: Any) -> None:
    counted = "num_batches_tracked"
    state = {n: a.reshape(1).astype(dtype) if counted in n else a for n, a in small_state().items()}
    model = rr.load(written(tmp_path, state))
    assert model.params[f"stage0.branch_3x3.bn.{counted}"].shape == ()


# ------------------------------------------------------------------------------ foreign objects


class Kept:
    """Of a trainer's own class, which no list can know."""

    def __init__(self) -> None:
        self.rate, self.inner = 0.1, {"again": [1, 2]}


class Mode(enum.Enum):
    """An enumeration of a trainer's own."""

    FAST = 1


BESIDE: dict[str, Any] = {
    "an object": Kept(),
    "a class": Kept,
    "objects in lists": [Kept(), {"k": Kept()}],
    "an enumeration": Mode.FAST,
    "a partial": functools.partial(Kept),
    "a range": range(3),
    "an ellipsis": ...,
}


@pytest.mark.parametrize("what", BESIDE)
def test_objects_of_any_class_beside_the_weights_are_stepped_over(
    tmp_path: Path, what: str
) -> None:
    assert_is(rr.load(pickled(tmp_path, {"state_dict": small_state(), "kept": BESIDE[what]})))


def test_an_object_among_the_weights_or_in_their_place_is_refused_by_name(tmp_path: Path) -> None:
    for root in (small_state() | {"kept": Kept()}, {"model": Kept(), "epoch": 1}):
        with pytest.raises(rr.ReportedError, match=r"refused global .*Kept \(in the entry"):
            rr.load(pickled(tmp_path, root))


def test_the_only_weights_of_a_list_are_taken(tmp_path: Path) -> None:
    model = rr.load(pickled(tmp_path, [small_state(), {"lr": 0.1}, 7]))
    assert_is(model)
    assert any("place 0" in note for note in model.notes)
    path = pickled(tmp_path, [small_state(), OTHER])
    assert "several entries of the file hold weights (got 0, 1" in refusal(path)
    assert_is(rr.load(path, weights="1"), OTHER)
