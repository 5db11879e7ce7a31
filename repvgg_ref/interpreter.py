"""Another interpreter like this one, in which a function of ours runs.

It starts with the flags of this one and goes on with its `sys.path`, so it loads no `.pth` file, no
`usercustomize` and no module that this one would not load.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HOME = str(Path(__file__).resolve().parents[1])

# `sys` is built in, so nothing is looked for before the first line is done. Our own modules are
# loaded before folders that move with the current one come back: one may hold a json.py by now.
_PROGRAM = """import sys
sys.path[:] = {fixed!r}
for name, place in {bare!r}:
    sys.modules[name] = type(sys)(name)
    sys.modules[name].__path__ = [place]
from {module} import {function}
sys.path[:] = {path!r}
{function}()"""
_SAFETY = ("isolated", "ignore_environment", "no_user_site", "no_site", "safe_path")


def running(module: str, function: str, *arguments: str, light: bool = False) -> list[str]:
    """The command line of an interpreter like this one that calls a function of no arguments.

    `arguments` are its `sys.argv[1:]`. With `light` the packages that the module lies in are
    not initialised, which takes a second for the oracle's: it loads what it names, and no more.
    """
    path = search_path()
    fixed = [each for each in path if Path(each).is_absolute()]
    program = _PROGRAM.format(
        fixed=fixed if HOME in fixed else [*fixed, HOME],
        path=path,
        bare=_packages(module) if light else [],
        module=module,
        function=function,
    )
    return [sys.executable, *_flags(), "-c", program, *arguments]


def search_path() -> list[str]:
    """`sys.path`; behind it the folder that this package lies in, if it is not there."""
    path = [each for each in sys.path if isinstance(each, str)]
    return path if HOME in map(os.path.realpath, path) else [*path, HOME]


def _packages(module: str) -> list[tuple[str, str]]:
    """The packages around a module of ours, outermost first, and their folders."""
    parts = module.split(".")[:-1]
    inside = [parts[: i + 1] for i in range(len(parts))]
    return [(".".join(each), str(Path(HOME, *each))) for each in inside]


def identity() -> dict[str, Any]:
    """What tells whether another interpreter runs the same code in the same safety, as JSON."""
    flags = {name: int(getattr(sys.flags, name, 0)) for name in _SAFETY}
    return {"code": str(Path(__file__).resolve()), "path": search_path(), "flags": flags}


def _flags() -> list[str]:
    """What makes `sys.flags` the same; the standard library starts its own helpers with these."""
    flags = [*subprocess._args_from_interpreter_flags()]  # type: ignore[attr-defined]
    if sys.flags.utf8_mode and "utf8" not in sys._xoptions:  # asked for by a locale, or a variable
        flags += ["-X", "utf8"]
    return flags
