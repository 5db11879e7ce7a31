"""Architectures, their costs, and networks with weights."""
