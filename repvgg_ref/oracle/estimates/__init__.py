"""What a layer computes, estimated from its outputs, held against what its arithmetic may do."""
