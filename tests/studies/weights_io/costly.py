"""Searches for files that cost their reader more than they may: a fuzzer whose fitness is cost.

    python -m tests.studies.weights_io.costly --seconds 600

Pickles are grown from a grammar of opcodes with sharing (`pickle_grammar.py`), zip and safetensors
files from recipes (`recipes.py`). What is dearer, per byte, than any file of its kind that ended
the same way is kept in the corpus and changed further. A later call goes on where this one ended.
The exit status is 1 if a file is dearer than allowed, or raises an error that is not ours.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import time
from pathlib import Path

from tests.studies.weights_io import recipes
from tests.studies.weights_io.corpus import Corpus
from tests.studies.weights_io.one_cost import Cost, measure
from tests.studies.weights_io.pickle_grammar import MOST_BYTES, TooLongError

_FAMILIES = {"pickles": recipes.PICKLES, "containers": recipes.CONTAINERS}
_NEW = 0.15  # of all tries are grown, not changed
_BETWEEN_SAVES = 20.0
_MEMORY = 4 << 30  # of this process; beyond it an allocation fails


def main() -> int:
    """Search, and print the dearest."""
    options = _options()
    most = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, most))
    measure(recipes.bake(recipes.grow("npz", random.Random(0))))  # imports are nobody's cost
    corpus = Corpus(options.corpus)
    chance = random.Random(options.seed + corpus.tried)
    search(corpus, chance, options.family, options.seconds)
    _show(corpus, options.show)
    return int(any(_is_finding(dear.cost) for dear, _ in corpus.dearest(len(corpus.dear))))


def search(corpus: Corpus, chance: random.Random, families: list[str], seconds: float) -> None:
    """Grow and change recipes for so long; the corpus is saved now and then, and at the end."""
    end = time.monotonic() + seconds
    save_at = 0.0
    try:
        while (now := time.monotonic()) < end:
            _try_one(corpus, chance, _FAMILIES[chance.choice(families)])
            if now > save_at:
                corpus.save()
                save_at = now + _BETWEEN_SAVES
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
    finally:
        corpus.save()


def _try_one(corpus: Corpus, chance: random.Random, kinds: tuple[str, ...]) -> None:
    held = [dear.recipe for dear in corpus.dear.values() if dear.recipe["kind"] in kinds]
    if not held or chance.random() < _NEW:
        recipe = recipes.grow(chance.choice(kinds), chance)
    else:
        recipe = recipes.change(chance.choice(held), chance.choice(held), chance)
    try:
        data = recipes.bake(recipe)
    except (TooLongError, OverflowError, struct.error):  # a number that its field cannot hold
        return
    if 0 < len(data) <= MOST_BYTES:
        corpus.offer(recipe, measure(data), data)


def _is_finding(cost: Cost) -> bool:
    return cost.fitness > 1 or cost.ending.startswith("uncaught")


def _show(corpus: Corpus, count: int) -> None:
    print(f"{corpus.tried} files tried, {len(corpus.dear)} kept; allowed is 1.0")
    print(f"{'dear':>8} {'bytes':>8} {'ns/byte':>9} {'memory/byte':>12}  file, and how it ended")
    for (_, cost), path in corpus.dearest(count):
        per_byte = cost.seconds / cost.size * 1e9, cost.peak / cost.size
        print(
            f"{cost.fitness:8.2f} {cost.size:8} {per_byte[0]:9.0f} {per_byte[1]:12.1f}"
            f"  {path.name}: {cost.ending}"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--corpus", type=Path, default=Path(".costly-corpus"))
    parser.add_argument("--family", nargs="+", choices=list(_FAMILIES), default=list(_FAMILIES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=12)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
