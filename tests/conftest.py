"""How the suite runs: what costs little always, the rest on every push, all cases on demand.

- Without an option, as in the README: tests that cost less than half a second of processor time.
- ``--dear``: the others, too, which `costs.json` names. CI runs both parts on every push.
- ``--every-case``: also what marks let a push leave out.

``--measure-costs`` writes `costs.json` anew, from what the tests that ran took; a test that it does
not name costs little. The closing section says how much was left out. The marks:

- ``few(n)``: a family of parametrised cases of which `n` will do, spread evenly. Without `n`: as
  many as it takes for every value of every parameter to occur. Cases for a GPU always stay.
- ``slow``: takes long and proves little that a cheaper test does not; on demand only.

Hypothesis draws fewer examples, too (`tests/examples.py`). A test that is named
(``file.py::test``) runs, with all its cases.

``--not-yet-passed`` runs what no earlier run in this clone has passed: CI runs the README's test
command first, then installs the peers and runs the rest. All of it works in one process and, with
``-n auto``, in one for each core. What a test counts, it tells by `record_property`.
"""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

for _library in ("OMP", "OPENBLAS", "MKL"):  # before NumPy is loaded: a core for each process
    os.environ.setdefault(f"{_library}_NUM_THREADS", "1")

hypothesis.settings.register_profile("push", max_examples=30, deadline=None)
hypothesis.settings.register_profile("every", max_examples=100, deadline=None)

_PASSED = "repvgg_ref/passed"
_LEFT_OUT = "left_out"
_COSTS = Path(__file__).with_name("costs.json")
_DEAR = 0.5  # seconds of processor time, a test's own processes included


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-case", action="store_true", help="all cases of the tests marked few and slow"
    )
    parser.addoption("--dear", action="store_true", help="the tests of costs.json, too")
    parser.addoption(
        "--measure-costs", action="store_true", help="write costs.json anew: run with --dear"
    )
    parser.addoption(
        "--not-yet-passed", action="store_true", help="leave out what passed in earlier runs"
    )


def pytest_configure(config: pytest.Config) -> None:
    if not config.getoption("--hypothesis-profile", None):
        every = config.getoption("--every-case")
        hypothesis.settings.load_profile("every" if every else "push")
    config.pluginmanager.register(_Selection(config))
    config.pluginmanager.register(_Told())
    if config.getoption("--measure-costs"):
        config.pluginmanager.register(_Measured(is_worker=hasattr(config, "workerinput")))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What collection makes stays for good: whoever collects garbage need not walk through it."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Tests of one file stay together, so that they share its fixtures; whoever is idle helps."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


