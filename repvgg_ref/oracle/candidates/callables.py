"""A port as a Python object: called here, in this process, with a batch of images."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from repvgg_ref.arrays import Array
from repvgg_ref.models.graph import Network
from repvgg_ref.oracle.candidates.base import Candidate, CandidateFailure, Outputs
from repvgg_ref.oracle.candidates.dumps import Dump, interpret
from repvgg_ref.oracle.candidates.names import LayerNames
from repvgg_ref.oracle.candidates.surroundings import Surroundings
from repvgg_ref.oracle.candidates.values import Value, last_line, to_value

LayerOf = Callable[[str], str | None]


@dataclass(frozen=True)
class CallableCandidate(Candidate):
    """A function of a batch (N, C, H, W), float32, or a `torch.nn.Module`.

    It returns logits, a dict of layer outputs, or a sequence with one array a layer. It runs in
    this process: nothing but an exception can be caught (`module:callable` runs it outside).
    """

    function: Callable[..., Any]
    arch: Network
    name: str
    is_called: ClassVar[bool] = True
    _surroundings: Surroundings = field(default_factory=Surroundings, repr=False, compare=False)

    def run(self, x: Array | None) -> Outputs:
        """Call it and sort out what it returned."""
        x = self.batch(x)
        with self._surroundings.entered():
            returned = call(self.function, x, LayerNames(self.arch).module)
        return from_values(returned, self.arch, where=self.name, x=x)


class Returned(NamedTuple):
    """What one call of a port gave.

    `values` holds arrays of our own by name; names of an unnamed sequence are ``#0``, ``#1``, ...
    """

    values: Mapping[str, Value]
    notes: Sequence[str] = ()
    wrote_input: bool = False


def from_values(returned: Returned, arch: Network, *, where: str, x: Array) -> Outputs:
    """Outputs from what `call` gave; unnamed arrays are logits, or layers by their order."""
    values, notes, wrote_input = returned
    unnamed = [name for name in values if name.startswith("#")]
    renamed = dict(values)
    if len(unnamed) == 1 == len(values):
        renamed = {"linear": values[unnamed[0]]}
    elif unnamed:
        if len(unnamed) != len(arch.layer_names):
            raise CandidateFailure(
                f"{where}: returned arrays without names, and not one a layer",
                got=f"{len(unnamed)} arrays",
                wanted=f"logits, {len(arch.layer_names)} arrays in network order, or a dict",
            )
        renamed = dict(zip(arch.layer_names, values.values(), strict=True))
        notes = [*notes, "a sequence of arrays, matched to the layers by position"]
    precisions = {value.precision for value in renamed.values()}
    dump = Dump(
        {name: value.array for name, value in renamed.items()},
        precision=precisions.pop() if len(precisions) == 1 else None,
        notes=tuple(notes),
    )
    found = interpret(dump, arch, where=where, x=x, assume="NCHW", live=True)
    return replace(found, wrote_input=wrote_input)


def call(function: Callable[..., Any], x: Array, layer_of: LayerOf | None = None) -> Returned:
    """Call a port and make arrays of what it returns.

    Parameters
    ----------
    function : callable or torch.nn.Module
        The port.
    x : array, shape (N, C, H, W)
        Images; the port gets a copy of its own.
    layer_of : callable, optional
        Says which submodules of a `torch.nn.Module` are layers, to listen to their outputs.

    Returns
    -------
    Returned

    Raises
    ------
    CandidateFailure
        If it raises, exits, or returns what is no array.
    """
    given = np.array(x, np.float32, order="C")
    batch = given.copy()  # its own: a port may write into it
    notes: list[str] = []
    heard: dict[str, Any] = {}
    try:
        if _is_module(function):
            result = _call_module(function, batch, layer_of, heard, notes)
        else:
            result = _call_function(function, batch, notes)
    except CandidateFailure:
        raise
    except (Exception, SystemExit) as error:
        raise CandidateFailure("the candidate failed", got=last_line(error), refused=True) from None
    wrote_input = not np.array_equal(batch.view(np.uint32), given.view(np.uint32))
    named = _named(result)
    if heard and layer_of and all(layer_of(name) in (None, "linear") for name in named):
        own = {"linear" if name == "#0" else name: value for name, value in named.items()}
        named = {**heard, **own}
        notes.append(f"outputs of {len(heard)} submodules taken by forward hooks")
    values = {name: _owned(to_value(value, name)) for name, value in named.items()}
    return Returned(values, notes, wrote_input)


def _owned(value: Value) -> Value:
    """With an array of our own: a port may use the one it returned again in its next call."""
    return value._replace(array=value.array.copy())


def _call_function(function: Callable[..., Any], batch: Array, notes: list[str]) -> Any:
    """Call with NumPy; if the port's types clash with that and torch is about, with a tensor."""
    try:
        return function(batch)
    except (TypeError, AttributeError):
        torch = sys.modules.get("torch")
        if torch is None:
            raise
        notes.append("called with a torch tensor")
        with torch.no_grad():
            return function(torch.from_numpy(batch))


def _is_module(function: object) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(function, torch.nn.Module)


def _call_module(
    module: Any, batch: Array, layer_of: LayerOf | None, heard: dict[str, Any], notes: list[str]
) -> Any:
    """Call a `torch.nn.Module` on its own device, listening to the submodules that are layers."""
    torch: Any = sys.modules["torch"]
    first = next(iter(module.parameters()), None)
    tensor = torch.from_numpy(batch)
    if first is not None:
        tensor = tensor.to(first.device, first.dtype)
    if module.training:
        notes.append("the module is in training mode: batch norm uses the batch's statistics")
    listening = nullcontext() if layer_of is None else _hooks(module, layer_of, heard)
    with torch.no_grad(), listening:
        return module(tensor)


@contextmanager
def _hooks(module: Any, layer_of: LayerOf, heard: dict[str, Any]) -> Iterator[None]:
    """Write the outputs of submodules that are layers into `heard`."""

    def listen(layer: str) -> Callable[..., None]:
        def hook(_module: Any, _given: Any, output: Any) -> None:
            if hasattr(output, "detach"):
                heard[layer] = output.detach().clone()  # the next layer may work in place

        return hook

    handles = []
    try:
        for name, part in module.named_modules():
            layer = layer_of(name) if name else None
            if layer is not None and layer != "linear":
                handles.append(part.register_forward_hook(listen(layer)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _named(result: Any) -> dict[str, Any]:
    """What a port returned, as named arrays."""
    if result is None:
        raise CandidateFailure(
            "the candidate returned nothing", wanted="logits, or a dict of arrays"
        )
    if hasattr(result, "_asdict"):
        result = result._asdict()
    if isinstance(result, Mapping):
        return {str(name): value for name, value in result.items()}
    if hasattr(result, "logits"):
        return {"#0": result.logits}
    if isinstance(result, tuple) or (isinstance(result, list) and not _is_nested_numbers(result)):
        return {f"#{i}": value for i, value in enumerate(result)}
    return {"#0": result}


def _is_nested_numbers(result: list[Any]) -> bool:
    first: Any = result
    while isinstance(first, list) and first:
        first = first[0]
    return isinstance(first, int | float)
