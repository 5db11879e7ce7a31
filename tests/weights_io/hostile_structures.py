"""Modules that hold themselves, unfold without end, or are put together as torch never does."""

from __future__ import annotations

from tests.weights_io.forge import (
    ORDERED,
    proto,
    storage,
    tensor,
    text,
    torch_zip,
)
from tests.weights_io.module_cases import (
    NAMED,
    SET,
    Case,
    S,
    W,
    read,
    refused,
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
    state,
)

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
    "items set on it, as torch's dict of modules takes them": refused(
        module(W, cls=b"ctorch.nn.modules.container\nModuleDict\n") + text("m") + module(W) + b"s",
        "which is a module, gets items",
    ),
    "appended to it, as torch's list of modules takes them": refused(
        module(W, cls=b"ctorch.nn.modules.container\nModuleList\n") + module(W) + b"a",
        "which is a module, gets items",
    ),
    "items first": refused(
        MODULE + b")\x81(" + text("m") + module(W) + b"u" + S + b"b", "attributes twice"
    ),
    "items added to it as to a set": refused(module(W) + b"(K\x01\x90", "no set", 4),
    "__setstate__ and __reduce__ as attributes": read(
        module(W, more={n: text("x") for n in ("__setstate__", "__reduce_ex__", "__class__")}), "w"
    ),
}  # fmt: skip