class _Selection:
    """What runs; remembers in pytest's cache what passed."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._cache = getattr(config, "cache", None)  # None with -p no:cacheprovider
        self._passed: set[str] = set(self._cache.get(_PASSED, []) if self._cache else [])
        self._is_worker = hasattr(config, "workerinput")
        self._left_out = {"cases": 0, "of": 0, "slow": 0, "dear": 0}
        self._dear = frozenset(json.loads(_COSTS.read_text()) if _COSTS.exists() else ())

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        every = self._config.getoption("--every-case")
        chosen = items if every or self._are_named() else self._few(items)
        if self._config.getoption("--not-yet-passed"):
            settled = self._passed.difference(i.nodeid for i in items if every and _is_drawn(i))
            chosen = [item for item in chosen if item.nodeid not in settled]
        kept = set(chosen)
        self._config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = chosen

    def _are_named(self) -> bool:
        return any("::" in argument for argument in self._config.args)

    def _few(self, items: list[pytest.Item]) -> list[pytest.Item]:
        slow = "slow" not in self._config.getoption("markexpr")
        families: dict[Any, list[pytest.Item]] = {}
        for item in items:
            if item.get_closest_marker("few") and not item.get_closest_marker("gpu"):
                families.setdefault((item.path, item.parent, _function(item)), []).append(item)
        run = set(items)
        for family in families.values():
            mark = family[0].get_closest_marker("few")
            assert mark is not None
            few = spread(family, *mark.args) if mark.args else cover(family)
            run.difference_update(set(family).difference(few))
            self._left_out["cases"] += len(few)
            self._left_out["of"] += len(family)
        dear = not self._config.getoption("--dear")
        for item in run.copy():
            kind = "slow" if slow and item.get_closest_marker("slow") else "dear"
            if kind == "slow" or (dear and _test(item.nodeid) in self._dear):
                run.remove(item)
                self._left_out[kind] += 1
        return [item for item in items if item in run]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed.add(report.nodeid)
        elif report.failed:
            self._passed.discard(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if self._is_worker:
            config: Any = self._config  # with what xdist adds
            config.workeroutput[_LEFT_OUT] = self._left_out
        elif self._cache is not None:
            self._cache.set(_PASSED, sorted(self._passed))

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self._left_out = getattr(node, "workeroutput", {}).get(_LEFT_OUT, self._left_out)

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        left_out = self._left_out
        if left_out["of"] or left_out["slow"] or left_out["dear"]:
            terminalreporter.write_line(
                f"left out: {left_out['of'] - left_out['cases']} of {left_out['of']} cases of "
                f"families marked few, {left_out['dear']} dear tests (--dear), "
                f"{left_out['slow']} slow ones; --every-case runs all"
            )


class _Measured:
    """Writes `costs.json`: the tests whose dearest case costs at least half a second."""

    def __init__(self, *, is_worker: bool) -> None:
        self._is_worker = is_worker
        self._costs: dict[str, float] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        before = _processor_time()
        try:
            return (yield)
        finally:
            item.user_properties.append((_COSTS.name, _processor_time() - before))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._is_worker or report.when != "call":
            return
        told = dict(report.user_properties)
        test, cost = _test(report.nodeid), float(str(told.pop(_COSTS.name)))
        self._costs[test] = max(self._costs.get(test, 0.0), cost)
        report.user_properties[:] = told.items()

    def pytest_sessionfinish(self) -> None:
        if not self._is_worker:
            dear = {test: round(cost, 1) for test, cost in self._costs.items() if cost >= _DEAR}
            _COSTS.write_text(json.dumps(dear, indent=1, sort_keys=True) + "\n")


class _Told:
    """What tests counted, shown at the end: `record_property("bugs caught", "38 of 38")`."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, item: pytest.Item) -> None:
        """Numbers of NumPy's types cannot travel between processes; words can."""
        item.user_properties[:] = [(what, str(number)) for what, number in item.user_properties]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call":
            self._lines += [f"{what}: {number}" for what, number in report.user_properties]

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self._lines:
            terminalreporter.section("counted")
            for line in sorted(self._lines):
                terminalreporter.write_line(line)


def spread(family: list[pytest.Item], count: int) -> list[pytest.Item]:
    """`count` of the cases, evenly spread, the first and the last among them."""
    last, steps = len(family) - 1, max(count - 1, 1)
    return [family[i] for i in sorted({round(k * last / steps) for k in range(count)})]


def cover(family: list[pytest.Item]) -> list[pytest.Item]:
    """As few cases as a greedy search finds in which every value of every parameter occurs.

    Of cases that add as much, one whose values were used least: pairs are mixed.
    """
    values = {item: _values(item) for item in family}
    used = dict.fromkeys(set().union(*values.values()), 0)

    def worth(item: pytest.Item) -> tuple[int, int]:
        times = [used[value] for value in values[item]]
        return times.count(0), -sum(times)

    chosen = []
    while not all(used.values()):
        chosen.append(max(family, key=worth))
        for value in values[chosen[-1]]:
            used[value] += 1
    return chosen


def _values(item: pytest.Item) -> set[tuple[str, int]]:
    """The case's parameters, values told apart by identity: each stands in one list."""
    callspec = getattr(item, "callspec", None)
    return {(name, id(value)) for name, value in callspec.params.items()} if callspec else set()


def _test(nodeid: str) -> str:
    """The test that a case is of."""
    return nodeid.partition("[")[0]


def _processor_time() -> float:
    """Seconds, of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def _is_drawn(item: pytest.Item) -> bool:
    """Whether Hypothesis draws its examples: of them, too, a push has fewer."""
    return getattr(getattr(item, "obj", None), "is_hypothesis_test", False)


def _function(item: pytest.Item) -> str:
    return str(getattr(item, "originalname", item.name))
