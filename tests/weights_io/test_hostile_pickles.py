"""Pickles that try to run, to bomb or to lie; each is refused in one line and nothing is run."""

from __future__ import annotations

import pickle
from struct import pack

import pytest

import weights_io
from tests.weights_io.forge import (
    ORDERED,
    OS_SYSTEM,
    REBUILD,
    integer,
    proto,
    state_dict,
    storage,
    tensor,
    text,
    torch_zip,
)
from tests.weights_io.refusal import CANARY, assert_refused, read_everything

FIRE = f"c{CANARY}\nfire\n".encode()
ARGUMENT = b"(X\x04\x00\x00\x00echot"

# Every opcode that can import or call, aimed at the canary.
RUNS: dict[str, bytes] = {
    "GLOBAL": proto(FIRE),
    "GLOBAL then REDUCE": proto(FIRE + ARGUMENT + b"R"),
    "STACK_GLOBAL": proto(text(CANARY) + text("fire") + b"\x93" + ARGUMENT + b"R", 4),
    "STACK_GLOBAL of memoised names": proto(
        b"(" + text(CANARY) + b"q\x05" + text("fire") + b"q\x02th\x05h\x02\x93", 4
    ),
    "INST": proto(f"(i{CANARY}\nfire\n".encode()),
    "OBJ": proto(b"(" + FIRE + text("echo") + b"o"),
    "NEWOBJ": proto(FIRE + b")\x81"),
    "NEWOBJ_EX": proto(FIRE + b")}\x92", 4),
    "BUILD": proto(FIRE + b"}b"),
    "under config": state_dict({"config": FIRE + b")\x81}b"}),
    "under optimizer": state_dict({"optimizer": b"](" + FIRE + b")Re"}),
    "after the weights, then dropped": proto(FIRE + ARGUMENT + b"R0" + ORDERED),
    "in an attribute of a state dict": state_dict({}, b"}" + text("_metadata") + FIRE + b"sb"),
    "in a set": proto(b"c__builtin__\nset\n](" + FIRE + b"e\x85R"),
    "as a defaultdict's factory": proto(b"ccollections\ndefaultdict\n" + FIRE + b"\x85R"),
    "as a tensor's hook": proto(REBUILD + b"(" + storage() + b"K\x00))\x89" + FIRE + b"tR"),
    "in a persistent id": proto(
        b"(" + text("storage") + FIRE + text("0") + text("cpu") + b"K\x04tQ"
    ),
    "in a namespace": proto(b"cargparse\nNamespace\n)\x81}" + text("x") + FIRE + b"sb"),
}

# Globals that look allowed: near misses of the exact table.
NEAR_MISSES: dict[str, tuple[str, str]] = {
    "a dotted walk from an allowed module": ("collections", "abc.sys.modules"),
    "a dotted walk from an allowed name": ("collections", "OrderedDict.__class__"),
    "an allowed pair split elsewhere": ("torch", "_utils._rebuild_tensor_v2"),
    "an allowed module, another name": ("collections", "abc"),
    "builtins.eval": ("builtins", "eval"),
    "builtins.getattr": ("__builtin__", "getattr"),
    "numpy's own loader": ("numpy", "load"),
    "an object of numpy's core": ("numpy.core.multiarray", "fromfile"),
    "torch's own loader": ("torch", "load"),
    "a class of modules, alone": ("torch.nn.modules.container", "Sequential"),
    "an unlisted storage": ("torch", "ComplexFloatStorage"),
    "an untyped storage": ("torch.storage", "UntypedStorage"),
    "tensors of another kind": ("torch._tensor", "_rebuild_from_type"),
    "a method of a class that is known": (
        "mmengine.logging.history_buffer",
        "HistoryBuffer.update",
    ),
    "a class beside one that is known": ("omegaconf.omegaconf", "OmegaConf"),
    "a path's method": ("pathlib", "Path.unlink"),
    "a name with a terminal escape": ("os", "sys\x1b[2Jtem"),
}

LAUGHS = b"](K\x01K\x01K\x01e" + b"".join(
    b"q" + bytes([level]) + b"](h" + bytes([level]) + (b"h" + bytes([level])) * 9 + b"e"
    for level in range(12)
)
TUPLES = b")" + b"q\x00\x85q\x01" + b"h\x01h\x01\x86q\x01" * 60

