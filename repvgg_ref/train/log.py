"""The training's log: one JSON object a line, and TensorBoard events where that is installed."""

from __future__ import annotations

import json
import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from repvgg_ref.errors import MissingExtraError
from repvgg_ref.train.events import EpochDone, Event, StepDone, as_record
from repvgg_ref.train.state import StateError, last_good, write_text
from weights_io import read_regular

NAME = "log.jsonl"


class Log:
    """Appends to ``log.jsonl`` in `folder`; a line is written at once.

    Parameters
    ----------
    after : int
        The step that the training continues from: what an earlier process logged beyond it, and
        then lost, is taken out.
    """

    def __init__(self, folder: Path, *, after: int) -> None:
        self.path = folder / NAME
        # The evaluation after that very step is made again, if it was made.
        kept = [
            record
            for record in read_log(folder)
            if record.get("step", 0) + (record["event"] == "evaluation") <= after
        ]
        if self.path.is_symlink():
            self.path.unlink()  # what it leads to is not ours
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        opened = open(self.path, "a", encoding="utf-8", opener=_no_link)  # noqa: SIM115 - until `close`; a Path takes no opener
        self._file = opened

    def write(self, event: Event) -> None:
        """Log `event`, if it is of a kind that is logged."""
        record = as_record(event)
        if record is not None:
            try:
                self._file.write(json.dumps(record) + "\n")
                self._file.flush()
            except OSError as error:
                raise StateError(
                    "the training's log cannot be written",
                    got=f"{self.path}: {error.strerror}",
                    advice=last_good(self.path.parent),
                ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _no_link(name: str, flags: int) -> int:
    return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The records of `folder`'s log; what is not as we wrote it is dropped.

    A killed process may leave half a line, and a failing disk anything.
    """
    try:
        text = read_regular(folder / NAME).decode("utf-8", "replace")
    except FileNotFoundError:
        return []
    except OSError:
        if (folder / NAME).is_symlink():  # to a device, or to itself
            return []
        raise
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if _is_record(record):
            records.append(record)
    return records


def _is_record(found: Any) -> bool:
    """Whether a line is one of ours, with numbers where they are read again."""
    if not isinstance(found, dict) or not isinstance(found.get("event"), str):
        return False
    if found["event"] not in ("step", "evaluation"):
        return _are_numbers([found.get("step", 0)])
    if found["event"] == "step":
        return _are_numbers([found.get(name) for name in ("step", "loss", "top1", "lr")])
    forms = [found.get("trained")]
    if "fused" in found:  # not of blocks that cannot be
        forms.append(found["fused"])
    return _are_numbers([found.get("step"), found.get("epoch")]) and all(
        isinstance(form, dict) and _are_numbers([form.get("loss"), form.get("top1")])
        for form in forms
    )


def _are_numbers(values: list[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


class TensorBoard:
    """Scalars for TensorBoard in ``folder/tensorboard``: loss, lr, top-1 of both forms."""

    def __init__(self, folder: Path) -> None:
        try:
            protocol = import_module("tensorboard.compat.proto.event_pb2")
            summaries = import_module("tensorboard.compat.proto.summary_pb2")
            files = import_module("tensorboard.summary.writer.event_file_writer")
        except ImportError:
            raise MissingExtraError(
                "TensorBoard's log needs tensorboard",
                got="no such package",
                advice="pip install 'repvgg-ref[tensorboard]'",
            ) from None
        self._event, self._summary = protocol.Event, summaries.Summary
        self._writer = files.EventFileWriter(str(folder / "tensorboard"))

    def write(self, event: Event) -> None:
        """Add the scalars of `event`."""
        if isinstance(event, StepDone):
            self._add(event.step, {"train/loss": event.loss, "train/lr": event.lr})
        elif isinstance(event, EpochDone):
            found = event.evaluation
            figures = {"test/loss": found.trained.loss, "test/top1": found.trained.top1}
            if found.fused is not None:
                figures["test/top1 fused"] = found.fused.top1
            self._add(event.step, figures)

    def close(self) -> None:
        """Write out what is left."""
        self._writer.close()

    def _add(self, step: int, scalars: dict[str, float]) -> None:
        values = [self._summary.Value(tag=tag, simple_value=v) for tag, v in scalars.items()]
        summary = self._summary(value=values)
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=summary))
