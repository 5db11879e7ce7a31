# mypy: allow-subclassing-any, allow-untyped-calls, disable-error-code="no-any-return"
"""Every block of the catalogue as a torch module with the names of its published code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from repvgg_ref.blocks.spec import BlockSpec


def conv(spec: BlockSpec, rows: int, columns: int | None = None) -> Any:
    columns = rows if columns is None else columns
    return nn.Conv2d(
        spec.in_channels,
        spec.out_channels,
        (rows, columns),
        spec.stride,
        (rows // 2, columns // 2),
        groups=spec.groups,
        bias=False,
    )


def named(**modules: Any) -> Any:
    """Modules one after another, by name."""
    found = nn.Sequential()
    for name, module in modules.items():
        found.add_module(name, module)
    return found


class Branches(nn.Module):
    """The paper's branches, each with its batch norm; some may be missing."""

    def __init__(
        self, spec: BlockSpec, eps: float, *, point: bool, identity: bool, inside: bool = False
    ) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, spec.out_channels, eps=eps)
        self.rbr_dense = named(conv=conv(spec, 3), bn=norm())
        self.rbr_1x1 = named(conv=conv(spec, 1), bn=norm()) if point else None
        self.rbr_identity = norm() if identity and spec.can_add_input else None
        self.after = torch.relu if inside else (lambda y: y)

    def forward(self, x: Any) -> Any:
        found = (self.rbr_dense, self.rbr_1x1, self.rbr_identity)
        return sum(self.after(branch(x)) for branch in found if branch is not None)


