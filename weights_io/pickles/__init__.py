"""A pickle reader that imports nothing and calls nothing, and a writer for torch's pickles."""
