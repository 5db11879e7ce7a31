"""The `repvgg-ref` command: the only place of the project that prints."""
