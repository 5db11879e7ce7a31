"""A process that reads hostile files in every way, and says what Python saw happen meanwhile."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import repvgg_ref as rr
import weights_io
from repvgg_ref.files.convert import convert
from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.oracle.families.family import judge_family
from tests.files.module_settings import block, file_of
from tests.weights_io.forge import proto, state_dict, tensor, torch_zip

# What reading and writing a file of weights has to do; files may be opened in one folder only.
HARMLESS = {"builtins.id", "fcntl.flock"}
ON_FILES = {"open", "os.chmod", "os.chown", "os.link", "os.rename", "os.remove"}
NAMELESS = "/proc/self/fd/"  # a file of ours that has no name until it is finished


def _everything(node: object) -> None:
    if isinstance(node, weights_io.PickledModule):
        node = node.arrays()
    if isinstance(node, weights_io.LazyArray):
        node.read()
    for each in node.values() if isinstance(node, dict) else node if type(node) is list else ():
        _everything(each)


def _opened(path: Path) -> None:
    with weights_io.open_weights(path) as archive:
        _everything(archive.root)


OUT = Path(tempfile.mkdtemp(prefix="witness-")) / "out.npz"
WAYS: tuple[Callable[[Path], Any], ...] = (
    _opened,
    rr.load,
    inspect_file,
    lambda path: convert(path, OUT),
    lambda path: convert_modules(path, OUT, "npz"),
    lambda path: judge_family(path, path),
)


def _read(path: Path) -> None:
    for way in WAYS:
        with suppress(rr.ReportedError):
            way(path)


def run(folder: Path) -> int:
    """Read all files of `folder`; 1 if anything was imported, called or started by it."""
    files = sorted(folder.glob("*.pt"))
    warm = folder / "warm.pth"  # what we import late ourselves is imported by these
    sound = torch_zip(state_dict({"a\x1b.b": tensor()}))
    for data in (proto(b"\x00"), proto(b"cos\nsys\x1btem\n."), sound, file_of(block())):
        warm.write_bytes(data)
        _read(warm)
    _read(Path(rr.__file__).parent / "data" / "digits-train.pth")
    ours, seen = (str(folder), str(OUT.parent), NAMELESS), []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_ours = event in ON_FILES and str(arguments[0]).startswith(ours)
        if not is_ours and event not in HARMLESS:
            seen.append(f"{event} {str(arguments)[:100]}")

    sys.addaudithook(hook)
    before = set(sys.modules)
    for path in files:
        count = len(seen)
        _read(path)
        if len(seen) > count:
            print(path.name, *seen[count:], sep="\n  ")
    watched = len(seen)
    eval("1")  # the witness is awake: it sees what would be seen
    print(len(files), "files;", "imported:", sorted(set(sys.modules) - before))
    return int(bool(watched) or set(sys.modules) != before or len(seen) == watched)
