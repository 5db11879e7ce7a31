"""What only POSIX or only Linux has is asked for, never assumed: here a Python that lacks it.

Nobody here has Windows or macOS; the page `platforms` says what that leaves unproven.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.cli.formats_page import require_documented
from tests.cli.runner import run_python
from tests.data.datasets import make_folder
from weights_io import claim

# What Windows (and, for the last line, macOS) does not have. msvcrt is played by a dictionary of
# locked files, as Windows keeps one.
ELSEWHERE = """
import contextlib, os, platform, signal, socket, subprocess, sys, sysconfig
sysconfig.get_config_vars(), platform.uname()  # what Python itself reads of its system, once
for module in ("fcntl", "resource", "termios", "tty", "pwd", "grp", "cupy"):
    sys.modules[module] = None
for name in ("fork", "killpg", "sysconf", "getloadavg", "getuid", "geteuid", "mkfifo", "setsid"):
    delattr(os, name)
for name in ("sched_getaffinity", "memfd_create"):
    delattr(os, name)
del signal.SIGKILL, socket.AF_UNIX
sys.platform = "darwin"  # "win32" would send click and rich to DLLs that are not here

class msvcrt:
    LK_NBLCK, holders = 2, {}
    @classmethod
    def locking(cls, number, mode, length):
        key = os.fstat(number).st_ino, os.lseek(number, 0, os.SEEK_CUR)
        try:
            if cls.holders[key] != number and os.fstat(cls.holders[key]).st_ino == key[0]:
                raise PermissionError(13, "Permission denied")
        except (KeyError, OSError) as error:
            if isinstance(error, PermissionError):
                raise
        cls.holders[key] = number

def refusing(call, at):
    # Windows neither renames, replaces nor removes a file that is open.
    def called(*paths, **options):
        for number in os.listdir("/proc/self/fd") if not options else ():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(f"/proc/self/fd/{number}") in map(os.path.abspath, paths[:at]):
                    raise PermissionError(13, "The process cannot access the file", paths[0])
        return call(*paths, **options)
    return called

def fsync(number, call=os.fsync):
    # Windows flushes only what may be written to.
    with open(f"/proc/self/fdinfo/{number}") as about:
        flags = next(line.split()[1] for line in about if line.startswith("flags:"))
    if int(flags, 8) & os.O_ACCMODE == os.O_RDONLY:
        raise OSError(9, "Bad file descriptor")
    call(number)

if "msvcrt" in sys.argv:
    sys.modules["msvcrt"] = msvcrt
    os.rename, os.replace = refusing(os.rename, 2), refusing(os.replace, 2)
    os.unlink = os.remove = refusing(os.unlink, 1)
    os.fsync = fsync
"""
IMPORT_ALL = """
import importlib, pkgutil
names = []
for package in ("weights_io", "repvgg_ref", "repvgg_ref_cli"):
    for found in pkgutil.walk_packages(importlib.import_module(package).__path__, package + "."):
        if not found.name.endswith("__main__") and ".gpu." not in found.name:
            importlib.import_module(found.name)
            names.append(found.name)
assert len(names) > 200, len(names)
"""
RUN = """
import json
from repvgg_ref_cli.main import main
for run in json.loads(sys.argv[1]):
    assert main(run) == 0, run
"""


def elsewhere(program: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run_python("-c", ELSEWHERE + program, *arguments, **options)


def test_every_module_can_be_imported_without_posix() -> None:
    done = elsewhere(IMPORT_ALL)
    assert (done.returncode, done.stderr) == (0, "")


def test_training_sharding_and_evaluating_work_without_posix(tmp_path: Path) -> None:
    make_folder(tmp_path / "data" / "val", each=2)
    runs = (
        ["train", "--epochs", "1", "--batch", "480", "--out", "out", "--json"],
        ["train", "--epochs", "1", "--batch", "480", "--out", "out", "--resume", "--json"],
        ["shards", "--data", "data", "--out", "shards", "--size", "24", "--json"],
        ["eval", "--weights", "out/deploy.npz", "--data", "digits", "--json"],
        ["convert", "--in", "out/train.pth", "--out", "out/deploy.npz", "--json"],
    )
    done = elsewhere(RUN, json.dumps(runs), "msvcrt", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    for run, found in zip(runs, printed, strict=True):
        require_documented(run[0], [found])
    assert not (tmp_path / "shards" / "val" / "unfinished.json").exists()


@pytest.mark.parametrize("system", ["fcntl", "msvcrt", "neither"])
def test_a_file_is_claimed_once(system: str, tmp_path: Path) -> None:
    program = "" if system == "fcntl" else ELSEWHERE
    program += """
import sys
from weights_io import claim
with open(sys.argv[1], "w+") as first, open(sys.argv[1], "w+") as second:
    first.write("text")
    first.flush()
    print(claim(first), claim(second), first.tell())
"""
    done = run_python("-c", program, tmp_path / "lock", system)
    assert done.stderr == ""
    assert done.stdout.split() == ["True", str(system == "neither"), "4"]


def test_the_played_windows_is_as_strict_as_the_real_one(tmp_path: Path) -> None:
    program = """
from pathlib import Path
path = Path(sys.argv[1])
def refused(call):
    try:
        call()
    except OSError as error:
        return error.errno
with path.open("wb") as file, path.open("rb") as reader:
    print(refused(path.unlink), refused(lambda: path.replace("other")), end=" ")
    print(refused(lambda: os.fsync(reader.fileno())), refused(lambda: os.fsync(file.fileno())))
path.unlink()
"""
    done = elsewhere(program, str(tmp_path / "file"), "msvcrt")
    assert (done.stdout, done.stderr) == ("13 13 9 None\n", "")


def test_a_claim_ends_with_its_file(tmp_path: Path) -> None:
    for _ in range(2):
        with (tmp_path / "lock").open("w") as file:
            assert claim(file)
