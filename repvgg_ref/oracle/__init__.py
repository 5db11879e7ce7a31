"""The oracle: is this port right, which layer is wrong, which bug is it, and how sure is that."""

from repvgg_ref.oracle.operators.reporting import OperatorReport
from repvgg_ref.oracle.operators.verification import verify_op
from repvgg_ref.oracle.report import Finding, LayerReport, Report, VerificationError
from repvgg_ref.oracle.verification import judge, verify

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
