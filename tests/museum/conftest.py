"""A push visits every exhibit once; all of its tests run with ``--every-case``."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    seen: set[Path] = set()
    for item in items:
        if item.path.parent != _HERE or "peers" in item.keywords:
            continue
        if item.path in seen:
            item.add_marker(pytest.mark.slow)
        seen.add(item.path)
