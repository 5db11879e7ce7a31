"""All 8.3 million fused values of a RepVGG-A0, against exact arithmetic and the official script."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.fusion import FusedConv, fuse_block
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import architecture
from tests.blocks.witness import Witness, is_nearest, unclear
from tests.random_networks import random_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

EPS = 1e-5
_UNIT = float(np.finfo(np.longdouble).eps) / 2


def test_every_value_of_a_full_size_network_is_correctly_rounded() -> None:
    """Counts what differs from the exact value rounded to float32: here, and in the official code.

    The official `switch_to_deploy` computes in float32, so its taps carry two or three roundings.
    """
    model = random_model(architecture("RepVGG-A0"), seed=0)
    total = ours = official = asked = 0
    for spec in model.arch.blocks:
        block = {n: p for n, p in model.params.items() if n.startswith(spec.name + ".")}
        fused = fuse_block(spec, block, eps=EPS)
        wrong, hard = _exceptions(spec, block, fused)
        theirs = _official(spec, block)
        total += fused.weight.size + fused.bias.size
        ours, asked = ours + wrong, asked + hard
        official += int((theirs.weight != fused.weight).sum() + (theirs.bias != fused.bias).sum())
    print(
        f"\nof {total:,} fused values {ours} are not correctly rounded ({asked} needed 250 digits);"
    )
    print(f"in the official float32 arithmetic {official:,} are not ({official / total:.1%})")
    assert total == 8_309_384 - 1000 * 1281
    assert ours == 0
    assert official > total // 4, "if the official arithmetic were exact this project would not be"


def _exceptions(spec: BlockSpec, params: dict[str, Array], fused: FusedConv) -> tuple[int, int]:
    """Values that are wrong, and values that only the decimal witness could judge."""
    witness = Witness(params, spec.name, spec.groups, EPS)
    weight, weight_error, bias, bias_error = _longdouble(spec, params)
    hard_taps = unclear(weight, fused.weight, weight_error)
    hard_biases = unclear(bias, fused.bias, bias_error)
    wrong = sum(
        not is_nearest(fused.weight[tuple(at)], witness.weight(*map(int, at))) for at in hard_taps
    )
    wrong += sum(not is_nearest(fused.bias[o], witness.bias(int(o))) for (o,) in hard_biases)
    return wrong, len(hard_taps) + len(hard_biases)


def _longdouble(spec: BlockSpec, params: dict[str, Array]) -> tuple[Array, Array, Array, Array]:
    """Kernel, its error bound, bias, its error bound; eight roundings at most on each path."""
    at = f"{spec.name}."
    part = {n.removeprefix(at): p.astype(np.longdouble) for n, p in params.items()}
    weight: Array = np.zeros(part["branch_3x3.conv.weight"].shape, np.longdouble)
    sizes, bias, shifts = (
        np.zeros_like(weight),
        weight[:, 0, 0, 0].copy(),
        weight[:, 0, 0, 0].copy(),
    )
    rows = np.arange(spec.out_channels)
    for branch in ("branch_3x3", "branch_1x1", "branch_identity"):
        if f"{branch}.bn.gamma" not in part:
            continue
        t = part[f"{branch}.bn.gamma"] / np.sqrt(
            part[f"{branch}.bn.running_var"] + np.longdouble(EPS)
        )
        shift = part[f"{branch}.bn.running_mean"] * t
        bias += part[f"{branch}.bn.beta"] - shift
        shifts += np.abs(part[f"{branch}.bn.beta"]) + np.abs(shift)
        if branch == "branch_identity":
            per_group = weight.shape[1]
            weight[rows, rows % per_group, 1, 1] += t
            sizes[rows, rows % per_group, 1, 1] += np.abs(t)
        else:
            kernel = part[f"{branch}.conv.weight"] * t[:, None, None, None]
            taps = slice(0, 3) if kernel.shape[2] == 3 else slice(1, 2)
            weight[:, :, taps, taps] += kernel
            sizes[:, :, taps, taps] += np.abs(kernel)
    return weight, 8 * _UNIT * sizes, bias, 8 * _UNIT * shifts


def _official(spec: BlockSpec, params: dict[str, Array]) -> FusedConv:
    """What `switch_to_deploy` of the official repository computes, operation by operation."""
    tensors = {n.removeprefix(f"{spec.name}."): torch.from_numpy(p) for n, p in params.items()}

    def fold(branch: str, kernel: Any) -> tuple[Any, Any]:
        bn = {
            f: tensors[f"{branch}.bn.{f}"] for f in ("gamma", "beta", "running_mean", "running_var")
        }
        std = (bn["running_var"] + EPS).sqrt()
        t = (bn["gamma"] / std).reshape(-1, 1, 1, 1)
        return kernel * t, bn["beta"] - bn["running_mean"] * bn["gamma"] / std

    kernel, bias = fold("branch_3x3", tensors["branch_3x3.conv.weight"])
    point, point_bias = fold("branch_1x1", tensors["branch_1x1.conv.weight"])
    kernel, bias = kernel + torch.nn.functional.pad(point, [1, 1, 1, 1]), bias + point_bias
    if spec.can_add_input:
        identity = torch.zeros_like(kernel)
        for i in range(spec.out_channels):
            identity[i, i % kernel.shape[1], 1, 1] = 1
        copied, copied_bias = fold("branch_identity", identity)
        kernel, bias = kernel + copied, bias + copied_bias
    return FusedConv(kernel.numpy(), bias.numpy())
