"""The family's composed blocks, written anew in torch from their papers and key names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.peers.family_modules import APPLE, TIMM, Copies, Named, bn, conv


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
        # What the published class keeps.
        self.in_channels, self.out_channels, self.kernel_size, self.groups = i, o, k, g
        self.stride, self.padding, self.dilation = 1, k // 2, 1
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
        if self.called == "weight_orepa_":
            terms.append(nn.functional.pad(self.part("1x1"), [p] * 4))
        terms.append(self.gconv(i))
        weight = sum(row * term for row, term in zip(v, terms, strict=False))
        return self.bn(nn.functional.conv2d(x, weight, padding=p, groups=self.g))


class OrepaRepVgg(nn.Module):  # type: ignore[misc]
    """RepVGG's block with OREPA's kernel for the 3x3 branch."""

    def __init__(self, i: int, o: int, *, counts_identity: bool = True) -> None:
        super().__init__()
        self.rbr_dense = Orepa(i, o, 3, name="rbr")
        if i == o and counts_identity:  # as published; nothing reads that row
            self.rbr_dense.vector = nn.Parameter(torch.randn(6, o))
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
        self.in_channels, self.out_channels, self.kernel_size, self.groups = i, o, 1, 1
        self.stride, self.padding, self.dilation = 1, 0, 1
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


class SeqConv3x3(nn.Module):  # type: ignore[misc]
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
        self.conv1x1_3x3 = SeqConv3x3(i, 2 * o, o, None)
        self.conv1x1_sbx = SeqConv3x3(i, o, o, sobel)
        self.conv1x1_sby = SeqConv3x3(i, o, o, turned)
        laplace = [[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]]
        self.conv1x1_lpl = SeqConv3x3(i, o, o, laplace)

    def forward(self, x: Any) -> Any:
        y = self.conv3x3(x) + self.conv1x1_3x3(x) + self.conv1x1_sbx(x)
        return y + self.conv1x1_sby(x) + self.conv1x1_lpl(x)


# name: (kind, module, fused key)
COMPOSED: dict[str, tuple[str, Any, str]] = {
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
    "orepa repvgg uncounted": (
        "orepa-repvgg",
        lambda: OrepaRepVgg(6, 6, counts_identity=False),
        "rbr_reparam",
    ),
    "orepa repvgg wider": ("orepa-repvgg", lambda: OrepaRepVgg(4, 6), "rbr_reparam"),
    "orepa 1x1": ("orepa-1x1", lambda: OrepaPoint(4, 6), "or1x1_reparam"),
    "orepa 1x1 narrower": ("orepa-1x1", lambda: OrepaPoint(6, 4), "or1x1_reparam"),
    "orepa 1x1 grey": ("orepa-1x1", lambda: OrepaPoint(1, 4), "or1x1_reparam"),
    "ecbsr": ("ecbsr", lambda: Ecb(6, 6), "conv3x3"),
    "ecbsr grey": ("ecbsr", lambda: Ecb(1, 8), "conv3x3"),
    "ecbsr wider": ("ecbsr", lambda: Ecb(3, 8), "conv3x3"),
}
