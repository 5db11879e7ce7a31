"""Mistakes of single arrays in every kind of block: does `verify` see them, and name them right?

    python -m tests.studies.oracle.family_arrays [--cases repghost ecbsr] [--exchanges 24] [--out F]

A block of each kind is fused from a state in which one array is ignored, zero, negated, transposed
or exchanged with another of its shape, or a batch norm has another eps, and the fused file is held
against the right training file. A mistake that leaves every fused number within rounding of the
right one is none, and is not counted. *Named* means that the finding says why: one thing, done to
the right arrays, gives exactly the wrong numbers. *Placed* means that it says so of the array's
module; a branch whose kernel is zero is left out, say, and which of two factors has the other sign
no number tells.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import weights_io
from repvgg_ref.errors import ReportedError
from repvgg_ref.files.convert_modules import convert_modules
from repvgg_ref.oracle.families.family import judge_family
from tests.peers.family_composed import COMPOSED
from tests.peers.family_modules import PLAIN, drawn

State = dict[str, Any]
PREFIX = "model.3."
VAGUE = "unknown", "taps-altered"  # what differs, but not why
COPIED = "copied otherwise"  # an array that stays beside the fused convolution, named as it is
EVERY = "every batch norm"  # what a finding calls them together


class Mistake(NamedTuple):
    """What was done, to which arrays, and the arrays that it made."""

    what: str
    keys: tuple[str, ...]
    arrays: State


def trained(build: Any, seed: int) -> State:
    """A block's state in float32."""
    state = drawn(build, seed).state_dict()
    return {PREFIX + k: v.numpy().astype(np.float32) for k, v in state.items() if v.dim()} | {
        PREFIX + k: v.numpy().astype(np.float32)
        for k, v in state.items()
        if not v.dim() and v.is_floating_point()
    }


def mistakes(state: State, eps: float, exchanges: int, rng: random.Random) -> Iterator[Mistake]:
    """Every array with everything done to it; `exchanges` of the pairs of one shape."""
    for key in state:
        for what, changed in changes(state, key, eps):
            yield Mistake(what, (key,), {key: np.ascontiguousarray(changed, np.float32)})
    pairs = [p for p in combinations(state, 2) if state[p[0]].shape == state[p[1]].shape]
    for one, two in rng.sample(pairs, min(exchanges, len(pairs))):
        yield Mistake("exchanged", (one, two), {one: state[two], two: state[one]})


def changes(state: State, key: str, eps: float) -> Iterator[tuple[str, Any]]:
    """What is done to one array."""
    array, is_variance = state[key], key.endswith("running_var")
    is_factor = (
        key.endswith(("scale", "alpha")) or f"{key.removesuffix('.weight')}.running_var" in state
    )
    if is_variance:
        yield "ignored", np.ones_like(array)
        for other in (1e-3, 1e-5):
            if other != eps:
                yield f"eps {other:g}", array.astype(np.float64) + (other - eps)
        return
    if array.ndim <= 1:
        yield "ignored", np.full_like(array, float(is_factor))
    if is_factor or array.ndim > 1:
        yield "zeroed", np.zeros_like(array)
    yield "negated", -array
    if array.ndim == 4 and array.shape[0] == array.shape[1] > 1:
        yield "in and out", array.swapaxes(0, 1)
    if array.ndim == 4 and array.shape[2] == array.shape[3] > 1:
        yield "height and width", array.swapaxes(2, 3)


def fused(folder: Path, name: str, state: State, eps: float | None) -> tuple[State, float]:
    """What `convert` makes of a state, and the eps that it took."""
    weights_io.save_weights(folder / f"{name}.npz", state, container="npz")
    done = convert_modules(folder / f"{name}.npz", folder / f"{name}-fused.npz", "npz", eps=eps)
    with weights_io.open_weights(folder / f"{name}-fused.npz") as archive:
        root: Any = archive.root
        return {k: a.read() for k, a in root.items()}, done.blocks[0].eps


def judged(folder: Path, right: State, state: State, mistake: Mistake, eps: float | None) -> Any:
    """None for no mistake, else the verdict, the bug, and what the finding says."""
    try:
        made, _ = fused(folder, "other", state | mistake.arrays, eps)
    except ReportedError:
        return None  # nobody's converter makes a file of it
    worst = max(
        float(np.abs(a - right[k]).max() / (np.abs(right[k]).max() + 1e-30))
        for k, a in made.items()
    )
    if worst < 1e-6:
        return None
    report = judge_family(folder / "train.npz", folder / "other-fused.npz", eps=eps)
    if copied := [row for row in report.layers if not row.ok and row.name in mistake.keys]:
        return report.verdict, COPIED, copied[0].name
    first = report.diagnosis[0] if report.diagnosis else None
    return report.verdict, first and first.bug, first and first.says


def places(key: str, says: str) -> bool:
    """Whether what a finding says has the array's module in it."""
    module = key.removeprefix(PREFIX).rpartition(".")[0] or key.removeprefix(PREFIX)
    return any(each in says for each in (module, module.rpartition(".")[0] or module, EVERY))


def sweep(case: str, exchanges: int) -> dict[str, Any]:
    """All mistakes of one block."""
    kind, build, _ = (PLAIN | COMPOSED)[case]
    state, rng = trained(build, len(case)), random.Random(case)
    eps = 1e-3 if kind == "yolov6" else None
    seen: Counter[str] = Counter()
    open_ones: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        right, taken = fused(folder, "train", state, eps)
        for mistake in mistakes(state, taken, exchanges, rng):
            found = judged(folder, right, state, mistake, eps)
            if found is None:
                continue
            verdict, bug, says = found
            seen["mistakes"] += 1
            seen[verdict] += 1
            is_named = bug is not None and bug not in VAGUE
            seen["named"] += is_named
            seen["placed"] += is_named and any(places(key, says) for key in mistake.keys)
            if not is_named or verdict != "disagree":
                short = [key.removeprefix(PREFIX) for key in mistake.keys]
                open_ones.append(
                    {
                        "what": mistake.what,
                        "arrays": short,
                        "verdict": verdict,
                        "bug": bug,
                        "says": says,
                    }
                )
    return {"case": case, "kind": kind, **seen, "open": open_ones}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="*", default=None)
    parser.add_argument("--exchanges", type=int, default=24)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    first: dict[str, str] = {}
    for case, (kind, *_) in (COMPOSED | PLAIN).items():
        first.setdefault(kind, case)
    rows = []
    for case in asked.cases or first.values():
        rows.append(sweep(case, asked.exchanges))
        shown = {k: v for k, v in rows[-1].items() if k != "open"}
        print(shown, flush=True)
        for each in rows[-1]["open"]:
            print("   ", each, flush=True)
        if asked.out:
            asked.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
