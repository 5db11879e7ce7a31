"""The published blocks of the family, written anew in torch from their papers and key names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def bn(channels: int, eps: float) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=eps)


def conv(
    i: int, o: int, k: int, *, groups: int = 1, bias: bool = False, dilation: int = 1
) -> nn.Conv2d:
    return nn.Conv2d(
        i, o, k, padding=dilation * (k // 2), groups=groups, bias=bias, dilation=dilation
    )


class Named(nn.Module):  # type: ignore[misc]
    """A convolution and a batch norm under given names."""

    def __init__(self, c: nn.Module, n: nn.Module, names: tuple[str, str] = ("conv", "bn")) -> None:
        super().__init__()
        self.order = names
        self.add_module(names[0], c)
        self.add_module(names[1], n)

    def forward(self, x: Any) -> Any:
        for name in self.order:
            x = getattr(self, name)(x)
        return x


class Rbr(nn.Module):  # type: ignore[misc]
    """YOLOv6's and RepVGG's block; YOLOv7's with numbers for names."""

    def __init__(
        self, i: int, o: int, eps: float, *, numbers: bool = False, groups: int = 1
    ) -> None:
        super().__init__()
        names = ("0", "1") if numbers else ("conv", "bn")
        self.rbr_dense = Named(conv(i, o, 3, groups=groups), bn(o, eps), names)
        self.rbr_1x1 = Named(conv(i, o, 1, groups=groups), bn(o, eps), names)
        if i == o:
            self.rbr_identity = bn(i, eps)

    def forward(self, x: Any) -> Any:
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return y + self.rbr_identity(x) if hasattr(self, "rbr_identity") else y


class Qa(nn.Module):  # type: ignore[misc]
    """QARepVGG, up to its outer batch norm, which its deploy form keeps."""

    def __init__(self, i: int, o: int, eps: float) -> None:
        super().__init__()
        self.rbr_dense = Named(conv(i, o, 3), bn(o, eps))
        self.rbr_1x1 = conv(i, o, 1)
        self.bn = bn(o, eps)
        self.same = i == o

    def forward(self, x: Any) -> Any:
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return y + x if self.same else y


class Residual(nn.Module):  # type: ignore[misc]
    """What super-gradients calls the identity."""

    def forward(self, x: Any) -> Any:
        return x


class YoloNas(nn.Module):  # type: ignore[misc]
    """The same as super-gradients has it, with a placeholder for what it will be fused to."""

    def __init__(self, i: int, o: int, eps: float, *, alpha: bool, bias: bool = True) -> None:
        super().__init__()
        self.branch_3x3 = Named(conv(i, o, 3), bn(o, eps))
        self.branch_1x1 = conv(i, o, 1, bias=bias)
        self.identity = Residual() if i == o else None
        self.alpha = nn.Parameter(torch.tensor([1.0])) if alpha else 1.0
        self.post_bn = bn(o, eps)
        self.rbr_reparam = conv(i, o, 3, bias=True)

    def forward(self, x: Any) -> Any:
        y = self.branch_3x3(x) + self.alpha * self.branch_1x1(x)
        return y if self.identity is None else y + self.identity(x)


class Two(nn.Module):  # type: ignore[misc]
    """YOLOv9's RepConv, RT-DETR's RepVggBlock, PP-YOLOE's with alpha."""

    def __init__(
        self, i: int, o: int, eps: float, norm: str, *, alpha: bool = False, same: bool = False
    ) -> None:
        super().__init__()
        self.conv1 = Named(conv(i, o, 3), bn(o, eps), ("conv", norm))
        self.conv2 = Named(conv(i, o, 1), bn(o, eps), ("conv", norm))
        self.alpha = nn.Parameter(torch.tensor([0.37])) if alpha else None
        if same:
            self.bn = bn(i, eps)

    def forward(self, x: Any) -> Any:
        point = self.conv2(x)
        y = self.conv1(x) + (point if self.alpha is None else self.alpha * point)
        return y + self.bn(x) if hasattr(self, "bn") else y


