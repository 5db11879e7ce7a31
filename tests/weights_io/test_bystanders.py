"""Values of Python, NumPy, SciPy and torch beside the weights: dead records in every protocol."""

from __future__ import annotations

import array
import collections
import ipaddress
import pickle
import statistics
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import weights_io
from tests.weights_io.forge import (
    ORDERED,
    proto,
    state_dict,
    storage,
    tensor,
    text,
    torch_zip,
)
from tests.weights_io.refusal import assert_refused, read_everything

Inert = weights_io.Inert
WEIGHTS = np.arange(6, dtype=np.float32).reshape(2, 3)
ARRAY, SCALAR = "numpy.ndarray", "numpy scalar"
NESTED = np.dtype([("a", "f4"), ("b", [("c", "i2"), ("d", "S3")], (2,))], align=True)


class Labelled(np.ndarray):
    """An array of a class of its own."""


BESIDE: dict[str, tuple[Any, str]] = {
    "a date": (np.datetime64("2020-01-01"), SCALAR),
    "a date of no unit": (np.datetime64("NaT"), SCALAR),
    "a span of time": (np.timedelta64(3, "ns"), SCALAR),
    "dates": (np.array(["2020-01-01", "NaT"], "M8[s]"), ARRAY),
    "big-endian spans": (np.arange(3).astype(">m8[D]"), ARRAY),
    "a structured array": (np.zeros(2, [("a", "f4")]), ARRAY),
    "a structured array of parts": (np.zeros((2, 2), NESTED), ARRAY),
    "a long structured array": (np.zeros(5000, [("a", "f4"), ("b", "M8[s]")]), ARRAY),
    "a structure": (np.zeros(2, NESTED)[0], SCALAR),
    "a void": (np.void(b"abcd"), SCALAR),
    "a long text of numpy": (np.str_("a" * 3000), SCALAR),
    "records": (np.rec.array([(1, 2.0)]), "numpy.rec.recarray"),
    "a matrix": (np.matrix([[1]]), "numpy.matrix"),
    "a masked array": (np.ma.array([1, 2], mask=[False, True]), "numpy.ma.core._mareconstruct"),
    "an array of an own class": (np.zeros(2).view(Labelled), f"{__name__}.Labelled"),
    "a polynomial": (np.poly1d([1, 2]), "numpy.poly1d"),
    "a dtype": (np.dtype("f4"), "numpy.dtype"),
    "a structured dtype": (NESTED, "numpy.dtype"),
    "a sparse matrix": (sparse.csr_matrix(np.eye(2)), "scipy.sparse._csr.csr_matrix"),
    "a sparse array": (sparse.coo_array(np.eye(2)), "scipy.sparse._coo.coo_array"),
    "a chain of maps": (collections.ChainMap({"a": 1}), "collections.ChainMap"),
    "a distribution": (statistics.NormalDist(), "statistics.NormalDist"),
    "an error": (ValueError("x"), "builtins.ValueError"),
    "an interrupt": (KeyboardInterrupt(), "builtins.KeyboardInterrupt"),
    "an address": (ipaddress.ip_address("1.2.3.4"), "ipaddress.IPv4Address"),
    "a network": (ipaddress.ip_network("fe80::/64"), "ipaddress.IPv6Network"),
    "a long text": ("ä" * 70_000, "builtins.str"),
    "long bytes": (b"\xff" * 70_000, "builtins.bytes"),
}


def beside(value: Any, protocol: int) -> Any:
    """What is read of `value`, in a file whose weights are right."""
    data = pickle.dumps({"w": WEIGHTS, "list": [value], "v": WEIGHTS}, protocol)
    root: Any = read_everything(data)
    for name in ("w", "v"):
        np.testing.assert_array_equal(root[name].read(), WEIGHTS, strict=True)
    return root["list"][0]


@pytest.mark.few
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("what", BESIDE)
def test_values_beside_the_weights_are_dead_records(what: str, protocol: int) -> None:
    value, name = BESIDE[what]
    found = beside(value, protocol)
    assert (found.type_name, found.value) == (name, None)


@pytest.mark.parametrize("protocol", [2, 4])
def test_keys_of_any_type_are_kept_apart(protocol: int) -> None:
    keys = [(1, 2), (), b"a", b"b" * 2000, "c" * 2000, frozenset({1}), np.float32, np.dtype("f4")]
    found = beside({key: place for place, key in enumerate(keys)} | {"text": 8, 9: 9}, protocol)
    assert list(found.values()) == list(range(10))
    types = [key.type_name for key in found if isinstance(key, Inert)]
    assert types[:4] == ["tuple", "tuple", "bytes", "builtins.bytes"]
    assert types[4] == "builtins.str"
    assert types[5] in ("builtins.set", "builtins.frozenset")
    assert types[6:] == ["numpy.float32", "numpy.dtype"]
    assert (found["text"], found[9]) == (8, 9)


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_holds_itself_beside_the_weights_is_cut_off(protocol: int) -> None:
    alone: list[Any] = [1]
    alone.append(alone)
    first: dict[str, Any] = {"n": 1}
    second = {"of": [first]}
    first["second"] = second
    assert beside(alone, protocol) == [1, Inert("itself", None)]
    assert beside(first, protocol) == {"n": 1, "second": {"of": [Inert("itself", None)]}}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "value", [np.array([{"a": 1}], object), np.zeros(1, [("a", "O")])], ids=str
)
def test_object_arrays_stay_refused_wherever_they_stand(value: Any, protocol: int) -> None:
    data = pickle.dumps({"w": WEIGHTS, "x": value}, protocol)
    assert "malformed" not in assert_refused(data, "object array")


