"""What was written into a bundle, and what it would notice, for people and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from repvgg_ref.models.about import Assumed
from repvgg_ref.oracle.golden.mutation import LETTERS, NOT_APPLICABLE, MutationMatrix
from repvgg_ref.oracle.training.steps import TrainingSteps

_SHOWN_SURVIVORS = 200


@dataclass(frozen=True)
class GoldenSummary:
    """What was written, and what it would notice.

    Attributes
    ----------
    matrix : MutationMatrix
    files : dict
        Name -> bytes.
    warnings : tuple of str
        Why bugs could hide: weak statistics, survivors, ReLUs at their edge.
    skipped : tuple of str
        Parts left out, with the reason.
    steps : TrainingSteps or None
    """

    out: Path
    model: str
    form: str
    matrix: MutationMatrix
    files: dict[str, int]
    warnings: tuple[str, ...]
    skipped: tuple[str, ...]
    steps: TrainingSteps | None
    assumed: Assumed = field(default_factory=Assumed)

    @property
    def score(self) -> float:
        """Killed mutants over all that compute another function."""
        return self.matrix.score

    def to_json(self) -> dict[str, Any]:
        """The object that ``repvgg-ref golden --json`` prints."""
        return {
            "out": str(self.out),
            "model": self.model,
            "form": self.form,
            "files": self.files,
            "mutation": mutation_json(self.matrix),
            "train_step": None if self.steps is None else self.steps.recipe.to_json(),
            "warnings": list(self.warnings),
            "skipped": list(self.skipped),
            "assumed": self.assumed.to_json(),
        }


def mutation_json(matrix: MutationMatrix) -> dict[str, Any]:
    """Score, matrix (bug -> one letter a layer) and survivors."""
    shown = matrix.survivors[:_SHOWN_SURVIVORS]
    return {
        "score": matrix.score,
        "killed": matrix.killed,
        "mutants": matrix.counted,
        "equivalent": len(matrix.mutants) - matrix.counted,
        "layers": list(matrix.layers),
        "letters": {letter: fate for fate, letter in LETTERS.items()}
        | {NOT_APPLICABLE: "not applicable"},
        "matrix": matrix.rows(),
        "survivors": [
            {"bug": m.bug, "layer": m.layer, "detail": m.detail, "reason": m.reason} for m in shown
        ],
        "survivors_not_listed": len(matrix.survivors) - len(shown),
    }