BROKEN: dict[str, tuple[bytes, str]] = {
    # opcodes and protocol
    "EXT1": (proto(b"\x82\x01"), "refused pickle opcode EXT1"),
    "EXT2": (proto(b"\x83\x01\x00"), "refused pickle opcode EXT2"),
    "EXT4": (proto(b"\x84\x01\x00\x00\x00"), "refused pickle opcode EXT4"),
    "PERSID": (proto(b"Pstorage\n"), "refused pickle opcode PERSID"),
    "DUP": (proto(b"]2"), "refused pickle opcode DUP"),
    "POP": (proto(b"]]0"), "refused pickle opcode POP"),
    "NEXT_BUFFER": (proto(b"\x97", 5), "refused pickle opcode NEXT_BUFFER"),
    "an opcode that is none": (proto(b"\x00"), "refused pickle opcode 0x00"),
    "text opcodes": (proto(b"I1\n"), "refused pickle opcode INT"),
    "PROTO twice": (proto(b"\x80\x02]"), "refused pickle opcode PROTO"),
    "protocol 6": (proto(b"]", 6), "protocol 2 to 5"),
    "protocol 1": (proto(b"]", 1), "protocol 2 to 5"),
    # the stack
    "underflow": (proto(b"R"), "takes more objects"),
    "underflow of a tuple": (proto(b"]\x87"), "takes more objects"),
    "underflow below a mark": (proto(b"](a"), "takes more objects"),
    "no mark": (proto(b"]e"), "closes a group"),
    "an open mark": (proto(b"]("), "other than one object"),
    "two objects": (proto(b"]]"), "other than one object"),
    "no object": (proto(b""), "other than one object"),
    "bytes after the end": (proto(b"}") + b"cos\nsystem\n", "follow its end"),
    # calls of the allowed names with arguments that they never have
    "REDUCE of a string": (proto(text("os.system") + b")R"), "calls something"),
    "REDUCE of an inert value": (proto(b"ctorch\nFloatStorage\n)R"), "calls something"),
    "REDUCE with a list": (proto(b"ccollections\nOrderedDict\n]R"), "calls something"),
    "OrderedDict of pairs": (proto(b"ccollections\nOrderedDict\n]\x85R"), "never has"),
    "NEWOBJ with arguments": (proto(b"cyacs.config\nCfgNode\n}\x85\x81"), "no class"),
    "NEWOBJ of a function": (proto(b"c_codecs\nencode\n)\x81"), "no class"),
    "encode with a codec that runs": (
        proto(b"c_codecs\nencode\n" + text("x") + text("zip") + b"\x86R"),
        "_codecs.encode",
    ),
    "encode of a high character": (
        proto(b"c_codecs\nencode\n" + text("\u0100") + text("latin1") + b"\x86R"),
        "above 255",
    ),
    "BUILD on a dict": (proto(b"}}b"), "attributes on something that has none"),
    "BUILD on a tensor": (proto(tensor() + b"}b"), "attributes on something that has none"),
    "BUILD of __class__": (
        proto(ORDERED + b"}" + text("__class__") + text("os") + b"sb"),
        "other than _metadata",
    ),
    "BUILD of __setstate__": (
        proto(b"cargparse\nNamespace\n)\x81}" + text("__setstate__") + OS_SYSTEM + b"sb"),
        "os.system",
    ),
    "BUILD of slots": (proto(b"cargparse\nNamespace\n)\x81N}\x86b"), "no plain attributes"),
    "BUILD of a CfgNode's other field": (
        proto(b"cyacs.config\nCfgNode\n)\x81}" + text("__dict__") + b"}sb"),
        "four bookkeeping",
    ),
    "a function as a value": (proto(b"}" + text("f") + b"c_codecs\nencode\ns"), "where data"),
    "a storage as a value": (proto(storage()), "where data"),
    "adding to something that is no set": (proto(b"](K\x01\x90", 4), "no set"),
    "a persistent id of another kind": (proto(text("0") + b"Q"), "no torch storage"),
    "a persistent id of a number": (proto(b"K\x01Q"), "no torch storage"),
    "a persistent id that is a legacy one": (proto(storage(legacy=True)), "no torch storage"),
    # containers
    "a key twice": (state_dict({}, text("a") + b"K\x01s" + text("a") + b"K\x02s"), "comes twice"),
    "a list as a key": (proto(b"}]K\x01s"), "neither text nor"),
    "a dict as a key": (proto(b"}}K\x01s"), "neither text nor"),
    "a function as a key": (proto(b"}c__builtin__\ngetattr\nK\x01s"), "neither text nor"),
    "a key without a value": (proto(b"}(K\x01u"), "no dict"),
    "a list that holds itself": (proto(b"]q\x00h\x00a"), "holds itself"),
    "a dict that holds itself": (proto(b"}q\x00" + text("a") + b"h\x00s"), "holds itself"),
    "setting items on a list": (proto(b"]" + text("a") + b"K\x01s"), "no dict"),
    "appending to a tuple": (proto(b")K\x01a"), "no list"),
    "text that is no UTF-8": (proto(b"X\x01\x00\x00\x00\xff"), "no UTF-8"),
    "a global that is no UTF-8": (proto(b"c\xff\n\xff\n"), "no UTF-8"),
    # bombs
    "billion laughs of lists": (proto(b"(" + LAUGHS + b"t"), "too many objects"),
    "billion laughs of tuples": (proto(b"(" + TUPLES + b"t"), "nested too deeply|too many objects"),
    "a huge memo index, recalled": (proto(b"j\xff\xff\xff\xff"), "not remembered"),
    "marks without end": (proto(b"(" * 100_000), "nested too deeply"),
    "lists without end": (proto(b"]" * 100_000 + b"a" * 99_999), "nested too deeply"),
    "tuples without end": (proto(b")" + b"\x85" * 100_000), "nested too deeply"),
    "opcodes without end": (proto(b"\x8f" * 400_001, 4), "too many opcodes"),
    "sets without end": (proto(b"\x8f" * 240_000, 4), "other than one object"),
    "dicts without end": (proto(b"}" * 240_000), "other than one object"),
    "strings without end": (proto((b"\x8c\xff" + b"a" * 255) * 70_000, 4), "too large"),
    "a huge integer": (proto(b"\x8a\xff" + b"\x01" * 255), "too large an integer"),
    "LONG4": (proto(b"\x8b\xff\xff\xff\x7f"), "LONG4"),
    "text of four gigabytes": (proto(b"X\xff\xff\xff\xff"), "cut short"),
    "text of eight exabytes": (proto(b"\x8d" + b"\xff" * 7 + b"\x7f", 4), "cut short"),
    "bytes of eight exabytes": (proto(b"\x8e" + b"\xff" * 7 + b"\x7f", 4), "cut short"),
    "a frame of eight exabytes": (proto(b"\x95" + b"\xff" * 7 + b"\x7f]", 4), "cut short"),
    "a long string": (proto(text("a" * 70_000)), "too long a string"),
    "a long line": (proto(b"c" + b"a" * 70_000 + b"\n"), "too long a line"),
    "a line without end": (proto(b"cos"), "cut short"),
    # views
    "an offset outside": (proto(tensor(offset=1)), "outside its storage"),
    "a negative offset": (proto(tensor(offset=-1)), "negative offset"),
    "a size outside": (proto(tensor([5])), "outside its storage"),
    "a negative size": (proto(tensor([-1])), "negative size"),
    "two negative sizes": (proto(tensor([-2, -2], [2, 1])), "negative size"),
    "a stride outside": (proto(tensor([2, 2], [3, 1])), "outside its storage"),
    "a negative stride": (proto(tensor(stride=[-1], offset=3)), "negative offset or stride"),
    "a product that wraps to zero": (proto(tensor([1 << 32] * 2, [0, 0])), "too many elements"),
    "no element in too many": (
        proto(tensor([1 << 40, 1 << 40, 0], [0, 0, 0])),
        "too many elements",
    ),
    "a stride that wraps": (proto(tensor([2], [1 << 64])), "outside its storage"),
    "zero strides for 155 GB": (proto(tensor([197_000, 197_000], [0, 0])), "too many elements"),
    "zero strides for 4 GB": (proto(tensor([1 << 30], [0])), "too much memory"),
    "sizes without strides": (proto(tensor([2, 2], [1])), "different number"),
    "a size of 33 dimensions": (proto(tensor([1] * 33, [1] * 33)), "too many dimensions"),
    "a size that is a float": (
        proto(REBUILD + b"(" + storage() + b"K\x00G" + bytes(8) + b"\x85)\x89" + ORDERED + b"tR"),
        "tuple of integers",
    ),
    "a size that is a bool": (
        proto(REBUILD + b"(" + storage() + b"K\x00\x88\x85K\x01\x85\x89" + ORDERED + b"tR"),
        "tuple of integers",
    ),
    "conj of real numbers": (proto(tensor(extra=b"}" + text("conj") + b"\x88s")), "conjugated"),
    "conj that is a number": (proto(tensor(extra=b"}" + text("conj") + b"K\x01s")), "other than"),
    "another lazy bit": (proto(tensor(extra=b"}" + text("imag") + b"\x88s")), "other than neg"),
    "a parameter of no tensor": (
        proto(b"ctorch._utils\n_rebuild_parameter\n(K\x01\x88" + ORDERED + b"tR"),
        "no tensor",
    ),
    "a storage too small for its count": (proto(tensor(of=storage(5))), "wrong size"),
    "a storage too large for its count": (proto(tensor([1], of=storage(1))), "wrong size"),
    "a storage of a negative count": (proto(tensor(of=storage(-4))), "cannot have"),
    "a storage of two types": (
        state_dict({"a": tensor(), "b": tensor(of=storage(kind="IntStorage"))}),
        "two types",
    ),
    "a storage that is missing": (proto(tensor(of=storage(key="7"))), "missing"),
    "a storage key that climbs": (proto(tensor(of=storage(key="../data.pkl"))), "missing"),
}

