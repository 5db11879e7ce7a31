"""Processes that run a plan together: same results, whoever leaves, dies or forks."""

from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import time
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.arrays import Array
from repvgg_ref.cpu import engine as engines
from repvgg_ref.cpu.convolution.algorithms import ALGORITHMS
from repvgg_ref.cpu.engine import CHUNK, Engine
from repvgg_ref.cpu.workers import crew as crews
from repvgg_ref.cpu.workers import process as processes
from repvgg_ref.cpu.workers.crew import WORKERS, Caller, available, use_of_helpers
from repvgg_ref.cpu.workers.pool import Pool
from repvgg_ref.cpu.workers.process import CrewError
from repvgg_ref.cpu.workers.seats import Seat
from repvgg_ref.errors import BackendError
from repvgg_ref.interpreter import identity
from repvgg_ref.models.architectures import architecture
from repvgg_ref.models.network import Model, fuse
from tests.models.small import SMALL, distinct_model
from tests.random_networks import random_model

pytestmark = pytest.mark.skipif(not available(2), reason="crews need Linux on x86")

ARCH = architecture("RepVGG-A0", num_classes=5)
DEPLOY = fuse(random_model(ARCH, 0))


@pytest.fixture(autouse=True)
def _every_network_is_worth_a_crew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(engines, "CREW_MACS", 0)
    monkeypatch.setattr(engines, "STAND_IN_BYTES", 0)  # nobody stands in for a helper
    yield
    for each in list(crews._crews.values()):
        each.close()


def images(count: int, height: int = 33, width: int = 40, channels: int = 3) -> Array:
    rng = np.random.default_rng(count)
    return rng.normal(size=(count, channels, height, width)).astype(np.float32)


def engine_of(model: Model, *, threads: int = 2, algorithm: str = "auto") -> Engine:
    return Engine(
        model.arch.blocks, model.params, dtype=np.float32, algorithm=algorithm, threads=threads
    )


def is_right(engine: Engine, x: Array, model: Model = DEPLOY, limit: float = 2e-5) -> None:
    got, wanted = engine.forward(x), model.forward(x, backend="reference")
    assert isinstance(engine.plan(x.shape).team, Caller)
    assert np.abs(got - wanted).max() <= limit * np.abs(wanted).max()


@pytest.mark.few(1)
@pytest.mark.parametrize("algorithm", ["auto", *ALGORITHMS])
def test_every_algorithm(algorithm: str) -> None:
    engine = engine_of(DEPLOY, algorithm=algorithm)
    for x in (images(1), images(5), images(1)):
        is_right(engine, x, limit=6e-5)


@pytest.mark.few(2)
@pytest.mark.parametrize("variant", SMALL)
def test_every_kind_of_block(variant: str) -> None:
    model = fuse(distinct_model(SMALL[variant], dtype="float32"))
    x = images(3, channels=model.arch.in_channels)
    is_right(engine_of(model), x, model)


@pytest.mark.few(1)
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 31), (97, 65)])
def test_any_size_and_more_seats_than_work(size: tuple[int, int], threads: int) -> None:
    is_right(engine_of(DEPLOY, threads=threads), images(2, *size))


def test_layers_are_those_of_the_reference() -> None:
    x = images(CHUNK * 2 + 1, 20, 20)
    got = engine_of(DEPLOY).layers(x)
    wanted = DEPLOY.forward(x, backend="reference", layers=True)
    assert list(got) == list(wanted)
    for name, y in wanted.items():
        assert np.abs(got[name] - y).max() <= 2e-5 * np.abs(y).max(), name


@pytest.mark.slow
def test_many_shapes_and_engines_take_turns() -> None:
    first, second = engine_of(DEPLOY), engine_of(DEPLOY)
    for count in (1, 2, 3, 4, 5, 6, 1):
        for engine in (first, second):
            is_right(engine, images(count))


def test_small_networks_stay_with_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "CREW_MACS", 10**12)
    assert isinstance(engine_of(DEPLOY).plan((1, 3, 8, 8)).team, Pool)


def test_the_variable_keeps_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKERS, "threads")
    engine = engine_of(DEPLOY)
    engine.forward(images(1))
    assert isinstance(engine.plan((1, 3, 33, 40)).team, Pool)


def test_the_variable_has_two_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WORKERS, "process")
    with pytest.raises(BackendError, match=WORKERS):
        engine_of(DEPLOY)


