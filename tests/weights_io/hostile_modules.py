"""Pickled modules that try to run, to bomb, or to be read as what they are not.

Each case says what must come of it: a refusal, or arrays of exactly these names. Those that are
read are odd and harmless; the names are what torch's `state_dict` would make of the same opcodes.
"""

from __future__ import annotations

from tests.weights_io.hostile_contents import CALLS, CLASSES, IDS, NAMES_OF_PARTS, PLACES
from tests.weights_io.hostile_structures import CYCLES, PARTS, SHARED, STATES

CORPUS = {
    f"{group}: {name}": case
    for group, cases in {
        "cycles": CYCLES, "shared": SHARED, "parts": PARTS, "states": STATES, "places": PLACES,
        "names": NAMES_OF_PARTS, "calls": CALLS, "classes": CLASSES, "ids": IDS,
    }.items()
    for name, case in cases.items()
}  # fmt: skip
