"""Weights files as named NumPy arrays: read without trust, written without loss.

Knows torch (zip and legacy), pickles of arrays, npz and safetensors; imports NumPy and nothing
of torch. Start with `open_weights` and `save_weights`.
"""

from weights_io.archive import Archive, open_weights
from weights_io.errors import LimitError, RefusedGlobalError, ReportedError, WeightsFileError
from weights_io.lazy import LazyArray
from weights_io.limits import DEFAULT_LIMITS, Limits
from weights_io.modules import ModuleRecord
from weights_io.pickles.inert import Inert
from weights_io.pickles.modules import PickledModule
from weights_io.regular import IrregularFileError, open_regular, read_regular
from weights_io.text import printable, sanitize, shortened
from weights_io.writers.atomic import atomic_path, reported, sweep
from weights_io.writers.claim import claim
from weights_io.writers.specs import ArraySpec
from weights_io.writers.write import Container, save_weights, write_weights

__all__ = [
    "DEFAULT_LIMITS",
    "Archive",
    "ArraySpec",
    "Container",
    "Inert",
    "IrregularFileError",
    "LazyArray",
    "LimitError",
    "Limits",
    "ModuleRecord",
    "PickledModule",
    "RefusedGlobalError",
    "ReportedError",
    "WeightsFileError",
    "atomic_path",
    "claim",
    "open_regular",
    "open_weights",
    "printable",
    "read_regular",
    "reported",
    "sanitize",
    "save_weights",
    "shortened",
    "sweep",
    "write_weights",
]
