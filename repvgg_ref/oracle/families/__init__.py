"""Fused files of families of blocks, and of residual networks, held to what they are made from."""
