"""The oracle: is this port right, which layer is wrong, which bug is it, and how sure is that."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from repvgg_ref.oracle.operators.reporting import OperatorReport
    from repvgg_ref.oracle.operators.verification import verify_op
    from repvgg_ref.oracle.report import Finding, LayerReport, Report, VerificationError
    from repvgg_ref.oracle.verification import judge, verify

# Where each stands: a port's process loads a part of the oracle, and not the library of bugs.
_HOMES = {
    "Finding": "report",
    "LayerReport": "report",
    "OperatorReport": "operators.reporting",
    "Report": "report",
    "VerificationError": "report",
    "judge": "verification",
    "verify": "verification",
    "verify_op": "operators.verification",
}

__all__ = [
    "Finding",
    "LayerReport",
    "OperatorReport",
    "Report",
    "VerificationError",
    "judge",
    "verify",
    "verify_op",
]


def __getattr__(name: str) -> Any:
    """Import what is asked for when it first is (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
