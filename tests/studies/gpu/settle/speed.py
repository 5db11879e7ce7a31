"""Fast? Inference and training steps against torch and TensorRT, in turns on one device."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from repvgg_ref.arrays import to_numpy
from repvgg_ref.models.network import Model, fuse
from tests.random_networks import random_model
from tests.studies.gpu.settle import ours
from tests.studies.gpu.settle.race import Work, race
from tests.studies.gpu.settle.sections import Found
from tests.studies.gpu.settle.sizes import Sizes, network

OURS = "repvgg-ref"


def race_inference(found: Found, sizes: Sizes, *, compiled: bool) -> None:
    """The fused network in fp16 against torch channels_last, eager and as a CUDA graph.

    With `compiled` against `torch.compile` and TensorRT instead, which take long to build.
    """
    for name, batch in sizes.raced[:2] if compiled else sizes.raced:
        arch = network(name)
        model = fuse(random_model(arch, 0))
        shape = (batch, arch.in_channels, sizes.pixels, sizes.pixels)
        x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
        contenders: dict[str, Work] = {f"{OURS} fp16": ours.inference(model, x, "fp16")}
        notes: dict[str, Any] = {}
        if not compiled:
            contenders[f"{OURS} bf16"] = ours.inference(model, x, "bf16")
        for peer in _peers(notes, compiled):
            try:
                contenders |= peer.inference(model, x, compiled=compiled)
            except Exception as error:  # a peer that cannot be built is left out, and said so
                notes[peer.__name__] = f"{type(error).__name__}: {error}"[:500]
        outputs = {each: _logits(work) for each, work in contenders.items()}
        found[f"{name} x {batch}"] = {
            "contenders": _raced(contenders, f"{OURS} fp16", batch, sizes),
            "largest_difference": _differences(outputs, f"{OURS} fp16"),
            "left_out": notes,
            "path": _path(model),
        }
        _free()


def race_training(found: Found, sizes: Sizes, *, compiled: bool) -> None:
    """A whole step (forward, backward, SGD) in bf16 mixed precision against torch AMP."""
    for name, batch in sizes.trained[:1] if compiled else sizes.trained:
        arch = network(name)
        model = random_model(arch, 0)
        rng = np.random.default_rng(4)
        shape = (batch, arch.in_channels, sizes.pixels, sizes.pixels)
        x = rng.normal(size=shape).astype(np.float32)
        labels = rng.integers(0, arch.num_classes, batch)
        contenders: dict[str, Work] = {f"{OURS} bf16": ours.training(model, x, labels, "bf16")}
        notes: dict[str, Any] = {}
        for peer in _peers(notes, compiled):
            try:
                contenders |= peer.training(model, x, labels, compiled=compiled)
            except Exception as error:  # as above
                notes[peer.__name__] = f"{type(error).__name__}: {error}"[:500]
        found[f"{name} x {batch}"] = {
            "contenders": _raced(contenders, f"{OURS} bf16", batch, sizes),
            "left_out": notes,
        }
        _free()


def _raced(contenders: dict[str, Work], mine: str, batch: int, sizes: Sizes) -> Found:
    return race(contenders, ours=mine, items=batch, rounds=sizes.rounds, turn_s=sizes.turn_s)


def _peers(notes: dict[str, Any], compiled: bool) -> list[Any]:
    """Modules with `inference` and `training`, those that can be imported."""
    names = ["tests.peers.gpu_torch"] + ["tests.peers.gpu_tensorrt"] * compiled
    found = []
    for name in names:
        try:
            found.append(importlib.import_module(name))
        except ImportError as error:
            notes[name] = str(error)
    return found


def _logits(work: Work) -> Any:
    """What one call gives, on the host in float32; None if it fails or gives nothing."""
    try:
        given: Any = work()
    except Exception:  # the race tells why
        return None
    if hasattr(given, "detach"):
        return given.detach().float().cpu().numpy()
    return None if given is None else to_numpy(given).astype(np.float32)


def _differences(outputs: dict[str, Any], mine: str) -> dict[str, float]:
    """Largest difference from ours, relative to the largest logit: about 1e-3 for fp16."""
    wanted = outputs.get(mine)
    if wanted is None:
        return {}
    size = float(np.abs(wanted).max())
    return {
        name: float(np.abs(logits - wanted).max()) / size
        for name, logits in outputs.items()
        if logits is not None and name != mine
    }


def _path(model: Model) -> Found:
    """How ours ran in each arithmetic: as a CUDA graph or not, and what cuDNN had no plan for."""
    from repvgg_ref.gpu.math_mode import activation_dtype

    found = {}
    for kept in model._resident.values():
        math: Any = kept.ops.name.removeprefix("cupy-")
        how = {"algorithm": "auto", "threads": None}  # as `Model.forward` asks
        chain: Any = kept.fast(model.arch, model.params, activation_dtype(math), **how)
        cudnn = chain._convolutions.cudnn
        found[kept.ops.name] = {
            "graphs": [plan.is_graph for plan in chain._plans.values()],
            "cudnn": cudnn is not None,
            "without_plan": [str(key) for key in cudnn.unsupported()] if cudnn is not None else [],
        }
    return found


def _free() -> None:
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
