"""Exact arithmetic: minimal filtering from rational points, and correct rounding."""
