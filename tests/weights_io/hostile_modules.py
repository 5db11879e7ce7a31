"""Pickled modules that try to run, to bomb, or to be read as what they are not.

Each case says what must come of it: a refusal, or arrays of exactly these names. Those that are
read are odd and harmless; the names are what torch's `state_dict` would make of the same opcodes.
"""

from __future__ import annotations

from dataclasses import dataclass

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
from tests.weights_io.module_files import (
    EMPTY,
    MODULE,
    T,
    again,
    items,
    made,
    module,
    nested,
    parameter,
    state,
)

CANARY = "tests.weights_io.canary"
MARK = f"c{CANARY}\nMark\n".encode()  # a class; importing its module would be seen
FIRE = f"c{CANARY}\nfire\n".encode()
SYSTEM = b"cos\nsystem\n" + text("echo") + b"\x85R"
SET = b"c__builtin__\nset\n"
GETATTR = b"c__builtin__\ngetattr\n"
W = {"w": T}


@dataclass(frozen=True)
class Case:
    """A file, and what must come of it: a message that matches, or arrays of just these names."""

    data: bytes
    refused: str = ""
    names: tuple[str, ...] = ()


def refused(body: bytes, match: str, protocol: int = 2) -> Case:
    return Case(torch_zip(proto(body, protocol)), match)


def read(body: bytes, *names: str, protocol: int = 2) -> Case:
    return Case(torch_zip(proto(body, protocol)), "", names)


CYCLES = {
    "a module that holds itself": refused(
        made(state(W, modules={"a": again(7)}), place=7), "it holds itself"
    ),
    "two modules that hold each other": refused(
        made(state(modules={"a": module(modules={"b": again(7)})}), place=7), "it holds itself"
    ),
    "a cycle of three": refused(
        made(state(modules={"0": module(modules={"0": module(modules={"0": again(7)})})}), place=7),
        "it holds itself",
    ),
    "a module among its own parameters": refused(
        made(state({"w": again(7)}), place=7), r"refused global torch\.nn\.modules\.module\.Module"
    ),
    "a parent in a plain attribute": read(
        made(state(modules={"a": module(W, more={"parent": again(7)})}), place=7), "a.w"
    ),
    "modules that are their own dict": refused(
        module(modules=b"}q\x07" + text("a") + again(7) + b"s"), "holds no module under a"
    ),
    "parameters that are all attributes": refused(
        made(
            b"}q\x07(" + text("_buffers") + b"}" + text("_modules") + b"}"
            + text("_parameters") + again(7) + b"u"
        ),
        "an attribute hides its part",
    ),
    "parameters that are the modules, too": refused(
        module(b"}q\x07" + text("w") + T + b"s", modules=again(7)), "two of its parts have one name"
    ),
}  # fmt: skip


def _doubling(levels: int, width: int = 2) -> bytes:
    """A list of modules, each of so many of the one before it."""
    body = b"](" + module(W) + b"q\x00"
    for _ in range(levels):
        body += module(modules={f"m{i}": again(0) for i in range(width)}) + b"q\x00"
    return body + b"e"


def _recalled(part: str, value: bytes, count: int) -> bytes:
    """One large attribute of so many modules, each of which looks through all of it."""

    def one(kept: bytes) -> bytes:
        if part == "_modules":
            return module(W, modules=kept)
        return module({"weight_orig": T}, more={part: kept})

    children = {f"m{i}": one(again(5) if i else value + b"q\x05") for i in range(count)}
    return module(modules=children)


def _large_tensor() -> Case:
    """A quarter of a megabyte under two hundred names: reading them all takes fifty."""
    count = 1 << 16
    one = tensor((count,), of=storage(count)) + b"q\x05"
    body = module({"w0": one} | {f"w{i}": again(5) for i in range(1, 200)})
    return Case(torch_zip(proto(body), {"0": bytes(4 * count)}), "ask for too much memory")


def _long_names() -> bytes:
    """Five hundred arrays behind forty words of a thousand letters: twenty megabytes of names."""
    leaf = module({f"w{i}": again(5) if i else T + b"q\x05" for i in range(500)})
    return nested(40, leaf, "a" * 1000)


NONES = items({f"n{i}": b"N" for i in range(3000)})
PRUNERS = items(
    (b"J" + i.to_bytes(4, "little"), again(9) if i else b"ctorch.nn.utils.prune\nIdentity\nq\x09")
    for i in range(3000)
)
NAMES = SET + b"](" + b"".join(text(f"n{i}") for i in range(3000)) + b"e\x85R"

SHARED = {
    "a module under two names": read(
        module(modules={"a": module(W) + b"q\x05", "b": again(5)}), "a.w", "b.w"
    ),
    "one dict of parameters in two modules": read(
        module(modules={"a": module(items(W) + b"q\x05"), "b": module(again(5))}), "a.w", "b.w"
    ),
    "one dict of attributes in two modules": read(
        module(modules={"a": made(state(W) + b"q\x05"), "b": made(again(5))}), "a.w", "b.w"
    ),
    "one tensor under two names": read(module({"v": T + b"q\x05", "w": again(5)}), "v", "w"),
    "modules that double forty times": refused(
        _doubling(40), "unfold into too many, too long names"
    ),
    "three hundred of three hundred": refused(
        _doubling(2, 300), "unfold into too many, too long names"
    ),
    "one large tensor under many names": _large_tensor(),
    "names that are long together": refused(_long_names(), "unfold into too many, too long names"),
    "one dict of absent modules in many": refused(
        _recalled("_modules", NONES, 100), "unfold into too many, too long names"
    ),
    "one dict of hooks in many": refused(
        _recalled("_forward_hooks", PRUNERS, 100), "too many hooks"
    ),
    "one set of names in many": read(
        _recalled("_non_persistent_buffers_set", NAMES, 100),
        *(f"m{i}.weight_orig" for i in range(100)),
    ),
    "as deep as may be": read(nested(90, module(W)), "c." * 90 + "w"),
    "deeper than may be": refused(nested(120, module(W)), "nested too deeply"),
    "deeper than any stack": refused(nested(2_000, module(W)), "nested too deeply"),
}

