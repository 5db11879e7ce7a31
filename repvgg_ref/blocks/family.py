"""The family in the wild: blocks of other networks, under the keys of their published code.

Each entry says where such a block is (`anchor`, the end of one key), what it computes, read off the
shapes that stand there (`parts`), and what its deploy form is called. To add one, write a function
here; files, fusion, self check, `inspect` and `verify` follow.

Kernels are centred and padding keeps the size, as in all of these blocks; their stride changes no
fused kernel. Sources are in each function.
"""

from __future__ import annotations

import re

from repvgg_ref.blocks import quantised as quantised  # its entries, and those of the next
from repvgg_ref.blocks import relatives as relatives  # ask more of a file
from repvgg_ref.blocks.constructors import Bias, Scale
from repvgg_ref.blocks.linear import Chain, Identity, Sum
from repvgg_ref.blocks.member import FAMILY as FAMILY
from repvgg_ref.blocks.member import NORM
from repvgg_ref.blocks.member import Member as Member
from repvgg_ref.blocks.member import member as member
from repvgg_ref.blocks.parts import Parts, is_number, is_wide
from repvgg_ref.blocks.run import Linear

_CONV = r"(weight|bias)"


@member(
    "yolov6",
    "rbr_dense.conv.weight",
    fused="rbr_reparam",
    eps=(1e-5, 1e-3),
    users="RepVGG, YOLOv6",
    keys=rf"rbr_(dense|1x1)\.conv\.weight|rbr_(dense|1x1)\.bn\.{NORM}|rbr_identity\.{NORM}"
    r"|rbr_1x1\.weight",
)
def yolov6(parts: Parts) -> Linear | None:
    """Ding et al., arXiv 2101.03697, figure 4."""
    return _three(parts, "rbr_dense.conv", "rbr_dense.bn", "rbr_1x1.conv", "rbr_1x1.bn")


@member(
    "yolov7",
    "rbr_dense.0.weight",
    fused="rbr_reparam",
    eps=(1e-3,),
    users="YOLOv7",
    keys=rf"rbr_(dense|1x1)\.0\.weight|rbr_(dense|1x1)\.1\.{NORM}|rbr_identity\.{NORM}",
)
def yolov7(parts: Parts) -> Linear | None:
    """The same, with modules called by their numbers."""
    return _three(parts, "rbr_dense.0", "rbr_dense.1", "rbr_1x1.0", "rbr_1x1.1")


def _three(parts: Parts, conv: str, norm: str, point: str, after: str) -> Linear | None:
    dense = parts.conv_bn(conv, norm, skip="rbr_identity")
    if dense is None:
        return None
    main = dense.parts[0]
    one = parts.conv_bn(point, after, like=main)
    return Sum(dense, *([one] if one else []), *parts.identity_bn("rbr_identity", main))


@member(
    "ppyoloe",
    "alpha",
    fused="conv",
    eps=(1e-5,),
    users="PP-YOLOE",
    keys=rf"conv[12]\.conv\.weight|conv[12]\.bn\.{NORM}|alpha",
)
def ppyoloe(parts: Parts) -> Linear | None:
    """PaddleDetection's RepVggBlock: W3 + alpha W1."""
    dense = parts.conv_bn("conv1.conv", "conv1.bn")
    main = dense.parts[0] if dense else None
    point = parts.conv_bn("conv2.conv", "conv2.bn", like=main) if main else None
    if dense is None or point is None or is_wide(point):
        return None
    alpha = Scale("alpha", parts.shapes["alpha"])
    return Sum(dense, Chain(*point.parts, alpha)) if is_number(alpha.shape) else None


@member(
    "yolov9",
    "conv1.bn.running_var",
    fused="conv",
    eps=(1e-3,),
    users="YOLOv9, ultralytics RepConv",
    keys=rf"conv[12]\.conv\.weight|conv[12]\.bn\.{NORM}|bn\.{NORM}",
)
def yolov9(parts: Parts) -> Linear | None:
    """RepConv of the ultralytics line: W3 + W1, and a batch norm of x where there is one."""
    return _two(parts, "bn")


@member(
    "rtdetr",
    "conv1.norm.running_var",
    fused="conv",
    eps=(1e-5,),
    users="RT-DETR, D-FINE, DEIM, transformers",
    keys=rf"conv[12]\.conv\.weight|conv[12]\.norm\.{NORM}",
)
def rtdetr(parts: Parts) -> Linear | None:
    """RepVggBlock of RT-DETR: W3 + W1."""
    return _two(parts, "norm")


