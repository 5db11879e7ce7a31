"""An adversary of the integer oracle: bugs in every layer of four networks, and right ports.

    python -m tests.studies.integer.adversary_study [--seeds 4]

One small trained network quantised in four ways: one scale a tensor, one a channel, uint8
activations, and equalised. Wrong: every bug of the library and strange ones in every layer of a
dump; wrong integers in memory and in ONNX files of both styles against the checkpoint; wrong files
that are run. Right: every kind of port that is said to be (`adversary_right`). Needs onnx,
onnxruntime and openvino.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from repvgg_ref.integer.equalize import equalize
from repvgg_ref.integer.quantize import quantize
from tests.models.small import SMALL, distinct_model
from tests.studies.integer import adversary_wrong as wrong
from tests.studies.integer.adversary_right import right
from tests.studies.integer.adversary_wrong import Case

RESULTS = Path(__file__).parent / "results" / "adversary.json"


def cases() -> list[Case]:
    """The four networks."""
    model = distinct_model(SMALL["grouped"], seed=11)
    rng = np.random.default_rng(11)
    images = rng.normal(size=(3, model.arch.in_channels, 20, 20)).astype(np.float32)
    evened = equalize(model)[0]
    networks = {
        "per tensor": quantize(model, images, per_tensor=True),
        "per channel": quantize(model, images),
        "uint8": quantize(model, images, dtype=np.uint8),
        "equalised": quantize(evened, images),
    }
    return [
        Case(name, model, network, network.entered(1.5 * images))
        for name, network in networks.items()
    ]


def main() -> None:
    """All counts."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--seeds", type=int, default=4)
    asked.add_argument("--only", nargs="*", help="these parts; others stay as they were")
    given = asked.parse_args()
    seeds, found = given.seeds, json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder, four = Path(name), cases()
        parts: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
            ("dumps, bugs of the library", lambda: wrong.listed_in_dumps(four)),
            ("right", lambda: right(four, folder, seeds)),
            ("files", lambda: wrong.in_files(four, folder)),
            ("files, run", lambda: wrong.run_files(four, folder)),
            ("dumps, strange bugs", lambda: wrong.strange_in_dumps(four[2:])),
        )
        for what, count in parts:
            if given.only and what not in given.only:
                continue
            start = time.process_time()
            found[what] = count()
            print(what, f"{time.process_time() - start:.0f} s", json.dumps(found[what], indent=1))
            RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
