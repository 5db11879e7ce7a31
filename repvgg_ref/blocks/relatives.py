"""Blocks of the family whose convolutions stand behind one another, or hold others of the family.

Entries as in `family`, which come before its own: they ask more of a file.
"""

from __future__ import annotations

from dataclasses import replace

from repvgg_ref.blocks.catalogue import diverse_of
from repvgg_ref.blocks.catalogue import kind as catalogued
from repvgg_ref.blocks.constructors import Bias, BiasPad, FormulaConv, Scale
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Sum
from repvgg_ref.blocks.member import NORM, member, other_identity
from repvgg_ref.blocks.parts import Geometry, Parts, Told, Window, renamed, with_eps
from repvgg_ref.blocks.priors import Factor, Separable, Stored
from repvgg_ref.blocks.run import Linear, Shapes
from repvgg_ref.blocks.spec import BlockSpec
from repvgg_ref.errors import CheckpointError

_EXPANDED = 8  # outputs a channel of OREPA's depthwise kernel
_OREPA = ((r"(^|\.)weight_(?:orepa|rbr|or1x1)_(\w+)$", r"\1\2.weight"), ("id_tensor$", "id.weight"))


@member(
    "repmixer",
    "norm.rbr_skip.running_var",
    fused="reparam_conv",
    eps=(1e-5,),
    users="FastViT (Apple)",
    keys=rf"norm\.rbr_skip\.{NORM}|mixer\.rbr_(conv\.\d+|scale)\.(conv\.weight|bn\.{NORM})"
    rf"|mixer\.rbr_skip\.{NORM}|layer_scale",
    summed="mixer|norm",
)
def repmixer(parts: Parts) -> Linear | None:
    """Vasu et al., "FastViT" (arXiv 2303.14189, section 3.2): x + g (mixer - norm)."""
    mixer = parts.copies("mixer.rbr_conv", "mixer.rbr_scale", "mixer.rbr_skip")
    return _mixed(parts, mixer, "norm.rbr_skip", "layer_scale")


@member(
    "repmixer-timm",
    "norm.identity.running_var",
    fused="reparam_conv",
    eps=(1e-5,),
    users="timm's FastViT, MobileCLIP",
    keys=rf"norm\.identity\.{NORM}|mixer\.conv_(kxk\.\d+|scale)\.(conv\.weight|bn\.{NORM})"
    rf"|mixer\.identity\.{NORM}|layer_scale\.gamma",
    neutral="layer_scale",
    summed="mixer|norm",
)
def repmixer_timm(parts: Parts) -> Linear | None:
    """The same under timm's names."""
    mixer = parts.copies("mixer.conv_kxk", "mixer.conv_scale", "mixer.identity")
    return _mixed(parts, mixer, "norm.identity", "layer_scale.gamma")


def _mixed(parts: Parts, mixer: Sum | None, norm: str, scale: str) -> Linear | None:
    if mixer is None or mixer.in_channels != mixer.groups:
        return None
    channels = mixer.in_channels
    same, after = Identity("x", channels, channels), parts.norm(norm, channels)
    if after is None or mixer.out_channels != channels:
        return None
    change: Linear = Sum(mixer, Chain(same, after, Factor(-1)))
    if scale in parts.shapes:
        change = Chain(change, Scale(scale, (channels, 1, 1)))
    return Sum(same, change)


@member(
    "repghost",
    "fusion_bn.0.running_var",
    fused="cheap_operation",
    eps=(1e-5,),
    users="RepGhost",
    keys=rf"cheap_operation\.0\.weight|(cheap_operation\.1|fusion_bn\.0)\.{NORM}",
    note="an identity without a batch norm beside the one with it has no key: none is taken",
    beside="primary_conv",
    neutral="fusion_conv",
    summed="fusion_bn",
)
def repghost(parts: Parts) -> Linear | None:
    """Chen et al., "RepGhost" (arXiv 2211.06088, figure 3): BN(dw x) + BN(x), in place."""
    cheap = parts.conv_bn("cheap_operation.0", "cheap_operation.1")
    if cheap is None or cheap.in_channels != cheap.groups:
        return None
    same = parts.identity_bn("fusion_bn.0", cheap.parts[0])
    return Sum(cheap, *same) if same else None


@member(
    "orepa",
    "weight_orepa_origin",
    fused="orepa_reparam",
    eps=(1e-5,),
    users="OREPA",
    keys=rf"weight_orepa_\w+|id_tensor|vector|bn\.{NORM}",
    leaves=_OREPA,
)
def orepa(parts: Parts) -> Linear | None:
    """Hu et al., "Online Convolutional Re-parameterization" (arXiv 2204.00826, figure 4)."""
    found = _online(parts, "")
    after = parts.norm("bn", found.out_channels) if found is not None else None
    return Chain(found, after) if after is not None else None


