"""What a run of the trainer is asked to do, apart from the recipe's numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from repvgg_ref.train.recipe import Recipe

if TYPE_CHECKING:
    from repvgg_ref.gpu import Math


@dataclass(frozen=True)
class Settings:
    """One run.

    Attributes
    ----------
    out : Path
        The folder for states, log and results.
    data : Path or None
        A data set's folder; None for the bundled digits.
    backend : str or None
        As in `repvgg_ref.backends.backend_ops`.
    dtype : {"float32", "float64"}
    math : {"fp32", "tf32", "bf16", "fp16"} or None
        Arithmetic of a GPU backend; weights, statistics and optimiser stay in `dtype`.
    threads : int
        That prepare images.
    init : Path or None
        A checkpoint in train form to start from.
    resume, accept_changes : bool
        Continue the training in `out`; even if recipe or data are not what they were.
    save_every : int
        Steps between states; 0 for one an epoch.
    evaluate_every : int
        Epochs between evaluations.
    """

    recipe: Recipe
    out: Path
    data: Path | None = None
    backend: str | None = None
    dtype: str = "float32"
    math: Math | None = None
    seed: int = 0
    threads: int = 2
    sync_bn: bool = False
    init: Path | None = None
    resume: bool = False
    accept_changes: bool = False
    save_every: int = 0
    evaluate_every: int = 1
