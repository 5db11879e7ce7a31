"""Our reader against files that torch writes, and torch against files that our writers write."""

from __future__ import annotations

import argparse
import collections
import sys
import warnings
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import repvgg_ref
import weights_io

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.peers

LAYOUTS = [
    pytest.param({"pickle_protocol": protocol, "_use_new_zipfile_serialization": new}, id=name)
    for new, container in ((True, "zip"), (False, "legacy"))
    for protocol in (2, 3, 4, 5)
    for name in [f"{container}-{protocol}"]
]
DTYPES = ["float16", "bfloat16", "float32", "float64", "int64", "int32", "int16", "int8", "uint8"]


def saved(value: object, **options: Any) -> BytesIO:
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that protocols above 2 are not its own
        torch.save(value, buffer, **options)
    return buffer


def to_numpy(tensor: Any) -> NDArray[Any]:
    plain = tensor.detach().resolve_neg().contiguous()
    array: NDArray[Any] = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def assert_same_tree(got: object, wanted: Any) -> None:
    if isinstance(wanted, torch.Tensor):
        assert isinstance(got, weights_io.LazyArray)
        assert got.dtype == str(wanted.dtype).removeprefix("torch.")
        np.testing.assert_array_equal(got.read(), to_numpy(wanted), strict=True)
    elif isinstance(wanted, np.ndarray):
        assert isinstance(got, weights_io.LazyArray)
        np.testing.assert_array_equal(got.read(), wanted, strict=True)
    elif isinstance(wanted, argparse.Namespace):
        assert isinstance(got, weights_io.Inert)
        assert_same_tree(got.value, vars(wanted))
    elif isinstance(wanted, dict):
        content = got.value if isinstance(got, weights_io.Inert) else got
        assert isinstance(content, dict)
        for (key, value), (known, meant) in zip(content.items(), wanted.items(), strict=True):
            if isinstance(key, weights_io.Inert):  # what an object or a tuple as a key becomes
                assert type(known) not in (str, int)
            else:
                assert (type(key), key) == (type(known), known)
            assert_same_tree(value, meant)
    elif isinstance(wanted, list | tuple):
        assert isinstance(got, list | tuple)
        assert len(got) == len(wanted)
        for one, other in zip(got, wanted, strict=True):
            assert_same_tree(one, other)
    elif isinstance(wanted, torch.device | torch.dtype):
        assert isinstance(got, weights_io.Inert)
        assert got.value == str(wanted).removeprefix("torch.")
    else:
        assert got == wanted


def assert_read_back(value: object, options: dict[str, Any]) -> None:
    with weights_io.open_weights(saved(value, **options)) as archive:
        new = options.get("_use_new_zipfile_serialization", True)
        assert archive.container == ("torch-zip" if new else "torch-legacy")
        assert_same_tree(archive.root, value)


def awkward_tensors() -> dict[str, Any]:
    base = torch.arange(60, dtype=torch.float32)
    square = base.reshape(3, 4, 5)
    return {
        "whole": base,
        "shared": base[10:20],
        "transposed": square.permute(2, 0, 1),
        "strided": square[::2, 1::2, ::3],
        "expanded": base[:3, None].expand(3, 7),
        "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "empty_view": base[60:],
        "parameter": torch.nn.Parameter(torch.rand(3)),
        "negated": torch.view_as_complex(torch.rand(3, 2)).conj().imag,
        "flags": torch.tensor([True, False]),
        **{dtype: torch.arange(-3, 4).to(getattr(torch, dtype)) for dtype in DTYPES},
    }


@pytest.mark.parametrize("options", LAYOUTS)
def test_awkward_tensors_are_read(options: dict[str, Any]) -> None:
    assert_read_back(awkward_tensors(), options)


@pytest.mark.parametrize("options", LAYOUTS)
def test_a_module_state_dict_is_read(options: dict[str, Any]) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    assert_read_back(module.state_dict(), options)


@pytest.fixture
def cfg_node() -> Iterator[type]:
    """A CfgNode as yacs has it, under yacs's own module name."""
    module = ModuleType("yacs.config")

    class CfgNode(dict[str, Any]):
        def __init__(self, content: dict[str, Any]) -> None:
            super().__init__(content)
            self.__dict__["__immutable__"] = False
            self.__dict__["__deprecated_keys__"] = set()
            self.__dict__["__renamed_keys__"] = {}
            self.__dict__["__new_allowed__"] = False

    CfgNode.__module__, CfgNode.__qualname__ = "yacs.config", "CfgNode"
    module.CfgNode = CfgNode  # type: ignore[attr-defined]
    sys.modules |= {"yacs": ModuleType("yacs"), "yacs.config": module}
    yield CfgNode
    del sys.modules["yacs"], sys.modules["yacs.config"]