def _two(parts: Parts, norm: str) -> Linear | None:
    dense = parts.conv_bn("conv1.conv", f"conv1.{norm}", skip="bn")
    main = dense.parts[0] if dense else None
    point = parts.conv_bn("conv2.conv", f"conv2.{norm}", like=main) if main else None
    if dense is None or point is None or main is None or is_wide(point) or main.kernel == (1, 1):
        return None
    return Sum(dense, point, *parts.identity_bn("bn", main))


@member(
    "pp-lcnet-v3",
    "conv_kxk.0.conv.weight",
    fused="reparam_conv",
    eps=(1e-5,),
    users="PP-OCRv4, PP-OCRv5",
    keys=rf"conv_kxk\.\d+\.conv\.weight|conv_kxk\.\d+\.bn\.{NORM}|conv_1x1\.conv\.weight"
    rf"|conv_1x1\.bn\.{NORM}|identity\.{NORM}|lab\.(scale|bias)",
    note="lab, the scale and bias behind the sum, is folded into the convolution",
)
def lcnet(parts: Parts) -> Linear | None:
    """LearnableRepLayer of PP-LCNetV3, its LearnableAffineBlock included."""
    found = parts.copies("conv_kxk", "conv_1x1", "identity")
    if found is None or "lab.scale" not in parts.shapes:  # without either it is a MobileOne's
        return found if "conv_1x1.conv.weight" in parts.shapes else None
    scale, bias = (parts.shapes.get(f"lab.{name}", ()) for name in ("scale", "bias"))
    return Chain(found, Scale("lab.scale", scale), Bias("lab.bias", bias))


@member(
    "mobileone",
    "rbr_conv.0.conv.weight",
    fused="reparam_conv",
    eps=(1e-5,),
    users="MobileOne (Apple)",
    keys=rf"rbr_conv\.\d+\.conv\.weight|rbr_conv\.\d+\.bn\.{NORM}|rbr_scale\.conv\.weight"
    rf"|rbr_scale\.bn\.{NORM}|rbr_skip\.{NORM}",
)
def mobileone(parts: Parts) -> Linear | None:
    """Vasu et al., arXiv 2206.04040, section 3.2."""
    return parts.copies("rbr_conv", "rbr_scale", "rbr_skip")


@member(
    "mobileone-timm",
    "conv_kxk.0.conv.weight",
    fused="reparam_conv",
    eps=(1e-5,),
    users="timm's MobileOne, FastViT",
    keys=rf"conv_kxk\.\d+\.conv\.weight|conv_kxk\.\d+\.bn\.{NORM}|conv_scale\.conv\.weight"
    rf"|conv_scale\.bn\.{NORM}|identity\.{NORM}|conv_1x1\.conv\.weight",
    neutral="drop_path",
)
def mobileone_timm(parts: Parts) -> Linear | None:
    """The same under timm's names."""
    return parts.copies("conv_kxk", "conv_scale", "identity")


@member(
    "repvit",
    "conv.c.weight",
    fused="",
    eps=(1e-5,),
    users="RepViT",
    keys=rf"conv\.c\.weight|conv\.bn\.{NORM}|conv1\.{_CONV}|bn\.{NORM}",
)
def repvit(parts: Parts) -> Linear | None:
    """RepVGGDW of RepViT (arXiv 2307.09283): BN(dw3x3 BN + dw1x1 with bias + x), in place."""
    dense = parts.conv_bn("conv.c", "conv.bn")
    main = dense.parts[0] if dense else None
    point = parts.conv("conv1", like=main) if main else None
    outer = parts.norm("bn", main.out_channels) if main else None
    if dense is None or main is None or point is None or outer is None:
        return None
    return Chain(Sum(dense, point, Identity("x", main.in_channels, main.groups)), outer)


