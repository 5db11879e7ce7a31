"""Which arithmetic a converter fused a file in, and which taps of the file contradict it."""
