"""Right integer ports of every kind: is any of them accused?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import repvgg_ref as rr
from repvgg_ref.files.integer_onnx import STYLES, write_integer_onnx
from repvgg_ref.integer.equalize import equalize
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.quantize import quantize
from repvgg_ref.integer.scaling import fixed_point
from repvgg_ref.integer.schemes import ANY, SCHEMES
from repvgg_ref.oracle.integers.front import verify_integers
from repvgg_ref.oracle.integers.onnx_reading import read_integer_onnx
from repvgg_ref.oracle.integers.weights import judge_integers
from tests.models.small import SMALL, distinct_model
from tests.oracle.test_integer_asymmetric import asymmetric
from tests.oracle.test_integer_equalised import equal
from tests.oracle.test_integer_orders import permuted
from tests.oracle.test_integers import dump
from tests.studies.integer.adversary_wrong import Case

Found = Iterator[tuple[str, Any]]


def right(cases: Sequence[Case], folder: Path, seeds: int) -> dict[str, Any]:
    """Of every kind how many were judged, and which were accused or left open."""
    judged: Counter[str] = Counter()
    saturated: Counter[str] = Counter()  # by this machine: its runtime's numbers are wrong
    accused: list[str] = []
    opened: list[str] = []
    for kind, report in (
        *_schemes(cases),
        *_types(cases),
        *_factors(seeds),
        *_orders(seeds),
        *_uneven(seeds),
        *_tensorflow_lite(cases),
        *_runtime(cases, folder),
        *_quantiser(cases, folder),
        *_openvino(cases, folder),
    ):
        if is_saturated(report):
            saturated[kind] += 1
            continue
        judged[kind] += 1
        if report.verdict == "disagree":
            accused.append(f"{kind}: {report.reason}; {[f.says for f in report.diagnosis][:2]}")
        elif report.verdict != "agree":
            opened.append(f"{kind}: {report.reason}")
    return {
        "judged": sum(judged.values()),
        "accused": len(accused),
        "left open": len(opened),
        "saturated by this machine": dict(saturated),
        "kinds": dict(judged),
        "whom": accused + opened,
    }


def is_saturated(report: Any) -> bool:
    """Whether all that is wrong is what x86 without VNNI does to products of uint8 and int8."""
    return {finding.bug for finding in report.diagnosis} == {"pairs-saturate-16"}


def _schemes(cases: Sequence[Case]) -> Found:
    for case, scheme in product(cases, SCHEMES):
        numbers = dump(case.network.rounded(scheme), case.x)
        for said in (ANY, scheme):
            yield "ten schemes", verify_integers(case.network.rounded(said), numbers)


def _types(cases: Sequence[Case]) -> Found:
    for case in cases:
        sides = {layer.name: layer.output for layer in case.network.layers}
        sides["input"] = case.network.layers[0].input
        numbers = dump(case.network, case.x)
        for kind in (np.int16, np.int32, np.int64, np.float32, np.float64):
            other = {name: y.astype(kind) for name, y in numbers.items()}
            yield "other types", verify_integers(case.network, other)
        real = {name: sides[name].real(y) for name, y in numbers.items()}
        yield "dequantised", verify_integers(case.network, real)


def _drawn(name: str, seed: int) -> tuple[Any, Any]:
    model = distinct_model(SMALL[name], seed=seed)
    shape = (2, model.arch.in_channels, 16, 16)
    return model, np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _factors(seeds: int) -> Found:
    for name, spread, seed in product(("plain", "grouped"), (1e-3, 1e-2, 0.1, 1.0), range(seeds)):
        model, x = _drawn(name, 100 + seed)
        for per_tensor in (False, True):
            network = quantize(equal(model, spread, seed=seed), x, per_tensor=per_tensor)
            yield f"factors within {spread:g} of 1", _held(model, network)
    for name, seed in product(("plain", "grouped"), range(seeds)):
        model, x = _drawn(name, 200 + seed)
        for per_tensor in (False, True):
            yield (
                "equalised by us",
                _held(model, quantize(equalize(model)[0], x, per_tensor=per_tensor)),
            )


def _held(model: Any, network: IntegerNetwork) -> Any:
    return judge_integers(model, network, candidate="candidate")


def _orders(seeds: int) -> Found:
    for name, seed, evened in product(("plain", "grouped"), range(seeds), (False, True)):
        model, x = _drawn(name, 300 + seed)
        network = quantize(equalize(model)[0] if evened else model, x)
        last = max(i for i, layer in enumerate(network.layers) if layer.kind == "conv")
        for places in ([0], [last], list(range(last + 1))):
            yield "channels in another order", _held(model, permuted(network, places, seed))


def _uneven(seeds: int) -> Found:
    for name, seed, per_tensor in product(("plain", "grouped"), range(seeds), (False, True)):
        model, x = _drawn(name, 400 + seed)
        yield "asymmetric weights", _held(model, asymmetric(model, x, per_tensor=per_tensor))


def _tensorflow_lite(cases: Sequence[Case]) -> Found:
    """Stated multipliers, two roundings; means as MEAN and AVERAGE_POOL_2D compute them."""
    for case, mean in product(cases, (mean_of_int8, mean_of_uint8, mean_of_ones)):
        layers = []
        for layer in case.network.layers:
            if layer.kind != "pool":
                held = layer.scaling()
                layer = replace(
                    layer,
                    multiplier=held.multiplier.astype(np.int32),
                    shift=held.shift.astype(np.int8),
                )
            layers.append(layer)
        network = replace(case.network, layers=tuple(layers), rounding="double")
        numbers, x = {"input": case.x}, case.x
        for layer in network.layers:
            x = mean(layer, x) if layer.kind == "pool" else layer.forward(x, "double")
            numbers[layer.name] = x
        for said in ("double", ANY):
            yield "TensorFlow Lite", verify_integers(network.rounded(said), numbers)
        yield "TensorFlow Lite", _held(case.model, network)


def times(acc: int, multiplier: int, shift: int) -> int:
    """``MultiplyByQuantizedMultiplier`` in C's words; `shift` is to the right."""
    high = (acc * (1 << max(-shift, 0)) * multiplier + (1 << 30)) >> 31
    right = max(shift, 0)
    mask = (1 << right) - 1
    threshold = (mask >> 1) + (high < 0)
    return (high >> right) + ((high & mask) > threshold)


