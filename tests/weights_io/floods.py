"""Files that ask for more work than they are large: each kind in any size, most of them refused."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from struct import pack

from tests.weights_io.forge import (
    ORDERED,
    Entry,
    integer,
    npy,
    proto,
    safetensors,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_zip,
    zip_file,
)
from tests.weights_io.module_files import again, module

MERSENNE = (1 << 61) - 1  # the modulus of Python's hash of integers
_LONG_TUPLE = 40_000  # items at most
_DTYPE = b"cnumpy\ndtype\n" + text("f4") + b"\x89\x88\x87R"


def _repeated(piece: bytes, size: int) -> bytes:
    return piece * max(1, size // len(piece))


def _parts(make: Callable[[int], bytes], size: int) -> bytes:
    """``make(0) + make(1) + ...``, about so many bytes."""

    def parts() -> Iterator[bytes]:
        length = number = 0
        while length < size:
            part: bytes = make(number)
            length += len(part)
            number += 1
            yield part

    return b"".join(parts())


def integer_keys(size: int) -> bytes:
    """Keys of one hash: each is compared to all before."""
    return proto(b"}(" + _parts(lambda i: integer(i * MERSENNE) + b"N", size) + b"u")


def sets_of_one_list(size: int) -> bytes:
    """Half the file one list of numbers, the other half sets of it, recalled."""
    items = _parts(lambda i: b"J" + pack("<i", i), size // 2)
    sets = _repeated(b"h\x01h\x00\x85R", size // 2)
    return proto(b"(](" + items + b"eq\x00c__builtin__\nset\nq\x01h\x00\x85R" + sets + b"t")


def sets_of_one_list_of_texts(size: int) -> bytes:
    items = _parts(lambda i: b"\x8c\x05%05d" % (i % 100_000), size // 2)
    sets = _repeated(b"h\x01h\x00\x85R", size // 2)
    return proto(b"(](" + items + b"eq\x00c__builtin__\nset\nq\x01h\x00\x85R" + sets + b"t", 4)


def doubling_magic(size: int) -> bytes:
    """A magic number that is a tuple of two of the tuple before, and so on."""
    nested = _doubling(size)
    rest = pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    head = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
    return head + nested + b"\x86." + rest + proto(ORDERED) + pickle.dumps([], 2)


def doubling_dtype(size: int) -> bytes:
    return proto(b"cnumpy\ndtype\n" + _doubling(size) + b"\x89\x88\x87R")


def _doubling(size: int) -> bytes:
    return b"()q\x00" + _repeated(b"h\x00h\x00\x86q\x00", size) + b"t"


def nested_dtype(size: int) -> bytes:
    return proto(b"cnumpy\ndtype\n)" + b"\x85" * size + b"\x89\x88\x87R")


def wide_texts(size: int) -> bytes:
    """Texts in which one letter makes all others four bytes wide."""
    one = "\U0001f600" + "a" * min(60_000, max(8, size // 4))
    return proto(b"](" + _repeated(text(one), size) + b"e")


def recalled_shapes(size: int) -> bytes:
    """One long tuple, looked through by every torch.Size of it."""
    numbers = b"(" + b"K\x01" * min(_LONG_TUPLE, size // 4) + b"tq\x00"
    sizes = _repeated(b"h\x01h\x00\x85R", size // 2)
    return proto(b"(" + numbers + b"ctorch\nSize\nq\x01h\x00\x85R" + sizes + b"t")


def recalled_attributes(size: int) -> bytes:
    """One large dict, the attributes of many namespaces."""
    items = _parts(lambda i: b"\x8c\x05%05dN" % i, min(size // 2, 8 * 99_999))
    spaces = _repeated(b"h\x01)\x81h\x00b", size // 2)
    return proto(
        b"(}(" + items + b"uq\x00cargparse\nNamespace\nq\x01)\x81h\x00b" + spaces + b"t", 4
    )


def recalled_bytes(size: int) -> bytes:
    """One text, encoded again and again."""
    word = text("a" * 1000) + b"q\x00" + text("latin1") + b"q\x02"
    made = _repeated(b"h\x01h\x00h\x02\x86R", size)
    return proto(b"(" + word + b"c_codecs\nencode\nq\x01h\x00h\x02\x86R" + made + b"t")


def recalled_scalars(size: int) -> bytes:
    """One number of NumPy's, made again and again."""
    one = b"cnumpy.core.multiarray\nscalar\nq\x01" + _DTYPE + b"q\x00C\x04abcdq\x02\x86R"
    return proto(b"(" + one + _repeated(b"h\x01h\x00h\x02\x86R", size) + b"t", 3)


