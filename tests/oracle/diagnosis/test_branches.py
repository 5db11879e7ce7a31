"""What happens to a branch is named in every kind of block, in a port written out here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.models.architectures import plain_architecture
from repvgg_ref.models.network import Model
from repvgg_ref.oracle import verify
from repvgg_ref.oracle.programs.distinguishing import distinguishing_model
from repvgg_ref.oracle.programs.inputs import distinguishing_inputs
from repvgg_ref.oracle.report import Report

# Which arrays a block of each kind has; "x" is the identity.
CONVS = {
    "repvgg": ("branch_3x3", "branch_1x1", "x"),
    "plain": ("branch_3x3",),
    "identity-only": ("branch_3x3", "x"),
    "1x1-only": ("branch_3x3", "branch_1x1"),
    "identity-without-bn": ("branch_3x3", "branch_1x1", "x"),
    "post-addition-bn": ("branch_3x3", "branch_1x1", "x"),
    "acb": ("square", "vertical", "horizontal"),
}


@dataclass
class Norm:
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    eps: float
    trains: bool = False

    def __call__(self, z: Array) -> Array:
        mean, var = self.mean, self.var
        if self.trains:
            mean, var = z.mean((0, 2, 3)), z.var((0, 2, 3))
        slope = self.gamma / np.sqrt(var + self.eps)
        return np.asarray(
            slope[:, None, None] * (z - mean[:, None, None]) + self.beta[:, None, None]
        )


@dataclass
class Block:
    """``after(sum of norm(conv(x)))``; a norm that is None does nothing."""

    kernels: dict[str, Array]
    norms: dict[str, Norm | None]
    after: Norm | None
    stride: int
    channels: int

    def __call__(self, x: Array) -> Array:
        size = [(n - 1) // self.stride + 1 for n in x.shape[2:]]
        y = np.zeros((len(x), self.channels, *size))
        for name, kernel in self.kernels.items():
            norm = self.norms[name]
            z = convolved(x, kernel, self.stride)
            y += z if norm is None else norm(z)
        return np.asarray(np.maximum(y if self.after is None else self.after(y), 0))


def convolved(x: Array, kernel: Array, stride: int) -> Array:
    _, _, height, width = x.shape
    rows, columns = kernel.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (rows // 2,) * 2, (columns // 2,) * 2))
    y: Any = 0
    for i in range(rows):
        for j in range(columns):
            seen = padded[:, :, i : i + height : stride, j : j + width : stride]
            y = y + np.einsum("oc,nchw->nohw", kernel[:, :, i, j], seen)
    return np.asarray(y)


def block_of(model: Model, spec: Any) -> Block:
    def norm(name: str) -> Norm | None:
        fields = ("gamma", "beta", "running_mean", "running_var")
        keys = [f"{spec.name}.{name}.{field}" for field in fields]
        if keys[0] not in model.params:
            return None
        gamma, beta, mean, var = (model.params[key].astype(float) for key in keys)
        return Norm(gamma, beta, mean, var, model.eps)

    kernels, norms = {}, {}
    for name in CONVS[spec.kind]:
        if name != "x":
            kernels[name] = model.params[f"{spec.name}.{name}.conv.weight"].astype(float)
            norms[name] = norm(f"{name}.bn")
        elif spec.in_channels == spec.out_channels and spec.stride == 1:
            kernels[name] = np.eye(spec.in_channels)[:, :, None, None]
            norms[name] = norm("branch_identity.bn")
    return Block(kernels, norms, norm("bn"), spec.stride, spec.out_channels)


def judged(kind: str, bug: Callable[[Block], Block] = lambda block: block) -> Report:
    """The verdict on a port with a bug in its last block."""
    arch = plain_architecture(
        depths=[1, 2], channels=[4, 8, 8], num_classes=3, in_channels=2, kind=kind
    )
    model = distinguishing_model(arch, seed=3)
    x = distinguishing_inputs(arch, height=24, width=28)
    outputs, y = {"input": x}, x.astype(float)
    for spec in arch.blocks:
        block = block_of(model, spec)
        y = (bug(block) if spec is arch.blocks[-1] else block)(y)
        outputs[spec.name] = y.astype(np.float32)
    weight, bias = (model.params[f"linear.{part}"].astype(float) for part in ("weight", "bias"))
    outputs["linear"] = (y.mean((2, 3)) @ weight.T + bias).astype(np.float32)
    return verify(model, outputs)


def without(name: str) -> Callable[[Block], Block]:
    return lambda b: replace(b, kernels={n: k for n, k in b.kernels.items() if n != name})


def with_kernel(name: str, change: Callable[[Array], Array]) -> Callable[[Block], Block]:
    return lambda b: replace(b, kernels={**b.kernels, name: change(b.kernels[name])})


def twice(name: str) -> Callable[[Block], Block]:
    def bug(b: Block) -> Block:
        kernels, norms = dict(b.kernels), dict(b.norms)
        kernels["again"], norms["again"] = kernels[name], norms[name]
        return replace(b, kernels=kernels, norms=norms)

    return bug


def moved(row: int, column: int) -> Callable[[Array], Array]:
    """The kernel's taps displaced, what leaves it lost."""

    def change(kernel: Array) -> Array:
        out = np.zeros_like(kernel)
        rows, columns = kernel.shape[2:]
        for i in range(rows):
            for j in range(columns):
                if 0 <= i + row < rows and 0 <= j + column < columns:
                    out[:, :, i + row, j + column] = kernel[:, :, i, j]
        return out

    return change


