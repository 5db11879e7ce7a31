"""Nothing of the hostile corpus is run, and nothing is read as what it is not."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest

import weights_io
from tests.files.module_settings import block, file_of
from tests.weights_io.forge import proto, text, torch_zip
from tests.weights_io.hostile_modules import CORPUS
from tests.weights_io.module_cases import CANARY
from tests.weights_io.module_files import T, again, module, parameter
from tests.weights_io.refusal import assert_refused, read_everything
from tests.weights_io.unpickled import names_of

ROOT = Path(__file__).parents[2]
READ = [name for name, case in CORPUS.items() if not case.refused]
REFUSED = [name for name, case in CORPUS.items() if case.refused]


def modules_in(root: object) -> Iterator[weights_io.PickledModule]:
    if isinstance(root, weights_io.PickledModule):
        yield root
    elif isinstance(root, dict | list):
        for each in root.values() if isinstance(root, dict) else root:
            yield from modules_in(each)


def test_the_corpus_is_large() -> None:
    assert len(CORPUS) >= 60
    assert len({case.data for case in CORPUS.values()}) == len(CORPUS)


@pytest.mark.few(60)
@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_module_is_refused_in_one_line(name: str) -> None:
    case = CORPUS[name]
    assert_refused(case.data, case.refused)


@pytest.mark.parametrize("name", READ)
def test_an_odd_module_is_read_as_torch_would_name_it(name: str) -> None:
    root = read_everything(CORPUS[name].data)
    (found,) = modules_in(root)
    assert tuple(found.arrays()) == CORPUS[name].names
    assert all(array.shape == (4,) for array in found.arrays().values())
    assert CANARY not in sys.modules


def test_every_beginning_of_a_module_is_refused() -> None:
    body = proto(module({"w": parameter(T)}, {"b": T}, {"m": module({"w": T})}))
    whole = read_everything(torch_zip(body))
    assert [list(one.arrays()) for one in modules_in(whole)] == [["w", "b", "m.w"]]
    for size in range(len(body)):
        with pytest.raises(weights_io.WeightsFileError):
            read_everything(torch_zip(body[:size]))


def _pickle_of(data: bytes) -> bytes:
    """The object's pickle, of a torch zip or of a legacy stream, where three stand before it."""
    if data.startswith(b"PK"):
        with zipfile.ZipFile(BytesIO(data)) as archive:
            return archive.read("m/data.pkl")
    stream = BytesIO(data)
    for _ in range(3):
        pickle.load(stream)
    return data[stream.tell() :]


@pytest.mark.parametrize("name", READ)
def test_what_is_read_is_what_python_unpickles(name: str) -> None:
    assert [list(CORPUS[name].names)] == names_of(_pickle_of(CORPUS[name].data))


SOUND = proto(
    module(
        {"w": parameter(T), "none": b"N"},
        {"b": T + b"q\x05", "c": again(5), "u": T},
        {
            "m": module({"w": T}, more={"eps": b"K\x01", "forward": b"N"}) + b"q\x06",
            "again": again(6),
            "n": module(
                modules={"0": module(b"ccollections\nOrderedDict\n)R" + text("w") + T + b"s")}
            ),
            "absent": b"N",
        },
        more={"_non_persistent_buffers_set": b"c__builtin__\nset\n]" + text("u") + b"a\x85R"},
    )
)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_is_changed_in_a_module_is_refused_or_read_as_python_reads_it(seed: int) -> None:
    """Bytes are changed, left out and doubled; of what is read the names are held to a witness."""
    rng = random.Random(seed)
    read = 0
    for _ in range(400):
        data = bytearray(SOUND)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            place, size = rng.randrange(2, len(data)), rng.choice((1, 1, 2, 5, 20))
            piece = bytes(data[place : place + size])
            other = bytes(data[(at := rng.randrange(2, len(data))) : at + size])
            changes = (
                b"",
                2 * piece,
                other,
                other + piece,
                bytes([rng.randrange(256)]),
                piece[::-1],
            )
            data[place : place + size] = rng.choice(changes)
        try:
            root = read_everything(torch_zip(bytes(data)))
        except weights_io.ReportedError as error:
            told = str(error)
            assert told.isprintable()
            continue
        read += 1
        found = [list(one.arrays()) for one in modules_in(root)]
        assert found == names_of(bytes(data))
    assert read > 10, "most changes break a pickle, but not all"


def test_a_module_beside_the_weights_costs_nothing_until_it_is_asked_for() -> None:
    evil = CORPUS["shared: modules that double forty times"].data
    with weights_io.open_weights(BytesIO(evil)) as archive:
        *_, last = modules_in(archive.root)
        with pytest.raises(weights_io.LimitError):
            last.arrays()


# Every file through every way in, in a process that notes whatever Python's audit hooks see.
WITNESS = """
import sys
from pathlib import Path
from tests.weights_io.witness import run
sys.exit(run(Path(sys.argv[1])))
"""


def test_nothing_of_the_corpus_is_run(tmp_path: Path) -> None:
    for place, case in enumerate(CORPUS.values()):
        (tmp_path / f"{place:03}.pt").write_bytes(case.data)
    (tmp_path / "sound.pt").write_bytes(file_of(block()))  # of all ways some read it to the end
    done = subprocess.run(
        [sys.executable, "-c", WITNESS, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"{len(CORPUS) + 1} files" in done.stdout
