"""The dearest recipes so far, the dearest one of each kind and ending, kept in a folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from tests.studies.weights_io.one_cost import Cost
from tests.studies.weights_io.recipes import Recipe
from weights_io import atomic_path

_INDEX = "dearest.json"


class Dear(NamedTuple):
    """A recipe and what its file costs."""

    recipe: Recipe
    cost: Cost


class Corpus:
    """A folder of files and the index of their recipes and costs; what it holds is read first."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.dear: dict[str, Dear] = {}
        self.tried = 0
        if (folder / _INDEX).exists():
            stored = json.loads((folder / _INDEX).read_text("utf-8"))
            self.tried = stored["tried"]
            for place, (recipe, cost) in stored["dear"].items():
                self.dear[place] = Dear(recipe, Cost(*cost))

    def offer(self, recipe: Recipe, cost: Cost, data: bytes) -> bool:
        """Keep a recipe that is dearer than the one at its place, or the first there."""
        self.tried += 1
        place = f"{recipe['kind']}, {'time' if cost.of_time > cost.of_memory else 'memory'}, "
        place += cost.ending
        held = self.dear.get(place)
        if held is not None and held.cost.fitness >= cost.fitness:
            return False
        if held is not None:
            self._file(held).unlink(missing_ok=True)
        self.dear[place] = Dear(recipe, cost)
        self._file(self.dear[place]).write_bytes(data)
        return True

    def save(self) -> None:
        """Write the index, all of it or none."""
        stored = {"tried": self.tried, "dear": self.dear}
        with atomic_path(self._folder / _INDEX) as path:
            Path(path).write_text(json.dumps(stored), "utf-8")

    def dearest(self, count: int) -> list[tuple[Dear, Path]]:
        """The `count` dearest and their files, the dearest first."""
        ordered = sorted(self.dear.values(), key=lambda dear: -dear.cost.fitness)[:count]
        return [(dear, self._file(dear)) for dear in ordered]

    def _file(self, dear: Dear) -> Path:
        name = hashlib.sha256(json.dumps(dear.recipe).encode()).hexdigest()[:12]
        return self._folder / f"{dear.recipe['kind']}-{name}"