def test_threads_take_over_where_no_helper_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PROGRAM", ("os", "abort"))
    threads_take_over("ended with code -6")


def test_threads_take_over_where_an_interpreter_never_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_PROGRAM", ("signal", "pause"))
    monkeypatch.setattr(processes, "ANSWER", 0.2)
    threads_take_over("has not answered in 0.2 s")


def test_threads_take_over_from_another_programs_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {**identity(), "code": "/another/interpreter.py"}
    monkeypatch.setattr(processes, "identity", lambda: other)
    threads_take_over("runs other code.*")


def threads_take_over(why: str, engine: Engine | None = None) -> None:
    engine, x = engine or engine_of(DEPLOY), images(1)
    with pytest.warns(RuntimeWarning, match=f"helper.*{why}; threads take over"):
        got = engine.forward(x)
    wanted = DEPLOY.forward(x, backend="reference")
    assert np.abs(got - wanted).max() <= 2e-5 * np.abs(wanted).max()
    assert isinstance(engine.plan(x.shape).team, Pool)


@pytest.mark.parametrize("shape", [1, 2], ids=["in a run", "while it makes a plan"])
def test_threads_take_over_from_a_helper_that_is_stopped(
    shape: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(DEPLOY)
    engine.forward(images(shape))
    monkeypatch.setattr(processes, "ANSWER", 0.3)
    (helper,) = crews.crew(2)._helpers
    os.kill(helper.pid, signal.SIGSTOP)
    threads_take_over("has done nothing for 0.3 s", engine)
    assert not is_running(helper.pid)


@pytest.fixture
def _the_caller_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "STAND_IN_BYTES", 10**9)


@pytest.mark.few(1)
@pytest.mark.usefixtures("_the_caller_stands_in")
@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("count", [1, 3])
def test_who_stands_in_for_a_helper_computes_the_same_bits(count: int, threads: int) -> None:
    engine, x = engine_of(DEPLOY, threads=threads), images(count, 64, 64)
    first = engine.layers(x)
    team = engine.plan(x.shape).team
    assert isinstance(team, Caller)
    assert len(team._absent) == threads - 1
    team.crew.greet()
    later = engine.layers(x)
    assert team._absent == []
    assert all(np.array_equal(y, later[name]) for name, y in first.items())
    is_right(engine, x)