class Lab(nn.Module):  # type: ignore[misc]
    """PP-OCR's LearnableAffineBlock."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([1.3]))
        self.bias = nn.Parameter(torch.tensor([-0.2]))

    def forward(self, x: Any) -> Any:
        return self.scale * x + self.bias


class Copies(nn.Module):  # type: ignore[misc]
    """MobileOne under Apple's and timm's names, PP-LCNetV3 with its affine block."""

    def __init__(
        self,
        i: int,
        o: int,
        k: int,
        names: tuple[str, str, str],
        *,
        copies: int,
        groups: int = 1,
        lab: bool = False,
    ) -> None:
        super().__init__()
        eps = 1e-5
        self.names = names
        many = [Named(conv(i, o, k, groups=groups), bn(o, eps)) for _ in range(copies)]
        self.add_module(names[0], nn.ModuleList(many))
        if k > 1:
            self.add_module(names[1], Named(conv(i, o, 1, groups=groups), bn(o, eps)))
        if i == o:
            self.add_module(names[2], bn(i, eps))
        self.lab = Lab() if lab else None

    def forward(self, x: Any) -> Any:
        y = sum(one(x) for one in getattr(self, self.names[0]))
        for name in self.names[1:]:
            if hasattr(self, name):
                y = y + getattr(self, name)(x)
        return y if self.lab is None else self.lab(y)


class RepVit(nn.Module):  # type: ignore[misc]
    """RepVGGDW of RepViT."""

    def __init__(self, c: int, eps: float) -> None:
        super().__init__()
        self.conv = Named(conv(c, c, 3, groups=c), bn(c, eps), ("c", "bn"))
        self.conv1 = conv(c, c, 1, groups=c, bias=True)
        self.bn = bn(c, eps)

    def forward(self, x: Any) -> Any:
        return self.bn(self.conv(x) + self.conv1(x) + x)


class RepVitFirst(nn.Module):  # type: ignore[misc]
    """RepVGGDW of RepViT's first version."""

    def __init__(self, c: int, eps: float) -> None:
        super().__init__()
        self.conv = Named(conv(c, c, 3, groups=c), bn(c, eps), ("c", "bn"))
        self.conv1 = Named(conv(c, c, 1, groups=c), bn(c, eps), ("c", "bn"))

    def forward(self, x: Any) -> Any:
        return self.conv(x) + self.conv1(x) + x


class Large(nn.Module):  # type: ignore[misc]
    """RepLKNet's large kernel and the small one beside it."""

    def __init__(self, c: int, k: int, small: int, name: str) -> None:
        super().__init__()
        self.called = name
        self.add_module(name, Named(conv(c, c, k, groups=c), bn(c, 1e-5)))
        self.small_conv = Named(conv(c, c, small, groups=c), bn(c, 1e-5))

    def forward(self, x: Any) -> Any:
        return getattr(self, self.called)(x) + self.small_conv(x)


class Dw(nn.Module):  # type: ignore[misc]
    """RepVGGDW of YOLOv10."""

    def __init__(self, c: int, eps: float) -> None:
        super().__init__()
        self.conv = Named(conv(c, c, 7, groups=c), bn(c, eps))
        self.conv1 = Named(conv(c, c, 3, groups=c), bn(c, eps))

    def forward(self, x: Any) -> Any:
        return self.conv(x) + self.conv1(x)


