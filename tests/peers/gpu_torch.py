# mypy: allow-subclassing-any
# This project does not follow the types torch publishes: it is a witness, not a dependency.
"""torch's side of `tests.studies.gpu.settle`'s races: as fast as torch is made to be on a GPU.

channels_last memory, `cudnn.benchmark`, fp16 inference and bf16 AMP training, each eager, as a CUDA
graph, and by `torch.compile`. Without a GPU everything runs on the CPU, for rehearsals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model
from tests.peers.torch_repvgg import build_torch, to_torch

Work = Callable[[], object]
WARM_UP = 3  # runs before a capture, as torch's documentation asks for


def inference(model: Model, x: Array, *, compiled: bool) -> dict[str, Work]:
    """Contenders that evaluate the fused form on one batch in fp16."""
    where, dtype = _where(), torch.float16 if torch.cuda.is_available() else torch.float32
    net = build_torch(model.arch, deploy=True)
    net.load_state_dict(to_torch(model.state_dict()))
    net = net.eval().to(where, dtype, memory_format=torch.channels_last)
    images = torch.tensor(x).to(where, dtype).contiguous(memory_format=torch.channels_last)

    def eager() -> Any:
        with torch.inference_mode():
            return net(images)

    name = "torch channels_last fp16"
    if compiled:
        fast = _compiled(net, mode="max-autotune")

        def by_compiler() -> Any:
            with torch.inference_mode():
                return fast(images)

        by_compiler()  # compiled here, so that a failure is this contender's
        return {f"{name}, torch.compile": by_compiler}
    return {name: eager} | _captured(f"{name}, CUDA graph", eager)


def training(model: Model, x: Array, labels: Array, *, compiled: bool) -> dict[str, Work]:
    """Contenders that take a whole training step on one batch with bf16 AMP and fused SGD."""
    where = _where()
    net = build_torch(model.arch)
    net.load_state_dict(to_torch(model.state_dict()))
    net = net.train().to(where, memory_format=torch.channels_last)
    images = torch.tensor(x).to(where).contiguous(memory_format=torch.channels_last)
    targets = torch.tensor(labels).to(where)
    optimiser = torch.optim.SGD(
        net.parameters(),
        lr=1e-3,
        momentum=0.9,
        nesterov=True,
        weight_decay=1e-4,
        fused=torch.cuda.is_available(),
    )
    called = _compiled(net, mode="default") if compiled else net
    criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(where, torch.bfloat16):
            logits = called(images)
        criterion(logits.float(), targets).backward()
        optimiser.step()

    name = "torch AMP bf16 channels_last"
    if compiled:
        step()
        return {f"{name}, torch.compile": step}
    return {name: step} | _captured(f"{name}, CUDA graph", step)


def kernel_times(step: Callable[[], object], count: int = 3) -> list[tuple[str, float, int]]:
    """Name, milliseconds and launches a step of every kernel, whoever launches it."""
    if not torch.cuda.is_available():
        raise RuntimeError("no GPU to profile")
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(count):
            step()
        torch.cuda.synchronize()
    return [
        (event.key, event.self_device_time_total / 1000 / count, event.count // count)
        for event in profile.key_averages()
        if event.self_device_time_total
    ]


def _captured(name: str, work: Work) -> dict[str, Work]:
    """`work` as a CUDA graph; none without a GPU."""
    if not torch.cuda.is_available():
        return {}
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        given = work()

    def replay() -> object:
        graph.replay()
        return given

    return {name: replay}


def _compiled(net: Any, mode: str) -> Any:
    """By TorchInductor on a GPU; a rehearsal only traces."""
    if torch.cuda.is_available():
        return torch.compile(net, mode=mode)
    return torch.compile(net, backend="eager")


def _where() -> str:
    torch.backends.cudnn.benchmark = True
    return "cuda" if torch.cuda.is_available() else "cpu"
