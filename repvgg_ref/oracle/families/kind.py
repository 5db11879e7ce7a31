"""What a training file holds, told without loading what judges it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from repvgg_ref.errors import ReportedError
from repvgg_ref.files.checkpoint import open_checkpoint
from repvgg_ref.files.modules import holds_blocks

Kind = Literal["blocks", "network", "other"]


def kind_of(reference: Path) -> Kind:
    """Which judge of files a training file is for.

    "blocks": blocks of the family in no network that is known (`judge_family`). "network": one in
    train form whose layers are judged in files only (`judge_graph_file`). "other": all the rest,
    files that cannot be read included.
    """
    try:
        with open_checkpoint(reference) as trained:
            arch = trained.arch
            if not trained.is_network:
                return "blocks" if holds_blocks(trained.arrays) else "other"
            if arch is None or trained.form != "train" or not arch.is_fusible:
                return "other"
            return "other" if arch.is_chain or arch.is_dense else "network"
    except ReportedError:  # of whoever reads it as what it is
        return "other"
