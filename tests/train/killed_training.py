"""A training with everything on that saves after every step: what the kill tests kill.

``python -m tests.train.killed_training OUT`` says "ready" when it begins; it resumes what is there.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.train.small_training import changed, run, small_job

RECIPE = changed(epochs=6, accumulate=2, ema=0.8, mixup=0.4, custom_l2=True, decay="official-first")
STEPS = 30


def train(out: Path) -> None:
    """Train in `out`, from the last good state if there is one."""
    run(small_job(out, recipe=RECIPE, backend="numpy", save_every=1, resume=True))


if __name__ == "__main__":
    print("ready", flush=True)
    train(Path(sys.argv[1]))
