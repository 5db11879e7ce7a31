"""Reads changed torch archives with torch's `weights_only` and with ours for as long as told.

    python -m tests.studies.peers.mutated_archives_study --seconds 600 --first 1000

Files that both take and read differently are kept as `differs-SEED.pt`; the exit status is then 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

from tests.peers.mutated_archives import Opinions, mutated, opinions


def main() -> int:
    """Run seeds one after the other, and print how often who took a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, default=Path())
    options = parser.parse_args()
    end, seed, differ = time.monotonic() + options.seconds, options.first, 0
    taken: Counter[Opinions] = Counter()
    while time.monotonic() < end:
        data = mutated(random.Random(seed))
        try:
            taken[opinions(data)] += 1
        except AssertionError as error:
            differ += 1
            (options.out / f"differs-{seed}.pt").write_bytes(data)
            print(f"seed {seed}: {error}")
        seed += 1
    print(f"seeds {options.first} to {seed - 1}: {differ} differ")
    for (ours, torchs), count in taken.most_common():
        verdicts = ["taken" if took else "refused" for took in (ours, torchs)]
        print(f"{count:8}  {verdicts[0]} by us, {verdicts[1]} by torch")
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
