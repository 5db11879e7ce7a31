"""From a candidate's outputs, weights or logits to a verdict and a named bug."""
