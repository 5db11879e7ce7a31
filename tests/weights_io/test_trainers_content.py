"""What trainers leave beside the weights: known by its exact name, stepped over, never run."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from io import BytesIO
from struct import pack
from typing import Any

import numpy as np
import pytest

import weights_io
from tests.weights_io.forge import (
    ORDERED,
    OS_SYSTEM,
    proto,
    state_dict,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_zip,
)
from tests.weights_io.refusal import CANARY, assert_refused, read_everything
from weights_io.pickles.foreign import foreign_globals

FIRE = f"c{CANARY}\nfire\n".encode()
HISTORY = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
MEAN = b"c__builtin__\ngetattr\n" + HISTORY + text("mean") + b"\x86R"
PATH = b"cpathlib\nPosixPath\n" + text("/") + text("runs") + b"\x86R"
OPTIONS = b"clightning_fabric.utilities.data\nAttributeDict\n)\x81"
VALUES = np.array([1.5, -2.0, 3.25, 0.5], "<f4")
ATTRIBUTES = b"}" + text("tag") + text("x") + b"s"

# name: what stands beside the weights, and what is left of it
BESIDE: dict[str, tuple[bytes, object]] = {
    "a counter": (b"ccollections\nCounter\n}K\x03K\x01s\x85R", "collections.Counter"),
    "a deque": (b"ccollections\ndeque\n)K\x05\x86RK\x01a(K\x02K\x03e", "collections.deque"),
    "a set of numbers": (b"c__builtin__\nset\n](K\x01K\x02e\x85R", "builtins.set"),
    "a frozen set": (b"c__builtin__\nfrozenset\n](K\x01e\x85R", "builtins.frozenset"),
    "a path": (PATH, "pathlib.PosixPath"),
    "a date": (b"cdatetime\ndate\n" + text("0000") + b"\x85R", "datetime.date"),
    "a history": (
        HISTORY + b")\x81}" + text("statistics_methods") + b"}" + text("mean") + MEAN + b"ssb",
        "mmengine.logging.history_buffer.HistoryBuffer",
    ),
    "a history's method": (MEAN, "mmengine.logging.history_buffer.HistoryBuffer"),
    "options": (
        OPTIONS + b"(" + text("lr") + b"K\x01" + text("w") + tensor() + b"u",
        "lightning_fabric.utilities.data.AttributeDict",
    ),
    "options that hold themselves": (
        b"comegaconf.dictconfig\nDictConfig\n)\x81q\x07}" + text("_parent") + b"h\x07sb",
        "omegaconf.dictconfig.DictConfig",
    ),
    "a layout": (
        b"ctorch.serialization\n_get_layout\n" + text("torch.strided") + b"\x85R",
        "torch.serialization._get_layout",
    ),
}


def _with_values(obj: bytes) -> bytes:
    return torch_zip(obj, {"0": VALUES.tobytes()})


def _assert_values(data: bytes, name: str = "w") -> dict[str, Any]:
    with weights_io.open_weights(BytesIO(data)) as archive:
        root: Any = archive.root
        np.testing.assert_array_equal(root[name].read(), VALUES, strict=True)
        assert isinstance(root, dict)
        return root


@pytest.mark.parametrize("case", BESIDE)
def test_the_weights_beside_it_are_read_and_it_is_inert(case: str) -> None:
    beside, type_name = BESIDE[case]
    root = _assert_values(_with_values(state_dict({"beside": beside, "w": tensor()})))
    assert root["beside"] == weights_io.Inert(str(type_name), None)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_known_name_takes_anything_and_keeps_nothing(legacy: bool) -> None:
    """As a value, a key, a call and an instance; with arguments, state and items."""
    for (module, name), known in foreign_globals():
        this = f"c{module}\n{name}\n".encode()
        weights = tensor(of=storage(legacy=legacy))
        parts = {
            "value": this,
            "key": b"}" + this + b"K\x01s",
            "call": this + b"K\x01\x85R}" + text("a") + weights + b"sb",
            "instance": this + text("x") + b"\x85\x81K\x01a(K\x01K\x02e" + text("k") + b"K\x01s",
            "w": weights,
        }
        body = state_dict(parts)
        record = VALUES.tobytes()
        data = torch_legacy(body, records=[(4, record)]) if legacy else _with_values(body)
        root = _assert_values(data)
        listed = known.is_listed  # all but functions that make tensors which cannot be weights
        assert listed != (module == "torch._utils")
        assert root["value"] == weights_io.Inert("type", known.type_name, listed)
        assert root["call"] == root["instance"] == weights_io.Inert(known.type_name, None, listed)
        assert root["key"] == {weights_io.Inert(known.type_name, 0): 1}


# Whatever is handed to a known name is read, so that what hides in it is found.
HIDES: dict[str, Callable[[bytes], bytes]] = {
    "an argument": lambda evil: b"cpathlib\nPath\n" + evil + b"\x85R",
    "a state": lambda evil: HISTORY + b")\x81}" + text("x") + evil + b"sb",
    "an item": lambda evil: OPTIONS + text("x") + evil + b"s",
    "a set": lambda evil: b"\x8f(" + evil + b"\x90",
    "a frozen set": lambda evil: b"(" + evil + b"\x91",
    "a parameter's attributes": lambda evil: (
        b"ctorch._utils\n_rebuild_parameter_with_state\n("
        + tensor()
        + b"\x88"
        + ORDERED
        + b"}"
        + text("x")
        + evil
        + b"stR"
    ),
}


@pytest.mark.parametrize("place", HIDES)
@pytest.mark.parametrize("evil", [FIRE, OS_SYSTEM, FIRE + text("echo") + b"\x85R"])
def test_a_name_that_hides_in_a_known_object_is_refused(place: str, evil: bytes) -> None:
    body = proto(ORDERED + b"(" + text("a") + b"K\x01" + text("b") + HIDES[place](evil) + b"u", 4)
    for data in (torch_zip(body), body):
        if tensor() in body and data is body:
            continue
        assert_refused(data, "refused global", weights_io.RefusedGlobalError)


GETATTR = {
    "alone": b"c%s\ngetattr\n",
    "of a module": b"c%s\ngetattr\n" + text("os") + text("system") + b"\x86R",
    "of another known class": b"c%s\ngetattr\ncpathlib\nPath\n" + text("mean") + b"\x86R",
    "of another method": b"c%s\ngetattr\n" + HISTORY + text("__init__") + b"\x86R",
    "of its result": b"c%s\ngetattr\n" + MEAN + text("mean") + b"\x86R",
    "of a list": b"c%s\ngetattr\n" + HISTORY + b"]\x86R",
    "of one thing": b"c%s\ngetattr\n" + HISTORY + b"\x85R",
}


@pytest.mark.parametrize("case", GETATTR)
@pytest.mark.parametrize("module", [b"builtins", b"__builtin__"])
def test_getattr_gives_one_class_its_methods_and_nothing_else(case: str, module: bytes) -> None:
    data = proto(GETATTR[case].replace(b"%s", module))
    message = assert_refused(data, "refused global", weights_io.RefusedGlobalError)
    assert f"{module.decode()}.getattr" in message


def test_a_refused_name_is_told_with_the_entry_that_holds_it() -> None:
    hub = b"}(" + text("a") + b"K\x01" + text("log\x1b[2J") + FIRE + b")Ru"
    body = state_dict({"w": tensor(), "message_hub": hub})
    message = assert_refused(torch_zip(body), "refused global", weights_io.RefusedGlobalError)
    assert r"(in the entry message_hub.log\x1b[2J)" in message


# A parameter, a tensor with attributes, and tensors of the first torch.
CARRIED = {
    "a parameter": b"ctorch._utils\n_rebuild_parameter\n(" + tensor() + b"\x88" + ORDERED + b"tR",
    "a parameter with attributes": (
        b"ctorch._utils\n_rebuild_parameter_with_state\n("
        + tensor()
        + b"\x88"
        + ORDERED
        + ATTRIBUTES
        + b"tR"
    ),
    "a tensor with attributes": (
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
        b"ctorch\nTensor\n("
        + storage()
        + b"K\x00K\x04\x85K\x01\x85\x89"
        + ORDERED
        + b"t"
        + ATTRIBUTES
        + b"tR"
    ),
    "torch 0.3": (b"ctorch._utils\n_rebuild_tensor\n(" + storage() + b"K\x00K\x04\x85K\x01\x85tR"),
}


@pytest.mark.parametrize("case", CARRIED)
def test_tensors_of_every_kind_are_the_same_numbers(case: str) -> None:
    _assert_values(_with_values(state_dict({"w": CARRIED[case]})))


def _hung(state: bytes) -> dict[str, bytes]:
    """A parameter, and a tensor, that torch sets these attributes on."""
    made = storage() + b"K\x00K\x04\x85K\x01\x85\x89" + ORDERED
    return {
        "a parameter": b"ctorch._utils\n_rebuild_parameter_with_state\n("
        + tensor() + b"\x88" + ORDERED + state + b"tR",
        "a tensor": b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n"
        b"ctorch\nTensor\n(" + made + b"t" + state + b"tR",
        "a parameter of its class": b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n"
        b"_rebuild_parameter_with_state\nctorch.nn.parameter\nParameter\n(" + tensor() + b"\x88"
        + ORDERED + state + b"t" + b"NtR",
    }  # fmt: skip


def _said(name: str, value: bytes) -> bytes:
    return b"}" + text(name) + value + b"s"


# torch sets each of these on the tensor, one by one, and so its values may be others afterwards.
CHANGING = {
    "its data": (_said("data", tensor()), "a tensor's own attribute data"),
    "its data, in a slot": (b"N" + _said("data", tensor()) + b"\x86", "own attribute data"),
    "its data, as nothing": (_said("data", b"N"), "a tensor's own attribute data"),
    "its real part": (_said("real", tensor()), "a tensor's own attribute real"),
    "its gradient": (_said("requires_grad", b"\x89"), "own attribute requires_grad"),
    "its hooks": (_said("_backward_hooks", b"}"), "own attribute _backward_hooks"),
    "its class": (_said("__class__", b"ctorch\nTensor\n"), "own attribute __class__"),
    "a method": (_said("detach", HISTORY), "an attribute detach that is no plain data"),
    "another tensor": (_said("main", tensor()), "an attribute main that is no plain data"),
    "no dict": (b"]", "attributes of an unknown form"),
    "three states": (b"}}}\x87", "attributes of an unknown form"),
    "a number for a name": (b"}K\x01K\x01s", "own attribute 1 is set anew"),
    "too many": (
        b"}(" + b"".join(text(f"a{i}") + b"K\x01" for i in range(65)) + b"u",
        "an unknown form",
    ),
}


@pytest.mark.parametrize("case", CHANGING)
def test_an_attribute_that_may_change_a_tensor_is_refused(case: str) -> None:
    state, why = CHANGING[case]
    for made in _hung(state).values():
        assert_refused(torch_zip(state_dict({"w": made})), why)


@pytest.mark.parametrize(
    "state", [b"N", b"}", _said("is_norm", b"\x88"), b"N}\x86", _said("dims", b"]")]
)
def test_an_attribute_that_is_plain_data_is_let_go(state: bytes) -> None:
    for made in _hung(state).values():
        _assert_values(_with_values(state_dict({"w": made})))


@pytest.mark.parametrize(
    "function", [b"ccollections\nOrderedDict\n", b"c_codecs\nencode\n", b"cpathlib\nPath\n"]
)
def test_a_tensor_is_rebuilt_by_torchs_functions_only(function: bytes) -> None:
    body = b"ctorch._tensor\n_rebuild_from_type_v2\n(" + function + b"ctorch\nTensor\n)}tR"
    assert_refused(torch_zip(proto(body)), "arguments it never has")


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpys_random_states_and_scalars(protocol: int) -> None:
    states = {
        "w": VALUES,
        "legacy": np.random.RandomState(3).get_state(),
        "state": np.random.RandomState(3),
        "generator": np.random.default_rng(3),
        "unsigned": np.uint32(7),
        "name": np.str_("A0"),
        "names": np.array(["A0", "B1"]),
        "bytes": np.array([b"ab", b"c"]),
        "complex": np.array([1j]),
        "type": np.float32,
    }
    root = _assert_values(pickle.dumps(states, protocol))
    assert root["legacy"][0] == "MT19937"
    assert root["legacy"][1] == root["names"] == weights_io.Inert("numpy.ndarray", None)
    assert root["type"] == weights_io.Inert("type", "numpy.float32")


@pytest.mark.parametrize("code", ["O", "V8", "M8", "U-1", "U9999999", "u3", "U", "(2,)f4", "f4,f4"])
def test_other_numpy_types_are_refused(code: str) -> None:
    data = proto(b"cnumpy\ndtype\n" + text(code) + b"\x89\x88\x87R")
    assert_refused(data, "object array|none that weights come in")


def test_dicts_with_odd_keys_are_kept_apart() -> None:
    body = b"}(G" + pack(">d", 0.5) + b"K\x01NK\x02\x88K\x03G" + pack(">d", 0.5) + b"K\x04u"
    root = read_everything(proto(body))
    inert = weights_io.Inert
    assert root == {inert("float", 0): 1, inert("NoneType", 1): 2, inert("bool", 2): 3} | {
        inert("float", 3): 4
    }


def test_many_sets_of_one_list_cost_what_one_costs() -> None:
    """Each would be copied and looked through again: 200 kB asked for gigabytes."""
    items = b"](" + b"K\x01" * 20_000 + b"eq\x00"
    one = b"c__builtin__\nset\nq\x01h\x00\x85R"
    body = b"(" + items + one + b"h\x01h\x00\x85R" * 2_000 + b"t"
    assert_refused(proto(body), "sets of the pickle hold too much", weights_io.LimitError)


def test_numbers_that_hash_alike_cost_nothing_in_a_set() -> None:
    step = (1 << 61) - 1
    numbers = b"".join(b"\x8a\x0b" + (i * step).to_bytes(11, "little") for i in range(20_000))
    root = read_everything(proto(b"\x8f(" + numbers + b"\x90", 4))
    assert root == weights_io.Inert("builtins.set", None)
