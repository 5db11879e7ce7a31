"""What stands in a module under odd names, in the wrong place, or to be called."""

from __future__ import annotations

from tests.weights_io.forge import (
    ORDERED,
    REBUILD,
    integer,
    integers,
    proto,
    state_dict,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_zip,
)
from tests.weights_io.module_cases import (
    CANARY,
    FIRE,
    GETATTR,
    MARK,
    NAMED,
    SET,
    SYSTEM,
    Case,
    S,
    W,
    read,
    refused,
)
from tests.weights_io.module_files import (
    MODULE,
    T,
    again,
    items,
    made,
    module,
    parameter,
    state,
)

PLACES = {
    "a tensor in a module's place": refused(module(modules={"a": T}), "holds no module under a"),
    "a number in a module's place": refused(module(modules={"a": b"K\x01"}), "got int"),
    "text in a module's place": refused(module(modules={"a": text("x")}), "got str"),
    "a list in a module's place": refused(module(modules={"a": b"]"}), "got list"),
    "attributes in a module's place": refused(module(modules={"a": S}), "got dict"),
    "a class in a module's place": refused(module(modules={"a": MODULE}), NAMED),
    "another object in a module's place": refused(
        module(modules={"a": MARK + b")\x81}b"}), rf"{CANARY}.Mark \(in the entry a\)"
    ),
    "a listed object in a module's place": refused(
        module(modules={"a": b"cpathlib\nPosixPath\n)R"}), r"refused global pathlib\.PosixPath"
    ),
    "a module in a tensor's place": refused(module({"w": module(W)}), NAMED),
    "a number in a tensor's place": refused(module({"w": b"K\x01"}), "holds no array under w"),
    "a list of tensors in a tensor's place": refused(module({"w": b"]" + T + b"a"}), "got list"),
    "a storage in a tensor's place": refused(module({"w": storage()}), "got Storage"),
    "a rebuild function in a tensor's place": refused(module({"w": REBUILD}), "got Global"),
    "getattr in a tensor's place": refused(
        module({"w": GETATTR}), r"refused global __builtin__\.getattr"
    ),
    "a buffer that is an object": refused(
        module({}, {"b": MARK + b")\x81}b"}), rf"refused global {CANARY}.Mark \(in the entry b\)"
    ),
    "nothing in all places": read(module({"w": b"N", "v": T}, {"b": b"N"}, {"m": b"N"}), "v"),
    "a parameter of a module": refused(module({"w": parameter(module(W))}), "that is no tensor"),
    "a parameter with hooks": refused(
        module({"w": parameter(T, ORDERED + b"K\x01" + text("x") + b"s")}), "it never has"
    ),
    "a tensor with a class of its own": refused(
        module({"w": b"ctorch._tensor\n_rebuild_from_type_v2\n(" + REBUILD + MARK + b")NtR"}),
        "Mark",
    ),
    "a tensor outside its storage": refused(module({"w": tensor((5,))}), "outside its storage"),
    "a tensor with strides below zero": refused(module({"w": tensor((4,), (-1,))}), "negative"),
    "a tensor with a negative size": refused(module({"w": tensor((-4,))}), "negative size"),
    "a storage that is not there": refused(module({"w": tensor(of=storage(key="9"))}), "missing"),
    "a storage of two sizes": refused(module({"w": T, "v": tensor(of=storage(8))}), "two types"),
    "uninitialised": refused(
        module({"w": b"ctorch.nn.parameter\nUninitializedParameter\n\x88N\x86R"}),
        r"refused global torch\.nn\.parameter\.UninitializedParameter",
    ),
}


def _key(pickled: bytes) -> bytes:
    return items([(pickled, T)])