@pytest.mark.parametrize("options", LAYOUTS)
def test_a_training_checkpoint_is_read(options: dict[str, Any], cfg_node: type) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, momentum=0.9, nesterov=True)
    module(torch.rand(2, 3, 5, 5)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    history: dict[str, list[int]] = collections.defaultdict(list, a=[1, 2])
    checkpoint = {
        "epoch": 119,
        "arch": "RepVGG-A0",
        "state_dict": {f"module.{name}": value for name, value in module.state_dict().items()},
        "best_acc1": torch.tensor(72.41),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(lr=0.1, dist_url="tcp://x", gpu=None, names=["a"]),
        "config": cfg_node({"MODEL": cfg_node({"ARCH": "A0"}), "LR": 0.1, "SIZES": (224, 224)}),
        "max_accuracy": np.float64(0.7241),
        "step": np.int64(7),
        "rng": np.arange(5),
        "history": history,
        "device": torch.device("cuda", 0),
        "dtype": torch.float32,
        "size": torch.Size([2, 3]),
        "seen": {"x", "y"},
        "big": 1 << 70,
        "negative": -5,
    }
    assert_read_back(checkpoint, options)


@pytest.mark.parametrize("options", LAYOUTS)
def test_a_whole_module_is_its_state_dict_and_a_name(options: dict[str, Any]) -> None:
    """It was refused by that name before modules were walked as data (issue 17)."""
    module = torch.nn.Conv2d(1, 2, 3)
    with weights_io.open_weights(saved(module, **options)) as archive:
        assert isinstance(archive.root, weights_io.PickledModule)
        assert archive.root.type_name == "torch.nn.modules.conv.Conv2d"
        found = archive.root.arrays()
        assert list(found) == list(module.state_dict())
        for name, wanted in module.state_dict().items():
            np.testing.assert_array_equal(found[name].read(), wanted.numpy(), strict=True)


def test_a_class_alone_is_refused_by_its_name() -> None:
    with pytest.raises(weights_io.RefusedGlobalError, match=r"torch\.nn\.modules\.conv\.Conv2d"):
        weights_io.open_weights(saved(torch.nn.Conv2d))


def test_a_torchscript_archive_is_refused() -> None:
    buffer = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    with pytest.raises(weights_io.WeightsFileError, match="TorchScript"):
        weights_io.open_weights(buffer)


@pytest.mark.parametrize("kind", ["complex", "sparse", "quantized", "float8"])
def test_tensors_that_weights_do_not_have_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    """Where they are the weights; beside weights they are dead records."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tensor = {
            "complex": lambda: torch.zeros(2, dtype=torch.complex64),
            "sparse": lambda: torch.eye(2).to_sparse(),
            "quantized": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
            "float8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
        }[kind]()
    for among in ({}, {"stage0.rbr_dense.conv.weight": torch.zeros(4, 3, 3, 3)}):
        path = tmp_path / "a.pth"
        path.write_bytes(saved({"w": tensor} | among).getvalue())
        with weights_io.open_weights(path) as archive:
            root: Any = archive.root
            assert isinstance(root["w"], weights_io.Inert)
        with pytest.raises(weights_io.RefusedGlobalError, match=r"refused global torch\..*entry w"):
            repvgg_ref.load(path)


@pytest.mark.parametrize("container", ["torch-zip", "torch-legacy"])
@pytest.mark.parametrize("dtype", [*DTYPES, "bool"])
def test_torch_loads_what_we_write(tmp_path: Path, container: Any, dtype: str) -> None:
    rng = np.random.default_rng(0)
    kept = "float32" if dtype == "bfloat16" else dtype
    arrays = [rng.integers(0, 100, shape).astype(kept) for shape in ((), (0, 2), (3, 4, 5))]
    specs = [weights_io.ArraySpec(f"a.{i}", a.shape, dtype) for i, a in enumerate(arrays)]
    weights_io.write_weights(tmp_path / "w.pth", specs, arrays, container=container)
    loaded = torch.load(tmp_path / "w.pth", weights_only=True)
    assert type(loaded) is collections.OrderedDict
    assert list(loaded) == [spec.name for spec in specs]
    for tensor, wanted in zip(loaded.values(), arrays, strict=True):
        assert str(tensor.dtype) == f"torch.{dtype}"
        np.testing.assert_array_equal(to_numpy(tensor), wanted, strict=True)


def test_torch_maps_our_zip_into_memory(tmp_path: Path) -> None:
    wanted = np.arange(1000, dtype=np.float32)
    weights_io.save_weights(tmp_path / "w.pth", {"w": wanted}, container="torch-zip")
    loaded = torch.load(tmp_path / "w.pth", weights_only=True, mmap=True)
    np.testing.assert_array_equal(loaded["w"].numpy(), wanted)


@pytest.mark.parametrize("container", ["torch-zip", "torch-legacy"])
def test_a_module_takes_what_we_write(tmp_path: Path, container: Any) -> None:
    source = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    arrays = {name: to_numpy(value) for name, value in source.state_dict().items()}
    weights_io.save_weights(tmp_path / "w.pth", arrays, container=container)
    target = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    target.load_state_dict(torch.load(tmp_path / "w.pth", weights_only=True))
    for name, value in target.state_dict().items():
        np.testing.assert_array_equal(to_numpy(value), arrays[name])
