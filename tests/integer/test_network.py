"""Integer layers against sums written out in Python's integers; files that come back the same."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.errors import ReportedError
from repvgg_ref.files.integer_npz import FORMAT, read_network, write_network
from repvgg_ref.integer.layers import IntegerLayer
from repvgg_ref.integer.network import IntegerNetwork
from repvgg_ref.integer.schemes import ANY, SCHEMES
from tests.integer.networks import chain, conv, images, quantization


def by_hand(layer: IntegerLayer, x: Any) -> Any:
    """A convolution's numbers, halves away from zero, by loops over Python's integers."""
    N, _, H, W = x.shape
    outputs, per_group, K, _ = layer.weight.shape  # type: ignore[union-attr]
    pad, step, apart = layer.padding, layer.stride, layer.dilation
    Ho = (H + 2 * pad - apart * (K - 1) - 1) // step + 1
    Wo = (W + 2 * pad - apart * (K - 1) - 1) // step + 1
    zero_in, zero_out = int(layer.input.zero_point), int(layer.output.zero_point)
    range_ = np.iinfo(layer.output.dtype)
    y = np.empty((N, outputs, Ho, Wo), layer.output.dtype)
    held = layer.scaling()
    for n, o, h, w in product(range(N), range(outputs), range(Ho), range(Wo)):
        total = int(layer.bias[o])  # type: ignore[index]
        first = o // (outputs // layer.groups) * per_group
        for c, i, j in product(range(per_group), range(K), range(K)):
            row, column = h * step - pad + i * apart, w * step - pad + j * apart
            inside = 0 <= row < H and 0 <= column < W
            pixel = int(x[n, first + c, row, column]) if inside else zero_in
            total += int(layer.weight[o, c, i, j]) * (pixel - zero_in)  # type: ignore[index]
        exact = Fraction(total * int(held.multiplier[o]), 2 ** int(held.right_shift[o]))
        whole = int(abs(exact) + Fraction(1, 2)) * (1 if exact >= 0 else -1)
        low = zero_out if layer.relu else range_.min
        y[n, o, h, w] = min(max(whole + zero_out, low), range_.max)
    return y


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2}, {"groups": 2}, {"dilation": 2}, {"relu": False, "stride": 2}],
    ids=str,
)
def test_a_convolution_is_what_loops_over_integers_give(
    settings: dict[str, Any], dtype: Any
) -> None:
    low = np.iinfo(dtype).min
    before, after = quantization(0.03, low + 9, dtype), quantization(0.05, low + 77, dtype)
    layer = conv("layer", 4, 6, before, after, seed=5, **settings)
    x = np.random.default_rng(1).integers(low, low + 256, (2, 4, 8, 7)).astype(dtype)
    y = layer.forward(x, "half-away")
    np.testing.assert_array_equal(y, by_hand(layer, x))
    assert len(np.unique(y)) > 30  # the range is used, so the test can fail


def test_pooling_is_the_mean_and_the_head_a_product() -> None:
    network = chain(rounding="half-away")
    *_, last, pool, linear = network.walk(images(network))
    assert [pool.layer.kind, linear.layer.kind] == ["pool", "linear"]
    pixels = int(np.prod(last.y.shape[2:]))
    real = last.layer.output.real(last.y).astype(np.float64).mean(axis=(2, 3))
    scale, zero = float(pool.layer.output.scale), int(pool.layer.output.zero_point)
    assert np.abs(pool.y - np.clip(real / scale + zero, -128, 127)).max() <= 0.501
    assert pool.accumulators.shape == (2, 24)
    assert pixels > 1
    weight = linear.layer.weight.astype(object)  # type: ignore[union-attr]
    sums = (pool.y.astype(object) - int(linear.layer.input.zero_point)) @ weight.T
    np.testing.assert_array_equal(linear.accumulators, sums + linear.layer.bias.astype(object))  # type: ignore[union-attr]


def test_real_images_are_quantised_by_the_first_scale() -> None:
    network = chain()
    first = network.layers[0].input
    real = np.random.default_rng(0).normal(size=(1, 3, 9, 9)).astype(np.float32)
    numbers = np.clip(np.rint(real / first.scale) + int(first.zero_point), -128, 127)
    assert (network.entered(real) == numbers).all()
    found, wanted = network.forward(real), network.forward(numbers.astype(np.int8))
    assert all((found[name] == wanted[name]).all() for name in wanted)


def test_sums_beyond_32_bits_are_refused() -> None:
    network = chain()
    first = network.layers[0]
    far = replace(first, bias=np.full_like(first.bias, 2**31 - 1))
    with pytest.raises(ReportedError, match="leaves int32"):
        far.accumulate(images(network))


def test_a_network_that_leaves_its_rounding_open_does_not_compute() -> None:
    network = chain().rounded(ANY)
    with pytest.raises(ReportedError, match="leaves its rounding open"):
        network.forward(images(network))


def test_layers_that_do_not_fit_are_refused() -> None:
    one, two, *_ = chain().layers
    with pytest.raises(ReportedError, match="another scale"):
        IntegerNetwork((one, replace(two, input=quantization(1.0, 0))), "single")
    with pytest.raises(ReportedError, match="other channels"):
        IntegerNetwork((one, replace(two, groups=3)), "single")
    with pytest.raises(ReportedError, match="did you mean single"):
        IntegerNetwork((one,), "singel")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_a_file_comes_back_as_it_was(tmp_path: Path, dtype: Any) -> None:
    network = chain(dtype=dtype, rounding="double")
    held = network.layers[0].scaling()
    fixed = replace(
        network.layers[0],
        multiplier=held.multiplier.astype(np.int32),
        shift=held.shift.astype(np.int8),
    )
    network = replace(network, layers=(fixed, *network.layers[1:]))
    write_network(tmp_path / "net.npz", network)
    again = read_network(tmp_path / "net.npz")
    x = images(network)
    assert again.rounding == "double"
    for name in SCHEMES:
        a, b = network.rounded(name).forward(x), again.rounded(name).forward(x)
        assert a.keys() == b.keys()
        assert all((a[layer] == b[layer]).all() for layer in a)
    with np.load(tmp_path / "net.npz") as plain:  # NumPy reads it, and so does any zip reader
        said = json.loads(str(plain["__metadata__"]))
        assert (said["format"], said["version"], said["layers"][2]["groups"]) == (FORMAT, 1, 2)
        assert plain["stage0.weight"].dtype == np.int8


def _rewritten(path: Path, change: Any) -> Path:
    write_network(path, chain())
    with np.load(path) as plain:
        arrays = dict(plain)
    said = json.loads(str(arrays.pop("__metadata__")))
    change(said, arrays)
    np.savez(path, __metadata__=np.array(json.dumps(said)), **arrays)
    return path


def test_a_file_written_by_numpy_with_the_least_that_is_needed_is_read(tmp_path: Path) -> None:
    def least(said: Any, arrays: Any) -> None:
        for layer in said["layers"]:
            for key, usual in (("groups", 1), ("dilation", 1), ("stride", 1), ("padding", 0)):
                if layer.get(key) == usual:
                    del layer[key]

    again = read_network(_rewritten(tmp_path / "net.npz", least))
    network, x = chain(), images(chain())
    assert (again.forward(x)["linear"] == network.forward(x)["linear"]).all()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda said, _: said.update(version=2), "another version"),
        (lambda said, _: said.update(format="other"), "no integer network"),
        (lambda said, _: said.update(layers=3), "no list"),
        (lambda said, _: said["layers"][1].update(name="stage0"), "names of their own"),
        (lambda said, _: said["layers"][0].update(stride=0), "bad stride"),
        (lambda said, _: said["layers"][0].update(stride=True), "bad stride"),
        (lambda said, _: said["layers"][0].update(strides=1), "did you mean stride"),
        (lambda said, _: said["layers"][0].update(kind="conv3d"), "bad kind"),
        (lambda said, _: said["layers"][0].update(relu=1), "bad relu"),
        (lambda said, _: said.update(rounding="round"), "unknown rounding"),
        (lambda _, arrays: arrays.pop("stage0.bias"), "stage0.bias is missing"),
        (lambda _, arrays: arrays.update(extra=np.zeros(2)), "belongs to no layer"),
        (lambda _, a: a.update({"stage0.bias": a["stage0.bias"].astype(np.int64)}), "bad bias"),
        (lambda _, a: a.update({"stage0.bias": a["stage0.bias"][:-1]}), "bad bias"),
        (lambda _, a: a.update({"stage0.weight_scale": -a["stage0.weight_scale"]}), "no scale"),
        (lambda _, a: a.update({"stage0.weight": a["stage0.weight"][0]}), "bad weight"),
    ],
)
def test_files_that_do_not_fit_say_what_is_wrong(tmp_path: Path, change: Any, says: str) -> None:
    path = _rewritten(tmp_path / "net.npz", change)
    with pytest.raises(ReportedError, match=says):
        read_network(path)