class IdentityWithoutNorm(nn.Module):
    """``BN(W3 x) + BN(W1 x) + x`` (the paper's Table 7)."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__()
        self.adds = spec.can_add_input
        norm = partial(nn.BatchNorm2d, spec.out_channels, eps=eps)
        self.rbr_dense = named(conv=conv(spec, 3), bn=norm())
        self.rbr_1x1 = named(conv=conv(spec, 1), bn=norm())

    def forward(self, x: Any) -> Any:
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return y + x if self.adds else y


class PostAdditionNorm(nn.Module):
    """``BN(W3 x + W1 x + x)`` (the paper's Table 7)."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__()
        self.adds = spec.can_add_input
        self.rbr_dense, self.rbr_1x1 = named(conv=conv(spec, 3)), named(conv=conv(spec, 1))
        self.bn = nn.BatchNorm2d(spec.out_channels, eps=eps)

    def forward(self, x: Any) -> Any:
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return self.bn(y + x if self.adds else y)


class Trivial(nn.Module):
    """``BN((W + I) x)`` (Table 7), the kernel itself changed."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__()
        self.spec, self.conv = spec, conv(spec, 3)
        self.bn = nn.BatchNorm2d(spec.out_channels, eps=eps)

    def kernel(self) -> Any:
        return self.conv.weight + delta(self.conv.weight)

    def forward(self, x: Any) -> Any:
        if not self.spec.can_add_input:
            return self.bn(self.conv(x))
        return self.bn(self.conv._conv_forward(x, self.kernel(), None))


class Dirac(Trivial):
    """``BN(What x)``, ``What = a delta + b W / |W|`` (Table 7; DiracNets)."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__(spec, eps)
        if spec.can_add_input:
            self.conv.alpha = nn.Parameter(torch.full((spec.out_channels,), 1.0))
            self.conv.beta = nn.Parameter(torch.full((spec.out_channels,), 0.1))

    def kernel(self) -> Any:
        weight, shape = self.conv.weight, (-1, 1, 1, 1)
        unit = normalize(weight.flatten(1), dim=1, eps=1e-12).view_as(weight)
        return self.conv.alpha.view(shape) * delta(weight) + self.conv.beta.view(shape) * unit


def delta(weight: Any) -> Any:
    """The kernel that copies its input, group by group."""
    found = torch.zeros_like(weight)
    for row in range(len(weight)):
        found[row, row % weight.shape[1], weight.shape[2] // 2, weight.shape[3] // 2] = 1
    return found


class QuantisationAware(PostAdditionNorm):
    """``BN(BN3(W3 x) + W1 x + x)`` (QARepVGG)."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__(spec, eps)
        self.rbr_dense.add_module("bn", nn.BatchNorm2d(spec.out_channels, eps=eps))
        self.rbr_1x1 = conv(spec, 1)


class NormAndPad(nn.Module):
    """A batch norm, and around it what its running statistics make of zero: a constant."""

    def __init__(self, channels: int, width: int, eps: float) -> None:
        super().__init__()
        self.bn, self.width = nn.BatchNorm2d(channels, eps=eps), width

    def forward(self, x: Any) -> Any:
        y, w, bn = self.bn(x), self.width, self.bn
        scale = bn.weight.detach() / torch.sqrt(bn.running_var + bn.eps)
        fill = (bn.bias.detach() - bn.running_mean * scale).view(1, -1, 1, 1)
        padded = fill.repeat(len(y), 1, y.shape[2] + 2 * w, y.shape[3] + 2 * w)
        padded[:, :, w:-w, w:-w] = y
        return padded


class AddsInput(nn.Conv2d):
    """``(W + I) x``, W zero at the start."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__(channels, channels, 1, groups=groups, bias=False)
        nn.init.zeros_(self.weight)

    def forward(self, x: Any) -> Any:
        return self._conv_forward(x, self.weight + delta(self.weight), None)


class Diverse(nn.Module):
    """DBB: the convolution, a 1x1, an average behind a 1x1, a convolution behind a 1x1."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__()
        width, out, groups = spec.in_channels, spec.out_channels, spec.groups
        norm = partial(nn.BatchNorm2d, out, eps=eps)
        depthwise = groups == width == out
        self.dbb_origin = named(conv=conv(spec, 3), bn=norm())
        self.dbb_1x1 = None if depthwise else named(conv=conv(spec, 1), bn=norm())
        if depthwise:
            self.dbb_avg = named(avg=nn.AvgPool2d(3, spec.stride, 1), avgbn=norm())
        else:
            self.dbb_avg = named(
                conv=nn.Conv2d(width, out, 1, groups=groups, bias=False),
                bn=NormAndPad(out, 1, eps),
                avg=nn.AvgPool2d(3, spec.stride),
                avgbn=norm(),
            )
        inner = 2 * width if depthwise else width
        first = (
            {"conv1": nn.Conv2d(width, inner, 1, groups=groups, bias=False)}
            if depthwise
            else {"idconv1": AddsInput(width, groups)}
        )
        self.dbb_1x1_kxk = named(
            **first,
            bn1=NormAndPad(inner, 1, eps),
            conv2=nn.Conv2d(inner, out, 3, spec.stride, groups=groups, bias=False),
            bn2=norm(),
        )

    def forward(self, x: Any) -> Any:
        y = self.dbb_origin(x) + self.dbb_avg(x) + self.dbb_1x1_kxk(x)
        return y if self.dbb_1x1 is None else y + self.dbb_1x1(x)


class Asymmetric(nn.Module):
    """Three convolutions, three batch norms, added up: the training form of ACNet's block."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__()
        for name, kernel in (("square", (3, 3)), ("ver", (3, 1)), ("hor", (1, 3))):
            self.add_module(f"{name}_conv", conv(spec, *kernel))
            self.add_module(f"{name}_bn", nn.BatchNorm2d(spec.out_channels, eps=eps))

    def forward(self, x: Any) -> Any:
        return (
            self.square_bn(self.square_conv(x))
            + self.ver_bn(self.ver_conv(x))
            + self.hor_bn(self.hor_conv(x))
        )


class MobileOne(nn.Module):
    """Copies of the largest convolution, a 1x1 beside it, and the input (MobileOne)."""

    def __init__(self, spec: BlockSpec, eps: float) -> None:
        super().__init__()
        norm = partial(nn.BatchNorm2d, spec.out_channels, eps=eps)
        copies = [named(conv=conv(spec, 3), bn=norm()) for _ in range(spec.copies)]
        self.rbr_conv = nn.ModuleList(copies)
        self.rbr_scale = named(conv=conv(spec, 1), bn=norm())
        self.rbr_skip = norm() if spec.can_add_input else None

    def forward(self, x: Any) -> Any:
        y = self.rbr_scale(x) + sum(branch(x) for branch in self.rbr_conv)
        return y if self.rbr_skip is None else y + self.rbr_skip(x)


BLOCKS: dict[str, Callable[[BlockSpec, float], Any]] = {
    "repvgg": partial(Branches, point=True, identity=True),
    "plain": partial(Branches, point=False, identity=False),
    "identity-only": partial(Branches, point=False, identity=True),
    "1x1-only": partial(Branches, point=True, identity=False),
    "relu-in-branches": partial(Branches, point=True, identity=True, inside=True),
    "identity-without-bn": IdentityWithoutNorm,
    "post-addition-bn": PostAdditionNorm,
    "trivial": Trivial,
    "dirac": Dirac,
    "qarepvgg": QuantisationAware,
    "dbb": Diverse,
    "acb": Asymmetric,
    "mobileone": MobileOne,
}


class Network(nn.Module):
    """A torch network of a model's blocks, which takes its state dict as it is."""

    def __init__(self, model: Any, *, start: bool = False) -> None:
        """With the model's weights, or with those that torch makes for a `start`."""
        super().__init__()
        self.names = [spec.name for spec in model.arch.blocks]
        for spec in model.arch.blocks:
            stage, _, index = spec.name.partition(".")
            if index and not hasattr(self, stage):
                self.add_module(stage, nn.Module())
            parent = getattr(self, stage) if index else self
            parent.add_module(index or stage, BLOCKS[spec.kind](spec, model.eps))
        self.linear = nn.Linear(model.arch.features, model.arch.num_classes)
        self.to(torch.float64)
        if start:
            return
        state = {name: torch.tensor(np.asarray(a)) for name, a in model.state_dict().items()}
        self.load_state_dict(state, strict=True)

    def forward(self, x: Any) -> Any:
        for name in self.names:
            x = torch.relu(self.get_submodule(name)(x))
        return self.linear(x.mean((2, 3)))