def training(b: Block) -> Block:
    on = {n: norm and replace(norm, trains=True) for n, norm in b.norms.items()}
    return replace(b, norms=on, after=b.after and replace(b.after, trains=True))


def exchanged(*, norms_too: bool) -> Callable[[Block], Block]:
    """Vertical and horizontal kernels in each other's place."""

    def bug(b: Block) -> Block:
        tall, wide = b.kernels["vertical"], b.kernels["horizontal"]
        kernels = b.kernels | {
            "vertical": wide.reshape(*wide.shape[:2], 3, 1),
            "horizontal": tall.reshape(*tall.shape[:2], 1, 3),
        }
        tall_norm, wide_norm = b.norms["vertical"], b.norms["horizontal"]
        swapped = b.norms | {"vertical": wide_norm, "horizontal": tall_norm}
        return replace(b, kernels=kernels, norms=swapped if norms_too else b.norms)

    return bug


MISSING = {
    "branch_3x3": "branch-3x3-missing",
    "branch_1x1": "branch-1x1-missing",
    "x": "identity-missing",
}


@pytest.mark.parametrize("kind", CONVS)
def test_a_right_port_of_any_kind_agrees(kind: str) -> None:
    report = judged(kind)
    assert (report.verdict, report.diagnosis) == ("agree", ()), report.reason


def named(report: Report) -> str:
    assert (report.verdict, report.first_bad_layer) == ("disagree", "stage2.1")
    return report.diagnosis[0].bug


@pytest.mark.few(2)
@pytest.mark.parametrize(("kind", "name"), [(k, n) for k, names in CONVS.items() for n in names])
def test_a_branch_missing_or_without_its_kernel_or_doubled(kind: str, name: str) -> None:
    want = MISSING.get(name, "branch-missing")
    assert named(judged(kind, without(name))) == want
    assert named(judged(kind, with_kernel(name, lambda w: 0 * w))) == want
    report = judged(kind, twice(name))
    assert named(report) == "branch-doubled"
    said = "branch_identity" if name == "x" else name
    assert f"({said})" in report.diagnosis[0].says


@pytest.mark.parametrize("kind", CONVS)
def test_batch_norm_in_training_mode(kind: str) -> None:
    assert named(judged(kind, training)) == "train-mode-batch-norm"


@pytest.mark.few(5)
@pytest.mark.parametrize("step", [(0, 1), (-1, 0), (1, 1)])
@pytest.mark.parametrize("kind", CONVS)
def test_the_largest_branch_one_tap_off(kind: str, step: tuple[int, int]) -> None:
    name = CONVS[kind][0]
    report = judged(kind, with_kernel(name, moved(*step)))
    assert named(report) == "branch-on-wrong-taps"
    assert f"{name} by ({step[0]:+d}, {step[1]:+d})" in report.diagnosis[0].says


@pytest.mark.parametrize("norms_too", [False, True])
def test_vertical_and_horizontal_kernels_exchanged(*, norms_too: bool) -> None:
    report = judged("acb", exchanged(norms_too=norms_too))
    assert named(report) == "branch-kernels-swapped"
    assert "vertical and horizontal" in report.diagnosis[0].says
    assert ("norms as well" in report.diagnosis[0].says) == norms_too
