"""Draws `blocks.svg` of the page `branches`: every block of the catalogue, and what it fuses to.

    python -m tests.studies.pages.block_figures

From the catalogue's expressions alone; a test compares it with what is committed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from repvgg_ref_cli.pages import FOLDER

from repvgg_ref.blocks.average import AvgPool
from repvgg_ref.blocks.catalogue import (
    KINDS,
    RESIDUAL_REORG,
    block_names,
    expression,
    is_fusible,
    linear_expression,
    one_conv,
)
from repvgg_ref.blocks.constructors import FormulaConv, Pad, Relu
from repvgg_ref.blocks.linear import Chain, Conv, Identity, Norm, Sum
from repvgg_ref.blocks.spec import BlockSpec
from tests.studies.pages.figures import BLUE, GREEN, GREY, ORANGE, RED, Drawing

_CELL, _ROW, _LEFT, _FUSED, _WIDTH = 14, 92, 190, 700, 780
_GRID = 3 * _CELL
_SAYS = {RESIDUAL_REORG: "R(BN3(W' R(BN3(W x))) + x)"}
_COPIES = 2  # of a branch that a block may have several times


class Piece(NamedTuple):
    """A kernel, and in words what follows it."""

    kernel: tuple[int, int]
    colour: str
    inside: str
    after: str


def pieces(branch: Any) -> list[Piece]:
    """A branch's kernels in order."""
    found: list[Piece] = []
    for part in branch.parts if isinstance(branch, Chain) else (branch,):
        if word := _word(part):
            found[-1] = found[-1]._replace(after=f"{found[-1].after} {word}".strip())
        else:
            found.append(_piece(part))
    return found


def _word(part: Any) -> str:
    """What is no kernel."""
    kinds = {Norm: "BN", Relu: "R", Pad: "pad"}
    return next((word for kind, word in kinds.items() if isinstance(part, kind)), "")


def _piece(part: Any) -> Piece:
    if isinstance(part, Identity):
        return Piece((1, 1), GREEN, "1", "")
    if isinstance(part, Sum):  # a 1x1 kernel and the identity
        return Piece((1, 1), ORANGE, "+1", "")
    if isinstance(part, AvgPool):
        return Piece(part.conv.kernel, GREY, "/9", "")
    if isinstance(part, FormulaConv):
        return Piece(part.conv.kernel, BLUE, "f", "")
    assert isinstance(part, Conv)
    return Piece(part.kernel, ORANGE if part.kernel == (1, 1) else BLUE, "w", "")


def branches(whole: Any) -> tuple[list[Any], str]:
    """The terms of the block's sum, and what follows the sum."""
    after = ""
    if isinstance(whole, Chain) and isinstance(whole.parts[0], Sum | FormulaConv):
        after = " ".join(map(_word, whole.parts[1:]))
        whole = whole.parts[0]
    return (list(whole.parts) if isinstance(whole, Sum) else [whole]), after


def terms(spec: BlockSpec) -> list[list[str]]:
    """How many branches reach each tap of the fused kernel."""
    count = np.zeros((3, 3), int)
    for branch in branches(linear_expression(spec))[0]:
        height, width = one_conv(branch, spec.name).kernel
        rows, columns = ((3 - size) // 2 for size in (height, width))
        count[rows : rows + height, columns : columns + width] += 1
    return [[str(n) for n in row] for row in count]


def kernel_rows(piece: Piece) -> list[list[str]]:
    """The taps that a kernel has, in a grid of 3 x 3."""
    height, width = piece.kernel
    rows, columns = ((3 - size) // 2 for size in (height, width))
    shown = [[""] * 3 for _ in range(3)]
    for row in range(rows, rows + height):
        shown[row][columns : columns + width] = [piece.inside] * width
    return shown


def spec_of(block: str) -> BlockSpec:
    """A block that keeps size and channels, so that its identity is there."""
    return BlockSpec("stage1.1", 4, 4, 1, kind=block, copies=_COPIES if block == "mobileone" else 1)


def blocks() -> str:
    """All of them, one below the other."""
    names = block_names()
    d = Drawing(
        _WIDTH, _ROW * len(names) + 60, "Every block as it is trained, and what it fuses to"
    )
    d.text(_LEFT, 26, "trained: a sum of branches, then ReLU", anchor="start", weight="bold")
    d.text(_FUSED + _GRID / 2, 26, "fused", weight="bold")
    for index, name in enumerate(names):
        _row(d, name, 46 + index * _ROW)
    return d.svg()


def _row(d: Drawing, name: str, top: float) -> None:
    """One block."""
    middle = top + _GRID / 2
    d.text(14, middle + 5, name, anchor="start", weight="bold")
    shown, after = _shown(name)
    x = float(_LEFT)
    for number, branch in enumerate(shown):
        if number:
            d.text(x + 10, middle + 7, "+", size=20)
            x += 22
        x = _branch(d, branch, x, top)
    if after:
        d.text(x + 12, middle + 5, f"then {after}", GREY, 13, anchor="start")
    _fused(d, name, top)
    d.text(_LEFT, top + _GRID + 32, _SAYS.get(name) or KINDS[name].says, GREY, 12, anchor="start")


def _shown(name: str) -> tuple[list[list[Piece]], str]:
    """The branches to draw, and what follows their sum."""
    if name == RESIDUAL_REORG:
        first, second = (Piece((3, 3), BLUE, "w", after) for after in ("BN R", "BN"))
        return [[first, second], [Piece((1, 1), GREEN, "1", "")]], ""
    found, after = branches(expression(spec_of(name)))
    return [pieces(branch) for branch in found], after


def _branch(d: Drawing, branch: list[Piece], x: float, top: float) -> float:
    """Draw a branch from `x` on; return where it ends."""
    for piece in branch:
        d.grid(x, top, kernel_rows(piece), piece.colour, _CELL)
        d.text(x + _GRID / 2, top + _GRID + 14, piece.after, piece.colour, 11)
        x += _GRID + 8
    return x


def _fused(d: Drawing, name: str, top: float) -> None:
    """The fused kernel, its taps the number of branches that reach them; or that there is none."""
    middle = top + _GRID / 2
    if name != RESIDUAL_REORG and is_fusible(spec_of(name)):
        d.text(_FUSED - 20, middle + 7, "=", size=20)
        d.grid(_FUSED, top, terms(spec_of(name)), GREY, _CELL)
    else:
        d.text(_FUSED + _GRID / 2, middle + 5, "refused", RED, 13, weight="bold")


if __name__ == "__main__":
    (FOLDER / "figures" / "blocks.svg").write_text(blocks(), encoding="utf-8")
