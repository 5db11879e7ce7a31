"""TensorRT's side of the inference race on a GPU: the exported ONNX file, built for fp16."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorrt as trt

from repvgg_ref.arrays import Array
from repvgg_ref.files.checkpoint import save
from repvgg_ref.models.network import Model

Work = Callable[[], object]


def inference(model: Model, x: Array, *, compiled: bool) -> dict[str, Work]:
    """The fused network on one batch; inputs and outputs float32, layers fp16."""
    import cupy

    engine = _engine(model, x.shape)
    context = engine.create_execution_context()
    images = cupy.asarray(x)
    logits = cupy.empty((len(x), model.arch.num_classes), cupy.float32)
    names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
    for name in names:
        is_input = engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
        if is_input:
            context.set_input_shape(name, x.shape)
        context.set_tensor_address(name, (images if is_input else logits).data.ptr)

    def run() -> Array:
        if not context.execute_async_v3(cupy.cuda.get_current_stream().ptr):
            raise RuntimeError("TensorRT could not enqueue the network")
        found: Array = logits
        return found

    return {f"TensorRT {trt.__version__} fp16": run}


def training(model: Model, x: Array, labels: Array, *, compiled: bool) -> dict[str, Work]:
    """TensorRT does not train."""
    return {}


def _engine(model: Model, shape: tuple[int, ...]) -> Any:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        save(model, path)
        if not parser.parse(path.read_bytes()):
            raise RuntimeError(str(parser.get_error(0)))
    config = builder.create_builder_config()
    config.set_flag(trt.BuilderFlag.FP16)
    profile = builder.create_optimization_profile()
    profile.set_shape(network.get_input(0).name, shape, shape, shape)
    config.add_optimization_profile(profile)
    return trt.Runtime(logger).deserialize_cuda_engine(
        builder.build_serialized_network(network, config)
    )
