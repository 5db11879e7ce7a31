"""PyTorch: eager in both memory formats, and frozen with its layers in oneDNN's blocked format."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.bench.contenders.base import COMPARED_GRADIENTS, Contender
from repvgg_ref.bench.contenders.torch_network import (
    deploy_network,
    train_forward,
    train_network,
)
from repvgg_ref.bench.task import Task
from repvgg_ref.models.network import fuse


def variants(task: Task) -> tuple[str, ...]:
    """torch.compile is not among them: it needs a C++ compiler on the user's machine."""
    eager = ("contiguous", "channels_last")
    on_cpu = task.kind == "inference" and task.backend != "cupy"
    return (*eager, "frozen") if on_cpu else eager


def prepare(task: Task, variant: str) -> Contender:
    """The network on the CPU; against the CuPy backend, on the GPU."""
    torch: Any = importlib.import_module("torch")
    torch.set_num_threads(task.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 against float32
    make = _training if task.kind == "training" else _inference
    return make(torch, task, variant)


def _inference(torch: Any, task: Task, variant: str) -> Contender:
    network = _placed(torch, deploy_network(torch, fuse(task.model())), task, variant)
    x = _placed(torch, torch.from_numpy(task.images()), task, variant)
    if variant == "frozen":
        network = _frozen(torch, network, x)

    def run() -> Any:
        with torch.inference_mode():
            return network(x)

    return Contender(run, lambda y: {"logits": y.cpu().numpy()}, _waiting(torch, task))


def _frozen(torch: Any, network: Any, x: Any) -> Any:
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        frozen = torch.jit.freeze(torch.jit.trace(network, x))
        return torch.jit.optimize_for_inference(frozen)


def _training(torch: Any, task: Task, variant: str) -> Contender:
    model = task.model()
    arch, network = model.arch, train_network(torch, model.arch, eps=model.eps)
    state = {name: torch.tensor(array) for name, array in model.state_dict().items()}
    network.load_state_dict(state)
    network = _placed(torch, network.train(), task, variant)
    x = _placed(torch, torch.from_numpy(task.images()), task, variant)
    labels = torch.from_numpy(task.labels()).to(x.device)
    parameters = dict(network.named_parameters())

    def run() -> Any:
        for parameter in parameters.values():
            parameter.grad = None
        logits = train_forward(torch, network, arch, x)
        loss = torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        return loss, logits

    def outputs(found: Any) -> dict[str, Array]:
        loss, logits = (each.detach().cpu().numpy() for each in found)
        grads = {name: parameters[name].grad.cpu().numpy() for name in COMPARED_GRADIENTS}
        return {"loss": loss, "logits": logits, **grads}

    return Contender(run, outputs, _waiting(torch, task))


def _placed(torch: Any, what: Any, task: Task, variant: str) -> Any:
    """A network or a batch in its memory format, and on its device."""
    what = what.to("cuda") if task.backend == "cupy" else what
    last = variant == "channels_last"
    return what.to(memory_format=torch.channels_last) if last else what


def _waiting(torch: Any, task: Task) -> Any:
    return torch.cuda.synchronize if task.backend == "cupy" else lambda: None
