"""How many examples Hypothesis draws for a test that wants more or fewer than others."""

from __future__ import annotations

from hypothesis import settings

_USUAL = 100  # with --every-case; see conftest.py


def examples(count: int) -> settings:
    """`count` of them with ``--every-case``; on a push as large a part as of every other test."""
    drawn = round(count * settings().max_examples / _USUAL)
    return settings(max_examples=max(drawn, 1), deadline=None)