# Long files whose limit another one meets, too: lists nest as tuples do, sets pile up as dicts do.
TWINS = ("tuples without end", "dicts without end")
MOST = [pytest.param(case, marks=pytest.mark.slow if case in TWINS else ()) for case in BROKEN]

MANY_VIEWS = {str(i): tensor([1 << 20], [0]) for i in range(40)}


@pytest.mark.parametrize("case", RUNS)
def test_a_pickle_that_calls_is_refused_by_the_name_of_what_it_calls(case: str) -> None:
    in_torch, alone = torch_zip(RUNS[case]), RUNS[case]
    for data in (in_torch,) if storage() in alone else (in_torch, alone):
        message = assert_refused(data, "refused global", weights_io.RefusedGlobalError)
        assert f"{CANARY}.fire" in message


@pytest.mark.parametrize("case", NEAR_MISSES)
@pytest.mark.parametrize("spelling", ["GLOBAL", "STACK_GLOBAL"])
def test_only_the_exact_pair_of_module_and_name_is_allowed(case: str, spelling: str) -> None:
    module, name = NEAR_MISSES[case]
    if spelling == "GLOBAL":
        data = proto(f"c{module}\n{name}\n".encode())
    else:
        data = proto(text(module) + text(name) + b"\x93", 4)
    message = assert_refused(data, "refused global", weights_io.RefusedGlobalError)
    assert weights_io.sanitize(f"{module}.{name}") in message


