"""Hostile test files try to import this module and call `fire`; nothing ever may."""

from __future__ import annotations

NAME = __name__
