"""``--not-yet-passed`` runs only what no earlier run in this clone has passed.

CI runs the README's test command first, where whatever needs a peer skips, then installs the peers
and runs the rest: twice the evidence without twice the time.
"""

from __future__ import annotations

import pytest

_KEY = "repvgg_ref/passed"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--not-yet-passed", action="store_true", help="leave out what passed in earlier runs"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_Record(config))


class _Record:
    """Remembers the tests that passed, in pytest's cache."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._cache = getattr(config, "cache", None)  # None with -p no:cacheprovider
        self._passed: set[str] = set(self._cache.get(_KEY, []) if self._cache else [])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._config.getoption("--not-yet-passed"):
            passed = [item for item in items if item.nodeid in self._passed]
            items[:] = [item for item in items if item.nodeid not in self._passed]
            self._config.hook.pytest_deselected(items=passed)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._passed.add(report.nodeid)
        elif report.failed:
            self._passed.discard(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        if self._cache is not None:
            self._cache.set(_KEY, sorted(self._passed))