@pytest.mark.few(31)
@pytest.mark.parametrize("case", MOST)
def test_a_broken_pickle_is_refused_in_a_torch_zip(case: str) -> None:
    data, match = BROKEN[case]
    assert_refused(torch_zip(data), match)


@pytest.mark.few(10)
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_pickle_is_refused_on_its_own(case: str) -> None:
    data, match = BROKEN[case]
    # Outside a torch container a storage is refused before anything about it can be wrong.
    assert_refused(data, f"{match}|storages outside it|not a pickle")


def test_many_small_tensors_cannot_add_up_to_gigabytes() -> None:
    assert_refused(torch_zip(state_dict(MANY_VIEWS)), "too much memory", weights_io.LimitError)


def test_a_huge_memo_index_that_is_used_costs_nothing() -> None:
    sparse = proto(b"]r\xff\xff\xff\xffj\xff\xff\xff\xff\x86")
    assert read_everything(torch_zip(sparse)) == ([], [])


def test_a_text_pickle_is_told_as_such() -> None:
    assert_refused(b"cposix\nsystem\n(S'echo'\ntR.", "protocol 0 or 1")
    assert_refused(pickle.dumps({"a": 1}, 0), "protocol 0 or 1")


def test_an_object_array_is_refused_whatever_it_holds() -> None:
    state = b"(K\x01K\x01\x85cnumpy\ndtype\n" + text("O8") + b"\x89\x88\x87R\x89](" + FIRE + b"etb"
    make = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    assert_refused(proto(make + state, 3), "object array")


@pytest.mark.parametrize("length", [0, 15, 17, 1 << 40])
def test_an_array_whose_data_has_another_length_is_refused(length: int) -> None:
    dtype = b"cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R"
    data = (
        b"B" + pack("<I", length) + bytes(length) if length < 99 else b"\x8e" + pack("<Q", length)
    )
    make = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    body = make + b"(K\x01" + integer(4) + b"\x85" + dtype + b"\x89" + data + b"tb"
    assert_refused(proto(body, 4), "bytes of data|cut short")
