"""Is no right operator accused, is every wrong one caught and named, and how small may it be?

    python -m tests.studies.peers.operators_study right --seeds 3
    python -m tests.studies.peers.operators_study wrong
    python -m tests.studies.peers.operators_study sizes

Each part writes its figures into ``results/operators-PART.json``.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.oracle.operators.verification import verify_op
from tests.peers.right_convolutions import im2col, numpy_conv_backward, winograd
from tests.peers.right_operators import right_operators
from tests.peers.wrong_convolutions import noisy, put
from tests.peers.wrong_operators import wrong_operators

RESULTS = Path(__file__).parent / "results"
STRENGTHS = tuple(10.0 ** (-k / 2) for k in range(4, 16))
_SEEDS_OF_STRENGTHS = 3
_FRESH = 100  # seeds below were seen while thresholds were chosen
f32 = np.float32


def right(seeds: int) -> dict[str, Any]:
    """False alarms, and how near right ports come to their bounds and tests."""
    ports, accused = [], []
    for port in right_operators():
        used, tests, exact = 0.0, 0.0, None
        for seed in range(_FRESH, _FRESH + seeds):
            report = verify_op(port.operator, port.port, precision=port.precision, seed=seed)
            used = max([used, *(layer.ratio for layer in report.layers)])
            tests = max([tests, *(max(each.values()) for each in report.tests.values())])
            exact = report.exact
            if report.verdict != "agree":
                accused.append(f"{port.operator}, {port.name}, seed {seed}: {report.reason}")
        ports.append(
            {
                "operator": port.operator,
                "port": port.name,
                "bound_used": float(f"{used:.3g}"),
                "tests_used": float(f"{tests:.3g}"),
                "exact_on_integers": exact,
            }
        )
    return {
        "runs": seeds * len(ports),
        "ports": len(ports),
        "false_alarms": accused,
        "of_each": ports,
    }


def wrong(_: int) -> dict[str, Any]:
    """What is caught, and what it is called."""
    found, missed, unnamed, library = [], [], [], 0
    for port in wrong_operators():
        report = verify_op(port.operator, port.port)
        names = [n for each in report.diagnosis for n in (each.bug, *each.equivalents)]
        title = f"{port.operator}, {port.name}"
        library += bool(port.bugs)
        if report.verdict != "disagree":
            missed.append(title)
        elif port.bugs and not set(names) & set(port.bugs):
            unnamed.append(title)
        found.append({"port": title, "called": names[:3], "verdict": report.verdict})
    return {
        "ports": len(found),
        "missed": missed,
        "with_a_name": library,
        "named_otherwise": unnamed,
        "of_each": found,
    }


Weak = Callable[[float], Callable[..., Any]]


def _weak() -> dict[str, tuple[str, Weak]]:
    conv = functools.partial(im2col, np.float32)

    def after(change: Callable[[Array, float], Array], port: Callable[..., Any] = conv) -> Weak:
        return lambda e: lambda *a, **s: change(port(*a, **s), e).astype(f32)

    def backward(e: float) -> Callable[..., Any]:
        def run(*a: Array, **s: Any) -> tuple[Array, ...]:
            gx, *rest = numpy_conv_backward(*a, **s)
            return (put(gx, np.s_[:], 1 + e), *rest)

        return run

    return {
        "sums, outputs times 1 + e": ("conv2d", after(lambda y, e: y * (1 + e))),
        "sums, last column times 1 + e": (
            "conv2d",
            after(lambda y, e: put(y, np.s_[..., -1], 1 + e)),
        ),
        "sums, one channel times 1 + e": (
            "conv2d",
            after(lambda y, e: put(y, np.s_[:, 1], 1 + e)),
        ),
        "sums, bias times 1 + e": (
            "conv2d",
            lambda e: lambda x, w, b, **s: conv(x, w, b * f32(1 + e), **s),
        ),
        "sums, weights with noise e": (
            "conv2d",
            lambda e: lambda x, w, b, **s: conv(x, noisy(w, e), b, **s),
        ),
        "sums, grad_x times 1 + e": ("conv2d-backward", backward),
        "Winograd F(4), outputs times 1 + e": (
            "conv2d",
            after(lambda y, e: y * (1 + e), functools.partial(winograd, 4)),
        ),
        "Winograd F(4), weights with noise e": (
            "conv2d",
            lambda e: lambda x, w, b, **s: winograd(4, x, noisy(w, e), b, **s),
        ),
    }


def sizes(_: int) -> dict[str, Any]:
    """The weakest of each kind of which this and all stronger ones are caught, three seeds each."""
    smallest: dict[str, float | None] = {}
    for name, (operator, weak) in _weak().items():
        least = None
        for strength in STRENGTHS:
            reports = (
                verify_op(operator, weak(strength), seed=seed, stride=1, padding=1, dilation=1)
                for seed in range(_SEEDS_OF_STRENGTHS)
            )
            if not all(report.verdict == "disagree" for report in reports):
                break
            least = float(f"{strength:.2g}")
        smallest[name] = least
    return {"tried": [float(f"{s:.2g}") for s in STRENGTHS], "smallest": smallest}


def main() -> None:
    """Run one part and write down what it gave."""
    parts = {"right": right, "wrong": wrong, "sizes": sizes}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=parts)
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    started = time.monotonic()
    found = parts[asked.part](asked.seeds)
    found["seconds"] = round(time.monotonic() - started)
    path = RESULTS / f"operators-{asked.part}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    shown = {key: value for key, value in found.items() if key != "of_each"}
    print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    main()
