"""The oracle: is this port right, which layer is wrong, which bug is it, and how sure is that."""

from repvgg_ref.oracle.report import Finding, LayerReport, Report, VerificationError
from repvgg_ref.oracle.verification import judge, verify

__all__ = ["Finding", "LayerReport", "Report", "VerificationError", "judge", "verify"]
