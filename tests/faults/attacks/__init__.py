"""What may befall a caller of helper processes: one entry each, run by `tests.faults.helped`.

`Case.act` runs in the caller; flags, environment, closed streams, limits and the folder are those
that its process is started with. What has to come of it is the same for all: right results, no call
that takes more than five seconds, at most one warning, and no descriptor lost and no process left.
"""

from tests.faults.attacks import callers, refusals, signals, surroundings
from tests.faults.attacks.case import CASES, Case

__all__ = ["CASES", "Case", "callers", "refusals", "signals", "surroundings"]
