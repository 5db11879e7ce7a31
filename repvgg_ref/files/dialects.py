"""How other code bases name the arrays of a RepVGG: one table a dialect, read in both directions.

A fused kernel followed by a batch norm again (the official ``insert_bn.py``, for quantisation) is a
block with nothing but its 3x3 branch, so it needs a table and no code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from repvgg_ref.models.names import OFFICIAL, PLUS, Dialect

_HEAD_FC = {"linear.weight": "head.fc.weight", "linear.bias": "head.fc.bias"}

OFFICIAL_BN = Dialect(
    name="official-bn",
    stem="stage0",
    block="stage{stage}.{index}",
    parts={"branch_3x3.conv": "rbr_reparam.conv", "branch_3x3.bn": "rbr_reparam.bn"},
    whole=OFFICIAL.whole,
)
TIMM = Dialect(
    name="timm",
    stem="stem",
    block="stages.{stage}.{index}",
    parts={
        "branch_3x3": "conv_kxk",
        "branch_1x1": "conv_1x1",
        "branch_identity.bn": "identity",
        "fused": "reparam_conv",
        "se.down": "attn.fc1",
        "se.up": "attn.fc2",
    },
    whole=_HEAD_FC,
    stage_offset=-1,
)
MMPRETRAIN = Dialect(
    name="mmpretrain",
    stem="backbone.stem",
    block="backbone.stage_{stage}.{index}",
    parts={
        "branch_3x3.conv": "branch_3x3.conv",
        "branch_3x3.bn": "branch_3x3.norm",
        "branch_1x1.conv": "branch_1x1.conv",
        "branch_1x1.bn": "branch_1x1.norm",
        "branch_identity.bn": "branch_norm",
        "fused": "branch_reparam",
        "se.down": "se_layer.conv1.conv",
        "se.up": "se_layer.conv2.conv",
    },
    whole=_HEAD_FC,
)
MMPRETRAIN_BACKBONE = replace(MMPRETRAIN, stem="stem", block="stage_{stage}.{index}")
"""Its backbone saved alone, which is how heads of other code bases load it."""
MEGENGINE = Dialect(
    name="megengine",
    stem="stage0",
    block="stage{stage}.{index}",
    parts={**OFFICIAL.parts, "se.down": "se.f_ex.0", "se.up": "se.f_ex.2"},
    whole=_HEAD_FC,
    shape_wrappers=True,
)

DIALECTS = (OFFICIAL, OFFICIAL_BN, PLUS, TIMM, MMPRETRAIN, MMPRETRAIN_BACKBONE, MEGENGINE)


def recognise(names: Iterable[str]) -> tuple[Dialect, dict[str, str]] | None:
    """The dialect that knows most of `names`, and its reading of them; None if none knows any."""
    known = list(names)
    readings = [(dialect, dialect.parse(known)) for dialect in DIALECTS]
    best = max(readings, key=lambda reading: len(reading[1]))
    return best if any(name.startswith("stage") for name in best[1].values()) else None
