"""Networks whose strides were changed after they were built, in torch: ours compute the same.

The modules are built as the official ones and edited, as forks do it (last stride 1 for
re-identification, stem for small pictures, dilated stages for segmentation); a checkpoint of theirs
has exactly the keys of the unedited network.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

import repvgg_ref as rr
from repvgg_ref.arrays import Array
from repvgg_ref.files.convert import convert
from repvgg_ref.models.architectures import plain_architecture
from tests.peers.torch_repvgg import build_torch, to_torch
from tests.random_networks import random_model

pytestmark = pytest.mark.peers

ARCH = plain_architecture(depths=(2, 2), channels=(8, 8, 16), groups=2, num_classes=5)
MODEL = random_model(ARCH, 7)
X = np.random.default_rng(1).normal(size=(2, 3, 40, 32)).astype(np.float32)
Edits = dict[str, tuple[int, int]]  # block -> stride, dilation

FORKS: dict[str, Edits] = {
    "last stride 1": {"stage2.0": (1, 1)},
    "stem stride 1": {"stage0": (1, 1)},
    "first stage": {"stage1.0": (1, 1)},
    "dilated": {"stage2.0": (1, 1), "stage2.1": (1, 2)},
    "dilated throughout": {"stage2.0": (1, 2), "stage2.1": (1, 2)},
}


def edited(module: Any, edits: Edits) -> Any:
    """A copy with these strides and dilations; padding of a 3x3 convolution is its dilation."""
    module = copy.deepcopy(module).eval()
    for name, (stride, dilation) in edits.items():
        for part in module.get_submodule(name).modules():
            if isinstance(part, torch.nn.Conv2d):
                part.stride = (stride, stride)
                if part.kernel_size == (3, 3):
                    part.dilation = part.padding = (dilation, dilation)
    return module


def checkpoint(folder: Path, edits: Edits, model: rr.Model = MODEL) -> tuple[Path, Any]:
    """A torch checkpoint, which says nothing of the edits, and the edited module."""
    built = build_torch(ARCH, deploy=model.form == "deploy")
    built.load_state_dict(to_torch(model.state_dict()), strict=True)
    module = edited(built, edits)
    torch.save(module.state_dict(), folder / "m.pth")
    return folder / "m.pth", module


def said(edits: Edits) -> dict[str, dict[str, int]]:
    return {
        "strides": {name: stride for name, (stride, _) in edits.items()},
        "dilations": {name: dilation for name, (_, dilation) in edits.items() if dilation > 1},
    }


def logits(module: Any, x: Array = X) -> Array:
    with torch.no_grad():
        found: Array = module.double()(torch.tensor(x).double()).numpy()
    return found


def assert_close(got: Array, want: Array) -> None:
    assert got.shape == want.shape
    error = np.abs(got - want).max() / np.abs(want).max()
    assert not (error > 2e-5), error


@pytest.mark.parametrize("fork", FORKS)
@pytest.mark.parametrize("form", ["train", "deploy"])
def test_torch_computes_the_same(tmp_path: Path, fork: str, form: str) -> None:
    edits = FORKS[fork]
    model = MODEL if form == "train" else rr.fuse(MODEL)
    path, module = checkpoint(tmp_path, edits, model)
    want = logits(module)
    assert np.abs(want - model.forward(X)).max() > 0.01 * np.abs(want).max(), "no edit shows"
    loaded = rr.load(path, **said(edits))
    for backend in ("numpy", "reference"):
        assert_close(loaded.forward(X, backend=backend), want)
    if form == "train":
        assert_close(rr.fuse(loaded).forward(X), want)


@pytest.mark.parametrize("fork", FORKS)
def test_gradients_are_torchs(tmp_path: Path, fork: str) -> None:
    path, module = checkpoint(tmp_path, FORKS[fork])
    labels = np.array([1, 3])
    step = rr.load(path, dtype=np.float64, **said(FORKS[fork])).loss_and_grads(
        X.astype(np.float64), labels
    )
    module.double().train()
    module.loss(torch.tensor(X).double(), torch.tensor(labels)).backward()
    for name, parameter in module.named_parameters():
        got, want = step.grads[name], parameter.grad.numpy()
        assert not (np.abs(got - want).max() > 1e-9 * max(1.0, np.abs(want).max())), name


@pytest.mark.parametrize("fork", FORKS)
def test_the_exported_graph_computes_the_same(tmp_path: Path, fork: str) -> None:
    runtime = pytest.importorskip("onnxruntime")
    path, module = checkpoint(tmp_path, FORKS[fork])
    convert(path, tmp_path / "m.onnx", **said(FORKS[fork]))
    session = runtime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert_close(session.run(None, {"input": X})[0], logits(module))


@pytest.mark.parametrize(("fork", "form"), [("last stride 1", "train"), ("dilated", "deploy")])
def test_a_torch_port_agrees_once_its_strides_are_said(
    tmp_path: Path, fork: str, form: str
) -> None:
    edits = FORKS[fork]
    path, module = checkpoint(tmp_path, edits, MODEL if form == "train" else rr.fuse(MODEL))
    with torch.no_grad():
        port = {name: y.numpy() for name, y in module.layers(torch.tensor(X))}
    assert rr.verify(rr.load(path, **said(edits)), port, inputs=X).verdict == "agree"
    assumed = rr.verify(path, port, inputs=X)
    assert (assumed.verdict, assumed.diagnosis[-1].bug) == ("disagree", "assumption")
    (options,) = {finding.advice for finding in assumed.diagnosis}
    for name, (stride, dilation) in edits.items():
        assert stride == ARCH.block(name).stride or f"{name}={stride}" in options
        assert dilation == 1 or f"{name}={dilation}" in options.split("--dilations")[1]


def test_a_checkpoint_with_metadata_is_torchs_still(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rr.save(MODEL, tmp_path / "m.pth")
        for options in ({}, {"mmap": True}):
            state = torch.load(tmp_path / "m.pth", weights_only=True, **options)  # type: ignore[arg-type]
            assert list(state) == list(MODEL.state_dict())
            build_torch(ARCH).load_state_dict(state, strict=True)
