"""`repvgg-ref completion`: what a shell needs to complete commands, options and names."""

from __future__ import annotations

import click

from repvgg_ref_cli.completion import SHELLS, script
from repvgg_ref_cli.options import debug_option


@click.command(short_help="Print what a shell needs to complete this command.")
@click.argument("shell", type=click.Choice(SHELLS), metavar="bash|zsh|fish")
@debug_option
def command(shell: str) -> None:
    """Print a script that makes the TAB key complete commands, options, files and names.

    \b
    For every new shell:
      bash  echo 'eval "$(repvgg-ref completion bash)"' >> ~/.bashrc     (bash 4.4 or newer)
      zsh   echo 'eval "$(repvgg-ref completion zsh)"' >> ~/.zshrc       (after compinit)
      fish  repvgg-ref completion fish > ~/.config/fish/completions/repvgg-ref.fish
    """  # noqa: D301 - \b is click's
    click.echo(script(shell), nl=False)
