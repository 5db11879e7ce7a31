"""What ports of gradients and of training-mode batch norm get wrong.

A bug makes a wrong `Call` of a right one: other arrays or settings for one of its outputs, or an
output changed afterwards. Forward passes of blocks, convolutions and heads have `oracle.bugs`.
"""

from repvgg_ref.oracle.bugs.base import Bug, library
from repvgg_ref.oracle.operators.bugs import gradients, norm_gradients, training
from repvgg_ref.oracle.operators.operator import Call

CALL_BUGS: tuple[Bug[Call], ...] = library(gradients, norm_gradients, training)

__all__ = ["CALL_BUGS"]
