"""Running a stranger's program: within a time limit, its output apart, its end explained."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Sequence
from typing import IO

from repvgg_ref.oracle.candidates.base import CandidateFailure
from weights_io import sanitize

_TAIL_BYTES = 1 << 14
_GRACE = 2.0  # seconds for the last words of a process that has ended
_GLANCE = 0.05  # seconds between two looks at whether a process is alive


def run_program(command: Sequence[str], *, name: str, timeout: float) -> str:
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
    process = _started(command, subprocess.DEVNULL, name)
    assert process.stderr is not None
    tail = _Tail(process.stderr)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        raise _too_late(name, timeout) from None
    finally:
        if process.poll() is None:
            _kill(process)
        said = tail.last_line()
    if code != 0:
        raise _failed(name, code, said)
    return said


class Child:
    """A program that answers lines on its standard input by the same lines on its output.

    It runs in a process group of its own and dies with this object. Of stderr the end is kept.
    """

    def __init__(self, command: Sequence[str], *, name: str) -> None:
        self._name = name
        self._process = _started(command, subprocess.PIPE, name)
        self._kill = weakref.finalize(self, _kill, self._process)
        assert self._process.stderr is not None
        self._tail = _Tail(self._process.stderr)
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        reading = threading.Thread(
            target=_read_lines, args=(self._process.stdout, self._answers), daemon=True
        )
        reading.start()

    def ask(self, line: str, timeout: float) -> None:
        """Send a line and wait for its answer.

        Raises
        ------
        CandidateFailure
            If the program ends before it answers, or takes longer than `timeout` seconds; it is
            ended then.
        """
        assert self._process.stdin is not None
        until = time.monotonic() + timeout
        with contextlib.suppress(OSError):  # that it has ended is seen below
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        while time.monotonic() < until:
            ended = self._process.poll() is not None  # before the look: its last words count
            try:
                if self._answers.get(timeout=_GLANCE).decode("utf-8", "replace").strip() == line:
                    return
            except queue.Empty:
                if ended:
                    raise self._ended() from None
        self.end()
        raise _too_late(self._name, timeout)

    @property
    def lives(self) -> bool:
        """Whether it can answer."""
        return self._process.poll() is None

    def end(self) -> None:
        """Stop it, and whatever it started."""
        self._kill()

    def _ended(self) -> CandidateFailure:
        code = self._process.wait()
        self.end()
        if code == 0:
            said = f"{self._name}: ended without a result"
            return CandidateFailure(said, got="exit code 0", refused=True)
        return _failed(self._name, code, self._tail.last_line())


def _started(command: Sequence[str], streams: int, name: str) -> subprocess.Popen[bytes]:
    """The program in a process group of its own; `streams` are its standard input and output."""
    try:
        return subprocess.Popen(
            command,
            stdin=streams,
            stdout=streams,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CandidateFailure(f"{name}: cannot be started", got=sanitize(reason)) from None


def _too_late(name: str, timeout: float) -> CandidateFailure:
    return CandidateFailure(
        f"{name}: took too long and was stopped",
        got=f"no result after {timeout:.3g} s",
        advice="give it more time, or a smaller input",
    )


def _failed(name: str, code: int, said: str) -> CandidateFailure:
    return CandidateFailure(f"{name}: the program failed", got=_ending(code, said), refused=True)


def _read_lines(pipe: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    with pipe, contextlib.suppress(OSError, ValueError):
        for line in pipe:
            lines.put(line)


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
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _ending(code: int, said: str) -> str:
    if code < 0:
        try:
            how = f"killed by {signal.Signals(-code).name}"
        except ValueError:
            how = f"killed by signal {-code}"
    else:
        how = f"exit code {code}"
    return f"{how}; last words: {said}" if said else how
