"""`repvgg-ref table`: every architecture and what it costs; every block and what the paper says."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from repvgg_ref_cli.console import Fitting, console
from repvgg_ref_cli.options import debug_option, json_option, print_json

if TYPE_CHECKING:
    from repvgg_ref.models.cost import Cost

_NARROW, _LONG = 60, 12


@click.command(short_help="List every architecture and its costs, as in the paper.")
@click.option("--blocks", is_flag=True, help="List the kinds of block, each in a RepVGG-B0.")
@json_option
@debug_option
def command(blocks: bool, as_json: bool) -> None:
    """List every network: parameters, FLOPs and Winograd multiplications at 224 x 224.

    The columns are those of the paper's Tables 4 and 5: parameters of the fused form, truncated as
    there; FLOPs are multiply-accumulates. --json gives the exact counts.

    --blocks lists what `train --block` takes: parameters of a B0 before and after fusion, or why it
    cannot be fused, and the paper's top-1 on ImageNet (Tables 6 and 7); "~" marks a figure that
    was not checked in the paper.
    """
    if blocks:
        _blocks(as_json)
        return
    from repvgg_ref import cost, list_models
    from repvgg_ref.models.pspnet import SEGMENTERS
    from repvgg_ref.models.registry import network

    # A segmenter's cost is that of its pictures' size, and theirs is not 224.
    costs = [cost(network(name)) for name in list_models() if name not in SEGMENTERS]
    if as_json:
        print_json({"models": [_as_json(c) for c in costs]})
    else:
        _show(costs)


def _blocks(as_json: bool) -> None:
    from repvgg_ref.models.block_table import block_rows

    rows = block_rows()
    if as_json:
        print_json({"blocks": [row._asdict() for row in rows]})
        return
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    screen = console()
    narrow = screen.width < _NARROW
    table = Table(box=SIMPLE_HEAD, pad_edge=not narrow, padding=(0, not narrow))
    table.add_column("block", no_wrap=True)
    for title in ("train params (M)", "params (M)", "top-1"):
        table.add_column(title, justify="right")
    for row in rows:
        deploy = "-" if row.params_deploy is None else _truncated(row.params_deploy)
        top1 = "-" if row.top1 is None else f"{'' if row.certain else '~'}{row.top1:.2f}"
        table.add_row(row.name, _truncated(row.params_train), deploy, top1)
    screen.print(Fitting(table))
    for row in rows:
        if row.reason is not None:
            screen.print(f"{row.name} is not fused: {row.reason}", highlight=False)


def _as_json(c: Cost) -> dict[str, object]:
    return {
        "name": c.name,
        "params_train": c.params_train,
        "params_deploy": c.params_deploy,
        "macs": c.macs,
        "wino_muls": int(c.wino_muls),
    }


def _show(costs: list[Cost]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    screen = console()
    narrow = screen.width < _NARROW
    table = Table(box=SIMPLE_HEAD, pad_edge=not narrow, padding=(0, not narrow))
    # Where there is little room names are folded, for numbers cannot be.
    table.add_column("model", no_wrap=not narrow, overflow="fold")
    for title in ("train params (M)", "params (M)", "FLOPs (B)", "Wino MULs (B)"):
        shown = title.replace(" ", "\n") if narrow else title
        table.add_column(shown, justify="right", no_wrap=narrow)
    for c in costs:
        table.add_row(
            c.name.replace("-", "-\n") if narrow and len(c.name) > _LONG else c.name,
            _truncated(c.params_train),
            _truncated(c.params_deploy),
            f"{c.macs / 1e9:.1f}",
            f"{float(c.wino_muls) / 1e9:.1f}",
        )
    screen.print(Fitting(table))


def _truncated(count: int) -> str:
    """Millions with two decimals, cut off as the paper does: 8,309,384 is 8.30."""
    hundredths = count // 10_000
    return f"{hundredths // 100}.{hundredths % 100:02}"
