"""Shell completion: what click offers for commands, options and choices, and our own names.

A shell's script asks by running the command with `VARIABLE` set; the answer is printed, nothing
else is done. Nothing heavier than click is imported unless names of networks are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

VARIABLE = "_REPVGG_REF_COMPLETE"
PROGRAM = "repvgg-ref"
SHELLS = ("bash", "zsh", "fish")


def answer(command: click.Command, instruction: str) -> int:
    """Answer a shell that asks; whatever goes wrong, its user's line stays as it is."""
    from click.shell_completion import shell_complete

    try:
        return shell_complete(command, {}, PROGRAM, VARIABLE, instruction)
    except (Exception, KeyboardInterrupt):  # nobody reads a message in the midst of typing
        return 1


def script(shell: str) -> str:
    """What `shell` is to run at its start."""
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None, shell
    # Not its `source`, which starts a bash to ask for its version.
    completion = made(click.Command(PROGRAM), {}, PROGRAM, VARIABLE)
    return completion.source_template % completion.source_vars() + "\n"


def models(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of networks."""
    from repvgg_ref.models.architectures import NAMES
    from repvgg_ref.models.pspnet import SEGMENTERS
    from repvgg_ref.models.registry import MAKERS

    return _starting((*NAMES, *MAKERS, *SEGMENTERS), incomplete)


def blocks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Kinds of blocks that a RepVGG may have."""
    from repvgg_ref.blocks.catalogue import block_names

    return _starting(block_names(), incomplete)


def family(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Kinds of blocks in the wild."""
    from repvgg_ref.blocks.family import FAMILY

    return _starting(["auto", *FAMILY], incomplete)


def recipes(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of recipes; files once no name fits."""
    from repvgg_ref.train.recipe import recipe_names

    return _starting(recipe_names(), incomplete) or files(ctx, param, incomplete)


def models_and_files(
    ctx: click.Context, param: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of networks; files once no name fits."""
    return models(ctx, param, incomplete) or files(ctx, param, incomplete)


def files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Files and folders, for what may be something else, too."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="file")]


def _starting(names: Iterable[str], incomplete: str) -> list[CompletionItem]:
    """Those of `names` that begin so, in whatever case."""
    from click.shell_completion import CompletionItem

    start = incomplete.lower()
    return [CompletionItem(name) for name in names if name.lower().startswith(start)]
