"""`convert`, end to end: files that torch wrote in, every output format out, three runtimes asked.

The witness is the training-time network in torch, in float64. What the runtimes may differ by is
derived in `layer_bounds`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.files.convert import FORMATS, convert
from repvgg_ref.models.architectures import architecture, plain_architecture
from repvgg_ref.models.cost import cost
from repvgg_ref.models.graph import Network
from tests.random_networks import random_model

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from tests.peers.layer_bounds import (  # noqa: E402  (torch may be absent)
    block_bound,
    blocks,
    logits_bound,
    noisy_logits,
)
from tests.peers.torch_repvgg import build_torch, to_torch  # noqa: E402

pytestmark = pytest.mark.peers

NETWORKS = {
    "RepVGG-A0": architecture("RepVGG-A0"),
    "RepVGG-B1g4": architecture("RepVGG-B1g4"),
    "RepVGG-D2se": architecture("RepVGG-D2se"),
    "RepVGGplus-L2pse": architecture("RepVGGplus-L2pse"),
    "odd widths, grey, 3 classes": plain_architecture(
        depths=(2, 3, 1), channels=(6, 10, 14, 22), groups=2, num_classes=3, in_channels=1
    ),
    "one channel": plain_architecture(depths=(2,), channels=(1, 1), num_classes=2),
    "small, SE before ReLU": plain_architecture(
        depths=(2, 2), channels=(16, 16, 32), se="before_relu", num_classes=7
    ),
    "small plus": plain_architecture(
        depths=(2, 2, 4), channels=(8, 8, 12, 16), se="after_relu", num_classes=5, in_channels=4
    ),
}
SMALL = NETWORKS["odd widths, grey, 3 classes"]
BATCH, HEIGHT, WIDTH = 2, 48, 32


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is gone when the test is: pytest would keep gigabytes."""
    with TemporaryDirectory() as name:
        yield Path(name)


def _trained(arch: Network, seed: int = 0) -> Any:
    """The torch network with batch norms that have seen something."""
    network = build_torch(arch)
    network.load_state_dict(to_torch(random_model(arch, seed).state_dict()), strict=True)
    return network.eval()


def _images(arch: Network, seed: int = 1, batch: int = BATCH) -> Any:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, arch.in_channels, HEIGHT, WIDTH)).astype(np.float32)


# ------------------------------------------------------------ three runtimes, one witness


@pytest.mark.parametrize("arch", NETWORKS.values(), ids=NETWORKS.keys())
def test_every_format_computes_what_was_trained(arch: Network, folder: Path) -> None:
    train = _trained(arch)
    torch.save(train.state_dict(), folder / "train.pth")
    kinds = FORMATS if cost(arch).params_deploy < 20e6 else ("npz", "pth", "onnx")
    outputs = {kind: folder / f"deploy.{kind}" for kind in kinds}
    for kind, path in outputs.items():
        done = convert(folder / "train.pth", path)
        assert (done.model, done.format) == (arch.name, kind)
        assert done.self_check is not None
        assert done.self_check.ok

    deploy = build_torch(arch, deploy=True).eval()
    state = torch.load(outputs["pth"], weights_only=True)
    deploy.load_state_dict(state, strict=True)
    for kind in set(kinds) - {"pth", "onnx"}:
        for name, array in rr.load(outputs[kind]).state_dict().items():
            np.testing.assert_array_equal(array, state[name].numpy(), strict=True)

    x = _images(arch)
    with torch.no_grad():
        runtimes = {
            "torch on the .pth": {n: y.numpy() for n, y in deploy.layers(torch.from_numpy(x))},
            "repvgg-ref on the .npz": rr.load(outputs["npz"]).forward(x, layers=True),
            "ONNX Runtime on the .onnx": _onnx_layers(outputs["onnx"], arch, x),
        }
        _judge(arch, train.double(), deploy.double(), x, runtimes)


