"""Files as recipes: what a study grows, changes, keeps as JSON, and makes bytes of.

A recipe is a table with its `kind`. Numbers in it are sizes and counts, and a change makes them
larger; `flips` are bytes of the finished file that are overwritten.
"""

from __future__ import annotations

import json
import random
from struct import pack
from typing import Any

from tests.studies.weights_io import pickle_grammar as grammar
from tests.weights_io import forge

Recipe = dict[str, Any]

PICKLES = ("plain", "zip", "packed", "legacy")
CONTAINERS = ("npz", "torch", "safetensors")
_NUMBERS = (0, 1, 2, 10, 100, 255, 1000, 4000, 20_000, 65_000, 262_144, 1 << 20)
_DESCR = ("'<f4'", "'>f8'", "'|b1'", "'<U9'", "'|O'", "'<f2'")
_MOST_COPIES = 12_000
_MOST_INFLATED = 1 << 20
_MOST_MADE = 1 << 20


def grow(kind: str, chance: random.Random) -> Recipe:
    """A new recipe of a kind of `PICKLES` or `CONTAINERS`."""
    recipe: Recipe = {"kind": kind, "flips": []}
    if kind in PICKLES:
        count = 1 << chance.choice([2, 10, 16, 18])
        return recipe | {"count": count, "tree": grammar.grow(chance).to_json()}
    if kind == "safetensors":
        return recipe | {"parts": [_entry(chance) for _ in range(chance.randint(1, 3))], "data": 16}
    return recipe | {"members": [_member(chance) for _ in range(chance.randint(1, 3))], "folder": 1}


def change(recipe: Recipe, other: Recipe, chance: random.Random) -> Recipe:
    """A changed copy; `other` is a recipe of the same family that parts may come from."""
    new: Recipe = json.loads(json.dumps(recipe))
    if "tree" in new:
        _change_pickle(new, other, chance)
        return new
    for _ in range(chance.randint(1, 4)):
        _change_container(new, other, chance)
    return new


def bake(recipe: Recipe) -> bytes:
    """The bytes of a recipe's file."""
    data = bytearray(_BAKE[recipe["kind"]](recipe))
    for place, value in recipe["flips"]:
        data[int(place * len(data)) % len(data)] = value
    return bytes(data)


# Pickles -----------------------------------------------------------------------------------------


def _change_pickle(recipe: Recipe, other: Recipe, chance: random.Random) -> None:
    kind = chance.random()
    if kind < 0.05:
        recipe["kind"] = chance.choice(PICKLES)
    elif kind < 0.1:
        recipe["count"] = 1 << chance.choice([0, 2, 10, 16, 18, 20])
    else:
        tree, donor = (grammar.Node.from_json(each["tree"]) for each in (recipe, other))
        recipe["tree"] = grammar.change(tree, donor, chance).to_json()


def _pickle(recipe: Recipe) -> bytes:
    tree = grammar.Node.from_json(recipe["tree"])
    return grammar.write(tree, count=recipe["count"], legacy=recipe["kind"] == "legacy")


def _torch_zip(recipe: Recipe) -> bytes:
    deflate = recipe["kind"] == "packed"
    return forge.zip_file(
        [
            forge.Entry("m/data.pkl", _pickle(recipe), deflate=deflate),
            forge.Entry("m/data/0", bytes(4 * recipe["count"]), deflate=deflate),
        ]
    )


def _legacy(recipe: Recipe) -> bytes:
    pickle, count = _pickle(recipe), recipe["count"]
    if b"storage" not in pickle:
        return forge.torch_legacy(pickle, (), ())
    return forge.torch_legacy(pickle, ("0",), [(count, bytes(4 * count))])


# Containers --------------------------------------------------------------------------------------


def _entry(chance: random.Random) -> Recipe:
    return {
        "copies": 1,
        "name": chance.choice(_NUMBERS[:6]),
        "dtype": chance.choice(["U8", "F32", "BF16", "\u001b", [[[]]]]),
        "deep": 0,
        "dimensions": chance.choice([0, 1, 2]),
        "size": 0,
    }


