"""Layers that an ``.onnx`` file leaves out: what should read them reads what they should read.

A gate or a shortcut that was forgotten has no tensor by whose name it could be found. It has left a
trace: the convolution behind it works on the tensor in front of it. That tensor is then what the
file has for the layer's output, and is judged as such.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from repvgg_ref.files.onnx_graph.constants import Constants
from repvgg_ref.models.graph import QUIET, Network

# All that a convolution, a re-parameterisable block or a sum is exported as. What may be a gate or
# an activation function is none of them, and hides what is behind it.
_OWN = frozenset({"Add", "BatchNormalization", "Cast", "Conv", "Gemm", "Identity", "MatMul"})
# What may make a classifier's features of the last image, and does nothing else to them.
POOLED = frozenset({"Flatten", "GlobalAveragePool", "ReduceMean", "Reshape", "Squeeze"})


def left_out(constants: Constants, tensors: Mapping[str, str], arch: Network) -> dict[str, str]:
    """Layer that is none of `tensors` -> the tensor that takes the place of its output.

    Parameters
    ----------
    tensors : mapping
        Layer -> the tensor that is its output, of those that are called so.
    """
    sources = _sources(arch)
    known = {tensor: layer for layer, tensor in tensors.items()}
    found: dict[str, str] = {}
    for layer in arch.layer_names:
        if layer in tensors:
            continue
        readers = [name for name in tensors if layer in sources[name]]
        read = [_read_instead(name, constants, tensors, known, sources) for name in readers]
        instead = set(read) if read else {None}
        tensor = instead.pop()
        if tensor is not None and not instead and known[tensor] in _behind(layer, tensors, sources):
            found[layer] = tensor
    return found


def _sources(arch: Network) -> dict[str, tuple[str, ...]]:
    """Layer -> the layers that it reads, with pools and the like passed over."""
    found: dict[str, tuple[str, ...]] = {}
    for node in arch.evaluated:
        behind = (found[name] if name in QUIET else (name,) for name in node.inputs)
        found[node.name] = tuple(name for names in behind for name in names)
    return found


def _behind(
    layer: str, tensors: Mapping[str, str], sources: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    """The layers with a tensor that are reached from `layer` through those without one."""
    for name in sources.get(layer, ()):
        yield from (name,) if name in tensors else _behind(name, tensors, sources)


def _read_instead(
    reader: str,
    constants: Constants,
    tensors: Mapping[str, str],
    known: Mapping[str, str],
    sources: Mapping[str, tuple[str, ...]],
) -> str | None:
    """The one tensor of a layer that `reader` works on and should not; None if it is not clear."""
    own = _OWN | POOLED if reader == list(sources)[-1] else _OWN
    read: set[str] = set()
    waiting = [tensors[reader]]
    while waiting:
        node = constants.producers.get(waiting.pop())
        if node is None or node.op_type not in own:
            return None
        for name in node.input:
            if name in known:
                read.add(name)
            elif name and constants.value(name) is None:
                waiting.append(name)
    spare = read - {tensors[name] for name in sources[reader] if name in tensors}
    return spare.pop() if len(spare) == 1 else None
