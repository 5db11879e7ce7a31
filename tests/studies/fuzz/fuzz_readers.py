"""Coverage-guided fuzzing of every reader: nothing but the package's own errors may come out.

Run from the repository root, in an environment with ``pip install atheris numpy``::

    python -m tests.studies.fuzz.fuzz_readers CORPUS_FOLDER -runs=1000000 -max_len=4096 -timeout=10

The first byte of an input picks a wrapping: none, or one that puts the rest where a mutation of
a whole file would seldom get past the checksums and lengths. The corpus folder is kept between
runs; seeds are written into it on the first. A crash is saved as ``crash-<hash>``; pass that
file instead of the folder to see it again.
"""

from __future__ import annotations

import pickle  # only to make seeds
import sys
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["weights_io"]):
    import weights_io

import numpy as np

from tests.weights_io import forge

LIMITS = replace(
    weights_io.DEFAULT_LIMITS, total_bytes=1 << 22, overlap_bytes=1 << 18, work=100_000
)


def _npz(data: bytes) -> bytes:
    return forge.npz({"w": data})


def _npz_metadata(data: bytes) -> bytes:
    letters = data.decode("latin-1").encode("utf-32-le")
    return forge.npz({"__metadata__": forge.npy(letters, descr=f"'<U{len(data)}'", shape="()")})


def _npz_deflated(data: bytes) -> bytes:
    return forge.zip_file([forge.Entry("w.npy", data, deflate=True)])


def _npy_header(data: bytes) -> bytes:
    return forge.npz({"w": forge.npy(header=data)})


def _zip_names(data: bytes) -> bytes:
    names = data.decode("latin-1").split("\n")
    return forge.zip_file([forge.Entry(name, forge.proto(b"}")) for name in names])


def _safetensors(data: bytes) -> bytes:
    return forge.safetensors(data, bytes(16))


def _torch_zip(data: bytes) -> bytes:
    return forge.torch_zip(data)


def _torch_legacy(data: bytes) -> bytes:
    return forge.torch_legacy(data)


def _torch_legacy_tail(data: bytes) -> bytes:
    return forge.torch_legacy(forge.state_dict({}), (), ()) + data


WRAPPINGS: list[Callable[[bytes], bytes]] = [
    bytes,
    _torch_zip,
    _torch_legacy,
    _torch_legacy_tail,
    _npz,
    _npz_metadata,
    _npz_deflated,
    _npy_header,
    _zip_names,
    _safetensors,
]


def fuzz_one(data: bytes) -> None:
    """Read one input to its last array."""
    if not data:
        return
    wrapped = WRAPPINGS[data[0] % len(WRAPPINGS)](data[1:])
    try:
        with weights_io.open_weights(BytesIO(wrapped), LIMITS) as archive:
            _read_arrays(archive.root)
    except weights_io.ReportedError as error:
        if not str(error).isprintable():
            raise AssertionError(f"a message that does not print: {error!r}") from error


def _read_arrays(node: object) -> None:
    if isinstance(node, weights_io.LazyArray):
        values = node.read()
        assert values.shape == node.shape
        assert values.flags.c_contiguous
        assert values.flags.writeable
    elif isinstance(node, dict):
        for value in node.values():
            _read_arrays(value)
    elif isinstance(node, list | tuple):
        for value in node:
            _read_arrays(value)