def mean_of_int8(layer: Any, x: Any) -> Any:
    """``QuantizedMeanOrSum``: the multiplier is divided by the number of pixels."""
    n = int(np.prod(x.shape[2:]))
    ratio = np.asarray(float(layer.input.scale) / float(layer.output.scale))
    multiplier, shift = (int(each) for each in fixed_point(ratio))
    left = min(n.bit_length() - 1, 32, 31 - shift)
    multiplier, shift = (multiplier << left) // n, shift + left
    total = x.astype(np.int64).sum(axis=(2, 3)) - n * int(layer.input.zero_point)
    return _ended(layer, np.vectorize(lambda acc: times(int(acc), multiplier, shift))(total))


def mean_of_uint8(layer: Any, x: Any) -> Any:
    """``Mean``: the numbers' own sum, its zero point's share taken off at the end."""
    n, before, after = np.float32(np.prod(x.shape[2:])), layer.input, layer.output
    real = np.float32(before.scale / (n * after.scale))
    multiplier, shift = (int(each) for each in fixed_point(np.asarray(float(real))))
    share = np.float32(int(before.zero_point) * before.scale / after.scale)
    share = share + np.float32(0.5) if share > 0 else share - np.float32(0.5)
    total = x.astype(np.int64).sum(axis=(2, 3))
    scaled = np.vectorize(lambda acc: times(int(acc), multiplier, shift))(total)
    return _ended(layer, scaled - int(share))


def mean_of_ones(layer: Any, x: Any) -> Any:
    """A convolution by ones, whose weight scale is 1 / n in float32."""
    n = int(np.prod(x.shape[2:]))
    real = float(layer.input.scale) * float(np.float32(1) / np.float32(n))
    multiplier, shift = (
        int(each) for each in fixed_point(np.asarray(real / float(layer.output.scale)))
    )
    total = x.astype(np.int64).sum(axis=(2, 3)) - n * int(layer.input.zero_point)
    return _ended(layer, np.vectorize(lambda acc: times(int(acc), multiplier, shift))(total))


