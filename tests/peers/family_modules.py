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


class RepMixer(nn.Module):  # type: ignore[misc]
    """FastViT's token mixer, under Apple's and timm's names."""

    def __init__(
        self, c: int, k: int, names: tuple[str, str, str], scale: str | None = "layer_scale"
    ) -> None:
        super().__init__()
        self.norm = nn.Module()
        self.norm.add_module(names[2], bn(c, 1e-5))
        self.mixer = Copies(c, c, k, names, copies=1, groups=c)
        self.skip, self.scale = names[2], scale
        factor = nn.Parameter(torch.ones(c, 1, 1))
        if scale == "layer_scale":
            self.layer_scale = factor
        elif scale is not None:
            self.layer_scale = nn.ParameterDict({"gamma": factor})

    def forward(self, x: Any) -> Any:
        change = self.mixer(x) - getattr(self.norm, self.skip)(x)
        if self.scale is not None:
            g = self.layer_scale
            change = change * (g if self.scale == "layer_scale" else g["gamma"])
        return x + change


class RepGhost(nn.Module):  # type: ignore[misc]
    """RepGhost's cheap operation; the convolution before it has a ReLU and stays."""

    def __init__(self, c: int, k: int) -> None:
        super().__init__()
        self.cheap_operation = nn.Sequential(conv(c, c, k, groups=c), bn(c, 1e-5))
        self.fusion_bn = nn.Sequential(bn(c, 1e-5))

    def forward(self, x: Any) -> Any:
        return self.cheap_operation(x) + self.fusion_bn[0](x)


