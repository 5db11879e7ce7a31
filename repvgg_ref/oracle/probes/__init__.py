"""Calling a port in other ways than the first: what is right once may be wrong the next time."""