def _ended(layer: Any, whole: Any) -> Any:
    range_ = np.iinfo(layer.output.dtype)
    return np.clip(whole + int(layer.output.zero_point), range_.min, range_.max).astype(
        layer.output.dtype
    )


def _tapped(path: Path) -> Any:
    """What is read in a file, every layer's numbers an output."""
    import onnx

    read = read_integer_onnx(path)
    for tensor in read.tensors.values():
        read.model.graph.output.append(onnx.ValueInfoProto(name=tensor))
    return read


def _runtime(cases: Sequence[Case], folder: Path) -> Found:
    """ONNX Runtime at every level of its optimiser, on what we write."""
    import onnxruntime as ort

    levels = ort.GraphOptimizationLevel
    chosen = (
        levels.ORT_DISABLE_ALL,
        levels.ORT_ENABLE_BASIC,
        levels.ORT_ENABLE_EXTENDED,
        levels.ORT_ENABLE_ALL,
    )
    for case, style in product(cases, STYLES):
        path = folder / "right.onnx"
        write_integer_onnx(path, case.network, style=style)
        yield f"{style} files", verify_integers(case.model, path)
        read, x = _tapped(path), case.network.layers[0].input.real(case.x)
        for level in chosen:
            options = ort.SessionOptions()
            options.graph_optimization_level = level
            options.log_severity_level = 4
            options.add_session_config_entry("session.qdqisint8allowed", "1")
            if case.x.dtype == np.uint8:  # machines without VNNI saturate sums of two products
                options.add_session_config_entry("session.x64quantprecision", "1")
            session = ort.InferenceSession(
                read.model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            y = session.run(list(read.tensors.values()), {"input": x})
            numbers = dict(zip(read.tensors, y, strict=True))
            yield f"ONNX Runtime, {level.name}, {style}", verify_integers(case.network, numbers)


def _quantiser(cases: Sequence[Case], folder: Path) -> Found:
    """Files of ONNX Runtime's quantiser against the checkpoint, symmetric activations, too."""
    from onnxruntime import quantization as q

    case = cases[0]
    images = case.network.layers[0].input.real(case.x)

    class Images(q.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.left = iter(images[:, None])

        def get_next(self) -> Any:
            image = next(self.left, None)
            return None if image is None else {"input": image}

    fused = rr.fuse(case.model)
    single = {name: array.astype(np.float32) for name, array in fused.params.items()}
    rr.save(replace(fused, params=single), folder / "float.onnx")
    for form, kind, symmetric, per_channel in product(
        ("QDQ", "QOperator"), ("QInt8", "QUInt8"), (False, True), (False, True)
    ):
        path = folder / "quantiser.onnx"
        q.quantize_static(
            str(folder / "float.onnx"),
            str(path),
            Images(),
            quant_format=q.QuantFormat[form],
            activation_type=q.QuantType[kind],
            weight_type=q.QuantType.QInt8,
            per_channel=per_channel,
            extra_options={"ActivationSymmetric": symmetric},
        )
        yield f"ONNX Runtime's quantiser, {form}", verify_integers(case.model, path)
        if kind == "QInt8":  # of uint8 AVX2 without VNNI saturates pairs of products
            yield (
                "ONNX Runtime's quantiser, run",
                verify_integers(path, path, inputs=images),
            )


def _openvino(cases: Sequence[Case], folder: Path) -> Found:
    import onnx
    import openvino  # type: ignore[import-untyped]

    core = openvino.Core()
    for case in cases:
        write_integer_onnx(folder / "right.onnx", case.network, style="qdq")
        read = _tapped(folder / "right.onnx")
        onnx.save(read.model, str(folder / "tapped.onnx"))
        compiled = core.compile_model(
            core.read_model(str(folder / "tapped.onnx")), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        for part in (slice(None), slice(1)):
            answers = compiled([case.network.layers[0].input.real(case.x[part])])
            numbers = {
                name: np.array(answers[compiled.output(tensor)])
                for name, tensor in read.tensors.items()
            }
            yield "OpenVINO INT8", verify_integers(case.network, numbers)
