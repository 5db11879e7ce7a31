"""`repvgg-ref docs`: the pages that come with the package, in the terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from repvgg_ref_cli.options import debug_option, json_option, print_json
from repvgg_ref_cli.pages import names, read_page

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType, RenderResult

_WIDEST = 100


@click.command(short_help="Show the pages of the documentation.")
@click.argument("name", required=False, type=click.Choice(names()))
@json_option
@debug_option
def command(name: str | None, as_json: bool) -> None:
    """Show the page NAME, or list them all.

    On a terminal a page is laid out and can be paged through; elsewhere it is Markdown as it is.
    """
    if name is None:
        pages = [read_page(each) for each in names()]
        if as_json:
            print_json({"pages": [page.to_json() for page in pages]})
            return
        width = max(len(page.name) for page in pages)
        for page in pages:
            click.echo(f"{page.name:<{width}}  {page.title}")
        click.echo("\nrepvgg-ref docs NAME shows one of them")
    elif as_json:
        page = read_page(name)
        print_json(page.to_json() | {"text": page.text})
    else:
        _show(read_page(name).text)


def _show(text: str) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal or console.is_dumb_terminal:
        click.echo(text, nl=False)
        return
    with console.capture() as laid_out:
        console.print(_laid_out(text), width=min(console.width, _WIDEST))
    if sys.stdin.isatty():
        click.echo_via_pager(laid_out.get())
    else:
        click.echo(laid_out.get(), nl=False)


def _laid_out(text: str) -> RenderableType:
    from rich.markdown import Markdown, TableElement

    class WholeTable(TableElement):
        """A table whose long names go on in the next line: Rich cuts them off."""

        def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
            for part in super().__rich_console__(console, options):
                for column in getattr(part, "columns", ()):
                    column.overflow = "fold"
                yield part

    class Page(Markdown):
        elements = Markdown.elements | {"table_open": WholeTable}

    return Page(text, code_theme="ansi_dark", hyperlinks=False)
