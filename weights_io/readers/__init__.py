"""One reader for each container; each returns `Contents`."""
