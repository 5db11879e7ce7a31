"""A process that reads hostile files in every way, and says what Python saw happen meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import repvgg_ref as rr
import weights_io
from repvgg_ref.files.convert import convert
from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.files.inspect import inspect_file
from repvgg_ref.oracle.weights.family import judge_family
from tests.weights_io.forge import proto, state_dict, tensor, torch_zip

# What reading a file has to do: open it, look at folders, wait for threads, look at its own stack.
HARMLESS = {
    *("open", "os.listdir", "os.scandir", "os.remove", "os.rename", "os.chmod", "os.mkdir"),
    *("os.truncate", "fcntl.flock", "sys._getframe", "sys._current_frames", "_thread.start_new_thread"),
    *("tempfile.mkstemp", "time.sleep", "object.__getattr__", "gc.get_objects", "os.link"),
    *("cpython._PySys_ClearAuditHooks", "array.__new__", "builtins.id", "_thread.start_joinable_thread"),
    *("os.fwalk", "os.putenv", "sys.unraisablehook", "sys.excepthook", "os.utime", "os.chown"),
}  # fmt: skip


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


WAYS: tuple[Callable[[Path], Any], ...] = (
    _opened,
    rr.load,
    inspect_file,
    lambda path: convert(path, path.with_name("out.npz")),
    lambda path: convert_modules(path, path.with_name("out.npz"), "npz"),
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
    for data in (proto(b"\x00"), proto(b"cos\nsys\x1btem\n."), sound):
        warm.write_bytes(data)
        _read(warm)
    _read(Path(rr.__file__).parent / "data" / "digits-train.pth")
    seen: list[str] = []

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in HARMLESS and not event.startswith("cpython."):
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
