"""What an index and GitHub show of the project, and the pinned packages of the CI."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / ".ci" / "requirements.txt").read_text(encoding="utf-8")
PINNED = re.compile(
    r"^([a-z0-9-]+)==(\S+)((?: ;[^\n\\]*)?)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.M
)
UNPINNED = {"torch"}  # .ci/lock says why


def wanted() -> Iterator[str]:
    """Every requirement of the product, of its build, and of the extra `peers`."""
    extras = PROJECT["project"]["optional-dependencies"]
    yield from PROJECT["project"]["dependencies"]
    yield from PROJECT["build-system"]["requires"]
    for line in extras["peers"]:
        own = re.fullmatch(r"repvgg-ref\[(.*)\]", line)
        yield from (each for name in own[1].split(",") for each in extras[name]) if own else [line]


def test_every_line_of_the_lock_is_a_pin_with_digests() -> None:
    rest = PINNED.sub("", LOCK)
    assert [line for line in rest.splitlines() if line and not line.startswith("#")] == []
    assert len(PINNED.findall(LOCK)) > 50


def test_the_lock_holds_what_the_project_asks_for() -> None:
    """A requirement that is new or raised fails here until .ci/lock has been run again."""
    requirements = pytest.importorskip("packaging.requirements")
    names = pytest.importorskip("packaging.utils").canonicalize_name
    pins: dict[str, list[str]] = {}
    for name, version, *_ in PINNED.findall(LOCK):
        pins.setdefault(name, []).append(version)
    for line in wanted():
        requirement = requirements.Requirement(line)
        name = names(requirement.name)
        if name in UNPINNED:
            assert name not in pins
            continue
        versions = pins.get(name, [])
        assert versions, f"{line} is not in .ci/requirements.txt: run .ci/lock"
        assert all(version in requirement.specifier for version in versions), line


def test_authors_are_those_of_the_licence() -> None:
    (author,) = PROJECT["project"]["authors"]
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert re.search(rf"^Copyright \(c\) \d+ {author['name']}$", licence, re.MULTILINE)


def test_classifiers_exist() -> None:
    known = pytest.importorskip("trove_classifiers").classifiers
    assert set(PROJECT["project"]["classifiers"]) <= known


def test_security_says_where_bypasses_are_tested() -> None:
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+)`", text)
    assert named
    assert all((ROOT / path).exists() for path in named)
