"""The named arrays of a network: which there are, their shapes, and how they start.

Canonical names are ours (``stage1.0.branch_3x3.bn.gamma``); `files.dialects` translates them
to the names other code bases use.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.blocks.catalogue import expression
from repvgg_ref.blocks.wiring import starts
from repvgg_ref.models.graph import Network, Node
from repvgg_ref.models.layers import Block, Form, Shapes


def param_shapes(arch: Network, form: Form) -> Shapes:
    """Every array of `arch` in the given form: canonical name -> shape.

    Blocks come first in network order, then auxiliary heads, then linear layers. The train form
    counts each batch norm's ``num_batches_tracked``, a 0-d int64 as in torch.
    """
    nodes = arch.nodes if form == "train" else arch.evaluated
    return {
        f"{node.name}.{part}": shape
        for node in sorted(nodes, key=_place)
        for part, shape in node.op.shapes(form).items()
    }


def _place(node: Node) -> int:
    return 1 if node.training_only else 0 if isinstance(node.op, Block) else 2


def counted(arch: Network, form: Form, params: Mapping[str, Array]) -> str:
    """How many numbers are trained, and of which types, for people."""
    shapes = param_shapes(arch, form)
    count = sum(prod(shapes[name]) for name in shapes if is_trainable(name))
    types = dict.fromkeys(str(a.dtype) for name, a in params.items() if is_trainable(name))
    return f"{count:,} parameters, {' and '.join(types)}"


def is_trainable(name: str) -> bool:
    """Whether gradients exist for this array: false for batch norm's running state."""
    return not name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def initial_params(arch: Network, *, seed: int, dtype: Any = np.float32) -> dict[str, Array]:
    """Start values of the train form, distributed as the official code leaves them to torch.

    Kernels, linear weights and all biases of layers are uniform in +-1/sqrt(fan_in) (torch's
    ``kaiming_uniform_(a=sqrt(5))``); gamma 1, beta 0, running mean 0, running variance 1.
    Factors of a `Scale` are 1, numbers of a `Bias` 0.
    Values differ from torch's for the same seed: the generator is NumPy's PCG64.
    """
    rng = np.random.default_rng(seed)
    shapes = param_shapes(arch, "train")
    given = {
        f"{spec.name}.{part}": np.full(shapes[f"{spec.name}.{part}"], value, dtype)
        for spec in arch.blocks
        for part, value in starts(expression(spec)).items()
    }
    return {n: given[n] if n in given else _initial(n, shapes, rng, dtype) for n in shapes}


def _initial(name: str, shapes: Shapes, rng: np.random.Generator, dtype: Any) -> Array:
    shape, field = shapes[name], name.rsplit(".", 1)[1]
    if field == "num_batches_tracked":
        return np.zeros((), np.int64)
    if field in ("gamma", "running_var"):
        return np.ones(shape, dtype)
    if field in ("beta", "running_mean"):
        return np.zeros(shape, dtype)
    # A bias has no fan-in of its own: it takes its layer's.
    fan_in = np.prod(shapes[name.removesuffix("bias").removesuffix("weight") + "weight"][1:])
    bound = 1 / np.sqrt(fan_in)
    return rng.uniform(-bound, bound, shape).astype(dtype)