NO_PARTS = {
    "a list": b"]", "None": b"N", "a tuple": b")", "a set": b"\x8f", "text": text("w"),
    "a configuration": b"cyacs.config\nCfgNode\n)\x81", "a number": b"K\x01", "a tensor": T,
    "a module": module(W), "a namespace": b"cargparse\nNamespace\n)\x81",
}  # fmt: skip
PARTS = {
    f"{part} is {what}": refused(
        made(state(more={part: body})), f"its {part} is no dict", protocol=4
    )
    for part in ("_parameters", "_buffers", "_modules")
    for what, body in NO_PARTS.items()
} | {
    "ordered dicts": read(
        module(ORDERED + text("w") + T + b"s", ORDERED, ORDERED + text("m") + module(W) + b"s"),
        "w", "m.w",
    ),
    "an ordered dict with _metadata": read(
        module(ORDERED + text("w") + T + b"s}" + text("_metadata") + b"}sb"), "w"
    ),
    "an ordered dict with other attributes": refused(
        module(ORDERED + b"}" + text("x") + b"}sb"), "attributes other than _metadata"
    ),
    "a defaultdict": read(
        module(b"ccollections\ndefaultdict\nc__builtin__\ndict\n\x85R" + text("w") + T + b"s"), "w"
    ),
}  # fmt: skip

NAMED = r"refused global torch\.nn\.modules\.module\.Module"
S = state(W)
STATES = {
    "a state with slots": refused(made(S + b"}\x86"), NAMED),
    "slots alone": refused(made(b"N" + S + b"\x86"), NAMED),
    "no state": refused(made(b"N"), NAMED),
    "a list of pairs": refused(made(b"](" + text("_parameters") + b"}\x86e"), NAMED),
    "an ordered state": refused(
        made(b"".join((ORDERED, b"(", *(text(p) + b"}" for p in (
            "_parameters", "_buffers", "_modules")), b"u"))), NAMED,
    ),
    "without modules": refused(
        made(items({"_parameters": items(W), "_buffers": EMPTY})), NAMED
    ),
    "never built": refused(MODULE + b")\x81", NAMED),
    "a class, not an object": refused(MODULE, NAMED),
    "built twice": refused(module(W) + S + b"b", "attributes twice"),
    "built once more with nothing": refused(module(W) + b"}b", "attributes twice"),
    "built of a part first": refused(made(b"}" + text("eps") + b"K\x01sb" + S), "attributes twice"),
    "attributes that come later": refused(
        b"](" + made(S + b"q\x05") + again(5) + text("eps") + b"K\x01se", "change after"
    ),
    "parameters that come later, as in Python": read(
        b"](" + module(items(W) + b"q\x05") + again(5) + text("v") + T + b"se", "w", "v"
    ),
    "made with arguments": refused(MODULE + b"K\x01\x85\x81" + S + b"b", NAMED),
    "made by calling its class": refused(MODULE + b")R" + S + b"b", NAMED),
    "made by calling it with itself": refused(
        MODULE + b"q\x05" + again(5) + b"\x85R" + S + b"b", NAMED
    ),
    "made by copyreg": refused(
        module(modules={"a": b"ccopy_reg\n_reconstructor\n" + MODULE
                        + b"c__builtin__\nobject\nN\x87R" + S + b"b"}),
        r"refused global copy_?reg\._reconstructor",
    ),
    "NEWOBJ_EX": refused(MODULE + b")}\x92" + S + b"b", "refused pickle opcode NEWOBJ_EX", 4),
    "OBJ": refused(b"(" + MODULE + b"o" + S + b"b", "refused pickle opcode OBJ"),
    "INST": refused(b"(itorch.nn.modules.module\nModule\n" + S + b"b", NAMED),
    "DUP": refused(module(W) + b"2\x86", "refused pickle opcode DUP"),
    "POP": refused(module(W) + T + b"0", "refused pickle opcode POP"),
    "items set on it": read(module(W) + text("v") + T + b"s", "w"),
    "a list appended to it": read(module(W) + T + b"a", "w"),
    "items added to it as to a set": refused(module(W) + b"(K\x01\x90", "no set", 4),
    "__setstate__ and __reduce__ as attributes": read(
        module(W, more={n: text("x") for n in ("__setstate__", "__reduce_ex__", "__class__")}), "w"
    ),
}  # fmt: skip

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
        "_rebuild_from_type_v2",
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
    "None for a name": refused(module(_key(b"N")), "no part can be called 'a OddKey'"),
    "a module for a name": refused(module(_key(module(W))), "no part can be called 'a OddKey'"),
    "bytes for a name": refused(module(_key(b"C\x01w")), "neither text nor an integer", 3),
    "a tuple for a name": refused(module(_key(b")")), "neither text nor an integer"),
    "a name too long to be one": refused(module({"w" * 2000: T}), "neither text nor an integer"),
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

CORPUS = {
    f"{group}: {name}": case
    for group, cases in {
        "cycles": CYCLES, "shared": SHARED, "parts": PARTS, "states": STATES, "places": PLACES,
        "names": NAMES_OF_PARTS, "calls": CALLS, "classes": CLASSES, "ids": IDS,
    }.items()
    for name, case in cases.items()
}  # fmt: skip
