"""Write down which names CuPy has, so that the fake cannot offer more: run with CuPy installed.

    python -m tests.studies.gpu.record_cupy_names

Importing CuPy needs no GPU. `tests/gpu/test_fake_cupy.py` holds the list against an installed CuPy.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

NAMES = Path(__file__).parents[2] / "gpu/fake_cupy/names.json"

# Where in CuPy -> under which key. Classes and modules alike: `dir` tells their names.
PLACES = {
    "cupy": "",
    "cupy.ndarray": "ndarray",
    "cupy.cuda": "cuda",
    "cupy.cuda.runtime": "cuda.runtime",
    "cupy.cuda.memory": "cuda.memory",
    "cupy.cuda.Device": "cuda.Device",
    "cupy.cuda.Event": "cuda.Event",
    "cupy.cuda.Stream": "cuda.Stream",
    "cupy.cuda.Graph": "cuda.Graph",
    "cupy.cuda.MemoryPool": "cuda.MemoryPool",
    "cupy.random": "random",
    "cupy.random.Generator": "random.Generator",
    "cupy.RawModule": "RawModule",
    "cupy._core._routines_linalg": "_core._routines_linalg",
    "cupyx": "",
}


def installed_names() -> dict[str, str]:
    """The public names, and the special methods, of each place in the installed CuPy."""
    found = {}
    for place, path in PLACES.items():
        value: Any = importlib.import_module(place.split(".")[0])
        for part in path.split(".") if path else ():
            value = getattr(value, part)
        names = (name for name in dir(value) if not name.startswith("_") or name.endswith("__"))
        found[place] = " ".join(sorted(names))
    return found


def main() -> None:
    version = importlib.import_module("cupy").__version__
    text = json.dumps({"version": version, "names": installed_names()}, indent=0)
    NAMES.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
