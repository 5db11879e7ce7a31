"""Files of PSPNets: written, read, recognised, fused and refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import repvgg_ref as rr
import weights_io
from repvgg_ref.errors import CheckpointError
from repvgg_ref.files.checkpoint import load, save
from repvgg_ref.files.convert import convert
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.pspnet import pspnet
from tests.models.segmenters import pictures, small_model
from tests.random_networks import random_model


@pytest.mark.parametrize("suffix", ["npz", "safetensors", "pth"])
def test_a_model_comes_back_in_both_forms(tmp_path: Path, suffix: str) -> None:
    model, (x, _) = small_model(fast=True), pictures(height=17, width=25)
    save(model, tmp_path / f"a.{suffix}")
    again = load(tmp_path / f"a.{suffix}")
    assert again.arch == model.arch
    np.testing.assert_array_equal(again.forward(x), model.forward(x))
    done = convert(tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}")
    assert done.self_check is not None
    assert done.self_check.ok
    fused = load(tmp_path / f"b.{suffix}")
    assert (fused.form, bool(fused.assumed)) == ("deploy", False)
    assert "layer3.1.rbr_reparam.weight" in fused.state_dict()
    wanted = rr.fuse(model).forward(x)
    np.testing.assert_array_equal(fused.forward(x), wanted)


def test_pth_is_what_official_code_has_once_it_is_fused(tmp_path: Path) -> None:
    """A fused backbone; pyramid, head and auxiliary head as they were trained, counters too."""
    model, (x, _) = small_model(dtype=np.float32, fast=True), pictures(height=17, width=25)
    save(model, tmp_path / "a.pth")
    done = convert(tmp_path / "a.pth", tmp_path / "b.pth")
    with weights_io.open_weights(tmp_path / "b.pth") as archive:
        assert isinstance(archive.root, dict)
        held = {name: array.read() for name, array in archive.root.items()}
    trained, fused = model.state_dict(), rr.fuse(model).state_dict()
    wanted = {n: a for n, a in fused.items() if ".rbr_reparam." in n}
    wanted |= {n: a for n, a in trained.items() if not n.startswith("layer")}
    assert (held.keys(), done.tensors) == (wanted.keys(), len(wanted))
    for name, array in wanted.items():
        assert held[name].dtype == array.dtype
        np.testing.assert_array_equal(held[name], array)
    again = load(tmp_path / "b.pth")
    assert (again.form, bool(again.assumed)) == ("deploy", False)
    np.testing.assert_array_equal(again.forward(x), rr.fuse(model).forward(x))
    assert rr.verify(model, tmp_path / "b.pth").verdict == "agree"


def test_official_files_of_heads_in_any_state_are_read(tmp_path: Path) -> None:
    """Without our metadata eps is assumed, aloud, and can be said."""
    model, (x, _) = small_model(dtype=np.float32), pictures(height=17, width=25)
    fused = rr.fuse(model).state_dict()
    trained = {n: a for n, a in model.state_dict().items() if not n.startswith("layer")}
    backbone = {n: a for n, a in fused.items() if n.startswith("layer")}
    folded_head = {n: a for n, a in trained.items() if not n.startswith(("cls.0", "cls.1"))}
    folded_head |= {n: a for n, a in fused.items() if n.startswith("cls.0")}
    files = {
        "official": backbone | trained,
        "no auxiliary": backbone | {n: a for n, a in trained.items() if not n.startswith("aux")},
        "auxiliary left": fused | {n: a for n, a in trained.items() if n.startswith("aux")},
        "a folded head": backbone | folded_head,
        "no counters": {n: a for n, a in (backbone | trained).items() if "tracked" not in n},
    }
    for what, state in files.items():
        weights_io.save_weights(tmp_path / "a.pth", state, container="torch-zip")
        again = load(tmp_path / "a.pth")
        np.testing.assert_array_equal(again.forward(x), rr.fuse(model).forward(x), err_msg=what)
        assert (again.assumed.eps is None) == (what == "auxiliary left")
        other = load(tmp_path / "a.pth", eps=1e-3)
        assert other.assumed.eps is None
        same = np.array_equal(other.forward(x), again.forward(x))
        assert same == (what == "auxiliary left")
    lacking = {n: a for n, a in (backbone | trained).items() if n != "cls.1.weight"}
    weights_io.save_weights(tmp_path / "b.pth", lacking, container="torch-zip")
    with pytest.raises(CheckpointError, match=r"cls\.1\.weight is missing"):
        load(tmp_path / "b.pth")
    convert(tmp_path / "a.pth", tmp_path / "c.npz")
    np.testing.assert_array_equal(load(tmp_path / "c.npz").forward(x), rr.fuse(model).forward(x))


def test_a_trainers_file_is_read_and_what_it_cannot_tell_is_said(tmp_path: Path) -> None:
    """Behind ``module.``, without metadata: the fast form has the same arrays."""
    model = small_model(fast=True)
    state = {f"module.{name}": array for name, array in model.state_dict().items()}
    path = tmp_path / "train_epoch_200.pth"
    weights_io.save_weights(path, state, container="torch-zip")
    assumed = load(path)
    assert assumed.arch.block("stage3.0").dilation == 2
    assert assumed.assumed.dilations["stage3.0"] == 2
    dilations = {f"stage3.{n}": 1 for n in (0, 1)}
    said = load(path, dilations=dilations)
    assert said.arch.block("stage3.0").dilation == 1
    x, _ = pictures(height=17, width=17)
    np.testing.assert_array_equal(said.forward(x), model.forward(x))


def test_official_backbones_are_named_and_a_name_says_the_dilations(tmp_path: Path) -> None:
    model = rr.build("PSPNet-RepVGG-A0-fast", num_classes=3)
    path = tmp_path / "a0.pth"
    weights_io.save_weights(path, model.state_dict(), container="torch-zip")
    assert load(path).name == "PSPNet-RepVGG-A0"
    asked = load(path, "pspnet_repvgg_a0_fast", eps=1e-5)
    assert (asked.name, bool(asked.assumed)) == ("PSPNet-RepVGG-A0-fast", False)
    with pytest.raises(CheckpointError, match="not those of PSPNet-RepVGG-B0"):
        load(path, "PSPNet-RepVGG-B0")


def test_a_backbone_with_squeeze_and_excitation(tmp_path: Path) -> None:
    chain = plain_architecture(
        depths=(1, 1, 1, 1), channels=(16,) * 5, se="before_relu", num_classes=2
    )
    model = random_model(pspnet(chain, num_classes=3, head=4, aux_head=4), 0)
    save(model, tmp_path / "se.npz")
    assert "layer1.0.se.down.weight" in model.state_dict()
    assert load(tmp_path / "se.npz").arch == model.arch


def test_missing_and_strange_arrays_are_listed(tmp_path: Path) -> None:
    state = small_model().state_dict()
    lacking = {n: a for n, a in state.items() if n != "ppm.features.2.2.running_var"}
    weights_io.save_weights(tmp_path / "a.npz", lacking, container="npz")
    with pytest.raises(CheckpointError, match=r"ppm\.features\.2\.2\.running_var"):
        load(tmp_path / "a.npz")
    more = state | {"cls.7.weight": np.zeros(3)}
    weights_io.save_weights(tmp_path / "b.npz", more, container="npz")
    with pytest.raises(CheckpointError, match=r"1 unexpected: cls\.7\.weight"):
        load(tmp_path / "b.npz")
    headless = {n: a for n, a in state.items() if not n.startswith("cls.4")}
    weights_io.save_weights(tmp_path / "c.npz", headless, container="npz")
    with pytest.raises(CheckpointError, match=r"cls\.4\.weight is missing"):
        load(tmp_path / "c.npz")


def test_inspect_says_of_metadata_what_is_in_it(tmp_path: Path) -> None:
    """A file without any says nothing of dilations; one of ours does."""
    model = small_model()
    np.savez(tmp_path / "plain.npz", **model.state_dict())  # type: ignore[arg-type]
    save(model, tmp_path / "ours.npz")
    plain, ours = (inspect_file(tmp_path / f"{name}.npz").findings for name in ("plain", "ours"))
    assert not [each.message for each in plain if "metadata says" in each.message]
    assert [each.message for each in ours if "metadata says dilation" in each.message]
