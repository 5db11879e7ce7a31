"""QARepVGG, a block made for quantisation: a batch norm inside and one behind, under two dialects.

Entries as in `family`, which come before its own. Chu et al., "Make RepVGG Greater Again" (arXiv
2212.01593). The deploy form keeps the outer batch norm.
"""

from __future__ import annotations

from typing import Any

from repvgg_ref.blocks.constructors import Scale
from repvgg_ref.blocks.linear import Chain, Identity, Sum
from repvgg_ref.blocks.member import NORM, member, other_identity
from repvgg_ref.blocks.parts import Parts, depthwise, is_number
from repvgg_ref.blocks.run import Linear

_UNTOLD = "the identity has no key: it is taken where channels are equal; depthwise kernels never"


def _other_reading(linear: Any) -> Linear | None:
    """With the identity or without it; of kernels that read one channel, depthwise and with it."""
    if linear.in_channels != 1 or linear.out_channels == 1:
        return other_identity(linear)
    alone = depthwise(linear)
    return Sum(*alone.parts, Identity("x", alone.in_channels, alone.groups))


@member(
    "qarepvgg",
    "rbr_1x1.weight",
    fused="rbr_reparam",
    eps=(1e-3,),
    users="YOLOv6 v2",
    keys=rf"rbr_dense\.conv\.weight|rbr_dense\.bn\.{NORM}|rbr_1x1\.weight|rbr_identity\.{NORM}",
    untold=f"{_UNTOLD}, V2's average never",
    told_by="rbr_identity",
    beside="rbr_identity|rbr_avg|bn",
    outer="bn",
    maybe=_other_reading,
)
def qarepvgg(parts: Parts) -> Linear | None:
    """As published, and in YOLOv6."""
    found = _aware(parts, "rbr_dense", "rbr_1x1", parts.has("rbr_identity", "Identity"))
    if found is not None and parts.has("rbr_avg", "AvgPool2d"):
        return Sum(*found.parts, parts.average("rbr_avg", found.in_channels))
    return found


@member(
    "yolo-nas",
    "branch_1x1.weight",
    fused="rbr_reparam",
    eps=(1e-3,),
    users="YOLO-NAS (super-gradients)",
    keys=rf"branch_3x3\.conv\.weight|branch_3x3\.bn\.{NORM}|branch_1x1\.weight|alpha"
    r"|rbr_reparam\.(weight|bias)",
    note="an rbr_reparam beside branches is an untrained placeholder: it is replaced",
    untold=_UNTOLD,
    told_by="identity",
    beside="identity|post_bn",
    outer="post_bn",
    placeholder=r"rbr_reparam\.(weight|bias)",
    maybe=_other_reading,
)
def yolo_nas(parts: Parts) -> Linear | None:
    """The same under super-gradients' names; `alpha` multiplies the 1x1 branch and its bias."""
    return _aware(parts, "branch_3x3", "branch_1x1", parts.has("identity", "Residual"))


def _aware(parts: Parts, wide: str, point: str, is_told: bool | None) -> Sum | None:
    """BN(W3 x) + alpha (W1 x + b) + x; `is_told` whether x is added, None if nothing tells."""
    dense = parts.conv_bn(f"{wide}.conv", f"{wide}.bn", ungrouped=True)
    if dense is None:
        return None
    main = dense.parts[0]
    one: Linear | None = parts.conv(point, like=main)
    if one is None:
        return None
    if "alpha" in parts.shapes:
        alpha = Scale("alpha", parts.shapes["alpha"])
        if not is_number(alpha.shape):
            return None
        one = Chain(one, alpha)
    equal = main.in_channels == main.out_channels and main.stride == (1, 1)
    adds = equal if is_told is None else is_told
    return Sum(dense, one, *([Identity("x", main.in_channels, main.groups)] if adds else []))
