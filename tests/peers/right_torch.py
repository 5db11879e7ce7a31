"""torch on the CPU: train form and fused, every memory format and number format it has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from repvgg_ref.arrays import Array
from repvgg_ref.models.network import Model, fuse
from tests.peers.right_candidates import Port, RightCandidate
from tests.peers.torch_repvgg import build_torch, to_torch


def _train_form(model: Model) -> Any:
    network = build_torch(model.arch, eps=model.eps)
    network.load_state_dict(to_torch(model.state_dict()))
    return network.eval()


def _deploy_form(model: Model) -> Any:
    network = build_torch(model.arch, deploy=True)
    network.load_state_dict(to_torch(fuse(model).state_dict()))
    return network.eval()


def _fused_in_float32(model: Model) -> Any:
    """As the official `switch_to_deploy` does it: every step in float32."""
    import torch

    train, deploy = _train_form(model), _deploy_form(model)
    for path in deploy.paths:
        theirs, ours = train.get_submodule(path), deploy.get_submodule(path)
        with torch.no_grad():
            kernel, bias = _float32_kernel(theirs)
            ours.rbr_reparam.weight.copy_(kernel)
            ours.rbr_reparam.bias.copy_(bias)
    return deploy


def _float32_kernel(block: Any) -> tuple[Any, Any]:
    import torch

    dense = block.rbr_dense.conv
    kernel, bias = _folded(dense.weight, block.rbr_dense.bn)
    if hasattr(block, "rbr_1x1"):
        point, shift = _folded(block.rbr_1x1.conv.weight, block.rbr_1x1.bn)
        kernel, bias = kernel + torch.nn.functional.pad(point, [1, 1, 1, 1]), bias + shift
    if hasattr(block, "rbr_identity"):
        unit = torch.zeros_like(dense.weight)
        for o in range(len(unit)):
            unit[o, o % unit.shape[1], 1, 1] = 1
        point, shift = _folded(unit, block.rbr_identity)
        kernel, bias = kernel + point, bias + shift
    return kernel, bias


def _folded(weight: Any, bn: Any) -> tuple[Any, Any]:
    scale = bn.weight / (bn.running_var + bn.eps).sqrt()
    return weight * scale[:, None, None, None], bn.bias - bn.running_mean * scale


def _port(make: Callable[[Model], Any], prepare: Callable[[Any], Any] = lambda net: net) -> Any:
    """Layer outputs of a network, converted by `prepare` beforehand."""

    def build(model: Model, _folder: Path) -> Port:
        import torch

        network = prepare(make(model))
        kind = next(network.parameters()).dtype

        def run(x: Array) -> dict[str, Any]:
            with torch.no_grad():
                return {n: y.clone() for n, y in network.layers(torch.from_numpy(x).to(kind))}

        return run

    return build


def _to(*what: str) -> Callable[[Any], Any]:
    def prepare(network: Any) -> Any:
        import torch

        for name in what:
            chosen = getattr(torch, name)
            is_layout = isinstance(chosen, torch.memory_format)
            network = network.to(memory_format=chosen) if is_layout else network.to(chosen)
        return network

    return prepare


def _autocast(model: Model, _folder: Path) -> Port:
    import torch

    network = _train_form(model)

    def run(x: Array) -> dict[str, Any]:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return {n: y.clone() for n, y in network.layers(torch.from_numpy(x))}

    return run


CANDIDATES = [
    RightCandidate("torch train form", "torch", "fp32", _port(_train_form)),
    RightCandidate("torch fused", "torch", "fp32", _port(_deploy_form)),
    RightCandidate("torch fused in float32", "torch", "fp32", _port(_fused_in_float32)),
    RightCandidate(
        "torch fused channels_last", "torch", "fp32", _port(_deploy_form, _to("channels_last"))
    ),
    RightCandidate("torch fused bf16", "torch", "bf16", _port(_deploy_form, _to("bfloat16"))),
    RightCandidate("torch train form bf16", "torch", "bf16", _port(_train_form, _to("bfloat16"))),
    RightCandidate("torch train form autocast bf16", "torch", "bf16", _autocast),
    RightCandidate("torch fused fp16", "torch", "fp16", _port(_deploy_form, _to("half"))),
    RightCandidate("torch train form fp16", "torch", "fp16", _port(_train_form, _to("half"))),
    RightCandidate(
        "torch fused bf16 channels_last",
        "torch",
        "bf16",
        _port(_deploy_form, _to("bfloat16", "channels_last")),
    ),
]
