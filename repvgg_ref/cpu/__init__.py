"""The fast NumPy backend: Winograd and direct convolution in NHWC, float32 and float64.

Read `convolution.winograd` for the mathematics, `convolution.schedule` for who does what, `plan`
for the fused chain, `training.branches` for a training step.

A new algorithm of convolution touches three files: one of its own, with a subclass of
`schedule.Convolution` that says how weights are packed and how strips of the batch are read,
multiplied and written; `algorithms`, with its name, what it applies to and how it is made; `cost`,
with the work that it does. The engine, the crew, "measure" and the tests go through
`algorithms.ALGORITHMS`; a test asks for its name in the choices of the command line, which cannot
import that list (``--help`` loads no NumPy).
"""

from repvgg_ref.cpu.table import NUMPY

__all__ = ["NUMPY"]