@member(
    "repvit-first",
    "conv1.c.weight",
    fused="",
    eps=(1e-5,),
    users="RepViT M1 to M3 (its first version)",
    keys=rf"conv1?\.c\.weight|conv1?\.bn\.{NORM}",
)
def repvit_first(parts: Parts) -> Linear | None:
    """The same without the outer batch norm: dw3x3 BN + dw1x1 BN + x, in place."""
    dense = parts.conv_bn("conv.c", "conv.bn")
    main = dense.parts[0] if dense else None
    point = parts.conv_bn("conv1.c", "conv1.bn", like=main) if main else None
    if dense is None or main is None or point is None or is_wide(point):
        return None
    if main.in_channels != main.out_channels:
        return None
    return Sum(dense, point, Identity("x", main.in_channels, main.groups))


@member(
    "replknet",
    "lkb_origin.conv.weight",
    fused="lkb_reparam",
    eps=(1e-5,),
    users="RepLKNet, FastViT (Apple)",
    keys=rf"(lkb_origin|small_conv)\.(conv\.weight|bn\.{NORM})",
)
def replknet(parts: Parts) -> Linear | None:
    """Ding et al., "RepLKNet" (arXiv 2203.06717, section 3): a small kernel in a large one."""
    return _large(parts, "lkb_origin")


@member(
    "replknet-timm",
    "large_conv.conv.weight",
    fused="reparam_conv",
    eps=(1e-5,),
    users="timm's FastViT, MobileCLIP",
    keys=rf"(large|small)_conv\.(conv\.weight|bn\.{NORM})",
)
def replknet_timm(parts: Parts) -> Linear | None:
    """The same under timm's names."""
    return _large(parts, "large_conv")


def _large(parts: Parts, name: str) -> Linear | None:
    large = parts.conv_bn(f"{name}.conv", f"{name}.bn")
    main = large.parts[0] if large else None
    small = parts.conv_bn("small_conv.conv", "small_conv.bn", like=main) if main else None
    if large is None or main is None or small is None or small.parts[0].kernel > main.kernel:
        return None
    return Sum(large, small)


@member(
    "yolov10-dw",
    "conv1.conv.weight",
    fused="conv",
    eps=(1e-3,),
    users="YOLOv10 RepVGGDW",
    keys=rf"conv1?\.conv\.weight|conv1?\.bn\.{NORM}",
)
def yolov10_dw(parts: Parts) -> Linear | None:
    """RepVGGDW of YOLOv10: depthwise 7x7 and 3x3, a batch norm each."""
    large = parts.conv_bn("conv.conv", "conv.bn")
    main = large.parts[0] if large else None
    small = parts.conv_bn("conv1.conv", "conv1.bn", like=main) if main else None
    if large is None or small is None or main is None or main.in_channels != main.groups:
        return None
    return Sum(large, small) if small.parts[0].kernel < main.kernel else None


@member(
    "acb",
    "square_conv.weight",
    fused="fused_conv",
    eps=(1e-5,),
    users="ACNet",
    keys=rf"(square|ver|hor)_conv\.weight|(square|ver|hor)_bn\.{NORM}",
    neutral="(ver|hor)_conv_crop_layer",
)
def acb(parts: Parts) -> Linear | None:
    """Ding et al., arXiv 1908.03930."""
    square = parts.conv_bn("square_conv", "square_bn")
    main = square.parts[0] if square else None
    sides = [parts.conv_bn(f"{name}_conv", f"{name}_bn", like=main) for name in ("ver", "hor")]
    return Sum(square, *sides) if main is not None and None not in sides else None


@member(
    "unireplknet",
    "lk_origin.weight",
    fused="lk_origin",
    eps=(1e-5,),
    users="UniRepLKNet",
    keys=rf"lk_origin\.weight|origin_bn\.{NORM}|dil_conv_k\d+_\d+\.weight|dil_bn_k\d+_\d+\.{NORM}",
)
def unireplknet(parts: Parts) -> Linear | None:
    """DilatedReparamBlock (Ding et al., arXiv 2311.15599): dilated kernels beside the large one."""
    large = parts.conv_bn("lk_origin", "origin_bn")
    if large is None:
        return None
    branches: list[Linear | None] = [large]
    for name in sorted(parts.shapes):
        if found := re.fullmatch(r"dil_conv_k(\d+)_(\d+)\.weight", name):
            k, r = found.groups()
            branches.append(
                parts.conv_bn(
                    f"dil_conv_k{k}_{r}", f"dil_bn_k{k}_{r}", dilation=int(r), like=large.parts[0]
                )
            )
    return Sum(*branches) if None not in branches else None
