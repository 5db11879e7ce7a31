"""RepVGG (arXiv 2101.03697), the reference that ports are checked against.

>>> import repvgg_ref as rr
>>> model = rr.build("RepVGG-A0", seed=0)
>>> rr.fuse(model).form
'deploy'

`load`, `build`, `fuse` and `save` make and keep a `Model`; `verify` judges a port of one, and
`verify_op` one operator of anybody's library; `segmentation_scores` says how well pixels were
classified, `list_models` what can be built.
"""

from typing import TYPE_CHECKING, Any

from repvgg_ref.errors import NotFusibleError, ReportedError
from repvgg_ref.files.checkpoint import load, save
from repvgg_ref.models.architectures import NAMES, Architecture, architecture, plain_architecture
from repvgg_ref.models.cost import cost
from repvgg_ref.models.network import Model, build, fold_norms, fuse
from repvgg_ref.models.registry import list_models
from repvgg_ref.models.step import StepResult
from repvgg_ref.version import __version__ as __version__

if TYPE_CHECKING:
    from repvgg_ref.oracle import (
        OperatorReport,
        Report,
        VerificationError,
        judge,
        verify,
        verify_op,
    )
    from repvgg_ref.train.pixels import segmentation_scores

# The oracle needs SciPy, which takes longer to import than everything else together.
_OF_THE_ORACLE = frozenset(
    {"OperatorReport", "Report", "VerificationError", "judge", "verify", "verify_op"}
)

__all__ = [
    "NAMES",
    "Architecture",
    "Model",
    "NotFusibleError",
    "OperatorReport",
    "Report",
    "ReportedError",
    "StepResult",
    "VerificationError",
    "architecture",
    "build",
    "cost",
    "fold_norms",
    "fuse",
    "judge",
    "list_models",
    "load",
    "plain_architecture",
    "save",
    "segmentation_scores",
    "verify",
    "verify_op",
]


def __getattr__(name: str) -> Any:
    """Import the oracle, or a trainer's part, when it is first asked for (PEP 562)."""
    if name == "segmentation_scores":
        from repvgg_ref.train import pixels

        return pixels.segmentation_scores
    if name in _OF_THE_ORACLE:
        from repvgg_ref import oracle

        return getattr(oracle, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Every public name, those of the oracle and `__version__` among them."""
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
