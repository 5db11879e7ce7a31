"""Golden vectors: written, read again, and how many bugs they kill."""
