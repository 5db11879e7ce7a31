"""What the tests do not say: registers of every kernel, and how many planted bugs the cases find.

python -m tests.studies.gpu.kernels registers [--architecture 90]
python -m tests.studies.gpu.kernels mutants [--share 0.2]
python -m tests.studies.gpu.kernels large
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from repvgg_ref.gpu.kernels import launch
from tests.gpu import emulator
from tests.gpu.fake_cupy.device_array import wrap as on_fake_device
from tests.gpu.kernels import everything, nvrtc
from tests.gpu.kernels.cases import Case, kernels
from tests.gpu.kernels.test_planted import OF_FILE

OUT = Console()
STORAGE = ("float32", "float16", "bfloat16")
_USED = re.compile(
    r"entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers"
    r"(?:.*?(\d+) bytes smem)?",
    re.DOTALL,
)
# What a tired hand may write instead.
MUTATIONS = {
    " + ": (" - ", " + 1 + "),
    " - ": (" + ",),
    " * ": (" + ", " * 2 * "),
    " / ": (" * ",),
    " % ": (" / ",),
    " < ": (" <= ", " > "),
    " <= ": (" < ",),
    " > ": (" >= ",),
    " == ": (" != ",),
    " && ": (" || ",),
    " += ": (" = ", " -= "),
    " = 0;": (" = 1;",),
    "return;": (";",),
}


@click.group()
def study() -> None:
    """Figures of the CUDA kernels."""


@study.command()
@click.option("--architecture", default=90, show_default=True)
def registers(architecture: int) -> None:
    """Registers, spills and shared memory of every kernel, as ptxas reports them."""
    table = Table("kernel", *STORAGE, title=f"sm_{architecture}: registers, spilled bytes, shared")
    for file in launch.FILES:
        columns = [_used(file, storage, architecture) for storage in STORAGE]
        for kernel in columns[0]:
            table.add_row(kernel, *(column[kernel] for column in columns))
    OUT.print(table)


@study.command()
@click.option("--share", default=0.2, show_default=True, help="of all mutants, drawn by seed 0")
def mutants(share: float) -> None:
    """Change one operator of a `.cu` file at a time and see whether the cases notice."""
    every = [mutant for file in OF_FILE for mutant in _mutants(file)]
    rng = np.random.default_rng(0)
    drawn = [mutant for mutant in every if rng.random() < share]
    survivors, score = [], Counter[str]()
    for mutant in drawn:
        found = _found_in_a_child(mutant)
        score[mutant.file] += found
        if not found:
            survivors.append(mutant)
            OUT.print(f"{mutant.file}:{mutant.line}: {mutant.words}", markup=False)
    total = Counter(mutant.file for mutant in drawn)
    for file, count in total.items():
        OUT.print(f"{file}: {score[file]} of {count} found")
    OUT.print(f"{len(drawn) - len(survivors)} of {len(drawn)} found ({len(every)} possible)")


@study.command()
def large() -> None:
    """Arrays of more than 2**31 elements, which int32 cannot count: are the last ones reached?"""
    rows, C, last = 2**21 + 64, 1024, 3
    host = np.zeros((1, 1, rows, C), np.float16)  # pages of zeros take no memory until written
    host[0, 0, -last:] = 3.0
    with everything.installed() as cupy:
        gpu, x = kernels(), on_fake_device(host)
        sums = gpu.spatial_sums(x, x).get()
        moments = gpu.channel_moments(x)
        mean = moments.get()[0, 0]
        of_grad = gpu.branches_backward_sums(x, x, x, None, None, cupy.zeros_like(moments)).get()
    ok = (sums == 9.0 * last).all() and ([3.0 * last, 9.0 * last] == of_grad[:2].T).all()
    ok = ok and np.allclose(mean, 3.0 * last / rows, rtol=1e-6)
    OUT.print(f"{host.size / 2**31:.5f} x 2**31 elements: {'right' if ok else 'WRONG'}")


class Mutant(NamedTuple):
    """`text` is `file` with one thing changed."""

    file: str
    line: int
    words: str
    text: str


def _mutants(file: str) -> Iterator[Mutant]:
    text = launch.read(file)
    for old, others in MUTATIONS.items():
        for match in re.finditer(re.escape(old), text):
            start, end = match.span()
            line = text[text.rfind("\n", 0, start) + 1 : text.find("\n", end)]
            if "//" in line or line.startswith("#") or "template" in line:
                continue
            for new in others:
                changed = text[:start] + new + text[end:]
                words = f"{line.strip()}   {old.strip()} -> {new.strip()}"
                yield Mutant(file, text.count("\n", 0, start) + 1, words, changed)


def _found_in_a_child(mutant: Mutant, seconds: float = 60.0) -> bool:
    """Whether the cases fail, crash, or never end, in a child that may do all of it."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        status = 1
        with contextlib.suppress(BaseException):
            status = int(_cases_notice(mutant, OF_FILE[mutant.file]))
        os._exit(status)
    give_up = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status != 0
        if time.monotonic() > give_up:
            os.kill(child, 9)
            os.waitpid(child, 0)
            return True
        time.sleep(0.01)


def _cases_notice(mutant: Mutant, cases: dict[str, Case]) -> bool:
    original = launch.read(mutant.file)
    plant = everything.Plant(mutant.file, original, mutant.text)
    bits = set()
    with everything.installed(plant) as cupy:
        for order, grids in ((0, contextlib.nullcontext()), (1, everything.small_grids())):
            with grids:
                outcome = everything.run(cupy, np.float32, cases, order=order, until_wrong=True)
            bits.add(tuple(outcome.bits))
            if outcome.wrong or len(bits) > 1:
                return True
    return False


def _used(file: str, storage: str, architecture: int) -> dict[str, str]:
    options = (*launch.options(storage), f"-arch=sm_{architecture}", "--ptxas-options=-v")
    log = nvrtc.compile_cubin(launch.source(file), options).log
    return {
        kernel: f"{used:>3}, {spilled}, {shared or 0}"
        for kernel, spilled, used, shared in (
            _USED.search(part).groups()  # type: ignore[union-attr]  # ptxas always says so
            for part in re.split(r"(?=ptxas info +: Compiling entry)", log)[1:]
        )
    }


if __name__ == "__main__":
    assert emulator.why_missing() is None
    assert Path.cwd() == Path(__file__).parents[3], "run it from the repository's root"
    study()