NAMES_OF_PARTS = {
    "a number for a name": refused(module(_key(b"K\x01")), "no part can be called 'a int'"),
    "None for a name": refused(module(_key(b"N")), "no part can be called 'a NoneType'"),
    "a module for a name": refused(module(_key(module(W))), "no part can be called 'a torch.nn"),
    "bytes for a name": refused(module(_key(b"C\x01w")), "no part can be called", 3),
    "a tuple for a name": refused(module(_key(b")")), "no part can be called"),
    "a name too long to be one": refused(module({"w" * 2000: T}), "no part can be called"),
    "an empty name": refused(module({"": T}), "no part can be called ''"),
    "a dot": refused(module({"m.w": T}, modules={"m": module(W)}), "no part can be called 'm.w'"),
    "a module's name with a dot": refused(module(modules={"a.b": module(W)}), "called 'a.b'"),
    "a buffer's name that starts with a dot": refused(module({}, {".b": T}), "called '.b'"),
    "an array and a buffer of one name": refused(module(W, W), "two of its parts have one name"),
    "an array and a module of one name": refused(
        module(W, modules={"w": module(W)}), "two of its parts have one name"
    ),
    "a name that comes twice": refused(
        module(items([(text("w"), T), (text("w"), T)])), "the key w comes twice"
    ),
    "an attribute in front of an array": refused(
        module(W, more={"w": T}), "an attribute hides its part 'w'"
    ),
    "an attribute in front of a module": refused(
        module(modules={"m": module(W)}, more={"m": b"N"}), "an attribute hides its part 'm'"
    ),
    "names with escapes": read(
        module({"\x1b[2Jw": T, "\u202ew\n": T}), "\x1b[2Jw", "\u202ew\n"
    ),
    "an escape in a refused name": refused(module({"\x1b[2J": b"K\x01"}), r"under \\x1b\[2J"),
    "names that look alike": read(module({"\u00e9": T, "e\u0301": T}), "\u00e9", "e\u0301"),
    "names that are methods": read(module({"__init__": T, "forward_": T}), "__init__", "forward_"),
    "unsaved names in a list": refused(
        module({}, W, more={"_non_persistent_buffers_set": b"]" + text("w") + b"a"}), "is no set"
    ),
    "unsaved names that are numbers": refused(
        module({}, W, more={"_non_persistent_buffers_set": SET + b"]K\x01a\x85R"}), "set of names"
    ),
    "an unsaved buffer": read(
        module(W, {"b": T, "c": T}, more={
            "_non_persistent_buffers_set": SET + b"]" + text("b") + b"a\x85R"}), "w", "c"
    ),
    "an array called as an unsaved buffer": read(
        module(W, more={"_non_persistent_buffers_set": SET + b"]" + text("w") + b"a\x85R"}), "w"
    ),
    "a list that grows after the set was made": read(
        b"](" + module({}, {"b": T, "c": T}, more={
            "_non_persistent_buffers_set": SET + b"]q\x05" + text("b") + b"a\x85R"})
        + again(5) + text("c") + b"ae", "c",
    ),
    "items added to a set that was made": refused(
        module({}, W, more={"x": SET + b"]\x85R(" + text("w") + b"\x90"}), "set that is complete", 4
    ),
}  # fmt: skip

CALLS = {
    "a function as an attribute": refused(
        module(W, more={"act": FIRE}), f"refused global {CANARY}.fire"
    ),
    "a system call as an attribute": refused(
        module(W, more={"act": SYSTEM}), r"refused global os\.system"
    ),
    "a system call as a hook": refused(
        module(W, more={"_forward_hooks": items([(b"K\x01", SYSTEM)])}), r"os\.system"
    ),
    "a system call as a parameter": refused(module({"w": SYSTEM}), r"refused global os\.system"),
    "a system call as a module": refused(module(modules={"m": SYSTEM}), r"os\.system"),
    "a system call as the state": refused(made(SYSTEM), r"refused global os\.system"),
    "a system call as a name": refused(module(_key(SYSTEM)), r"refused global os\.system"),
    "code": refused(
        module(W, more={"forward": b"ctypes\nFunctionType\nctypes\nCodeType\n)R\x85R"}),
        r"refused global types\.FunctionType",
    ),
    "marshalled code": refused(
        module(W, more={"forward": b"cmarshal\nloads\nC\x01x\x85R"}), r"marshal\.loads", 3
    ),
    "eval in a loaded state": refused(
        made(b"c__builtin__\neval\n" + text("{}") + b"\x85R"), r"refused global __builtin__\.eval"
    ),
    "another pickle": refused(
        module(W, more={"x": b"c_pickle\nloads\nC\x01.\x85R"}), r"refused global _pickle\.loads", 3
    ),
    "torch's own loader": refused(
        module({"w": b"ctorch.storage\n_load_from_bytes\nC\x01x\x85R"}), "_load_from_bytes", 3
    ),
    "a graph module": refused(
        b"ctorch.fx.graph_module\nreduce_graph_module\n}" + text("x") + b"\x86R",
        r"refused global torch\.fx\.graph_module\.reduce_graph_module",
    ),
    "a method of its own for forward": read(
        made(state(W, more={"forward": GETATTR + again(7) + text("fuse") + b"\x86R"}), place=7), "w"
    ),
    "a dunder of its own": refused(
        made(state(W, more={"f": GETATTR + again(7) + text("__class__") + b"\x86R"}), place=7),
        r"refused global __builtin__\.getattr",
    ),
    "an attribute of its class": refused(
        module(W, more={"f": GETATTR + MODULE + text("f") + b"\x86R"}), r"__builtin__\.getattr"
    ),
    "a method of a method": refused(
        made(state(W, more={"f": GETATTR + (GETATTR + again(7) + text("f") + b"\x86R")
                            + text("g") + b"\x86R"}), place=7),
        r"refused global __builtin__\.getattr",
    ),
    "a method called": refused(
        made(state(W, more={"f": GETATTR + again(7) + text("f") + b"\x86R)R"}), place=7),
        "calls something that is no function",
    ),
    "a module called": refused(module(W) + b")R", "calls something that is no function"),
    "a module made of a module": refused(module(W) + b")\x81", "something that is no class"),
}  # fmt: skip

