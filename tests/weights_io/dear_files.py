"""Small files that ask for much work: each costs a naive reader minutes or gigabytes.

Most were found by reading or by `tests.studies.weights_io.costly`, and made small by hand. What
they share is a product: a part that is written once, and an opcode of a few bytes that looks at all
of it again.
"""

from __future__ import annotations

import random
from struct import pack

import numpy as np

from tests.weights_io.forge import (
    ORDERED,
    REBUILD,
    Entry,
    integer,
    npy,
    proto,
    safetensors,
    storage,
    text,
    torch_zip,
    zip_file,
)

# Zeros pack a thousandfold, which is refused; a little noise among them packs less than 200-fold.
_PIECE = random.Random(0).randbytes(1 << 10) + bytes((1 << 20) - (1 << 10))

MERSENNE = (1 << 61) - 1  # Python hashes integers modulo this number


def _remembered(value: bytes, place: int) -> bytes:
    return value + b"q" + bytes([place])


def _again(place: int) -> bytes:
    return b"h" + bytes([place])


def _listed(known: list[bytes], body: bytes) -> bytes:
    """A pickle of one list, which `body` fills; `known` is remembered, and dropped in a set."""
    return proto(b"](" + b"(" + b"".join(known) + b"\x91" + body + b"e", 4)


# A long part, looked at again and again ----------------------------------------------------------

_LONG_TUPLE = _remembered(b"(" + b"K\x01" * 50_000 + b"t", 0)


def shape_of_many_sizes() -> bytes:
    """One tuple of 50,000 integers, made a `torch.Size` 40,000 times."""
    size = _remembered(b"ctorch\nSize\n", 1)
    args = _remembered(_LONG_TUPLE + b"\x85", 2)
    return _listed([size, args], (_again(1) + _again(2) + b"R") * 40_000)


def views_of_many_sizes() -> bytes:
    """One tuple of 50,000 integers, the shape and the strides of 18,000 tensors."""
    rest = _remembered(storage(), 3) + b"K\x00" + _LONG_TUPLE + _again(0) + b"\x89" + ORDERED
    args = _remembered(b"(" + rest + b"t", 2)
    body = (_again(1) + _again(2) + b"R") * 40_000
    return torch_zip(_listed([_remembered(REBUILD, 1), args], body))


def namespaces_of_one_dict() -> bytes:
    """One dict of 20,000 names, the attributes of 30,000 namespaces."""
    names = b"".join(b"\x8c\x05%05dN" % number for number in range(20_000))
    state = _remembered(b"}(" + names + b"u", 0)
    maker = _remembered(b"cargparse\nNamespace\n", 1)
    return _listed([state, maker], (_again(1) + b")\x81" + _again(0) + b"b") * 30_000)


def namespaces_of_one_small_dict() -> bytes:
    """One dict of 200 names, copied for each of 40,000 namespaces before they are added up."""
    names = b"".join(b"\x8c\x05%05dN" % number for number in range(200))
    state = _remembered(b"}(" + names + b"u", 0)
    maker = _remembered(b"cargparse\nNamespace\n", 1)
    return _listed([state, maker], (_again(1) + b")\x81" + _again(0) + b"b") * 40_000)


def encoded_long_text() -> bytes:
    """One text of 64 KB in the file, turned into bytes 40,000 times."""
    args = _remembered(text("a" * 65_000) + text("latin1") + b"\x86", 0)
    encode = _remembered(b"c_codecs\nencode\n", 1)
    return _listed([args, encode], (_again(1) + _again(0) + b"R") * 40_000)


# Integers and texts ------------------------------------------------------------------------------


def integers_of_one_hash() -> bytes:
    """20,000 keys of one hash: each is compared with all before it."""
    keys = b"".join(integer(number * MERSENNE) + b"N" for number in range(1, 20_001))
    return proto(b"}(" + keys + b"u")


def _doubled(depth: int) -> bytes:
    return b"(K\x01\x85q\x00" + b"h\x00h\x00\x86q\x00" * depth + b"t"


def dtype_of_doubled_tuples() -> bytes:
    """A dtype's code that unfolds to 2^60 tuples when it is shown."""
    return proto(b"cnumpy\ndtype\n" + _doubled(60) + b"\x89\x88\x87R")


