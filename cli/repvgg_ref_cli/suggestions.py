"""What somebody who mistyped a command, an option or a choice probably meant."""

from __future__ import annotations

import re
from collections.abc import Iterator

import click

# What other tools call it, and what nobody would find by its letters.
_ELSEWHERE = {"-i": "--checkpoint", "-o": "--out", "-v": "--version", "--verbose": "--debug"}
_OPTIONS = {"help": "--help", "version": "--version"}


def suggestion(error: click.ClickException) -> str | None:
    """``did you mean --out?`` for an unknown command, option or choice; None if nothing is near."""
    context = getattr(error, "ctx", None)
    if context is None:
        return None
    if isinstance(error, click.NoSuchOption):
        return _option(error.option_name, context)
    if isinstance(error, click.BadParameter):
        return _choice(error)
    if found := re.match(r"No such command '(.*)'", error.message):
        if found[1] in _OPTIONS:
            return f"did you mean {_OPTIONS[found[1]]}?"
        return _near(found[1], context.command.list_commands(context))
    return None


def _option(name: str, context: click.Context) -> str | None:
    known = list(_flags(context.command, context))
    elsewhere = _ELSEWHERE.get(name)
    return f"did you mean {elsewhere}?" if elsewhere in known else _near(name, known)


def _flags(command: click.Command, context: click.Context) -> Iterator[str]:
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            yield from (*parameter.opts, *parameter.secondary_opts)


def _choice(error: click.BadParameter) -> str | None:
    found = re.match(r"'(.*)' is not one of (.*)", error.message or "")
    return _near(found[1], re.findall(r"'([^']+)'", found[2])) if found else None


def _near(name: str, known: list[str]) -> str | None:
    from repvgg_ref.errors import did_you_mean

    return did_you_mean(name, known)