class Orepa(nn.Module):  # type: ignore[misc]
    """OREPA's block: a kernel made of kernels in every pass; with or without its 1x1 one."""

    def __init__(
        self, i: int, o: int, k: int, *, g: int = 1, name: str = "orepa", wide: int = 1
    ) -> None:
        super().__init__()
        self.k, self.g, self.called, per = k, g, f"weight_{name}_", i // g
        middle = wide * i
        shapes = {
            "origin": (o, per, k, k),
            "avg_conv": (o, per, 1, 1),
            "pfir_conv": (o, per, 1, 1),
            "1x1_kxk_idconv1": (middle, per, 1, 1),
            "1x1_kxk_conv2": (o, middle // g, k, k),
            "gconv_dw": (8 * i, 1, k, k),
            "gconv_pw": (o, 8 * per, 1, 1),
        }
        shapes |= {"1x1": (o, per, 1, 1)} if name == "orepa" else {}
        for part, shape in shapes.items():
            self.register_parameter(self.called + part, nn.Parameter(torch.randn(shape)))
        self.register_buffer(f"{self.called}avg_avg", torch.ones(k, k) / k**2)
        self.register_buffer(f"{self.called}prior", torch.randn(o, k, k))
        same = torch.zeros(middle, per, 1, 1)
        for row in range(middle):
            same[row, row % per] = 1
        self.register_buffer("id_tensor", same)
        self.vector = nn.Parameter(torch.randn(6 if name == "orepa" else 5, o))
        self.bn = bn(o, 1e-5)

    def part(self, name: str) -> Any:
        return getattr(self, self.called + name)

    def behind(self, first: Any, second: Any, i: int) -> Any:
        """The kernel of a 1x1 convolution and a larger one behind it, by the rule of products."""
        o, m = second.shape[:2]
        first = first.reshape(self.g, -1, i // self.g)  # (G, M/G, C/G)
        second = second.reshape(self.g, o // self.g, m, self.k, self.k)
        return torch.einsum("gmi,gomkl->goikl", first, second).reshape(o, -1, self.k, self.k)

    def gconv(self, i: int) -> Any:
        """Tap by tap, as the published views of the two arrays put them together."""
        deep, point = self.part("gconv_dw"), self.part("gconv_pw")
        per, o = i // self.g, len(point)
        kernel = torch.zeros(o, per, self.k, self.k, dtype=deep.dtype)
        flat = point.reshape(o // self.g, self.g, per, 8)
        for row in range(o):
            group, within = divmod(row, o // self.g)
            for c in range(per):
                for t in range(8):
                    at = (group * per + c) * 8 + t
                    kernel[row, c] += flat[within, group, c, t] * deep[at, 0]
        return kernel

    def forward(self, x: Any) -> Any:
        i, p, v = x.shape[1], self.k // 2, self.vector[:, :, None, None, None]
        terms = [
            self.part("origin"),
            self.part("avg_conv") * self.part("avg_avg"),
            self.part("pfir_conv") * self.part("prior")[:, None],
            self.behind(
                self.part("1x1_kxk_idconv1") + self.id_tensor, self.part("1x1_kxk_conv2"), i
            ),
        ]
        if len(v) == 6:
            terms.append(nn.functional.pad(self.part("1x1"), [p] * 4))
        terms.append(self.gconv(i))
        weight = sum(row * term for row, term in zip(v, terms, strict=True))
        return self.bn(nn.functional.conv2d(x, weight, padding=p, groups=self.g))


class OrepaRepVgg(nn.Module):  # type: ignore[misc]
    """RepVGG's block with OREPA's kernel for the 3x3 branch."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.rbr_dense = Orepa(i, o, 3, name="rbr")
        self.rbr_1x1 = Named(conv(i, o, 1), bn(o, 1e-5))
        if i == o:
            self.rbr_identity = bn(i, 1e-5)

    def forward(self, x: Any) -> Any:
        y = self.rbr_dense(x) + self.rbr_1x1(x)
        return y + self.rbr_identity(x) if hasattr(self, "rbr_identity") else y


class OrepaPoint(nn.Module):  # type: ignore[misc]
    """OREPA's 1x1 block."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        middle = min(i, o)
        self.weight_or1x1_origin = nn.Parameter(torch.randn(o, i, 1, 1))
        self.weight_or1x1_l2i_conv1 = nn.Parameter(torch.randn(middle, i, 1, 1))
        self.weight_or1x1_l2i_conv2 = nn.Parameter(torch.randn(o, middle, 1, 1))
        self.vector, self.bn = nn.Parameter(torch.randn(2, o)), bn(o, 1e-5)

    def forward(self, x: Any) -> Any:
        y = nn.functional.conv2d(x, self.weight_or1x1_origin)
        z = nn.functional.conv2d(x, self.weight_or1x1_l2i_conv1)
        z = nn.functional.conv2d(z, self.weight_or1x1_l2i_conv2)
        first, second = self.vector[:, :, None, None]
        return self.bn(first * y + second * z)


class Sequence(nn.Module):  # type: ignore[misc]
    """A 1x1 convolution, a border of its bias, and a 3x3 kernel: ECBSR's, or a scaled mask."""

    def __init__(self, i: int, m: int, o: int, mask: list[list[float]] | None) -> None:
        super().__init__()
        first = nn.Conv2d(i, m, 1)
        self.k0, self.b0 = first.weight, first.bias
        if mask is None:
            second = nn.Conv2d(m, o, 3)
            self.k1, self.b1 = second.weight, second.bias
            return
        self.scale = nn.Parameter(torch.randn(o, 1, 1, 1))
        self.bias = nn.Parameter(torch.randn(o))
        fixed = torch.tensor(mask).expand(o, 1, 3, 3).clone()
        self.mask = nn.Parameter(fixed, requires_grad=False)

    def forward(self, x: Any) -> Any:
        y = nn.functional.conv2d(x, self.k0, self.b0)
        wide = self.b0.view(1, -1, 1, 1).repeat(len(x), 1, y.shape[2] + 2, y.shape[3] + 2)
        wide[:, :, 1:-1, 1:-1] = y
        if hasattr(self, "k1"):
            return nn.functional.conv2d(wide, self.k1, self.b1)
        kernel = self.scale * self.mask
        return nn.functional.conv2d(wide, kernel, self.bias, groups=len(kernel))


class Ecb(nn.Module):  # type: ignore[misc]
    """ECBSR's block up to its activation."""

    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        sobel = [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]
        turned = [list(column) for column in zip(*sobel, strict=True)]
        self.conv3x3 = conv(i, o, 3, bias=True)
        self.conv1x1_3x3 = Sequence(i, 2 * o, o, None)
        self.conv1x1_sbx = Sequence(i, o, o, sobel)
        self.conv1x1_sby = Sequence(i, o, o, turned)
        laplace = [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]
        self.conv1x1_lpl = Sequence(i, o, o, laplace)

    def forward(self, x: Any) -> Any:
        y = self.conv3x3(x) + self.conv1x1_3x3(x) + self.conv1x1_sbx(x)
        return y + self.conv1x1_sby(x) + self.conv1x1_lpl(x)


APPLE, TIMM = ("rbr_conv", "rbr_scale", "rbr_skip"), ("conv_kxk", "conv_scale", "identity")
LCNET = ("conv_kxk", "conv_1x1", "identity")

# name: (kind, module, fused key)
BLOCKS: dict[str, tuple[str, Any, str]] = {
    "yolov6": ("yolov6", lambda: Rbr(6, 6, 1e-3), "rbr_reparam"),
    "yolov6 wider": ("yolov6", lambda: Rbr(4, 6, 1e-3), "rbr_reparam"),
    "yolov6 grouped": ("yolov6", lambda: Rbr(8, 8, 1e-3, groups=4), "rbr_reparam"),
    "qarepvgg": ("qarepvgg", lambda: Qa(6, 6, 1e-3), "rbr_reparam"),
    "qarepvgg wider": ("qarepvgg", lambda: Qa(4, 8, 1e-3), "rbr_reparam"),
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
    "yolov10": ("yolov10-dw", lambda: Dw(6, 1e-3), "conv"),
    "acb": ("acb", lambda: Acb(4, 6, 3, 1e-5), "fused_conv"),
    "acb 5": ("acb", lambda: Acb(4, 6, 5, 1e-5), "fused_conv"),
    "dbb": ("dbb", lambda: Dbb(4, 6, 3, 1e-5), "dbb_reparam"),
    "dbb grouped": ("dbb", lambda: Dbb(4, 6, 3, 1e-5, groups=2), "dbb_reparam"),
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
    "repmixer": ("repmixer", lambda: RepMixer(6, 3, APPLE), "reparam_conv"),
    "repmixer unscaled": ("repmixer", lambda: RepMixer(6, 5, APPLE, None), "reparam_conv"),
    "repmixer timm": (
        "repmixer-timm",
        lambda: RepMixer(6, 3, TIMM, "layer_scale.gamma"),
        "reparam_conv",
    ),
    "repghost": ("repghost", lambda: RepGhost(6, 3), "cheap_operation"),
    "repghost 5": ("repghost", lambda: RepGhost(6, 5), "cheap_operation"),
    "orepa": ("orepa", lambda: Orepa(4, 6, 3), "orepa_reparam"),
    "orepa grouped": ("orepa", lambda: Orepa(4, 6, 3, g=2), "orepa_reparam"),
    "orepa depthwise": ("orepa", lambda: Orepa(4, 4, 5, g=4, wide=2), "orepa_reparam"),
    "orepa repvgg": ("orepa-repvgg", lambda: OrepaRepVgg(6, 6), "rbr_reparam"),
    "orepa repvgg wider": ("orepa-repvgg", lambda: OrepaRepVgg(4, 6), "rbr_reparam"),
    "orepa 1x1": ("orepa-1x1", lambda: OrepaPoint(4, 6), "or1x1_reparam"),
    "orepa 1x1 narrower": ("orepa-1x1", lambda: OrepaPoint(6, 4), "or1x1_reparam"),
    "ecbsr": ("ecbsr", lambda: Ecb(6, 6), "conv3x3"),
    "ecbsr wider": ("ecbsr", lambda: Ecb(3, 8), "conv3x3"),
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


def response(module: Any, channels: int, reach: int) -> tuple[Any, Any]:
    """Kernel and bias of a linear module, by impulses in float64."""
    size = 2 * reach + 1
    zero = torch.zeros(1, channels, 2 * size + 1, 2 * size + 1, dtype=torch.float64)
    with torch.no_grad():
        rest = module(zero)
        bias = rest[0, :, size, size]
        kernel = torch.zeros(len(bias), channels, size, size, dtype=torch.float64)
        for c in range(channels):
            x = zero.clone()
            x[0, c, size, size] = 1
            y = (module(x) - rest)[0]
            for i in range(size):
                for j in range(size):
                    kernel[:, c, i, j] = y[:, size + reach - i, size + reach - j]
    return kernel, bias