def recalled_dtypes(size: int) -> bytes:
    head = b"cnumpy\ndtype\nq\x01" + text("f4") + b"\x89\x88\x87q\x00R"
    return proto(b"(" + head + _repeated(b"h\x01h\x00R", size) + b"t")


def empty_sets(size: int) -> bytes:
    return proto(b"(" + b"\x8f" * size + b"t", 4)


def empty_dicts(size: int) -> bytes:
    return proto(b"](" + b"}" * size + b"e")


def five_pickles(size: int) -> bytes:
    """A legacy stream, each of whose first pickles is as long as one may be."""
    facts = {"little_endian": True, "n": [[] for _ in range(min(size // 2, 110_000))]}
    keys = proto(b"](" + b"]" * min(size // 2, 249_000) + b"e")
    return torch_legacy(proto(ORDERED), (), (), system=facts, tail=keys)


def long_names(size: int) -> bytes:
    """Names of globals, as long as lines may be."""
    return proto(_repeated(b"c" + b"a" * 60_000 + b"\n" + b"b" * 60_000 + b"\n", size))


def wide_views(size: int) -> bytes:
    """Tensors of two numbers, first and last of a storage: all between is read."""
    count = size // 8
    view = tensor((2,), (count - 1,), of=b"h\x00")
    named = _parts(lambda i: text(f"a.{i}") + view, size // 2)
    stored = storage(count) + b"q\x00"
    body = ORDERED + b"(" + text("a") + tensor((1,), of=stored) + named + b"u"
    return torch_zip(proto(body), {"0": bytes(4 * count)})


def inflated_views(size: int) -> bytes:
    """Tensors of one number in a deflated storage, which is inflated for each."""
    count = 250_000
    view = tensor((1,), (1,), of=b"h\x00")
    named = _parts(lambda i: text(f"a.{i}") + view, size)
    body = ORDERED + b"(" + text("a") + tensor((1,), of=storage(count) + b"q\x00") + named + b"u"
    entries = [Entry("m/data.pkl", proto(body)), Entry("m/data/0", bytes(4 * count), deflate=True)]
    return zip_file(entries)


def deflated_zeros(size: int) -> bytes:
    """Arrays of zeros, each a hundredth of its size."""
    data = npy(bytes(1 << 19), shape=f"({1 << 17},)")
    entries = [Entry(f"{i}.npy", data, deflate=True) for i in range(max(1, size // 2500))]
    return zip_file(entries)


def json_lists(size: int) -> bytes:
    return safetensors(b'{"a":[' + _repeated(b"[],", size) + b"[]]}")


def json_entries(size: int) -> bytes:
    one = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    return safetensors(json.dumps({f"a.{i}": one for i in range(max(1, size // 70))}).encode())


def empty_members(size: int) -> bytes:
    return zip_file(Entry(f"m/{i}", b"") for i in range(max(1, size // 90)))


def shared_tensors(size: int) -> bytes:
    """Tensors of four numbers of one storage."""
    body = _parts(lambda i: text(f"a.{i}") + tensor(), size)
    return torch_zip(proto(ORDERED + b"(" + body + b"u"))


def averages(size: int) -> bytes:
    """One entry of weights under many names of averages."""
    entry = b"}" + text("a.b") + tensor() + b"sq\x00"
    names = _parts(lambda i: b"\x8c\x09ema_%05dh\x00" % (i % 100_000), min(size, 13 * 60_000))
    return torch_zip(proto(b"}(" + text("ema") + entry + names + b"u", 4))


def modules_side_by_side(size: int) -> bytes:
    """A module of many small ones."""
    one = module({"w": tensor()})
    return torch_zip(
        proto(module(modules=b"}(" + _parts(lambda i: text(f"m{i}") + one, size) + b"u"))
    )


def modules_of_one_dict(size: int) -> bytes:
    """One dict of parameters, that of many modules: every name of it again and again."""
    held = b"}(" + _parts(lambda i: text(f"w{i}") + again(1), size // 2) + b"uq\x00"
    first = b"](" + tensor() + b"q\x01" + module(held)
    one = module(again(0))
    whole = module(modules=b"}(" + _parts(lambda i: text(f"m{i}") + one, size // 2) + b"u")
    return torch_zip(proto(first + whole + b"e"))


def modules_that_double(size: int) -> bytes:
    """Each module holds the one before it twice."""
    step = module(modules={"a": again(0), "b": again(0)}) + b"q\x00"
    return torch_zip(
        proto(b"](" + module({"w": tensor()}) + b"q\x00" + _repeated(step, size) + b"e")
    )


READING: dict[str, Callable[[int], bytes]] = {
    make.__name__.replace("_", " "): make
    for make in (
        integer_keys, sets_of_one_list, sets_of_one_list_of_texts, doubling_magic, doubling_dtype,
        nested_dtype, wide_texts, recalled_shapes, recalled_attributes, recalled_bytes,
        recalled_scalars, recalled_dtypes, empty_sets, empty_dicts, five_pickles, long_names,
        wide_views, inflated_views, deflated_zeros, json_lists, json_entries, empty_members,
        shared_tensors, averages, modules_side_by_side, modules_of_one_dict, modules_that_double,
    )
}  # fmt: skip


def one_channel_blocks(size: int) -> bytes:
    """A chain of fused blocks of one channel."""
    count = max(1, size // 160)
    names = ["stage0"] + [f"stage{1 + i // 9000}.{i % 9000}" for i in range(count)]
    shapes = {"weight": (1, 1, 3, 3), "bias": (1,)}
    parts = {f"{n}.rbr_reparam.{p}": shape for n in names for p, shape in shapes.items()}
    return _network(parts)


def gaps(size: int) -> bytes:
    """Each stage with its last block alone: ten thousand times as many are missing."""
    return _network(
        {f"stage{1 + i}.9999.rbr_reparam.weight": (1, 1, 3, 3) for i in range(size // 110)}
    )


def eight_prefixes(size: int) -> bytes:
    parts = [f"n{i % 8}.stage1.0.x{i}.stage2.1.y.stage3.1.z" for i in range(size // 110)]
    return _network(dict.fromkeys(parts, (1,)))


def unknown_names(size: int) -> bytes:
    known = {f"stage0.rbr_dense.conv.{i}": (1,) for i in range(size // 160)}
    return _network(known | {f"stage1.0.x.{i}.y": (1,) for i in range(size // 160)})


def _network(shapes: Mapping[str, tuple[int, ...]]) -> bytes:
    """A torch zip whose arrays of these shapes are views of one storage."""
    strides = {1: (1,), 4: (9, 9, 3, 1)}
    body = b"".join(
        text(name)
        + (tensor(shape, strides[len(shape)], of=b"h\x00" if i else storage(9) + b"q\x00"))
        for i, (name, shape) in enumerate(shapes.items())
    )
    return torch_zip(proto(ORDERED + b"(" + body + b"u"), {"0": bytes(36)})


NAMING: dict[str, Callable[[int], bytes]] = {
    make.__name__.replace("_", " "): make
    for make in (one_channel_blocks, gaps, eight_prefixes, unknown_names, averages, shared_tensors)
}
