"""A CuPy made of NumPy, for machines without a GPU: it offers only what CuPy offers.

It refuses what CuPy refuses (NumPy arrays, implicit conversion, object dtype), gives memory that
was not zeroed, compiles `.cu` text with the emulator, records CUDA graphs, and counts every moment
when the host would wait for the device (`LEDGER.syncs`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from tests.gpu.fake_cupy.ledger import LEDGER, Ledger
from tests.gpu.fake_cupy.module import make_cupy, make_cupyx

__all__ = ["LEDGER", "Ledger", "installed"]

VERSION: str = json.loads(Path(__file__).with_name("names.json").read_text("utf-8"))["version"]
_TAKEN = ("cupy", "cupyx", "cudnn")
_BOUND_TO_CUPY = "repvgg_ref.gpu"  # modules that keep a reference to the CuPy they were loaded with


@contextmanager
def installed(cudnn: ModuleType | None = None) -> Iterator[ModuleType]:
    """Be `cupy` (and `cudnn`, or none) while the block runs; the GPU room is loaded anew."""
    kept = _take_out()
    fake = make_cupy(VERSION)
    sys.modules |= {"cupy": fake, "cupyx": make_cupyx()}
    sys.modules["cudnn"] = cudnn  # type: ignore[assignment]  # None: importing it fails
    LEDGER.clear()
    try:
        yield fake
    finally:
        _take_out()
        sys.modules.update(kept)
        LEDGER.memory_limit = None


def _take_out() -> dict[str, ModuleType]:
    """Remove CuPy and all that is bound to it; whoever still holds such a module finds no cache."""
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if _is_bound(name)}
    for module in (module for name, module in kept.items() if _is_room(name)):
        for value in list(vars(module).values()):
            if (
                hasattr(value, "cache_clear")
                and getattr(value, "__module__", "") == module.__name__
            ):
                value.cache_clear()
    return kept


def _is_bound(name: str) -> bool:
    return _is_room(name) or name.split(".")[0] in _TAKEN


def _is_room(name: str) -> bool:
    return name == _BOUND_TO_CUPY or name.startswith(_BOUND_TO_CUPY + ".")
