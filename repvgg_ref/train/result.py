"""``result.json``: what came out of a training, as the command's ``--json`` says it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from repvgg_ref.train.evaluate import Evaluation
from repvgg_ref.train.events import Plan
from repvgg_ref.train.log import read_log
from repvgg_ref.train.state import write_text

NAME = "result.json"


def write_result(
    folder: Path,
    plan: Plan,
    steps: int,
    evaluation: Evaluation,
    *,
    data: dict[str, Any],
    files: list[Path],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Write the file into `folder`, and give its content.

    ``"data"`` says on what it was trained and evaluated. ``"init"`` says what was taken of the file
    that the training began with, null if it began with none; a training that was resumed has it
    from its log.
    """
    began = [record for record in read_log(folder) if record["event"] == "init"]
    found = {
        "model": plan.model,
        "recipe": plan.recipe,
        "steps": steps,
        "stopped": False,
        **evaluation.to_json(),
        "data": data,
        "init": began[-1] if began else None,
        "files": [str(path) for path in files],
        "seconds": seconds,
    }
    if began:
        del found["init"]["event"]
    write_text(folder / NAME, json.dumps(found, indent=1) + "\n")
    return found
