"""Training-time blocks: one file each, forward and backward."""
