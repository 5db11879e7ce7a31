"""The command: which sections there are, and how long each may take."""

from __future__ import annotations

import contextlib
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from tests.studies.gpu.settle.sections import Found, Section, run_sections
from tests.studies.gpu.settle.sizes import REAL, REHEARSAL, Sizes

RESULTS = Path(__file__).parents[1] / "results"


def sections(sizes: Sizes) -> list[Section]:
    """In the order of what must be known first; seconds add up to more than there are."""
    from tests.studies.gpu.settle import judged, learn, machine, profile, speed

    return [
        Section("machine", 30, machine.describe),
        Section("tests", 150, partial(judged.run_tests, sizes=sizes, seconds=140)),
        Section("oracle-inference", 110, partial(judged.judge_inference, sizes=sizes)),
        Section("oracle-training", 30, partial(judged.judge_training, sizes=sizes)),
        Section("inference", 80, partial(speed.race_inference, sizes=sizes, compiled=False)),
        Section("training", 60, partial(speed.race_training, sizes=sizes, compiled=False)),
        Section("profile", 30, partial(profile.profile_step, sizes=sizes)),
        Section("learning", 100, partial(learn.train_for_a_while, sizes=sizes)),
        Section("compiled", 90, partial(_race_compiled, sizes=sizes)),
    ]


def _race_compiled(found: Found, sizes: Sizes) -> None:
    from tests.studies.gpu.settle import speed

    found["inference"], found["training"] = {}, {}
    speed.race_inference(found["inference"], sizes, compiled=True)
    speed.race_training(found["training"], sizes, compiled=True)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), help="Default: results/DEVICE.json.")
@click.option("--minutes", type=float, default=9.5, show_default=True, help="For everything.")
@click.option("--rehearse", is_flag=True, help="In small, on the fake device: no GPU needed.")
@click.option("--only", multiple=True, metavar="SECTION", help="Just these sections.")
def main(out: Path | None, minutes: float, rehearse: bool, only: tuple[str, ...]) -> None:
    """Settle what waits for a GPU; exit code 1 if a section failed, 2 without a GPU."""
    with _device(rehearse):
        device = _require_device()
        chosen = [
            s for s in sections(REHEARSAL if rehearse else REAL) if s.name in only or not only
        ]
        path = out or RESULTS / f"{_slug(device)}.json"
        result = run_sections(chosen, out=path, seconds=minutes * 60, tell=click.echo)
    click.echo(f"written: {path}")
    sys.exit(0 if result["ok"] else 1)


def _require_device() -> str:
    from repvgg_ref.errors import BackendError
    from repvgg_ref.gpu import require_device

    try:
        return require_device().name
    except BackendError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)


def _device(rehearse: bool) -> contextlib.AbstractContextManager[Any]:
    if not rehearse:
        return contextlib.nullcontext()
    from tests.gpu.fake_cudnn import make_cudnn
    from tests.gpu.fake_cupy import installed

    return installed(make_cudnn())


def _slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


if __name__ == "__main__":
    main()
