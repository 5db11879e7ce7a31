"""The options of a training, kept in its folder: ``--resume`` need not be told them again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

NAME = "options.json"
_MOST = 1 << 20  # bytes
_OF_ONE_CALL = {
    *("out", "resume", "accept_changes"),
    *("dry_run", "tensorboard", "as_json", "debug"),
}


@dataclass
class Options:
    """Those that this command line names, and those kept of the starts `before`."""

    now: dict[str, Any]
    before: dict[str, Any] = field(default_factory=dict)


def recall(ctx: click.Context, folder: Path) -> dict[str, Any]:
    """The options that the training in `folder` was given and this command line does not name.

    Raises
    ------
    StateError
        If the file is not as it was written.
    click.BadParameter
        If one of its values is none that the option takes.
    """
    options = {param.name: param for param in ctx.command.get_params(ctx)}
    found: dict[str, Any] = {}
    for name, value in _read(folder / NAME).items():
        if name not in options or name in _OF_ONE_CALL:
            raise _damaged(folder / NAME, f"an option {name!r}")
        if not _is_named(ctx, name):
            found[name] = options[name].type_cast_value(ctx, value)
    return found


def named(ctx: click.Context, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options `asked` for that the command line names and a training keeps."""
    return {n: v for n, v in asked.items() if n not in _OF_ONE_CALL and _is_named(ctx, n)}


def remember(folder: Path, options: Mapping[str, Any]) -> None:
    """Write `options` into `folder`, whole or not at all; paths absolute.

    Raises
    ------
    StateError
        If it cannot be written.
    """
    from repvgg_ref.train.state import StateError, last_good, write_text

    text = json.dumps({name: _plain(value) for name, value in options.items()}, indent=2) + "\n"
    try:
        write_text(folder / NAME, text)
    except OSError as error:
        raise StateError(
            "the training's options cannot be written",
            got=f"{folder / NAME}: {error.strerror}",
            advice=last_good(folder),
        ) from None


def spelt(options: Mapping[str, Any]) -> str:
    """`options` as a command line has them, for people."""
    words = []
    for name, value in options.items():
        flag = name.replace("_", "-").replace("recipe-name", "recipe")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            each = value if isinstance(value, list | tuple) else [value]
            words += [f"--{flag} {item}" for item in each]
    return " ".join(words)


def _is_named(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _plain(value: Any) -> Any:
    """As JSON holds it: a path, and the name of a file, from any working directory."""
    if isinstance(value, Path):
        from repvgg_ref.data.generated import PREFIX

        is_drawn = str(value).startswith(PREFIX)  # no folder's name
        return str(value if is_drawn else value.absolute())
    if isinstance(value, str) and value.endswith(".toml"):
        return str(Path(value).absolute())
    return value


def _read(path: Path) -> dict[str, Any]:
    import weights_io

    try:
        options = json.loads(weights_io.read_regular(path, most=_MOST))
    except FileNotFoundError:  # a training of 0.1.0, or none
        return {}
    except RecursionError:  # whose text is Python's own affair
        raise _damaged(path, "values nested too deeply") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(options, dict):
        raise _damaged(path, type(options).__name__)
    return options


def _damaged(path: Path, got: str) -> Exception:
    from repvgg_ref.train.state import StateError

    return StateError(
        "the options of this training cannot be read",
        got=f"{path.name}: {got}",
        advice=f"remove {path}, and give the options that it was begun with again",
    )
