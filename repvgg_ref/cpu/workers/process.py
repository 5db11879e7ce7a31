"""A helper as its caller sees it: a process, a socket to it, and patience that ends.

A helper says first who it is; what does not, or runs other code, is no helper. A helper that
neither ends nor does anything (stopped, or frozen with its machine) is given up as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from repvgg_ref.cpu.workers.helper import FAILED, LONGEST
from repvgg_ref.interpreter import identity, running

ANSWER = 5.0  # seconds in which a helper says who it is, takes an order, or does anything at all
_GLANCE = 0.1  # seconds between looks that count: in longer ones it was we who did nothing
_ANOTHER = "a helper process runs other code, or with another path or other flags"
_PROGRAM = ("repvgg_ref.cpu.workers.helper", "serve")


class CrewError(Exception):
    """A helper is gone, or could not do its part."""


class HelperProcess:
    """One helper, started.

    Raises
    ------
    OSError
        If the system has no process or no socket to give.
    """

    def __init__(self, seat: int, seats: int, board: FileIO) -> None:
        self._channel, theirs = _sockets()
        with theirs:
            numbers = map(str, (seat, seats, board.fileno(), theirs.fileno(), os.getpid()))
            try:
                self._child = subprocess.Popen(
                    running(*_PROGRAM, *numbers, light=True),
                    pass_fds=(board.fileno(), theirs.fileno()),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=None if _is_open(2) else subprocess.DEVNULL,
                )
            except BaseException:
                self._channel.close()
                raise
        self._expected: dict[str, Any] | None = identity()
        self._until = time.monotonic() + ANSWER
        self._watched: tuple[float, int] | None = None  # since when, and the ticks it has used
        self._looked = self._idle = 0.0

    @property
    def answered(self) -> bool:
        """Whether `greet` would not wait: it has said something, has ended, or its time is up."""
        if self._expected is None or time.monotonic() >= self._until:
            return True
        try:
            return bool(select.select([self._channel], [], [], 0)[0])
        except (OSError, ValueError):  # somebody closed the socket, or it is none that select takes
            return True

    def greet(self) -> None:
        """Wait until the helper has said who it is.

        Raises
        ------
        CrewError
            If it does not within `ANSWER` seconds of its start, or is not what was started.
        """
        if self._expected is None:
            return
        try:
            self._channel.settimeout(max(0.0, self._until - time.monotonic()))
            said = self._channel.recv(LONGEST)
        except (TimeoutError, BlockingIOError):
            raise CrewError(f"a helper process has not answered in {ANSWER:g} s") from None
        except OSError:
            said = b""
        if not said:
            raise self._ended()
        if said != json.dumps(self._expected).encode():
            text = said.decode(errors="replace")
            raise CrewError(text if text.startswith(FAILED) else _ANOTHER)
        self._expected = None

    def tell(self, message: bytes, files: list[int]) -> None:
        """Send an order.

        Raises
        ------
        CrewError
            If it does not listen.
        """
        try:
            self._channel.settimeout(ANSWER)
            socket.send_fds(self._channel, [message], files)
        except OSError as error:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(1)
                raise self._ended() from error
            raise CrewError(f"a helper process does not listen: {error}") from error

    def check(self, since: float) -> None:
        """See that it works, during a wait that began at `since`.

        Raises
        ------
        CrewError
            If it has ended, or has used no processor for `ANSWER` seconds of that wait.
        """
        if self._child.poll() is not None:
            raise self._ended()
        now, ticks = time.monotonic(), _ticks(self._child.pid)
        if ticks is None or self._watched != (since, ticks):
            self._watched, self._idle = (since, ticks or 0), 0.0
        else:
            self._idle += min(now - self._looked, _GLANCE)
        self._looked = now
        if self._idle > ANSWER:
            raise CrewError(f"a helper process has done nothing for {ANSWER:g} s")

    def end(self) -> None:
        """Kill it."""
        with contextlib.suppress(OSError):  # a daemon has closed all that it did not know
            self._channel.close()
        self._child.kill()
        self._child.wait()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._child.pid

    def _ended(self) -> CrewError:
        """Its last words, or how it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(1)
        said = b""
        # Its greeting; and the first time we are told that it left orders unread.
        for _ in range(3):
            with contextlib.suppress(OSError):
                self._channel.settimeout(0)
                said = self._channel.recv(LONGEST) or said
        text = said.decode(errors="replace")
        code = self._child.returncode
        return CrewError(
            text if text.startswith(FAILED) else f"a helper process ended with code {code}"
        )


def shared_file(name: str) -> FileIO:
    """Memory without a name that other processes can be given, and that ends with its holders.

    Raises
    ------
    OSError
        If there is none to be had.
    """
    file = None
    try:
        with uninterrupted():
            file = FileIO(_high(os.memfd_create(name)), "r+")
    except BaseException:
        if file is not None:
            file.close()
        raise
    return file


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block, so that nothing is lost before it has an owner."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    came: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: came.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            handler(*came[0])


def order_of(order: Mapping[str, Any]) -> bytes:
    """An order as it is sent.

    Raises
    ------
    CrewError
        If it is longer than a helper reads.
    """
    message = json.dumps(order).encode()
    if len(message) > LONGEST:
        raise CrewError(f"an order for helper processes is too long: {len(message)} bytes")
    return message


def _sockets() -> tuple[socket.socket, socket.socket]:
    """Two ends; never in the place of a standard stream that somebody closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    high = tuple(socket.socket(fileno=_high(each.detach())) for each in (ours, theirs))
    return high[0], high[1]


def _high(descriptor: int) -> int:
    """The same, above the standard streams."""
    if descriptor > 2:
        return descriptor
    import fcntl  # crews are for Linux, and this module is imported everywhere

    try:
        return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def _ticks(pid: int) -> int | None:
    """Processor time a process has used; None where the system does not say."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("ascii", "replace").rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])
    except (OSError, ValueError, IndexError):
        return None
