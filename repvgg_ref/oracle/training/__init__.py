"""Training steps of a port: what it should compute, what it dumped, and which bug lies between."""