class Acb(nn.Module):  # type: ignore[misc]
    """ACNet's block."""

    def __init__(self, i: int, o: int, k: int, eps: float) -> None:
        super().__init__()
        self.square_conv, self.square_bn = conv(i, o, k), bn(o, eps)
        self.ver_conv = nn.Conv2d(i, o, (k, 1), padding=(k // 2, 0), bias=False)
        self.hor_conv = nn.Conv2d(i, o, (1, k), padding=(0, k // 2), bias=False)
        self.ver_bn, self.hor_bn = bn(o, eps), bn(o, eps)

    def forward(self, x: Any) -> Any:
        y = self.square_bn(self.square_conv(x))
        return y + self.ver_bn(self.ver_conv(x)) + self.hor_bn(self.hor_conv(x))


class Dilated(nn.Module):  # type: ignore[misc]
    """UniRepLKNet's DilatedReparamBlock."""

    def __init__(self, c: int, k: int, others: list[tuple[int, int]], eps: float) -> None:
        super().__init__()
        self.lk_origin, self.origin_bn = conv(c, c, k, groups=c), bn(c, eps)
        self.others = others
        for size, r in others:
            self.add_module(f"dil_conv_k{size}_{r}", conv(c, c, size, groups=c, dilation=r))
            self.add_module(f"dil_bn_k{size}_{r}", bn(c, eps))

    def forward(self, x: Any) -> Any:
        y = self.origin_bn(self.lk_origin(x))
        for size, r in self.others:
            y = y + getattr(self, f"dil_bn_k{size}_{r}")(getattr(self, f"dil_conv_k{size}_{r}")(x))
        return y


class PaddedNorm(nn.Module):  # type: ignore[misc]
    """DBB's batch norm whose border is what it makes of zero."""

    def __init__(self, channels: int, pad: int, eps: float) -> None:
        super().__init__()
        self.bn, self.pad = bn(channels, eps), pad

    def forward(self, x: Any) -> Any:
        y = self.bn(x)
        norm = self.bn
        fill = norm.bias - norm.running_mean * norm.weight / torch.sqrt(norm.running_var + norm.eps)
        out = (
            fill.view(1, -1, 1, 1)
            .expand(len(x), -1, y.shape[2] + 2 * self.pad, y.shape[3] + 2 * self.pad)
            .clone()
        )
        out[:, :, self.pad : -self.pad, self.pad : -self.pad] = y
        return out


class IdConv(nn.Module):  # type: ignore[misc]
    """A 1x1 convolution of W + I."""

    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.conv = conv(c, c, 1, groups=groups)
        self.groups = groups

    def forward(self, x: Any) -> Any:
        return self.conv(x) + x


class Dbb(nn.Module):  # type: ignore[misc]
    """The diverse branch block."""

    def __init__(self, i: int, o: int, k: int, eps: float, groups: int = 1) -> None:
        super().__init__()
        p = k // 2
        self.dbb_origin = Named(conv(i, o, k, groups=groups), bn(o, eps))
        self.dbb_1x1 = Named(conv(i, o, 1, groups=groups), bn(o, eps))
        self.dbb_avg = nn.Sequential()
        self.dbb_avg.add_module("conv", conv(i, o, 1, groups=groups))
        self.dbb_avg.add_module("bn", PaddedNorm(o, p, eps))
        self.dbb_avg.add_module("avg", nn.AvgPool2d(k, 1, 0))
        self.dbb_avg.add_module("avgbn", bn(o, eps))
        self.dbb_1x1_kxk = nn.Sequential()
        self.dbb_1x1_kxk.add_module("idconv1", IdConv(i, groups))
        self.dbb_1x1_kxk.add_module("bn1", PaddedNorm(i, p, eps))
        self.dbb_1x1_kxk.add_module("conv2", nn.Conv2d(i, o, k, groups=groups, bias=False))
        self.dbb_1x1_kxk.add_module("bn2", bn(o, eps))

    def forward(self, x: Any) -> Any:
        return self.dbb_origin(x) + self.dbb_1x1(x) + self.dbb_avg(x) + self.dbb_1x1_kxk(x)


class DbbInside(Dbb):
    """With other channels inside than the input's; or depthwise, with fewer branches."""

    def __init__(self, i: int, o: int, k: int, eps: float, inside: int, groups: int = 1) -> None:
        super().__init__(i, o, k, eps, groups)
        first = IdConv(i, groups) if inside == i else conv(i, inside, 1, groups=groups)
        self.dbb_1x1_kxk = nn.Sequential()
        self.dbb_1x1_kxk.add_module("idconv1" if inside == i else "conv1", first)
        self.dbb_1x1_kxk.add_module("bn1", PaddedNorm(inside, k // 2, eps))
        last = nn.Conv2d(inside, o, k, groups=groups, bias=False)
        self.dbb_1x1_kxk.add_module("conv2", last)
        self.dbb_1x1_kxk.add_module("bn2", bn(o, eps))
        if groups == o:
            del self.dbb_1x1
            self.dbb_avg = nn.Sequential()
            self.dbb_avg.add_module("avg", nn.AvgPool2d(k, 1, k // 2))
            self.dbb_avg.add_module("avgbn", bn(o, eps))

    def forward(self, x: Any) -> Any:
        y = self.dbb_origin(x) + self.dbb_avg(x) + self.dbb_1x1_kxk(x)
        return y + self.dbb_1x1(x) if hasattr(self, "dbb_1x1") else y


APPLE, TIMM = ("rbr_conv", "rbr_scale", "rbr_skip"), ("conv_kxk", "conv_scale", "identity")
LCNET = ("conv_kxk", "conv_1x1", "identity")

# name: (kind, module, fused key)
PLAIN: dict[str, tuple[str, Any, str]] = {
    "yolov6": ("yolov6", lambda: Rbr(6, 6, 1e-3), "rbr_reparam"),
    "yolov6 wider": ("yolov6", lambda: Rbr(4, 6, 1e-3), "rbr_reparam"),
    "yolov6 grouped": ("yolov6", lambda: Rbr(8, 8, 1e-3, groups=4), "rbr_reparam"),
    "qarepvgg": ("qarepvgg", lambda: Qa(6, 6, 1e-3), "rbr_reparam"),
    "qarepvgg wider": ("qarepvgg", lambda: Qa(4, 8, 1e-3), "rbr_reparam"),
    "qarepvgg grey": ("qarepvgg", lambda: Qa(1, 8, 1e-3), "rbr_reparam"),
    "yolo-nas": ("yolo-nas", lambda: YoloNas(6, 6, 1e-3, alpha=True), "rbr_reparam"),
    "yolo-nas grey": ("yolo-nas", lambda: YoloNas(1, 8, 1e-3, alpha=True), "rbr_reparam"),
    "yolo-nas wider": (
        "yolo-nas",
        lambda: YoloNas(4, 8, 1e-3, alpha=False, bias=False),
        "rbr_reparam",
    ),
    "yolov7": ("yolov7", lambda: Rbr(6, 6, 1e-3, numbers=True), "rbr_reparam"),
    "yolov9": ("yolov9", lambda: Two(6, 6, 1e-3, "bn", same=True), "conv"),
    "yolov9 no identity": ("yolov9", lambda: Two(4, 6, 1e-3, "bn"), "conv"),
    "rtdetr": ("rtdetr", lambda: Two(6, 6, 1e-5, "norm"), "conv"),
    "ppyoloe": ("ppyoloe", lambda: Two(6, 6, 1e-5, "bn", alpha=True), "conv"),
    "lcnet": (
        "pp-lcnet-v3",
        lambda: Copies(6, 6, 3, LCNET, copies=4, groups=6, lab=True),
        "reparam_conv",
    ),
    "lcnet wider": ("pp-lcnet-v3", lambda: Copies(4, 8, 5, LCNET, copies=4), "reparam_conv"),
    "mobileone": (
        "mobileone",
        lambda: Copies(6, 6, 3, APPLE, copies=4, groups=6),
        "reparam_conv",
    ),
    "mobileone point": (
        "mobileone",
        lambda: Copies(4, 8, 1, APPLE, copies=2),
        "reparam_conv",
    ),
    "timm": (
        "mobileone-timm",
        lambda: Copies(6, 6, 3, TIMM, copies=1, groups=6),
        "reparam_conv",
    ),
    "repvit": ("repvit", lambda: RepVit(6, 1e-5), ""),
    "repvit first": ("repvit-first", lambda: RepVitFirst(6, 1e-5), ""),
    "replknet": ("replknet", lambda: Large(4, 13, 5, "lkb_origin"), "lkb_reparam"),
    "replknet timm": ("replknet-timm", lambda: Large(4, 7, 3, "large_conv"), "reparam_conv"),
    "yolov10": ("yolov10-dw", lambda: Dw(6, 1e-3), "conv"),
    "acb": ("acb", lambda: Acb(4, 6, 3, 1e-5), "fused_conv"),
    "acb 5": ("acb", lambda: Acb(4, 6, 5, 1e-5), "fused_conv"),
    "dbb": ("dbb", lambda: Dbb(4, 6, 3, 1e-5), "dbb_reparam"),
    "dbb grouped": ("dbb", lambda: Dbb(4, 6, 3, 1e-5, groups=2), "dbb_reparam"),
    "dbb inside": ("dbb", lambda: DbbInside(4, 6, 3, 1e-5, 10), "dbb_reparam"),
    "dbb inside grouped": ("dbb", lambda: DbbInside(4, 6, 3, 1e-5, 8, 2), "dbb_reparam"),
    "dbb narrower inside": ("dbb", lambda: DbbInside(6, 6, 5, 1e-5, 3), "dbb_reparam"),
    "dbb depthwise": ("dbb", lambda: DbbInside(4, 4, 3, 1e-5, 8, 4), "dbb_reparam"),
    "dbb depthwise same": ("dbb", lambda: DbbInside(4, 4, 3, 1e-5, 4, 4), "dbb_reparam"),
    "unireplknet 7": (
        "unireplknet",
        lambda: Dilated(4, 7, [(5, 1), (3, 2), (3, 3)], 1e-5),
        "lk_origin",
    ),
    "unireplknet 13": (
        "unireplknet",
        lambda: Dilated(4, 13, [(5, 1), (7, 2), (3, 3), (3, 4), (3, 5)], 1e-5),
        "lk_origin",
    ),
}


def drawn(build: Any, seed: int) -> Any:
    """The module in evaluation mode, every array drawn."""
    torch.manual_seed(seed)
    module = build().double().eval()
    for name, value in module.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(torch.rand_like(value) * 2 + 0.1)
        elif value.is_floating_point():
            value.copy_(torch.randn_like(value))
    return module
