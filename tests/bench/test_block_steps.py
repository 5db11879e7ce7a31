"""What the study of blocks' training steps found holds for every block that there is."""

from __future__ import annotations

import json

from repvgg_ref.blocks.catalogue import block_names
from tests.studies.bench.block_steps import RESULTS, ROOF, SETTINGS, kernels


def test_every_block_was_measured_and_is_below_the_roof() -> None:
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["settings"]
    assert list(found) == list(SETTINGS)
    for rows in found.values():
        assert list(rows) == block_names()
        assert max(row["per_mac"] for row in rows.values()) <= ROOF


def test_the_paper_blocks_products_are_those_of_its_branches() -> None:
    """Ten taps where the fused form has nine; a diverse block's inner 1x1 sees all of x."""
    setting = SETTINGS["A0, 4 of 224 x 224"]
    counted = {
        name: sum(kernel.macs for kernel in kernels(setting.make(name), setting.size))
        for name in ("plain", "repvgg", "acb", "residual-reorg")
    }
    nine = counted["plain"] // 9
    assert 9 * nine == counted["plain"]
    assert (counted["repvgg"], counted["acb"]) == (10 * nine, 15 * nine)
    assert counted["plain"] < counted["residual-reorg"] < counted["repvgg"]
