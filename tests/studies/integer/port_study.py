"""Integer ports, right and wrong: is any right one accused, is every wrong one caught and named?

    python -m tests.studies.integer.port_study [--seeds 20]

Right: every scheme of the table, judged with the scheme left open and with it said; networks of
both activation types, with zero points behind ReLU where a quantiser puts them and elsewhere. Where
ONNX Runtime is installed, its own runs of our QDQ and QLinear files. Wrong: every bug of the
library in every layer, one at a time, and pairs in one layer drawn at random.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.schemes import ANY, SCHEMES
from repvgg_ref.oracle.bugs.base import planted
from repvgg_ref.oracle.integers.bugs import bugs_of
from repvgg_ref.oracle.integers.front import verify_integers
from repvgg_ref.oracle.integers.judge import judge_numbers
from repvgg_ref.oracle.integers.program import Sheet
from tests.integer.networks import chain, images
from tests.oracle.test_integers import dump, site_of
from tests.studies.integer.adversary_right import is_saturated

RESULTS = Path(__file__).parent / "results" / "ports.json"


def networks(seeds: int) -> list[tuple[IntegerNetwork, Any]]:
    """Small chains with an input each; every second one as a quantiser makes it."""
    found = []
    for seed in range(seeds):
        dtype = (np.int8, np.uint8)[seed % 2]
        network = chain(seed=1000 + seed, dtype=dtype, post_relu=seed % 4 < 2)
        found.append((network, images(network, seed=seed, batch=1 + seed % 3, size=17 + seed % 8)))
    return found


def right(seeds: int) -> dict[str, Any]:
    """False alarms: verdicts other than "agree" on right ports."""
    count: Counter[str] = Counter()
    for network, x in networks(seeds):
        for scheme in SCHEMES:
            numbers = dump(network.rounded(scheme), x)
            for said in (ANY, scheme):
                report = judged(network.rounded(said), numbers)
                count["runs"] += 1
                count["accused"] += report.verdict != "agree"
                count["scheme missed"] += scheme not in report.schemes
    return dict(count)


def judged(network: IntegerNetwork, numbers: Any) -> Any:
    return judge_numbers(network, numbers, reference="reference", candidate="candidate")


def runtimes(seeds: int) -> dict[str, Any]:
    """The same for ONNX Runtime's runs of what we write."""
    try:
        import onnxruntime  # noqa: F401

        from repvgg_ref.files.integer_onnx import write_integer_onnx
    except ImportError:
        return {}
    count: Counter[str] = Counter()
    styles: tuple[Any, Any] = ("qdq", "qlinear")
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            dtype = (np.int8, np.uint8)[seed % 2]
            network = chain(seed=seed, dtype=dtype, post_relu=True).rounded("float-even")
            for style in styles:
                path = Path(folder) / f"{seed}-{style}.onnx"
                write_integer_onnx(path, network, style=style)
                x = network.layers[0].input.real(images(network, seed=seed))
                for said in (ANY, "float-even"):
                    report = verify_integers(network.rounded(said), path, inputs=x)
                    if is_saturated(report):
                        count["saturated by this machine"] += 1
                        continue
                    count["runs"] += 1
                    count["accused"] += report.verdict != "agree"
    return dict(count)


def wrong(seeds: int) -> dict[str, Any]:
    """Single bugs: caught, placed in their layer, named."""
    count: Counter[str] = Counter()
    unnamed: Counter[str] = Counter()
    for network, x in networks(seeds):
        for layer in network.layers:
            site = site_of(network, layer.name, x)
            plain = Sheet(site.x).numbers(site.program)
            for mutant in planted(bugs_of(layer), replace(site, y_hat=None), layer.name):
                y = Sheet(site.x).numbers(mutant.variant.program)
                if y.shape == plain.shape and (y == plain).all():
                    continue
                numbers = dump(network, x, {layer.name: mutant.variant.program})
                report = judged(network, numbers)
                known = {f.bug for f in report.diagnosis}
                known |= {o for f in report.diagnosis for o in f.equivalents}
                count["planted"] += 1
                count["caught"] += report.verdict == "disagree"
                count["placed"] += report.first_bad_layer == layer.name
                named = mutant.bug.name in known
                count["named"] += named
                unnamed[mutant.bug.name] += not named
    return dict(count) | {"unnamed": {k: v for k, v in unnamed.items() if v}}


def pairs(seeds: int, each: int = 12) -> dict[str, Any]:
    """Two bugs at once in one layer: both named, or told as a pair that is the same function."""
    count: Counter[str] = Counter()
    rng = np.random.default_rng(5)
    for network, x in networks(seeds):
        for layer in network.layers:
            site = replace(site_of(network, layer.name, x), y_hat=None)
            plain = Sheet(site.x).numbers(site.program)
            singles = list(planted(bugs_of(layer), site, layer.name))
            for _ in range(each):
                one = singles[rng.integers(len(singles))]
                after = list(
                    planted(bugs_of(layer), replace(site, program=one.variant.program), layer.name)
                )
                two = after[rng.integers(len(after))]
                if one.bug.name == two.bug.name:
                    continue
                parts = [Sheet(site.x).numbers(m.variant.program) for m in (one, two)]
                alone = {m.bug.name for m in singles}
                if any(p.shape != plain.shape for p in parts) or two.bug.name not in alone:
                    continue
                if (parts[0] == plain).all() or (parts[1] == parts[0]).all():
                    continue  # one of the two changes nothing here
                if (parts[1] == plain).all():
                    continue
                report = judged(network, dump(network, x, {layer.name: two.variant.program}))
                bugs = {f.bug for f in report.diagnosis}
                told = {o for f in report.diagnosis for o in f.equivalents}
                both = " and ".join(sorted((one.bug.name, two.bug.name)))
                count["planted"] += 1
                count["caught"] += report.verdict == "disagree"
                count["placed"] += report.first_bad_layer == layer.name
                count["explained"] += "unknown" not in bugs
                count["both named"] += bugs == {one.bug.name, two.bug.name} or both in told
    return dict(count)


def main() -> None:
    """All four counts."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--seeds", type=int, default=20)
    seeds = asked.parse_args().seeds
    found = {
        "right": right(seeds),
        "runtimes": runtimes(seeds),
        "wrong": wrong(seeds),
        "pairs": pairs(max(1, seeds // 4)),
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
