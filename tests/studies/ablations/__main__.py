"""Every block of the paper's Tables 6 and 7 on real digits: ``python -m tests.studies.ablations``.

Does the runs that are missing, all blocks of one seed before the next seed, and writes what all
runs so far say. It can be stopped at any moment and goes on where it was. With ``--mnist FOLDER``
on pictures of 28 x 28 pixels: MNIST's four files, as `tests.studies.mnist` writes them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from repvgg_ref_cli.progress import ProgressBar

from repvgg_ref.blocks.catalogue import block_names
from repvgg_ref.errors import ReportedError
from tests.studies.ablations.page import RESULTS, write_page
from tests.studies.ablations.report import document, picture, table, words
from tests.studies.ablations.runs import RUNS, go_on, read
from tests.studies.ablations.task import MNIST, TASK, Task, trained
from weights_io import atomic_path


def write(out: Path, task: Task = TASK) -> None:
    """The document, the table and the picture of the runs in a folder; and the page, from ours."""
    made = document(read(out / RUNS, task))
    files = {
        "ablations.json": json.dumps(made, indent=1) + "\n",
        "ablations.md": table(made) + "\n" + words(made),
        "ablations.svg": picture(made),
    }
    for name, text in files.items():
        with atomic_path(out / name) as path:
            path.write_text(text, encoding="utf-8")
    if RESULTS in (out, out.parent):
        write_page()


def main() -> int:
    """Train what is missing, and report; exit code 2 if that cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10, help="of every block")
    parser.add_argument("--blocks", nargs="+", default=block_names(), choices=block_names())
    parser.add_argument("--epochs", type=int, help="other than the study's")
    parser.add_argument("--mnist", type=Path, metavar="FOLDER", help="of MNIST's four files")
    parser.add_argument("--out", type=Path, help="a folder for each --epochs, and for --mnist")
    asked = parser.parse_args()
    task = TASK if asked.mnist is None else MNIST
    task = replace(task, epochs=asked.epochs or task.epochs)
    out = asked.out or (RESULTS if asked.mnist is None else RESULTS / MNIST.data)
    train = partial(trained, folder=asked.mnist)
    began = time.monotonic()
    try:
        with ProgressBar("ablations") as bar:
            left = 0
            for number, (run, left) in enumerate(
                go_on(out / RUNS, asked.blocks, asked.seeds, train, task), 1
            ):
                what = f"{run['block']} seed {run['seed']}"
                pace = (time.monotonic() - began) / number
                print(
                    f"{what:28}{run['test_error']:7.2f} % wrong{run['seconds']:7.1f} s"
                    f"{left:5} left, {left * pace / 60:.0f} min",
                    flush=True,
                )
                bar(what, number, number + left)
        write(out.resolve(), task)
    except ReportedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