def _judge(
    arch: Network, train: Any, deploy: Any, x: Any, runtimes: dict[str, dict[str, Any]]
) -> None:
    """Every layer of every runtime within its local bound, its logits within the network's."""
    images = torch.from_numpy(x).double()
    want = train(images)
    allowed = 4 * max(
        float((noisy_logits(arch, train, deploy, images, seed) - want).abs().max())
        for seed in range(2)
    )
    print(f"\n{arch.name}: logits up to {float(want.abs().max()):.3g}, allowed error {allowed:.1e}")
    for runtime, layers in runtimes.items():
        assert list(layers) == list(arch.layer_names)
        used = _used(arch, train, deploy, images, layers)
        error = float((torch.from_numpy(layers["linear"]).double() - want).abs().max())
        print(f"  {runtime}: {used:.1%} of the local bound, logits off by {error:.1e}")
        assert used <= 1, runtime
        assert error <= allowed, runtime


def _used(arch: Network, train: Any, deploy: Any, x: Any, layers: dict[str, Any]) -> float:
    """The largest error of a layer on its own input, as a fraction of that layer's bound."""
    worst = 0.0
    for spec, three, one in blocks(arch, train, deploy):
        got = torch.from_numpy(layers[spec.name]).double()
        worst = max(worst, _ratio(got - three(x), block_bound(spec, one, x)))
        x = got
    got = torch.from_numpy(layers["linear"]).double()
    return max(worst, _ratio(got - train.linear(x.mean((2, 3))), logits_bound(train, x)))


def _ratio(error: Any, bound: Any) -> float:
    """Infinite for NaN, which `max` would drop."""
    ratio = float((error.abs() / (bound + 1e-38)).max())
    return ratio if ratio == ratio else float("inf")


def _onnx_layers(path: Path, arch: Network, x: Any) -> dict[str, Any]:
    """Every layer output, tapped, of a file that gives the same logits without taps."""
    logits = onnxruntime.InferenceSession(path).run(None, {"input": x})[0]
    model = onnx.load(path)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in arch.layer_names[:-1])
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = list(arch.layer_names)
    tapped = dict(zip(names, session.run(names, {"input": x}), strict=True))
    np.testing.assert_array_equal(tapped["linear"], logits)
    return tapped


def test_one_kernel_in_bfloat16_breaks_the_bound(folder: Path) -> None:
    """The judge is judged: it must not pass whatever comes."""
    arch = SMALL
    train = _trained(arch)
    torch.save(train.state_dict(), folder / "train.pth")
    convert(folder / "train.pth", folder / "deploy.npz")
    model = rr.load(folder / "deploy.npz")
    deploy = build_torch(arch, deploy=True).eval()
    deploy.load_state_dict(to_torch(model.state_dict()))
    x = _images(arch)
    model.params["stage2.1.fused.weight"].view(np.uint32)[...] &= 0xFFFF0000
    with torch.no_grad(), pytest.raises(AssertionError):
        _judge(arch, train.double(), deploy.double(), x, {"bad": model.forward(x, layers=True)})


# ------------------------------------------------------------- containers and wrappers


def _trainer_2021(network: Any) -> dict[str, Any]:
    """`.pth.tar` of the first official trainer, after one step, under DataParallel."""
    optimizer = _stepped(network)
    return {
        "epoch": 120,
        "arch": "RepVGG-A0",
        "state_dict": {f"module.{n}": t for n, t in network.state_dict().items()},
        "best_acc1": torch.tensor(72.41),
        "optimizer": optimizer.state_dict(),
        "scheduler": {"T_max": 120, "last_epoch": 7, "_last_lr": [0.1, 0.2]},
    }


def _trainer_2022(network: Any) -> dict[str, Any]:
    """`latest.pth` of the later trainer; the average differs from the weights."""
    optimizer = _stepped(network)
    return {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": {"last_epoch": 3},
        "max_accuracy": 78.5,
        "epoch": 3,
        "ema": _trained(SMALL, seed=5).state_dict(),
    }


def _stepped(network: Any) -> Any:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    network.train()
    network(torch.from_numpy(_images(SMALL))).sum().backward()
    optimizer.step()
    network.eval()
    return optimizer


