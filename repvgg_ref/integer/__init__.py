"""Integer networks: what an INT8 device computes, bit for bit.

Accumulators are exact in any order, so every freedom of a port lies in `schemes`: how an
accumulator becomes an 8-bit number again. `network` is the chain of layers.
"""
