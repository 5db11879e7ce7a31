"""Files as trainers of torch write them: the weights come out bit by bit, the rest is stepped over.

mmengine, Lightning and omegaconf are not installed; classes of their names and habits stand in.
"""

from __future__ import annotations

import collections
import datetime
import json
import pathlib
import random
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import repvgg_ref as rr
from repvgg_ref.files.convert import convert
from repvgg_ref.models.architectures import plain_architecture
from tests.random_networks import random_model

torch = pytest.importorskip("torch")

from tests.peers.torch_repvgg import build_torch, to_torch  # noqa: E402  (torch may be absent)

pytestmark = pytest.mark.peers

SMALL = plain_architecture(depths=(2, 2), channels=(4, 4, 6), groups=2, num_classes=5)
State = dict[str, Any]


def _network(seed: int = 0) -> Any:
    network = build_torch(SMALL)
    network.load_state_dict(to_torch(random_model(SMALL, seed).state_dict()), strict=True)
    return network.eval()


def _assert_read(path: Path, wanted: State, **options: Any) -> None:
    found = rr.load(path, **options).state_dict()
    assert list(found) == list(wanted)
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(found[name], tensor.detach().numpy(), strict=True)


def _class(module: str, name: str, bases: tuple[type, ...] = (), **members: Any) -> Any:
    made = type(name, bases, members)
    made.__module__, made.__qualname__ = module, name
    for member in members.values():
        if isinstance(member, types.FunctionType):
            member.__module__, member.__qualname__ = module, f"{name}.{member.__name__}"
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:end]), types.ModuleType(".".join(parts[:end])))
    setattr(sys.modules[module], name, made)
    return made


_STAND_INS = ("mmengine", "lightning_fabric", "omegaconf", "pytorch_lightning")


@pytest.fixture
def _no_new_modules() -> Iterator[None]:
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in _STAND_INS:
            del sys.modules[name]


def _history(_: Any) -> Any:
    """mmengine's buffer keeps its class's methods in every instance's state."""

    def mean(self: Any) -> None: ...
    def current(self: Any) -> None: ...

    made = _class("mmengine.logging.history_buffer", "HistoryBuffer", mean=mean, current=current)
    buffer = made()
    buffer.__dict__.update(
        _log_history=np.array([0.5, 0.4]),
        _count_history=np.array([1, 1]),
        max_length=1_000_000,
        statistics_methods={"mean": made.mean, "current": made.current},
    )
    runtime = {"cfg": "model = dict()", "iter": np.int64(7)}
    return {"log_scalars": collections.OrderedDict(loss=buffer), "runtime_info": runtime}


def _options(_: Any) -> Any:
    options = _class("lightning_fabric.utilities.data", "AttributeDict", (dict,))
    made = options(lr=0.1, logs=pathlib.PurePosixPath("/runs"), model=options(depth=3))
    return {"hyper_parameters": made, "hparams_name": "hparams"}


def _linked(_: Any) -> Any:
    """omegaconf's nodes know their parents, and types stand among their fields."""
    configuration = _class("omegaconf.dictconfig", "DictConfig")
    node = _class("omegaconf.nodes", "AnyNode")
    root, leaf = configuration(), node()
    leaf.__dict__.update(_parent=root, _val=0.1)
    root.__dict__.update(_parent=None, _content={"lr": leaf}, kind=dict, any=float)
    return {"cfg": root}


def _classes_as_keys(_: Any) -> Any:
    callback = _class("pytorch_lightning.callbacks.model_checkpoint", "ModelCheckpoint")
    return {"callbacks": {callback: {"best_model_score": torch.tensor(0.7), "dirpath": "/runs"}}}


def _schedulers(network: Any) -> Any:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    kinds: list[Any] = [
        torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5, 5]),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 7),
        torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=9),
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer),
    ]
    states = [kind.state_dict() for kind in kinds]
    return {"optimizer": optimizer.state_dict(), "lr_schedulers": states}


def _states_of_chance(_: Any) -> Any:
    return {
        "python": random.getstate(),
        "numpy": np.random.RandomState(3).get_state(),
        "legacy": np.random.RandomState(3),
        "generator": np.random.default_rng(3),
        "torch": torch.get_rng_state(),
        "cuda": [torch.get_rng_state()],
    }