def write_seeds(folder: Path) -> None:
    """Fill a new corpus folder with a small valid input for each wrapping and container."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {"w": np.arange(4, dtype=np.float32), "n": np.array(3), "e": np.zeros((0, 2))}
    views = {
        "a": forge.tensor([2, 2], [1, 2]),
        "b": forge.tensor([3], [1], offset=1, extra=b"}" + forge.text("neg") + b"\x88s"),
    }
    seeds = [
        (WRAPPINGS.index(_torch_zip), forge.state_dict(views)),
        (WRAPPINGS.index(_npz), forge.npy()),
        (WRAPPINGS.index(_npz_metadata), b'{"a": "b", "c": "\\u00fc"}'),
        (WRAPPINGS.index(_npz_deflated), forge.npy()),
        (
            WRAPPINGS.index(_npy_header),
            b"{'descr': '<f4', 'fortran_order': True, 'shape': (2, 2)}\n",
        ),
        (WRAPPINGS.index(_zip_names), b"m/data.pkl\nm/data/0\nm/version"),
        (WRAPPINGS.index(_safetensors), forge.safetensors({"w": forge.entry()})[8:]),
        (
            WRAPPINGS.index(_torch_legacy),
            forge.state_dict({"a": forge.tensor(of=forge.storage(legacy=True))}),
        ),
        (WRAPPINGS.index(_torch_legacy_tail), b""),
        (0, forge.zip_file([forge.Entry("m/data.pkl", forge.proto(b"}"), deflate=True)])),
        (0, forge.zip_file([forge.Entry("m/data.pkl", forge.proto(b"}"))], zip64=True)),
        (0, _training_pickle()),
        *((0, pickle.dumps(_numpy_values(), protocol)) for protocol in range(2, 6)),
        *((WRAPPINGS.index(_torch_zip), _one_tensor(kind)) for kind in ("Bool", "BFloat16")),
    ]
    for container in ("npz", "safetensors", "torch-zip", "torch-legacy"):
        path = folder / "seed"
        weights_io.save_weights(path, arrays, container=container)
        seeds.append((0, path.read_bytes()))
        path.unlink()
    for position, (wrapping, data) in enumerate(seeds):
        (folder / f"seed-{position}").write_bytes(bytes([wrapping]) + data)


def _numpy_values() -> dict[str, object]:
    """Arrays small and large enough to stay in the file, and a scalar."""
    large = np.arange(150, dtype=np.float64).reshape(10, 15)
    return {"large": large, "f": np.asfortranarray(large[:2, :2]), "one": np.int64(1)}


def _one_tensor(kind: str) -> bytes:
    """A parameter of a type whose bytes need decoding, of just the default storage's size."""
    count = 16 if kind == "Bool" else 8
    of = forge.storage(count, kind=f"{kind}Storage")
    tensor = forge.tensor([count], of=of)
    parameter = b"ctorch._utils\n_rebuild_parameter\n(" + tensor + b"\x88" + forge.ORDERED + b"tR"
    names = b"c__builtin__\nset\n](" + forge.text("a") + b"e\x85R"
    return forge.state_dict({"w": parameter, "names": names})


def _training_pickle() -> bytes:
    """Every global and nearly every opcode that the machine knows."""
    config = b"cyacs.config\nCfgNode\n)\x81(" + forge.text("a") + b"K\x01u}("
    for name in ("__immutable__", "__deprecated_keys__", "__renamed_keys__", "__new_allowed__"):
        config += forge.text(name) + b"\x88"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    dtype = b"cnumpy\ndtype\n" + forge.text("f4") + b"\x89\x88\x87Rq\x01(K\x03" + forge.text("<")
    dtype += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    items = {
        "config": config + b"ub",
        "args": b"cargparse\nNamespace\n)\x81}" + forge.text("lr") + b"G?\xf0" + bytes(6) + b"sb",
        "array": array + b"(K\x01K\x02\x85" + dtype + b"\x89B\x08\x00\x00\x00" + bytes(8) + b"tb",
        "scalar": b"cnumpy.core.multiarray\nscalar\nh\x01C\x04" + bytes(4) + b"\x86R",
        "set": b"\x8f(" + forge.text("x") + b"\x90",
        "device": b"ctorch\ndevice\n" + forge.text("cuda") + b"K\x00\x86R",
        "size": b"ctorch\nSize\nK\x02K\x03\x86\x85R",
        "dtype": b"ctorch\nfloat32\n",
        "default": b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R",
        "list": b"](K\x01M\x01\x00J\x01\x00\x00\x00\x88\x89Ne",
    }
    body = b"}\x94(" + b"".join(forge.text(key) + value for key, value in items.items()) + b"u"
    return forge.proto(body, 4)


def main() -> None:
    """Seed the corpus if it is new, and fuzz."""
    folders = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("-")]
    if folders and not folders[0].exists():
        write_seeds(folders[0])
    atheris.Setup(sys.argv, fuzz_one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
