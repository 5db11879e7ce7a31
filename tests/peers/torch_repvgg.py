# mypy: allow-subclassing-any
# This project does not follow the types torch publishes: it is a witness, not a dependency.
"""An independent RepVGG in torch for any `Architecture`, with the official code's parameter names.

Written from the paper (arXiv 2101.03697, figure 4) and the official key list, with torch's own
layers and autograd only, so that agreement with `repvgg_ref` says something. `state_dict` of either
side loads into the other (`load_state_dict(strict=True)`), in the train and in the deploy form.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.models.architectures import AuxHeadSpec
from repvgg_ref.models.graph import Network


def build_torch(arch: Network, deploy: bool = False, eps: float = 1e-5) -> Any:
    """A `torch.nn.Module`: float32, in training mode, its weights as torch's layers start."""
    return TorchRepVGG(arch, deploy, eps)


def to_torch(state: Any) -> dict[str, Any]:
    """Our `state_dict` (arrays) as tensors that share no memory with it."""
    return {name: torch.tensor(array) for name, array in state.items()}


class TorchRepVGG(nn.Module):
    """Blocks under ``stage{s}.{i}``, or ``stage{s}.blocks.{i}`` and halves of stage 3 (plus)."""

    def __init__(self, arch: Network, deploy: bool, eps: float) -> None:
        super().__init__()
        self.names = [spec.name for spec in arch.blocks]
        self.paths = _paths(arch)
        for spec, path in zip(arch.blocks, self.paths, strict=True):
            _place(self, path, TorchBlock(spec, deploy, eps))
        self.heads = {} if deploy else {head.after: head.name for head in arch.aux_heads}
        if not deploy:
            for head in arch.aux_heads:
                self.add_module(head.name, _aux_head(head, arch.num_classes, eps))
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(arch.features, arch.num_classes)

    def layers(self, x: Any) -> Iterator[tuple[str, Any]]:
        """Yield ``("stage0", y)``, ``("stage1.0", y)``, ..., ``("linear", logits)``."""
        for name, path in zip(self.names, self.paths, strict=True):
            x = self.get_submodule(path)(x)
            yield name, x
        yield "linear", self.linear(torch.flatten(self.gap(x), 1))

    def outputs(self, x: Any) -> dict[str, Any]:
        """The logits under "main", and each auxiliary head's under its name."""
        found = {}
        for name, y in self.layers(x):
            if name in self.heads:
                head = self.heads[name]
                found[head] = self.get_submodule(head)(y)
        return {"main": y, **found}

    def forward(self, x: Any) -> Any:
        """The logits, (N, num_classes)."""
        *_, (_, logits) = self.layers(x)
        return logits

    def loss(self, x: Any, labels: Any, label_smoothing: float = 0.0) -> Any:
        """Cross-entropy, plus 0.1 of that of each auxiliary head as in the official trainer."""
        criterion = nn.CrossEntropyLoss(label_smoothing=label_smoothing)
        outputs = self.outputs(x)
        main = criterion(outputs.pop("main"), labels)
        return sum((0.1 * criterion(logits, labels) for logits in outputs.values()), start=main)


class TorchBlock(nn.Module):
    """``rbr_dense + rbr_1x1 + rbr_identity``, or ``rbr_reparam``; SE before or after the ReLU."""

    def __init__(self, spec: BlockSpec, deploy: bool, eps: float) -> None:
        super().__init__()
        channels = spec.out_channels
        if deploy:
            self.rbr_reparam = _conv(spec, 3, bias=True)
        else:
            self.rbr_dense = _conv_bn(_conv(spec, 3, bias=False), channels, eps)
            if spec.kind in ("repvgg", "1x1-only"):
                self.rbr_1x1 = _conv_bn(_conv(spec, 1, bias=False), channels, eps)
            if spec.can_add_input and spec.kind in ("repvgg", "identity-only"):
                self.rbr_identity = nn.BatchNorm2d(channels, eps=eps)
        before = spec.se == "before_relu"
        after = spec.se == "after_relu"
        self.se = _Squeeze(channels, spec.se_channels) if before else nn.Identity()
        self.post_se = _Squeeze(channels, spec.se_channels) if after else nn.Identity()

    def forward(self, x: Any) -> Any:
        branches = [child for name, child in self.named_children() if name.startswith("rbr_")]
        total = sum(branch(x) for branch in branches)
        return self.post_se(torch.relu(self.se(total)))


class _Squeeze(nn.Module):
    def __init__(self, channels: int, narrow: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, narrow, 1)
        self.up = nn.Conv2d(narrow, channels, 1)

    def forward(self, x: Any) -> Any:
        gate = self.down(x.mean(dim=(2, 3), keepdim=True))
        return x * torch.sigmoid(self.up(torch.relu(gate)))


def _conv(spec: BlockSpec, kernel: int, *, bias: bool) -> Any:
    return nn.Conv2d(
        spec.in_channels,
        spec.out_channels,
        kernel,
        stride=spec.stride,
        padding=spec.dilation if kernel == 3 else 0,
        dilation=spec.dilation,
        groups=spec.groups,
        bias=bias,
    )


def _conv_bn(conv: Any, channels: int, eps: float) -> Any:
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels, eps=eps)))


def _aux_head(head: AuxHeadSpec, num_classes: int, eps: float) -> Any:
    conv = nn.Conv2d(head.channels, head.channels, 3, stride=2, padding=1, bias=False)
    stem = _conv_bn(conv, head.channels, eps)
    stem.add_module("relu", nn.ReLU())
    linear = nn.Linear(head.channels, num_classes)
    return nn.Sequential(stem, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def _paths(arch: Network) -> list[str]:
    """Where the official code keeps each block; RepVGGplus splits stage 3 into two halves."""
    if all(spec.se != "after_relu" for spec in arch.blocks):
        return [spec.name for spec in arch.blocks]
    half = sum(spec.name.startswith("stage3.") for spec in arch.blocks) // 2
    paths = []
    for spec in arch.blocks:
        stage, _, index = spec.name.partition(".")
        if stage == "stage3":
            first = int(index) < half
            stage = "stage3_first" if first else "stage3_second"
            index = str(int(index) if first else int(index) - half)
        paths.append(f"{stage}.blocks.{index}" if index else stage)
    return paths


def _place(root: Any, path: str, block: Any) -> None:
    """Register `block` at a dotted path, making the containers on the way."""
    *containers, last = path.split(".")
    for name in containers:
        if name not in dict(root.named_children()):
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(last, block)