@pytest.mark.usefixtures("_the_caller_stands_in")
def test_a_helper_that_never_comes_is_waited_for_by_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "_PROGRAM", ("signal", "pause"))
    monkeypatch.setattr(processes, "ANSWER", 3.0)
    engine, x = engine_of(DEPLOY), images(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        is_right(engine, x)
    (helper,) = crews.crew(2)._helpers
    helper._until = time.monotonic()  # as if it were some seconds later
    threads_take_over("has not answered in 3 s", engine)


@pytest.mark.usefixtures("_the_caller_stands_in")
def test_who_stands_in_holds_no_engine() -> None:
    """Its memory is given back at once, not when cycles are collected."""
    engine, x = engine_of(DEPLOY), images(1)
    engine.forward(x)
    plan = weakref.ref(engine.plan(x.shape))
    gc.disable()
    try:
        del engine
        assert plan() is None
    finally:
        gc.enable()


@pytest.mark.usefixtures("_the_caller_stands_in")
def test_who_leaves_while_standing_in_finds_a_new_crew() -> None:
    engine, x = engine_of(DEPLOY), images(2)

    def leave(name: str, y: Array) -> None:
        if name == "stage2.0":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run(x, leave)
    is_right(engine, x)


@pytest.mark.slow
def test_orders_to_a_stopped_helper_end_too(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = crews.crew(2)
    crew.greet()
    monkeypatch.setattr(processes, "ANSWER", 0.2)
    (helper,) = crew._helpers
    os.kill(helper.pid, signal.SIGSTOP)

    def talk() -> None:
        for _ in range(10**6):
            crew.tell({"do": "drop", "plan": -1})

    with pytest.raises(CrewError, match="does not listen"):
        talk()


def test_a_program_that_is_no_python_has_no_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/usr/bin/editor")
    assert not available(2)


def test_threads_take_over_from_a_helper_that_died() -> None:
    engine = engine_of(DEPLOY)
    engine.forward(images(1))
    (helper,) = crews.crew(2)._helpers
    os.kill(helper.pid, signal.SIGKILL)
    threads_take_over("process .*", engine)


def test_threads_that_ask_at_once_share_a_crew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would have started one, and all but the last been lost."""
    monkeypatch.setattr(processes, "_PROGRAM", ("signal", "pause"))
    with ThreadPoolExecutor(8) as threads:
        found = {id(crew) for crew in threads.map(lambda _: crews.crew(2), range(8))}
    assert found == {id(crews.crew(2))}


def test_threads_take_over_where_shared_memory_cannot_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit on the size of files holds for it, too."""
    engine = engine_of(DEPLOY)

    def full(*_: object) -> Array:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

    monkeypatch.setattr(Seat, "allocate", full)
    with pytest.warns(RuntimeWarning, match="no memory can be shared: .*too large; threads"):
        assert np.isfinite(engine.forward(images(1))).all()
    assert isinstance(engine.plan((1, 3, 33, 40)).team, Pool)


def test_threads_take_over_where_somebody_closed_the_helpers_socket() -> None:
    """As a daemon closes whatever it does not know."""
    engine = engine_of(DEPLOY)
    engine.forward(images(1))
    (helper,) = crews.crew(2)._helpers
    os.close(helper._channel.fileno())
    threads_take_over("process .*", engine)
    assert not is_running(helper.pid)


def test_threads_that_wait_for_one_crew_warn_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, x = engine_of(DEPLOY), images(1)
    monkeypatch.setattr(Caller, "call", refuse)
    with warnings.catch_warnings(record=True) as told, ThreadPoolExecutor(4) as threads:
        warnings.simplefilter("always")
        results = list(threads.map(engine.forward, 4 * [x]))
    assert all(np.array_equal(each, results[0]) for each in results)
    assert len(told) == 1


def refuse(_: Caller) -> None:
    raise CrewError("a helper process is gone")


def test_a_helper_that_fails_says_why() -> None:
    engine, x = engine_of(DEPLOY), images(2)
    engine.forward(x)
    crews.crew(2).tell({"do": "run", "plan": 10**6})
    with pytest.warns(RuntimeWarning, match="KeyError: 1000000"):
        is_finite = np.isfinite(engine.forward(x)).all()
    assert is_finite


def test_who_leaves_in_the_middle_finds_a_new_crew() -> None:
    engine, x = engine_of(DEPLOY), images(2)

    def leave(name: str, y: Array) -> None:
        if name == "stage2.0":
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            engine.run(x, leave)
        is_right(engine, x)


@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_fork_has_a_crew_of_its_own() -> None:
    engine, x = engine_of(DEPLOY), images(2)
    wanted = engine.forward(x)
    child = os.fork()
    if child == 0:
        same = (engine.forward(x) == wanted).all()
        for each in list(crews._crews.values()):
            each.close()
        os._exit(0 if same else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (engine.forward(x) == wanted).all()


def test_helpers_drop_what_nobody_holds() -> None:
    x = images(2, 128, 128)
    held = []
    for _ in range(8):
        engine_of(DEPLOY).forward(x)
        crews.crew(2).use()  # answered after all orders before it
        held.append(held_by_helper())
    one = sum(array.nbytes for array in DEPLOY.params.values()) / 2  # the least it packs
    assert held[-1] < held[1] + one  # freed memory may wait for its next use


def test_what_helpers_use_is_told() -> None:
    engine, x = engine_of(DEPLOY), images(8, 64, 64)
    engine.forward(x)
    seconds, size = use_of_helpers()
    for _ in range(5):
        engine.forward(x)
    assert use_of_helpers()[0] > seconds
    assert 20e6 < size < 1e9


def test_helpers_end_with_a_caller_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import time, sys; from repvgg_ref.cpu.workers.crew import crew; "
        "print(*(helper.pid for helper in crew(3)._helpers), flush=True); time.sleep(60)"
    )
    caller = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert caller.stdout is not None
    helpers = list(map(int, caller.stdout.readline().split()))
    assert len(helpers) == 2
    assert all(is_running(pid) for pid in helpers)
    caller.send_signal(signal.SIGKILL)
    caller.communicate()
    deadline = time.monotonic() + 20
    while any(is_running(pid) for pid in helpers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def held_by_helper() -> int:
    (helper,) = crews.crew(2)._helpers
    pages = Path(f"/proc/{helper.pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGESIZE")
