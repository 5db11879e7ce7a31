"""What a network costs: parameters, multiply-accumulates, Winograd multiplications, activations.

Source: Tables 4 and 5 of arXiv 2101.03697. The paper's "FLOPs" are multiply-accumulates of the
convolutions and the linear layer at 224 x 224; its "Wino MULs" (section 3.1) count 4/9 of them for
a stride-1 3x3 convolution, as F(2x2, 3x3) needs 16 multiplications where the sum has 36.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import Architecture


@dataclass(frozen=True, slots=True)
class Cost:
    """Counts of one network; `macs` and `wino_muls` are of the fused form, one image."""

    name: str
    params_train: int
    params_deploy: int
    macs: int
    wino_muls: Fraction


def cost(arch: Architecture, *, height: int = 224, width: int = 224) -> Cost:
    """Count `arch` at an input of ``(in_channels, height, width)``.

    Auxiliary heads count in `params_train` only: they do not exist in the fused form.
    """
    macs, wino = arch.features * arch.num_classes, Fraction(arch.features * arch.num_classes)
    for block in arch.blocks:
        height, width = _halve(height, block.stride), _halve(width, block.stride)
        conv_macs = _kernel_params(block, 9) * height * width
        se_macs = 2 * block.out_channels * block.se_channels
        macs += conv_macs + se_macs
        wino += conv_macs * (Fraction(4, 9) if block.stride == 1 else 1) + se_macs
    head = (arch.features + 1) * arch.num_classes
    return Cost(
        name=arch.name,
        params_train=sum(map(_train_params, arch.blocks)) + _aux_params(arch) + head,
        params_deploy=sum(map(_deploy_params, arch.blocks)) + head,
        macs=macs,
        wino_muls=wino,
    )


def _halve(extent: int, stride: int) -> int:
    """Output extent of a 3x3 convolution with padding 1 (or a dilated one that keeps size)."""
    return (extent - 1) // stride + 1


def _kernel_params(block: BlockSpec, taps: int) -> int:
    return block.out_channels * (block.in_channels // block.groups) * taps


def _se_params(block: BlockSpec) -> int:
    weights = 2 * block.out_channels * block.se_channels
    return weights + block.se_channels + block.out_channels if block.se != "none" else 0


def _deploy_params(block: BlockSpec) -> int:
    return _kernel_params(block, 9) + block.out_channels + _se_params(block)


def _train_params(block: BlockSpec) -> int:
    batch_norms = 1 + block.has_1x1 + block.has_identity
    kernels = _kernel_params(block, 9) + block.has_1x1 * _kernel_params(block, 1)
    return kernels + 2 * block.out_channels * batch_norms + _se_params(block)


def _aux_params(arch: Architecture) -> int:
    return sum(
        9 * head.channels**2 + 2 * head.channels + (head.channels + 1) * arch.num_classes
        for head in arch.aux_heads
    )