CLASSES = {
    "a fake torch class": read(module(W, cls=b"ctorch.nn.modules.conv\nFake\n"), "w"),
    "a method for a class": read(module(W, cls=b"ctorch.nn.modules.conv\nConv2d.cast\n"), "w"),
    "a lower-case class": refused(module(W, cls=b"cmodels.common\nfocus\n"), "models.common.focus"),
    "a class with an escape": refused(module(W, cls=b"cmodels\nMo\x1b[2J\n"), r"Mo\\x1b\[2J"),
    "no name": refused(module(W, cls=b"cmodels\n\n"), "refused global models"),
    "no module": refused(module(W, cls=b"c\nModel\n"), "refused global"),
    "a class of Python's own": refused(
        module(W, cls=b"csubprocess\nPopen\n"), r"refused global subprocess\.Popen"
    ),
    "a class beside torch's loader": refused(
        module(W, cls=b"ctorch.hub\nload\n"), r"refused global torch\.hub\.load"
    ),
    "a listed class": refused(
        module(modules={"m": module(W, cls=b"ctypes\nSimpleNamespace\n")}),
        r"refused global types\.SimpleNamespace",
    ),
    "a class that is remembered over": read(
        b"](" + MARK + b"q\x05" + MODULE + b"q\x05" + again(5) + b")\x81" + S
        + b"be", "w",
    ),
    "a class by the stack": read(
        text("models.yolo") + text("Model") + b"\x93)\x81" + S + b"b", "w", protocol=4
    ),
    "a class whose name is a module": refused(
        module(W) + text("Model") + b"\x93)\x81" + S + b"b", "whose name is no text", 4
    ),
    "what was never remembered": refused(module({"w": again(99)}), "has not remembered"),
}  # fmt: skip


def _legacy(body: bytes, match: str = "", *names: str) -> Case:
    return Case(torch_legacy(proto(body)), match, names)


def _class_id(cls: bytes, file: bytes, source: bytes) -> bytes:
    return b"(" + text("module") + cls + file + source + b"tQ"


LEGACY_STATE = state({"w": tensor(of=storage(legacy=True))})
SOURCE = text("import os; os.system('echo')")
IDS = {
    "a class with its source": _legacy(
        _class_id(MARK, text("f.py"), SOURCE) + b")\x81" + LEGACY_STATE + b"b", "", "w"
    ),
    "a class with a long source": _legacy(
        _class_id(MARK, text("f.py"), text("x = 1\n" * 5000)) + b")\x81" + LEGACY_STATE + b"b",
        "", "w",
    ),
    "a class with its source in a zip": refused(
        _class_id(MARK, text("f.py"), SOURCE) + b")\x81" + S + b"b", f"refused global {CANARY}.Mark"
    ),
    "a function with its source": _legacy(
        _class_id(FIRE, text("f.py"), SOURCE) + b")\x81" + LEGACY_STATE + b"b", f"{CANARY}.fire"
    ),
    "a class with code for its source": _legacy(
        _class_id(MARK, text("f.py"), b"K\x01") + b")\x81" + LEGACY_STATE + b"b", "refused global"
    ),
    "a storage that is a class": _legacy(
        REBUILD + b"(" + _class_id(MARK, text("f.py"), SOURCE) + b"K\x00))\x89" + ORDERED + b"tR",
        "malformed",
    ),
    "a class of no type": _legacy(
        _class_id(text("Model"), text("f.py"), SOURCE) + b")\x81" + LEGACY_STATE + b"b", "malformed"
    ),
    "an id that is a module": refused(module(W) + b"Q", "no torch storage"),
    "a storage of the type of a module": refused(
        module({"w": tensor(of=b"(" + text("storage") + MARK + text("0") + text("cpu")
                            + integer(4) + b"tQ")}),
        f"refused global {CANARY}.Mark",
    ),
    "a shape that is a module": refused(
        module({"w": REBUILD + b"(" + storage() + integer(0) + module(W) + integers([1])
                + b"\x89" + ORDERED + b"tR"}),
        "no tuple of integers",
    ),
    "an entry beside sound weights": Case(
        torch_zip(state_dict({"w": T, "beside": made(state({"w": module(W)}))})), NAMED
    ),
}  # fmt: skip
