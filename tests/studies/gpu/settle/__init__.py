"""Settles everything that waits for a GPU, in one call of less than ten minutes, without network.

    make gpu        or        python -m tests.studies.gpu.settle [--out FILE] [--minutes 9.5]

Runs the tests, the oracle on every architecture, races against torch (and TensorRT), a profile and
a minute of training, and writes one JSON named after the device to `tests/studies/gpu/results/`.
Sections that fail or find no time are recorded as such; the others go on, and the file is written
after each. `--rehearse` does the same in small on the fake device. Needs CuPy and the package's own
dependencies; torch, pytest and the cuDNN frontend are used where they are.
"""
