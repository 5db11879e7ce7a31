"""RepVGG in torch's own layers, with the official names; torch is handed in, not imported."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from repvgg_ref.bench.contenders.base import CannotTakePartError
from repvgg_ref.blocks.catalogue import fused_conv
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.graph import Network
from repvgg_ref.models.network import Model


def train_network(torch: Any, arch: Network, *, eps: float) -> Any:
    """The three-branch form, layers as torch starts them: ``stage1.0.rbr_dense.conv`` ...

    Raises
    ------
    CannotTakePartError
        For squeeze-and-excitation and auxiliary heads, which are not written here.
    """
    if arch.nodes != arch.evaluated or any(
        s.se != "none" or s.kind != "repvgg" for s in arch.blocks
    ):
        raise CannotTakePartError("only RepVGG's own block is written for torch's training form")
    network = torch.nn.Module()
    for spec in arch.blocks:
        stage, _, index = spec.name.partition(".")
        parent = network
        if index:
            if not hasattr(network, stage):
                network.add_module(stage, torch.nn.Module())
            parent = getattr(network, stage)
        parent.add_module(index or stage, _block(torch.nn, spec, eps))
    network.linear = torch.nn.Linear(arch.features, arch.num_classes)
    return network


def train_forward(torch: Any, network: Any, arch: Network, x: Any) -> Any:
    """Logits of `train_network`; batch norm as the network's mode says."""
    for spec in arch.blocks:
        block = network.get_submodule(spec.name)
        total = block.rbr_dense(x) + block.rbr_1x1(x)
        if spec.can_add_input:
            total = total + block.rbr_identity(x)
        x = torch.relu(total)
    return network.linear(x.mean((2, 3)))


def deploy_network(torch: Any, deploy: Model) -> Any:
    """The fused chain with its weights: convolutions and ReLU in place, nothing else."""
    if not deploy.arch.is_chain:
        raise CannotTakePartError("only a chain of blocks is written for torch")
    if any(spec.se != "none" for spec in deploy.arch.blocks):
        raise CannotTakePartError("squeeze-and-excitation is not written for torch")
    layers = []
    for spec in deploy.arch.blocks:
        conv = _conv(torch.nn, spec, fused_conv(spec).kernel[0], bias=True)
        _fill(torch, conv, deploy, f"{spec.name}.fused")
        layers += [conv, torch.nn.ReLU(inplace=True)]
    linear = torch.nn.Linear(deploy.arch.features, deploy.arch.num_classes)
    _fill(torch, linear, deploy, "linear")
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), linear]
    return torch.nn.Sequential(*layers).eval()


def _fill(torch: Any, layer: Any, model: Model, name: str) -> None:
    for part in ("weight", "bias"):
        getattr(layer, part).data = torch.tensor(model.params[f"{name}.{part}"])


def _block(nn: Any, spec: BlockSpec, eps: float) -> Any:
    def with_bn(kernel: int) -> Any:
        conv = _conv(nn, spec, kernel, bias=False)
        return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(spec.out_channels, eps=eps)))

    block = nn.Module()
    block.rbr_dense, block.rbr_1x1 = with_bn(3), with_bn(1)
    if spec.can_add_input:
        block.rbr_identity = nn.BatchNorm2d(spec.out_channels, eps=eps)
    return block


def _conv(nn: Any, spec: BlockSpec, kernel: int, *, bias: bool) -> Any:
    return nn.Conv2d(
        spec.in_channels,
        spec.out_channels,
        kernel,
        stride=spec.stride,
        padding=spec.dilation * (kernel // 2),
        dilation=spec.dilation if kernel > 1 else 1,
        groups=spec.groups,
        bias=bias,
    )