def dtype_of_deep_tuples() -> bytes:
    """A dtype's code of 100,000 levels, shown."""
    return proto(b"cnumpy\ndtype\n)" + b"\x85" * 100_000 + b"\x89\x88\x87R")


def magic_of_doubled_tuples() -> bytes:
    """A legacy file whose version unfolds to 2^60 tuples when it is shown."""
    magic = integer(0x1950A86A20F9469CFC6C)
    return proto(magic) + proto(_doubled(60)) + proto(b"}")


def header_of_deep_lists() -> bytes:
    """A safetensors dtype of many levels, shown: JSON may go deeper than `repr` can."""
    deep = b"[" * 900 + b"]" * 900
    return safetensors(b'{"w":{"dtype":' + deep + b',"shape":[],"data_offsets":[0,0]}}')


# Views that reach far ----------------------------------------------------------------------------


def _views(count: int, of: bytes, size: bytes, stride: bytes) -> bytes:
    args = b"(" + of + b"K\x00" + size + b"\x85" + stride + b"\x85\x89" + ORDERED + b"t"
    body = (_again(1) + _again(2) + b"R") * count
    return _listed([_remembered(REBUILD, 1), _remembered(args, 2)], body)


def _archive(pickle: bytes, data: bytes, *, deflate: bool, byteorder: bytes = b"little") -> bytes:
    members = [Entry("m/data.pkl", pickle), Entry("m/byteorder", byteorder)]
    return zip_file([*members, Entry("m/data/0", data, deflate=deflate)])


def two_far_elements() -> bytes:
    """19,000 tensors of two elements, at both ends of a storage of 800 KB."""
    count = 200_000
    pickle = _views(19_000, storage(count), b"K\x02", integer(count - 1))
    return _archive(pickle, bytes(4 * count), deflate=False)


def two_far_elements_of_a_packed_storage() -> bytes:
    """A tensor of two elements, at both ends of a storage of 160 MB that takes 900 KB."""
    count = 40 << 18
    count *= 4
    pickle = _views(1, storage(count), b"K\x02", integer(count - 1))
    return _archive(pickle, _PIECE * (count >> 18), deflate=True)


def views_of_a_packed_storage() -> bytes:
    """19,000 tensors of one element in a storage of 1 MB: each inflates all of it."""
    count = 1 << 18
    pickle = _views(19_000, storage(count), b"K\x01", b"K\x01")
    return _archive(pickle, bytes(4 * count), deflate=True)


def repeated_bfloat16() -> bytes:
    """One element repeated to 32 Mi of bfloat16: 64 MB as counted, 128 MB as read."""
    pickle = _views(1, storage(8, kind="BFloat16Storage"), integer(32 << 20), b"K\x00")
    return _archive(pickle, bytes(16), deflate=False)


def repeated_of_the_other_order() -> bytes:
    """One element repeated to 64 MB, and once more when its bytes are turned around."""
    pickle = _views(1, storage(2, kind="DoubleStorage"), integer(8 << 20), b"K\x00")
    return _archive(pickle, bytes(16), deflate=False, byteorder=b"big")


def packed_fortran_array() -> bytes:
    """An array of 70 MB in a file of 400 KB, of the other byte order and axis order."""
    array = npy(_PIECE * 70, descr="'>f8'", shape=str((2, 70 << 16)), fortran="True")
    return zip_file([Entry("w.npy", array, deflate=True)])


# Names -------------------------------------------------------------------------------------------


def folder_of_a_long_name() -> bytes:
    """Three members in a folder whose name has 60,000 letters, joined to 15,000 keys."""
    folder = "m" * 60_000
    pickle = _views(15_000, storage(), b"K\x04", b"K\x01")
    members = [Entry(f"{folder}/data.pkl", pickle), Entry(f"{folder}/data/0", bytes(16))]
    return zip_file(members)


def frozen_sets_without_end() -> bytes:
    """124,000 empty frozen sets, of two bytes each."""
    return proto(b"(" + b"(\x91" * 124_000 + b"t", 4)


def dtypes_without_end() -> bytes:
    """A NumPy dtype made 80,000 times."""
    args = _remembered(text("U9") + b"\x89\x88\x87", 0)
    return _listed([args, _remembered(b"cnumpy\ndtype\n", 1)], b"h\x01h\x00R" * 80_000)