def _odds_and_ends(_: Any) -> Any:
    return {
        "when": datetime.datetime.now(datetime.UTC),
        "took": datetime.timedelta(seconds=3),
        "where": pathlib.Path("/runs/3"),
        "seen": {1, 2, 3},
        "frozen": frozenset({"a", 2}),
        "counts": collections.Counter("abca"),
        "window": collections.deque([0.1, 0.2], maxlen=20),
        "best": np.float32(0.7),
        "size": np.uint16(224),
        "labels": np.array(["cat", "dog"]),
        "layout": torch.strided,
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "shape": torch.Size([1, 2]),
        "slice": slice(1, 3),
        "z": 1 + 2j,
        "scores": {0.5: 1, None: 2},
        "options": types.SimpleNamespace(lr=0.1),
    }


CONTENT: dict[str, Callable[[Any], Any]] = {
    "mmengine's history": _history,
    "Lightning's options": _options,
    "omegaconf": _linked,
    "classes as keys": _classes_as_keys,
    "schedulers": _schedulers,
    "states of chance": _states_of_chance,
    "odds and ends": _odds_and_ends,
}


@pytest.mark.few
@pytest.mark.usefixtures("_no_new_modules")
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("content", CONTENT)
def test_what_a_trainer_keeps_beside_the_weights_changes_nothing(
    tmp_path: Path, content: str, protocol: int, zipped: bool
) -> None:
    network = _network()
    root = {"state_dict": network.state_dict(), "epoch": 3, **CONTENT[content](network)}
    path = tmp_path / "epoch=3.ckpt"
    torch.save(root, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    _assert_read(path, network.state_dict())


def _averaged(network: Any) -> tuple[Any, State]:
    averaged = torch.optim.swa_utils.AveragedModel(network)
    averaged.update_parameters(_network(1))
    return averaged.state_dict(), averaged.module.state_dict()


def _pruned(network: Any) -> tuple[Any, State]:
    from torch.nn.utils import prune

    modules = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    for module in modules:
        prune.random_unstructured(module, "weight", 0.3)
    held = network.state_dict()
    for module in modules:
        prune.remove(module, "weight")
    plain = network.state_dict()
    return held, {name: plain[name] for name in _network().state_dict()}


def _profiled(network: Any) -> tuple[Any, State]:
    plain = dict(network.state_dict())
    for module in network.modules():
        module.register_buffer("total_ops", torch.zeros(1, dtype=torch.float64))
        module.register_buffer("total_params", torch.zeros(1, dtype=torch.float64))
    return network.state_dict(), plain


def _with_attributes(network: Any) -> tuple[Any, State]:
    for name, parameter in network.named_parameters():
        parameter.tag = name
    kept = network.state_dict(keep_vars=True)
    for name, buffer in network.named_buffers():
        buffer.seen = [name]
    return kept, network.state_dict()


def _whole(network: Any, beside: dict[str, Any]) -> tuple[Any, State]:
    class Whole(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.model = network
            for name, module in beside.items():
                setattr(self, name, module)

    return Whole().state_dict(), network.state_dict()


MADE: dict[str, Callable[[Any], tuple[Any, State]]] = {
    "averaged": _averaged,
    "pruned": _pruned,
    "profiled": _profiled,
    "attributes": _with_attributes,
    "with a weighted loss": lambda network: _whole(
        network, {"criterion": torch.nn.CrossEntropyLoss(weight=torch.ones(5))}
    ),
    "data-parallel": lambda network: (
        torch.nn.DataParallel(network).state_dict(),
        network.state_dict(),
    ),
}


@pytest.mark.slow  # torch takes seconds to load its compiler
@pytest.mark.parametrize("part", ["the network", "a block", "a part of a whole"])
def test_a_compiled_network_is_the_network(tmp_path: Path, part: str) -> None:
    network = _network()
    wanted = network.state_dict()
    if part == "a block":
        network.stage1[0] = torch.compile(network.stage1[0], backend="eager")
        held = network.state_dict()
    else:
        compiled = torch.compile(network, backend="eager")
        held = compiled.state_dict() if part == "the network" else _whole(compiled, {})[0]
    assert any("_orig_mod." in name for name in held)
    torch.save(held, tmp_path / "m.pth")
    _assert_read(tmp_path / "m.pth", wanted)


@pytest.mark.parametrize("how", MADE)
def test_what_torch_makes_of_a_network_is_the_network(tmp_path: Path, how: str) -> None:
    held, wanted = MADE[how](_network())
    for root in (held, {"epoch": 1, "model_state": held}):
        torch.save(root, tmp_path / "m.pth")
        _assert_read(tmp_path / "m.pth", wanted)


def test_an_archive_packed_again_or_unpacked_is_converted(tmp_path: Path) -> None:
    """By Windows, by macOS and not at all; the whole way through `convert`."""
    network = _network()
    torch.save(network.state_dict(), tmp_path / "m.pth")
    _assert_converted(tmp_path / "m.pth", network)
    with zipfile.ZipFile(tmp_path / "m.pth") as archive:
        archive.extractall(tmp_path)
        files = {name: archive.read(name) for name in archive.namelist()}
    with (
        zipfile.ZipFile(tmp_path / "windows.pth", "w", zipfile.ZIP_DEFLATED) as windows,
        zipfile.ZipFile(tmp_path / "mac.pth", "w", zipfile.ZIP_DEFLATED) as mac,
    ):
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.filename, info.create_system = name.replace("/", "\\"), 0
            windows.writestr(info, data)
            mac.writestr(name, data)
            folder, _, last = name.rpartition("/")
            mac.writestr(f"__MACOSX/{folder}/._{last}", b"\0\5\x16\7")
    for path in ("m", "windows.pth", "mac.pth"):
        _assert_converted(tmp_path / path, network)


def _assert_converted(path: Path, network: Any) -> None:
    out = path.with_name("deploy.npz")
    convert(path, out)
    model = random_model(SMALL, 0)
    model.load_state_dict({name: t.numpy() for name, t in network.state_dict().items()})
    found = rr.load(out).state_dict()
    for name, array in rr.fuse(model).state_dict().items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_read_by_their_index_or_folder(tmp_path: Path, kind: str) -> None:
    state = _network().state_dict()
    names = list(state)
    table: dict[str, str] = {}
    for number, part in enumerate((names[:50], names[50:])):
        file = f"model-{number + 1:05}-of-00002.{kind}"
        table |= dict.fromkeys(part, file)
        arrays = {name: state[name] for name in part}
        if kind == "bin":
            torch.save(arrays, tmp_path / file)
        else:
            pytest.importorskip("safetensors.torch").save_file(arrays, tmp_path / file)
    index = tmp_path / f"model.{kind}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1.5e3}, "weight_map": table}))
    _assert_read(index, state)
    _assert_read(tmp_path, state)


HEADS: dict[str, Callable[[], Any]] = {
    "fc": lambda: ("fc", torch.nn.Linear(6, 3)),
    "Sequential": lambda: (
        "classifier",
        torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Linear(6, 3)),
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_fork_with_another_head_computes_what_it_did_in_torch(tmp_path: Path, head: str) -> None:
    network = _network()
    name, module = HEADS[head]()
    del network.linear
    setattr(network, name, module.eval())
    torch.save(network.state_dict(), tmp_path / "m.pth")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)).double()
    with torch.no_grad():
        features = dict(_network().double().layers(x))["stage2.1"].mean((2, 3))
        wanted = module.double()(features).numpy()
    got = rr.load(tmp_path / "m.pth").forward(x.numpy())
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)


def test_a_backbone_gives_torchs_features_in_every_format(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    network = _network()
    del network.linear
    torch.save(network.state_dict(), tmp_path / "m.pth")
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = dict(_network().double().layers(x.double()))["stage2.1"].mean((2, 3)).numpy()
    model = rr.load(tmp_path / "m.pth")
    np.testing.assert_allclose(model.forward(x.double().numpy()), wanted, rtol=1e-9, atol=1e-9)
    convert(tmp_path / "m.pth", tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-3, atol=1e-4)
    assert session.get_outputs()[0].name == "features"
