"""The arithmetic of a port, estimated once from all its layers: what its rounding does."""
