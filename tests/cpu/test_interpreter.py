"""Helpers are interpreters like their caller: same flags, same path, nothing loaded besides."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.cpu.workers.crew import available
from repvgg_ref.interpreter import HOME

# Starts an interpreter as helpers are started, and prints what both are like.
PARENT = """
import json, subprocess, sys
sys.path[:0] = [{home!r}]
sys.path.append({packages!r})
from repvgg_ref.interpreter import running
command = running("tests.cpu.told", "tell")
told = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
print(json.dumps({{"ours": [list(sys.flags), sys.path], "theirs": told}}))
"""
PACKAGES = str(Path(np.__file__).parents[1])
MODES = {
    "plain": [],
    "isolated": ["-I"],
    "isolated, no site": ["-I", "-S"],
    "no environment, no user site": ["-E", "-s"],
    "safe path, optimised twice": ["-P", "-OO"],
    "no bytecode, warnings": ["-B", "-Wignore", "-b", "-q"],
    "dev, utf8": ["-X", "dev", "-X", "utf8"],
}


def environment(**more: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **more}


@pytest.mark.few(3)
@pytest.mark.parametrize("flags", MODES.values(), ids=MODES)
def test_flags_and_path_are_the_callers(flags: list[str], tmp_path: Path) -> None:
    program = PARENT.format(home=HOME, packages=PACKAGES)
    done = subprocess.run(
        [sys.executable, *flags, "-c", program],
        cwd=tmp_path,
        env=environment(PYTHONPATH="/nowhere"),
        stdout=subprocess.PIPE,
        check=True,
    )
    told = json.loads(done.stdout)
    assert told["theirs"] == told["ours"]


def test_a_folder_that_a_caller_moves_to_hides_nothing(tmp_path: Path) -> None:
    for name in ("json.py", "subprocess.py", "runpy.py", "repvgg_ref.py"):
        (tmp_path / name).write_text("raise SystemExit('loaded')")
    program = f"import os, sys; sys.path[0] = {HOME!r}; from repvgg_ref import interpreter; "
    program += f"sys.path.insert(0, ''); os.chdir({str(tmp_path)!r}); import subprocess as s; "
    program += "s.run(interpreter.running('tests.cpu.test_interpreter', 'nothing'), check=True)"
    subprocess.run([sys.executable, "-c", program], env=environment(), cwd="/", check=True)


def nothing() -> None:
    """What an interpreter runs that has only to start."""


def test_nothing_of_the_users_is_loaded_that_the_caller_does_not_load(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    for name in ("usercustomize", "sitecustomize", "json"):
        (tmp_path / f"{name}.py").write_text(f"open({str(mark)!r}, 'w')")
    env = environment(PYTHONPATH=str(tmp_path), PYTHONUSERBASE=str(tmp_path))
    program = PARENT.format(home=HOME, packages=PACKAGES)
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, env=env, check=True)
    assert not mark.exists()


@pytest.mark.few(1)
@pytest.mark.skipif(not available(2), reason="crews need Linux on x86")
@pytest.mark.parametrize("closed", ["0", "1", "2", "0, 1, 2"])
def test_a_crew_of_a_caller_whose_streams_are_closed(closed: str, tmp_path: Path) -> None:
    program = f"""
import os, sys
for stream in ({closed},):
    os.close(stream)
from repvgg_ref.cpu.workers.crew import crew
crew(2).use()
open("done", "w").close()
"""
    env = environment(PYTHONPATH=HOME)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=env, check=False)
    assert (tmp_path / "done").exists()
