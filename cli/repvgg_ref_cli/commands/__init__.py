"""One file a subcommand, each with an object called `command`; heavy imports stay inside it."""
