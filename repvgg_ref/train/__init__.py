"""Training: the optimiser's step, and what grows around it."""
