"""All figures that the speed promises need, in one go: JSON, pictures, and a README made of them.

    python -m tests.studies.bench.figures [--rounds 7] [--only A0-b16 ...] [--readme]

Takes some ten minutes on two quiet cores; whatever else runs makes the figures worth less, and
each document says how busy the machine was. `--readme` only writes the README again from the
documents that are there. `--folder NAME` keeps another kind of processor's figures in a folder of
their own below the results: one page never mixes machines. Gates nothing: the README shows what
was met and what was not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from repvgg_ref.bench.picture import heading, label

FOLDER = Path(__file__).parent / "results"

JOBS: dict[str, tuple[str, ...]] = {
    "B1-b16": ("--model", "RepVGG-B1", "--batch", "16"),
    "B1-b16-lean": ("--model", "RepVGG-B1", "--batch", "16", "--memory", "lean"),
    "A0-b16": ("--model", "RepVGG-A0", "--batch", "16"),
    "B1g4-b16": ("--model", "RepVGG-B1g4", "--batch", "16"),
    "B0-b16": ("--model", "RepVGG-B0", "--batch", "16"),
    "A0-b1": ("--model", "RepVGG-A0", "--batch", "1"),
    "B1-b1": ("--model", "RepVGG-B1", "--batch", "1"),
    "A0-train-b16": ("--train", "--model", "RepVGG-A0", "--batch", "16"),
    "S0-b16": ("--model", "MobileOne-S0", "--batch", "16"),
    "A0-convert": ("--convert", "--model", "RepVGG-A0"),
    "B3-convert": ("--convert", "--model", "RepVGG-B3"),
    "table4-b16": ("--table4", "--batch", "16"),
}

# Issue 4: at least so many times faster than each peer.
_EACH = ("torch", "onnxruntime", "openvino", "ncnn")
TARGETS: dict[str, dict[str, float]] = {
    "B1-b16": {"torch": 2.0, "openvino": 1.8, "onnxruntime": 1.8, "ncnn": 1.5},
    "B1-b16-lean": {"torch": 1.5},
    "A0-b16": dict.fromkeys(_EACH, 1.5),
    "B1g4-b16": dict.fromkeys(_EACH, 1.3),
    "B0-b16": dict.fromkeys(_EACH, 1.3),
    "A0-b1": {"ncnn": 1.0, "onnxruntime": 1.3},
    "B1-b1": {"ncnn": 1.0, "onnxruntime": 1.3},
    "A0-train-b16": {"torch": 1.8},
    "S0-b16": {"torch": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=JOBS, default=list(JOBS))
    parser.add_argument("--folder", default="", help="below results: another kind of processor")
    parser.add_argument("--readme", action="store_true", help="only write the README again")
    asked = parser.parse_args()
    folder = FOLDER / asked.folder
    folder.mkdir(exist_ok=True)
    if not asked.readme:
        for name in asked.only:
            run(name, asked.rounds, folder)
    paths = {name: _json(folder, name) for name in JOBS}
    found = {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}
    (folder / "README.md").write_text("\n".join(readme(found)) + "\n")


def run(name: str, rounds: int, folder: Path) -> None:
    """One benchmark as a user would run it."""
    began = time.perf_counter()
    print(f"{name} ...", file=sys.stderr, flush=True)
    command = [sys.executable, "-m", "repvgg_ref_cli", "bench", *JOBS[name]]
    out = _json(folder, name)
    files = ["--out", str(out), "--picture", str(out.with_suffix(".svg"))]
    root = FOLDER.parents[3]
    # All processors, the kernels that this processor has and memory as the job says, whatever the
    # shell of the tests does.
    env = {key: text for key, text in os.environ.items() if not key.endswith("_NUM_THREADS")}
    for variable in ("OPENBLAS_CORETYPE", "REPVGG_MEMORY"):
        env.pop(variable, None)
    env["PYTHONPATH"] = f"{root / 'cli'}:{root}"
    subprocess.run([*command, *files, "--rounds", str(rounds)], check=True, env=env, cwd=root)
    print(f"{name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)


def readme(found: dict[str, Any]) -> Iterator[str]:
    """The page, line by line."""
    yield "# Benchmark figures"
    yield ""
    yield (
        "Made by `python -m tests.studies.bench.figures`; do not edit. "
        "Every document holds all rounds."
    )
    yield ""
    if not found:
        return
    machine = next(iter(found.values()))["machine"]
    yield (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory']} of memory; "
        f"Python {machine['python']}, NumPy {machine['numpy']}, {machine['blas']}."
    )
    races = {k: made for k, made in found.items() if made["kind"] in ("inference", "training")}
    yield from _speeds(races)
    yield from _memory(races)
    yield from _conversions({k: made for k, made in found.items() if made["kind"] == "conversion"})
    for made in found.values():
        if made["kind"] == "table4":
            yield from _order(made)
    yield ""
    yield "## Pictures"
    for name, made in found.items():
        yield ""
        yield f"![{heading(made)}]({name}.svg)"


def _speeds(races: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "## Speed"
    yield ""
    yield (
        "Ratio: their time over ours in the same round, median and quartiles; above 1 ours is "
        "faster. CPU: the same in processor time. Others: how much of the machine something else "
        "used meanwhile. Wanted: issue 4."
    )
    yield ""
    yield "| what | others | contender | ms | images/s | GFLOP/s | ratio | CPU | wanted | |"
    yield "|---|---|---|--:|--:|--:|--:|--:|--:|---|"
    for name, made in races.items():
        others = "" if made["others"] is None else f"{100 * made['others']:.0f} %"
        for one in made["contenders"]:
            wanted = TARGETS.get(name, {}).get(one["name"])
            ratio = one["ratio"]
            verdict = "" if wanted is None else _verdict(ratio["median"], wanted, made["busy"])
            yield (
                f"| {name} | {others} | {label(one)} "
                f"| {1e3 * one['median_seconds']:.1f} | {one['images_per_second']:.1f} "
                f"| {one['gflops']:.0f} "
                f"| {ratio['median']:.2f} ({ratio['low']:.2f}..{ratio['high']:.2f}) "
                f"| {one['cpu_ratio']['median']:.2f} | {wanted or ''} | {verdict} |"
            )
        for each in made["skipped"]:
            yield f"| {name} | | {each['name']} | not timed: {_cell(each['reason'])} | | | | | | |"


def _verdict(ratio: float, wanted: float, busy: bool) -> str:
    """None on a busy machine: OpenMP threads that lose their core make others wait, spinning."""
    if busy:
        return "busy, not judged"
    return "met" if ratio >= wanted else "not met"


def _memory(races: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "## Memory, MB"
    yield ""
    yield (
        "Peak while running beyond the bare framework, in a process of its own. Theory: weights, "
        "and input and outputs of the largest layer (paper, section 3.1): one output in the fused "
        "chain, one a branch in the trained form."
    )
    yield ""
    yield "| what | contender | peak | theory | weights | activations | packed | scratch |"
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    keys = ("peak", "theory", "weights", "activations", "packed", "scratch")
    for name, made in races.items():
        for one in made["contenders"]:
            memory = one["memory"]
            cells = [f"{memory[key] / 1e6:.1f}" if key in memory else "" for key in keys]
            yield f"| {name} | {label(one)} | {' | '.join(cells)} |"


def _conversions(found: dict[str, Any]) -> Iterator[str]:
    if not found:
        return
    yield ""
    yield "## Conversion, whole process"
    yield ""
    yield "| what | way | s | ratio | peak MB |"
    yield "|---|---|--:|--:|--:|"
    for name, made in found.items():
        for one in made["contenders"]:
            ratio = one["ratio"]
            yield (
                f"| {name} | {one['name']} | {one['median_seconds']:.2f} "
                f"| {ratio['median']:.2f} ({ratio['low']:.2f}..{ratio['high']:.2f}) "
                f"| {one['memory']['peak'] / 1e6:.0f} |"
            )


def _order(made: dict[str, Any]) -> Iterator[str]:
    yield ""
    yield "## The paper's Table 4: order of speeds"
    yield ""
    yield (
        f"Images a second, here and on the paper's GTX 1080Ti; rank correlation "
        f"{made['rank_correlation']:.3f}."
    )
    yield ""
    yield "| network | here | paper | GFLOP/s here |"
    yield "|---|--:|--:|--:|"
    for row in made["rows"]:
        speeds = f"{row['images_per_second']:.2f} | {row['paper_images_per_second'] or ''}"
        yield f"| {row['name']} | {speeds} | {row['gflops']:.0f} |"
    yield ""
    yield "| the paper says | factor there | here | holds here |"
    yield "|---|--:|--:|---|"
    for claim in made.get("claims", []):
        factors = f"{claim['paper']:.2f} | {claim['here']:.2f}"
        yield f"| {claim['says']} | {factors} | {claim['holds']} |"
    pairs = [f"{second} is faster than {first}" for first, second in made["exchanged"]]
    yield ""
    yield f"Not in the paper's order: {'; '.join(pairs) if pairs else 'none'}."


def _json(folder: Path, name: str) -> Path:
    return folder / f"{name}.json"


def _cell(text: str) -> str:
    return text.replace("|", "/")


if __name__ == "__main__":
    main()
