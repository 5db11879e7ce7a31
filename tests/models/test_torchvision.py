"""The rivals against what torchvision's own networks held and computed, in float64."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.files.convert import convert
from repvgg_ref.models.baselines import torchvision_geometry
from repvgg_ref.models.cost import cost
from repvgg_ref.models.geometry import with_geometry
from repvgg_ref.models.names import published_names
from repvgg_ref.models.network import Model
from repvgg_ref.models.parameters import param_shapes
from repvgg_ref.models.registry import network
from tests.models.published_weights import SHOWN, digest, image, weights

FIXTURE = Path(__file__).parent / "fixtures" / "torchvision.json"
RECORDED: dict[str, dict[str, Any]] = json.loads(FIXTURE.read_text())
LARGE = ("ResNet-101", "ResNet-152", "ResNeXt-101", "RegNetX-12GF")
COMPUTED = [
    pytest.param(name, marks=pytest.mark.slow if name in LARGE else ())
    for name, each in RECORDED.items()
    if "logits" in each
]


@pytest.mark.parametrize("name", RECORDED)
def test_keys_shapes_and_counts_are_torchvisions(name: str) -> None:
    arch, recorded = network(name), RECORDED[name]
    keys, shapes = published_names(arch, "train"), param_shapes(arch, "train")
    assert digest({keys[name]: shape for name, shape in shapes.items()}) == recorded["keys"]
    there = cost(with_geometry(arch, torchvision_geometry(arch)))
    assert (there.params_train, there.macs) == (recorded["parameters"], recorded["macs"])


@pytest.mark.few(3)
@pytest.mark.parametrize("name", COMPUTED)
def test_logits_are_torchvisions(name: str) -> None:
    arch = network(name)
    arch = with_geometry(arch, torchvision_geometry(arch))
    shapes = param_shapes(arch, "train")
    keys = published_names(arch, "train")
    arrays = weights({keys[name]: shape for name, shape in shapes.items()})
    model = Model(arch, "train", {name: arrays[key] for name, key in keys.items()})
    got = model.forward(image(), backend="numpy")[0, :SHOWN]
    error = np.abs(got - RECORDED[name]["logits"]).max() / RECORDED[name]["largest"]
    assert not (error > 1e-11)


@pytest.mark.parametrize("name", ["ResNet-50", "ResNeXt-50", "RegNetX-3.2GF"])
def test_a_state_dict_of_torchvision_is_told_and_loaded(name: str, tmp_path: Path) -> None:
    """ResNet-50 and ResNeXt-50 have the same keys; a bottleneck's stride is in its 3x3 there."""
    arch = network(name, num_classes=7)
    shapes, keys = param_shapes(arch, "train"), published_names(arch, "train")
    arrays: dict[str, Any] = {key: np.zeros(shapes[ours], np.float32) for ours, key in keys.items()}
    np.savez(tmp_path / "there.npz", **arrays)
    model = rr.load(tmp_path / "there.npz")
    assert (model.name, model.form, model.arch.num_classes) == (name, "train", 7)
    assert model.arch == with_geometry(arch, torchvision_geometry(arch))
    assert model.state_dict().keys() == arrays.keys()
    if name == "ResNet-50":
        assert [model.arch.block(f"layer2.0.conv{n}").stride for n in (1, 2)] == [1, 2]
        assert model.assumed.steps["strides"]["layer2.0.conv2"] == 2


@pytest.mark.parametrize("form", ["train", pytest.param("deploy", marks=pytest.mark.slow)])
def test_our_own_files_come_back_as_they_were(form: str, tmp_path: Path) -> None:
    """With the strides that they had, though the keys are torchvision's."""
    model = rr.build("ResNet-50-RepVGG", num_classes=3)
    model = model if form == "train" else rr.fuse(model)
    rr.save(model, tmp_path / "own.npz")
    again = rr.load(tmp_path / "own.npz")
    assert (again.arch, again.form) == (model.arch, form)
    assert all((again.params[name] == model.params[name]).all() for name in model.params)


def test_names_of_older_files_of_ours_still_load(tmp_path: Path) -> None:
    model = rr.build("ResNet-18", num_classes=3)
    params: dict[str, Any] = model.params
    np.savez(tmp_path / "old.npz", **params)
    again = rr.load(tmp_path / "old.npz")
    assert again.arch == model.arch
    assert all((again.params[name] == model.params[name]).all() for name in model.params)


def test_a_gated_network_is_converted_with_its_gates(tmp_path: Path) -> None:
    model = rr.build("EfficientNet-B0", num_classes=3)
    rr.save(model, tmp_path / "train.pth")
    done = convert(tmp_path / "train.pth", tmp_path / "deploy.npz")
    assert done.self_check is not None
    fused = rr.load(tmp_path / "deploy.npz")
    assert (fused.name, fused.form) == ("EfficientNet-B0", "deploy")
    x = np.random.default_rng(0).standard_normal((1, 3, 33, 40), np.float32)
    wanted = model.forward(x)
    error = np.abs(fused.forward(x) - wanted).max() / np.abs(wanted).max()
    assert not (error > 1e-4)
