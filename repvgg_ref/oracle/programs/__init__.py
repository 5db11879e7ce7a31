"""Layers as somebody's port computes them, right or wrong."""