@member(
    "orepa-repvgg",
    "rbr_dense.weight_rbr_origin",
    fused="rbr_reparam",
    eps=(1e-5,),
    users="OREPA's RepVGG",
    keys=rf"rbr_dense\.(weight_rbr_\w+|id_tensor|vector|bn\.{NORM})|rbr_1x1\.conv\.weight"
    rf"|rbr_1x1\.bn\.{NORM}|rbr_identity\.{NORM}",
    leaves=_OREPA,
)
def orepa_repvgg(parts: Parts) -> Linear | None:
    """RepVGG's block with such a kernel for the 3x3 branch."""
    found = _online(parts, "rbr_dense.")
    after = parts.norm("rbr_dense.bn", found.out_channels) if found is not None else None
    if found is None or after is None:
        return None
    like = Conv("", found.in_channels, found.out_channels, (1, 1), groups=found.groups)
    point = parts.conv_bn("rbr_1x1.conv", "rbr_1x1.bn", like=like)
    same = parts.identity_bn("rbr_identity", like)
    return Sum(Chain(found, after), *([point] if point else []), *same)


def _online(parts: Parts, at: str) -> Sum | None:
    """OREPA's kernel: convolutions one behind the other, each times a row of `vector`."""
    origin, middle = parts.conv(f"{at}origin"), parts.first(f"{at}1x1_kxk_idconv1.weight")
    inputs = parts.first(f"{at}gconv_dw.weight") // _EXPANDED
    seen = parts.shapes[f"{at}origin.weight"][1] if origin is not None else 1
    if origin is None or not inputs or not middle or inputs % seen:
        return None
    main = replace(origin, in_channels=inputs, groups=inputs // seen)
    point = replace(main, kernel=(1, 1), padding=(0, 0), dilation=(1, 1))
    first = replace(point, out_channels=middle)
    wide = replace(main, in_channels=middle)
    out, k = main.out_channels, main.kernel
    each = replace(main, name="", in_channels=out, groups=out)
    deep_name, point_name = f"{at}gconv_dw.weight", f"{at}gconv_pw.weight"
    gconv = Separable(deep_name, point_name, inputs, out, main.groups, _EXPANDED, k)
    # `vector` has their factors in this order; the 1x1 kernel is left out in a RepVGG.
    terms: list[list[Linear]] = [
        [main],
        [
            replace(point, name=f"{at}avg_conv"),
            FormulaConv(replace(each, name="avg"), Stored(f"{at}avg_avg.weight", out, k)),
        ],
        [
            replace(point, name=f"{at}pfir_conv"),
            FormulaConv(replace(each, name="prior"), Stored(f"{at}prior.weight", out, (out, *k))),
        ],
        [
            Sum(
                replace(first, name=f"{at}1x1_kxk_idconv1"),
                replace(first, name=f"{at}id"),
            ),
            replace(wide, name=f"{at}1x1_kxk_conv2"),
        ],
        [replace(point, name=f"{at}1x1")] if f"{at}1x1.weight" in parts.shapes else [],
        [FormulaConv(replace(main, name=f"{at}gconv"), gconv)],
    ]
    kept = [term for term in terms if term]
    # A RepVGG's counts the identity among them where it can be added; nothing reads that row.
    rows = len(kept) + (at != "" and inputs == out and parts.first(f"{at}vector") > len(kept))
    vector = f"{at}vector", (rows, out)
    return Sum(*(Chain(*term, Scale(*vector, row)) for row, term in enumerate(kept)))


@member(
    "orepa-1x1",
    "weight_or1x1_origin",
    fused="or1x1_reparam",
    eps=(1e-5,),
    users="OREPA",
    keys=rf"weight_or1x1_\w+|vector|bn\.{NORM}",
    leaves=_OREPA,
)
def orepa_point(parts: Parts) -> Linear | None:
    """OREPA's 1x1 block: W, and two 1x1 convolutions one behind the other."""
    main = parts.conv("origin", ungrouped=True)
    middle = parts.first("l2i_conv1.weight")
    after = parts.norm("bn", main.out_channels) if main is not None else None
    if main is None or after is None or not middle:
        return None
    first = replace(main, name="l2i_conv1", out_channels=middle)
    second = replace(main, name="l2i_conv2", in_channels=middle)
    vector = "vector", (2, main.out_channels)
    whole = Sum(Chain(main, Scale(*vector, 0)), Chain(first, second, Scale(*vector, 1)))
    return Chain(whole, after)


@member(
    "ecbsr",
    "conv1x1_lpl.mask",
    fused="conv3x3",
    eps=(),
    users="ECBSR",
    keys=r"conv3x3\.(weight|bias)|conv1x1_3x3\.[kb][01]"
    r"|conv1x1_(sbx|sby|lpl)\.(k0|b0|scale|bias|mask)",
    leaves=((r"\.k(\d)$", r".\1.weight"), (r"\.b(\d)$", r".\1.bias"), ("mask$", "mask.weight")),
    untold="the identity has no key: it is never taken, as in the published configurations",
    told_by="with_idt",
    maybe=other_identity,
)
def ecbsr(parts: Parts) -> Linear | None:
    """Zhang et al., "Edge-oriented Convolution Block" (ACM MM 2021): no border is inexact.

    Between a 1x1 convolution with a bias and a 3x3 kernel the published code pads with that bias.
    """
    main = parts.conv("conv3x3", ungrouped=True)
    if main is None:
        return None
    branches: list[Linear] = [main]
    for kind in ("3x3", "sbx", "sby", "lpl"):
        at, masked = f"conv1x1_{kind}", kind != "3x3"
        middle = parts.first(f"{at}.0.bias")
        if not middle:
            return None
        first = Conv(f"{at}.0", main.in_channels, middle, (1, 1), bias=True)
        name, groups = (f"{at}.mask", middle) if masked else (f"{at}.1", 1)
        out = main.out_channels
        second = Conv(name, middle, out, main.kernel, groups=groups, bias=not masked)
        scaled = [Scale(f"{at}.scale", (out, 1, 1, 1)), Bias(f"{at}.bias", (out,))]
        border = BiasPad(main.padding, first)
        branches.append(Chain(first, border, second, *(scaled if masked else [])))
    if parts.told is not None and parts.told.setting("", "with_idt"):
        branches.append(Identity("x", main.in_channels))
    return Sum(*branches)


@member(
    "dbb",
    "dbb_origin.conv.weight",
    fused="dbb_reparam",
    eps=(1e-5,),
    users="Diverse Branch Block",
    keys=rf"dbb_(origin|1x1)\.(conv\.weight|bn\.{NORM})|dbb_avg\.(conv\.weight|bn\.bn\.{NORM}"
    rf"|avgbn\.{NORM})|dbb_1x1_kxk\.(idconv1\.(conv\.)?weight|conv1\.weight|conv2\.weight"
    rf"|bn1\.bn\.{NORM}|bn2\.{NORM})",
    beside=r"dbb_avg\.avg",
)
def dbb(parts: Parts) -> Linear | None:
    """Ding et al., arXiv 2103.13425: as the catalogue has it, under its published keys.

    The convolution of W + I is a module of its own in newer files, a `Conv2d` in older ones.
    """
    inner = "dbb_1x1_kxk.bn1.bn"
    wide = parts.first("dbb_1x1_kxk.conv1.weight")
    # As wide as the input behind W + I; else its convolutions tell the groups.
    dense = parts.conv_bn("dbb_origin.conv", "dbb_origin.bn", skip="" if wide else inner)
    if dense is None:
        return None
    main = dense.parts[0]
    if wide and parts.told is None:
        groups = wide // max(1, (*parts.shapes.get("dbb_1x1_kxk.conv2.weight", ()), 0, 0)[1])
        per_group = main.in_channels // main.groups
        main = replace(main, in_channels=groups * per_group, groups=groups)
    if not main.groups or main.out_channels % main.groups or wide % main.groups:
        return None
    spec = BlockSpec(
        "block",
        main.in_channels,
        main.out_channels,
        1,
        main.groups,
        kind="dbb",
        kernel=main.kernel[0],
    )
    keys = dict(catalogued("dbb").keys)
    if "dbb_1x1_kxk.idconv1.conv.weight" in parts.shapes:
        keys["sequence.same.conv"] = "dbb_1x1_kxk.idconv1.conv"
    found: Linear = with_eps(renamed(diverse_of(spec, wide), keys), parts.eps)
    if parts.told is not None:
        _require_diverse(parts.told, parts.shapes, dense.parts[0])
    return found


def _require_diverse(told: Told, shapes: Shapes, main: Conv) -> None:
    """Raise `CheckpointError` unless the modules read as those of a diverse branch block.

    `main` is its largest convolution as it is told. What is padded is padded by the batch norms
    before the average and the second convolution, which read no border of zeros.
    """
    border = main.padding
    depthwise = "dbb_avg.conv.weight" not in shapes
    average = Window(main.kernel, main.stride, border if depthwise else (0, 0))
    _require_same("dbb_avg.avg", told.window("dbb_avg.avg"), average)
    reads = {
        "dbb_origin.conv": (main.stride, border),
        "dbb_1x1.conv": (main.stride, (0, 0)),
        "dbb_avg.conv": ((1, 1), (0, 0)),
        "dbb_1x1_kxk.conv1": ((1, 1), (0, 0)),
        "dbb_1x1_kxk.conv2": (main.stride, (0, 0)),
    }
    for name, (stride, padding) in reads.items():
        if (shape := shapes.get(f"{name}.weight")) is not None:
            wanted = Geometry(stride, padding, (1, 1), main.groups)
            _require_same(name, told.conv(name, shape, centred=False), wanted)
    for name in ("dbb_avg.bn", "dbb_1x1_kxk.bn1"):
        if (pixels := told.setting(name, "pad_pixels")) is not None:
            _require_same(name, pixels, border[0])


def _require_same(name: str, got: object, wanted: object) -> None:
    if got is not None and got != wanted:
        raise CheckpointError(
            f"{name} reads otherwise than in a diverse branch block", got=got, wanted=wanted
        )
