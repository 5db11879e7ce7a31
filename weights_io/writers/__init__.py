"""One writer for each container; all stream, one array at a time."""