def _member(chance: random.Random) -> Recipe:
    return {
        "copies": 1,
        "name": chance.choice(_NUMBERS[:6]),
        "descr": chance.choice(_DESCR),
        "fortran": chance.choice([0, 1]),
        "metadata": int(chance.random() < 0.2),
        "size": chance.choice(_NUMBERS),
        "padding": 0,
        "deflate": chance.choice([0, 1]),
    }


def _change_container(recipe: Recipe, other: Recipe, chance: random.Random) -> None:
    parts = recipe.get("members") or recipe["parts"]
    part, kind = chance.choice(parts), chance.random()
    if kind < 0.1:
        recipe["flips"] = [*recipe["flips"][-3:], (chance.random(), chance.randrange(256))]
    elif kind < 0.2:
        recipe["flips"] = []
    elif kind < 0.3:
        donors = other.get("members") or other.get("parts") or []
        same = [donor for donor in donors if donor.keys() == part.keys()]
        parts.append(dict(chance.choice(same or [part])))
    elif kind < 0.35 and len(parts) > 1:
        parts.remove(part)
    elif kind < 0.4:
        field = "folder" if "folder" in recipe else "data"
        recipe[field] = chance.choice(_NUMBERS)
    else:
        field = chance.choice([key for key, value in part.items() if type(value) is int])
        larger = [part[field] * 2, part[field] * 10, part[field] + 1]
        part[field] = min(chance.choice([*_NUMBERS, *larger]), 1 << 24)


def _body(member: Recipe) -> bytes:
    size = min(member["size"], _MOST_INFLATED)
    fields = (member["descr"], "True" if member["fortran"] else "False")
    literal = f"{{'descr': {fields[0]}, 'fortran_order': {fields[1]}, 'shape': ({size},), }}"
    header = literal.encode() + b" " * min(member["padding"], 70_000) + b"\n"
    return forge.npy(
        bytes(size * int(fields[0][3])) if fields[0][3].isdigit() else b"", header=header
    )


def _metadata(member: Recipe) -> bytes:
    note = json.dumps({"a" * min(member["name"], 70_000): "b" * min(member["size"], 500_000)})
    return forge.npy(note.encode("utf-32-le"), descr=f"'<U{len(note)}'", shape="()")


def _copies(part: Recipe, size: int) -> int:
    """How often a part of that size may stand in a file that is still made in a moment."""
    copies: int = part["copies"]
    return min(copies, _MOST_COPIES, _MOST_MADE // (size + 100))


def _zip(recipe: Recipe) -> bytes:
    folder = "m" * min(recipe["folder"], 60_000) + "/" if recipe["kind"] == "torch" else ""
    entries = []
    for place, member in enumerate(recipe["members"]):
        body = _metadata(member) if member["metadata"] else _body(member)
        name = "__metadata__" if member["metadata"] else "n" * min(member["name"], 60_000)
        for copy in range(_copies(member, len(body) + 2 * len(name))):
            stem = name if member["metadata"] else f"{name}-{place}-{copy}"
            whole = f"{folder}data/{stem}" if folder else f"{stem}.npy"
            entries.append(forge.Entry(whole, body, bool(member["deflate"])))
    if folder:
        entries.insert(0, forge.Entry(f"{folder}data.pkl", forge.proto(b"}")))
    return forge.zip_file(entries)


def _safetensors(recipe: Recipe) -> bytes:
    entries = []
    for place, part in enumerate(recipe["parts"]):
        dtype: object = part["dtype"]
        deep = min(part["deep"], 100_000)
        shown = "[" * deep + json.dumps(dtype) + "]" * deep
        shape = json.dumps([min(part["size"], 1 << 20)] * min(part["dimensions"], 20_000))
        name = "n" * min(part["name"], 60_000)
        entry = f'{{"dtype":{shown},"shape":{shape},"data_offsets":[0,0]}}'
        copies = _copies(part, len(name) + len(entry))
        entries += [f'"{name}-{place}-{copy}":{entry}' for copy in range(copies)]
    header = ("{" + ",".join(entries) + "}").encode()
    return pack("<Q", len(header)) + header + bytes(min(recipe["data"], 1 << 20))


_BAKE = {
    "plain": _pickle,
    "zip": _torch_zip,
    "packed": _torch_zip,
    "legacy": _legacy,
    "npz": _zip,
    "torch": _zip,
    "safetensors": _safetensors,
}
