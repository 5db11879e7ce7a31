"""Everything that a port's author can hand over, as layer outputs to compare.

`resolve` tells what it is; the result is run once and gives `Outputs`, or is a file of weights.
"""

from repvgg_ref.oracle.candidates.base import (
    Candidate,
    CandidateFailure,
    Outputs,
    WeightsCandidate,
)
from repvgg_ref.oracle.candidates.resolve import computing, resolve

__all__ = ["Candidate", "CandidateFailure", "Outputs", "WeightsCandidate", "computing", "resolve"]
