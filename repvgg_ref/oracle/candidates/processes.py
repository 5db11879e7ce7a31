"""Running a stranger's program: within a time limit, its output apart, its end explained."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO

from repvgg_ref.oracle.candidates.base import CandidateFailure
from weights_io import sanitize

_TAIL_BYTES = 1 << 14
_GRACE = 2.0  # seconds for the last words of a process that has ended


def run_program(
    command: Sequence[str], *, name: str, timeout: float, env: Mapping[str, str] | None = None
) -> str:
    """Run `command` to its end, in a process group of its own.

    What it prints on stdout is thrown away; of stderr the end is kept.

    Returns
    -------
    str
        The last line it wrote on stderr, safe to print.

    Raises
    ------
    CandidateFailure
        If it cannot be started, ends otherwise than with exit code 0, or takes too long; it and
        the processes it started are killed then.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CandidateFailure(f"{name}: cannot be started", got=sanitize(reason)) from None
    assert process.stderr is not None
    tail = _Tail(process.stderr)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise CandidateFailure(
            f"{name}: took too long and was stopped",
            got=f"no result after {timeout:g} s",
            advice="give it more time, or a smaller input",
        ) from None
    finally:
        if process.poll() is None:
            _kill(process)
        said = tail.last_line()
    if code != 0:
        raise CandidateFailure(f"{name}: the program failed", got=_ending(code, said))
    return said


class _Tail:
    """Reads a pipe to its end so that the writer never waits, and keeps the last bytes."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe, self._bytes = pipe, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with self._pipe:
            while chunk := self._pipe.read1(_TAIL_BYTES):  # type: ignore[attr-defined]
                self._bytes = (self._bytes + chunk)[-_TAIL_BYTES:]

    def last_line(self) -> str:
        self._thread.join(_GRACE)
        lines = self._bytes.decode("utf-8", "replace").splitlines()
        return sanitize(next((line.strip() for line in reversed(lines) if line.strip()), ""))


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole group: a port may have started workers."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _ending(code: int, said: str) -> str:
    if code < 0:
        try:
            how = f"killed by {signal.Signals(-code).name}"
        except ValueError:
            how = f"killed by signal {-code}"
    else:
        how = f"exit code {code}"
    return f"{how}; last words: {said}" if said else how