def test_alone_in_a_file_such_values_are_refused() -> None:
    holds: list[Any] = []
    holds.append(holds)
    for value, says in (
        (np.dtype("f4"), "dtype alone"),
        ("x" * 70_000, "too long"),
        (holds, "itself"),
    ):
        assert_refused(pickle.dumps(value, 4), says)


TORCH: dict[str, tuple[bytes, str]] = {
    "a meta tensor": (
        b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n(ctorch\nfloat32\nK\x02\x85K\x01\x85\x89tR",
        "torch._utils._rebuild_meta_tensor_no_storage",
    ),
    "a sparse tensor": (
        b"ctorch._utils\n_rebuild_sparse_tensor\n(N(" + tensor() + tensor() + b"K\x04\x85\x88ttR",
        "torch._utils._rebuild_sparse_tensor",
    ),
}
TORCH["a sparse parameter"] = (
    b"ctorch._utils\n_rebuild_parameter\n("
    + TORCH["a sparse tensor"][0]
    + b"\x88"
    + ORDERED
    + b"tR",
    TORCH["a sparse tensor"][1],
)
for _kind in ("ComplexFloatStorage", "ComplexDoubleStorage", "QUInt8Storage"):
    TORCH[f"of a {_kind}"] = tensor(of=storage(kind=_kind, key="1")), f"torch.{_kind}"
_UNTYPED = storage(kind="UntypedStorage", key="1").replace(b"ctorch\n", b"ctorch.storage\n")
TORCH["a tensor of a newer type"] = (
    b"ctorch._utils\n_rebuild_tensor_v3\n("
    + _UNTYPED
    + b"K\x00K\x02\x85K\x01\x85\x89"
    + ORDERED
    + b"ctorch\nuint16\ntR",
    "torch._utils._rebuild_tensor_v3",
)
TORCH["a tensor of an own class"] = (
    b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\ncmine\nBoxes\n("
    + storage()
    + b"K\x00K\x04\x85K\x01\x85\x89"
    + ORDERED
    + b"t}tR",
    "mine.Boxes",
)


@pytest.mark.parametrize("what", TORCH)
def test_other_tensors_beside_the_weights_are_dead_records(what: str) -> None:
    body, name = TORCH[what]
    root: Any = read_everything(torch_zip(state_dict({"w": tensor(), "x": body})))
    assert root["x"].type_name == name
    assert not root["x"].is_listed, "among weights it is refused by its name"
    assert root["w"].shape == (4,)


def test_a_storage_of_another_type_is_no_array_wherever_it_stands() -> None:
    name = storage(kind="ComplexFloatStorage", key="1")
    assert_refused(torch_zip(state_dict({"w": tensor(), "x": name})), "where data should be")
    assert_refused(torch_zip(state_dict({"w": name.replace(b"ctorch", b"cother")})), "other.Compl")
    mixed = tensor(of=storage(kind="QInt8Storage"))
    assert_refused(torch_zip(state_dict({"w": tensor(), "x": mixed})), "two types")


def test_a_name_that_hides_in_what_is_stepped_over_is_refused() -> None:
    evil = b"cos\nsystem\n" + text("echo") + b"\x85R"
    dtype = b"cnumpy\ndtype\n" + text("V4") + b"\x89\x88\x87R"
    for body in (
        dtype + b"(K\x03" + text("|") + b"N" + evil + b"}K\x04K\x01K\x10tb",
        b"}" + evil + b"\x85K\x01s",
        b"ccollections\nChainMap\n" + evil + b"\x85R",
        b"cexceptions\nValueError\n" + evil + b"\x85R",
        b"ctorch._utils\n_rebuild_sparse_tensor\n" + evil + b"\x85R",
    ):
        data = torch_zip(state_dict({"w": tensor(), "beside": body}))
        assert "os.system" in assert_refused(data, "refused global", weights_io.RefusedGlobalError)


def test_an_array_of_numbers_of_python_is_a_dead_record() -> None:
    for protocol in (2, 4):
        assert beside(array.array("d", [1.5]), protocol).type_name.startswith("array.")
    assert_refused(proto(b"carray\nArrayType\n"), "refused global")