def scalars_without_end() -> bytes:
    """A NumPy scalar of the other byte order made 80,000 times."""
    dtype = b"cnumpy\ndtype\n" + text("f8") + b"\x89\x88\x87R(K\x03" + text(">")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    args = _remembered(dtype + b"C\x08" + bytes(8) + b"\x86", 0)
    make = _remembered(b"cnumpy.core.multiarray\nscalar\n", 1)
    return _listed([args, make], b"h\x01h\x00R" * 80_000)


# Numbers that collide -----------------------------------------------------------------------------


def _colliding(bits: int, digits: int) -> list[int]:
    """Numbers of `digits` bits, all of another hash, for which a dict of 2^`bits` places is slow.

    CPython looks at the places i, 5 i + (h >> 5) + 1, ... in turn, h shifted five bits further each
    time. The first half of the numbers fill a chain of places; the others are drawn five bits at a
    time so that they meet filled places only, until h is used up and they walk along the chain.
    """
    count, mask = (2 << bits) // 6 - 50, np.uint64((1 << bits) - 1)
    chain = [1]
    while len(chain) < count:
        chain.append((5 * chain[-1] + 1) & int(mask))
    filled = np.zeros(1 << bits, np.bool_)
    filled[chain] = True
    chance, found = np.random.default_rng(0), set[int]()
    while len(found) < count:
        number = chance.choice(np.array(chain, np.uint64), 50_000)
        place = number.copy()
        for step in range(1, digits // 5 + 2):
            low = bits + 5 * (step - 1)
            if low < digits:
                number, place = np.repeat(number, 4), np.repeat(place, 4)
                more = chance.integers(0, 32, number.size, np.uint64) << np.uint64(low)
                number = (number | more) & np.uint64((1 << digits) - 1)
            place = (place * np.uint64(5) + (number >> np.uint64(5 * step)) + np.uint64(1)) & mask
            good = filled[place]
            number, place = number[good][:100_000], place[good][:100_000]
        found |= set(number.tolist())
    return [*chain, *sorted(found - set(chain))[:count]]


def keys_that_collide() -> bytes:
    """40,000 integer keys of less than 64 bits, no two of one hash."""
    keys = b"".join(integer(number) + b"N" for number in _colliding(16, 60))
    return proto(b"}(" + keys + b"u")


def memo_places_that_collide() -> bytes:
    """20,000 places of the memo, and 100,000 recalls of those that are slowest to find."""
    places = [pack("<I", number) for number in _colliding(15, 32)]
    put = b"".join(b"r" + place for place in places)
    return proto(b"](N" + put + b"".join(b"j" + place for place in places[-10_000:]) * 10 + b"e")


def _low_colliding(bits: int) -> tuple[list[int], list[int]]:
    """Numbers below 2^20 that meet in a dict of 2^`bits` places, which looks as low as keys do.

    The first fill a chain of places, as in `_colliding`; of all other numbers those are taken whose
    five first places are filled, so that they walk along the chain.
    """
    mask = np.uint64((1 << bits) - 1)
    chain = [1]
    while len(chain) < (1 << bits) // 3:
        chain.append((5 * chain[-1] + 1) & int(mask))
    filled = np.zeros(1 << bits, np.bool_)
    filled[chain] = True
    number = np.arange(1 << bits, 1 << 20, dtype=np.uint64)
    place, rest = number & mask, number.copy()
    good = filled[place]
    for _ in range(5):
        rest >>= np.uint64(5)
        place = (place * np.uint64(5) + rest + np.uint64(1)) & mask
        good &= filled[place]
    return chain, number[good].tolist()[: (1 << bits) // 3]


def low_keys_that_collide() -> bytes:
    """55,000 integer keys below 2^20, which look like those of a table of pictures."""
    chain, others = _low_colliding(17)
    return proto(b"}(" + b"".join(integer(number) + b"N" for number in chain + others) + b"u")


def low_memo_places_that_collide() -> bytes:
    """33,000 places of the memo below 2^20, and 130,000 recalls of the slowest of them."""
    chain, others = _low_colliding(16)
    put = b"".join(b"r" + pack("<I", number) for number in chain + others)
    again = b"".join(b"j" + pack("<I", number) for number in others[-1000:])
    return proto(b"](N" + put + again * 130 + b"e")