WRAPPERS = {
    "bare": lambda network: network.state_dict(),
    "2021": _trainer_2021,
    "2022": _trainer_2022,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_and_containers_do_not_change_a_bit(
    wrapper: str, zipped: bool, folder: Path
) -> None:
    network = _trained(SMALL)
    root = WRAPPERS[wrapper](network)
    torch.save(root, folder / "train.pth", _use_new_zipfile_serialization=zipped)
    done = convert(folder / "train.pth", folder / "deploy.npz")
    assert done.container == ("torch-zip" if zipped else "torch-legacy")
    _assert_deploy(folder / "deploy.npz", network)
    if wrapper == "2022":
        convert(folder / "train.pth", folder / "ema.npz", weights="ema")
        _assert_deploy(folder / "ema.npz", _trained(SMALL, seed=5))


def _assert_deploy(path: Path, network: Any) -> None:
    """The file holds what fusing the torch network's arrays in memory gives, bit by bit."""
    model = random_model(SMALL, 0)
    model.load_state_dict({n: t.numpy() for n, t in network.state_dict().items()})
    want = rr.fuse(model).state_dict()
    got = rr.load(path).state_dict()
    assert list(got) == list(want)
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, strict=True)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions_are_read(dtype: str, folder: Path) -> None:
    network = _trained(SMALL).to(getattr(torch, dtype))
    torch.save(network.state_dict(), folder / "train.pth")
    convert(folder / "train.pth", folder / "deploy.npz")
    if dtype == "float64":
        assert rr.load(folder / "deploy.npz").params["stage0.fused.weight"].dtype == np.float64
    else:
        _assert_deploy(folder / "deploy.npz", network.float())


def test_tensors_that_share_and_stride_are_read(folder: Path) -> None:
    """Channels-last kernels, a transposed head, every vector a slice of one storage."""
    network = _trained(SMALL).to(memory_format=torch.channels_last)
    state = dict(network.state_dict())
    vectors = {n: t for n, t in state.items() if t.ndim == 1}
    shared = torch.cat(list(vectors.values()))
    starts = np.cumsum([0, *(len(t) for t in vectors.values())])
    for (name, tensor), start in zip(vectors.items(), starts[:-1], strict=True):
        state[name] = shared[start : start + len(tensor)]
    state["linear.weight"] = state["linear.weight"].T.contiguous().T
    torch.save(state, folder / "train.pth")
    convert(folder / "train.pth", folder / "deploy.npz")
    _assert_deploy(folder / "deploy.npz", network.to(memory_format=torch.contiguous_format))


# ------------------------------------------------------------------------- ONNX files


def _converted(folder: Path, arch: Network = SMALL, **options: Any) -> Path:
    torch.save(_trained(arch).state_dict(), folder / "train.pth")
    convert(folder / "train.pth", folder / "deploy.onnx", **options)
    return folder / "deploy.onnx"


def test_onnx_batch_and_size_are_dynamic_by_default(folder: Path) -> None:
    session = onnxruntime.InferenceSession(_converted(folder))
    x = _images(SMALL, batch=5)
    whole = session.run(None, {"input": x})[0]
    assert whole.shape == (5, 3)
    np.testing.assert_allclose(session.run(None, {"input": x[3:4]})[0], whole[3:4], rtol=1e-5)
    assert session.run(None, {"input": x[:, :, :33, :17]})[0].shape == (5, 3)


def test_onnx_batch_and_size_can_be_fixed(folder: Path) -> None:
    session = onnxruntime.InferenceSession(_converted(folder, batch=2, size=(HEIGHT, WIDTH)))
    (entry,) = session.get_inputs()
    assert (entry.name, entry.shape) == ("input", [2, 1, HEIGHT, WIDTH])
    x = _images(SMALL)
    dynamic = onnxruntime.InferenceSession(_converted(folder)).run(None, {"input": x})[0]
    np.testing.assert_allclose(session.run(None, {"input": x})[0], dynamic, rtol=1e-5, atol=1e-6)
    with pytest.raises(Exception, match="Got: 1 Expected: 2"):
        session.run(None, {"input": x[:1]})
