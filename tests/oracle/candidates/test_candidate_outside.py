from __future__ import annotations

import os
import re
import stat
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from repvgg_ref.oracle.candidates import CandidateFailure, Outputs, WeightsCandidate, resolve
from repvgg_ref.oracle.candidates.outside import ModuleCandidate
from tests.oracle.candidates.ports import architecture, assert_same, images, right_outputs

STRANGE = "tests.oracle.candidates.strange_ports"


def run(candidate: str, timeout: float = 60.0, x: Any = None) -> Outputs:
    found = resolve(candidate, architecture(), timeout=timeout)
    assert not isinstance(found, WeightsCandidate)
    assert not found.brings_input
    assert found.input_shape() is None
    return found.run(images() if x is None else x)


def failure(candidate: str, timeout: float = 60.0) -> CandidateFailure:
    with pytest.raises(CandidateFailure) as raised:
        run(candidate, timeout)
    assert "\n" not in str(raised.value)
    assert "Traceback" not in str(raised.value)
    assert "\x1b" not in str(raised.value)
    return raised.value


@pytest.mark.parametrize("name", ["layers", "sequence"])
def test_a_module_is_called_in_a_process_of_its_own(name: str, capfd: Any) -> None:
    assert_same(run(f"{STRANGE}:{name}").layers, right_outputs())
    assert capfd.readouterr() == ("", "")


def test_an_attribute_of_a_class_may_be_named() -> None:
    outputs = run(f"{STRANGE}:Namespace.inner")
    assert_same(outputs.layers, {"linear": right_outputs()["linear"]})


def test_nan_passes_through() -> None:
    assert np.isnan(run(f"{STRANGE}:not_a_number").layers["linear"]).all()


def test_a_module_may_be_a_file_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_helper.py").write_text("CLASSES = 7\n")
    (tmp_path / "my_port.py").write_text(
        "import numpy as np\nfrom my_helper import CLASSES\n"
        "def net(x):\n    return np.ones((len(x), CLASSES), np.float16)\n"
    )
    monkeypatch.chdir(tmp_path)
    outputs = run("my_port:net")
    assert outputs.precision == "fp16"
    assert outputs.layers["linear"].dtype == np.float16
    monkeypatch.chdir("/")
    assert list(run(f"{tmp_path}/my_port.py:net").layers) == ["linear"]


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("name", "says", "verdict"),
    [
        ("raises", "ValueError: the shapes do not fit", "cannot-judge"),
        ("exits", "SystemExit: 3", "cannot-judge"),
        ("exits_quietly", "ended without a result", "cannot-judge"),
        ("exits_loudly", r"exit code 7; last words: CUDA error: \x1b[31mno device", "cannot-judge"),
        ("crashes", "SIGSEGV", "cannot-judge"),
        ("returns_nothing", "returned nothing", "cannot-judge"),
        ("returns_objects", "no array of real numbers", "cannot-judge"),
        ("three_arrays", "3 arrays", "cannot-judge"),
        ("loses_an_image", "1 images", "disagree"),
        ("unknown_layers", "conv_1", "cannot-judge"),
        ("not_callable", "nothing to call", "cannot-judge"),
        ("not_there", "AttributeError", "cannot-judge"),
    ],
)
def test_a_module_that_fails_is_reported_in_one_line(name: str, says: str, verdict: str) -> None:
    error = failure(f"{STRANGE}:{name}")
    assert re.search(re.escape(says), str(error))
    assert error.verdict == verdict


def test_a_module_that_is_not_there_is_reported() -> None:
    assert "ModuleNotFoundError" in str(failure("no_such_module_anywhere:net"))
    assert "FileNotFoundError" in str(failure("no_such_file.py:net"))


@pytest.mark.skipif("not hasattr(os, 'mkfifo')", reason="no FIFOs here")
def test_a_fifo_is_not_said_to_be_missing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "port.npz")
    assert "no regular file" in str(failure(str(tmp_path / "port.npz")))
    assert "no such file" in str(failure(str(tmp_path / "other.npz")))


def test_a_port_that_hangs_is_stopped_with_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids = tmp_path / "pids"
    monkeypatch.setenv("REPVGG_TEST_PIDS", str(pids))
    started = time.monotonic()
    error = failure(f"{STRANGE}:hangs", timeout=3.0)
    assert "no result after 3 s" in str(error)
    assert error.verdict == "cannot-judge"
    assert time.monotonic() - started < 30
    for pid in pids.read_text().split():
        assert not _alive(int(pid))


def _alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for (a zombie) does not."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
        time.sleep(0.1)
    return True


def test_a_port_that_prints_megabytes_neither_blocks_nor_shows(capfd: Any) -> None:
    assert list(run(f"{STRANGE}:floods").layers) == ["linear"]
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------ programs


def program(folder: Path, body: str) -> str:
    """An executable that reads its input and does `body`, as the command that calls it."""
    path = folder / "my port.py"
    path.write_text(
        f"#!{sys.executable}\nimport os, sys, time\nimport numpy as np\n"
        f"x = np.load(sys.argv[1])\nout = sys.argv[2]\n{body}\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"exec:'{path}' {{input}} {{output}}"


@pytest.mark.parametrize(
    "body",
    [
        "np.save(out, np.ones((len(x), 7), 'f4'))",
        "np.save(open(out, 'wb'), np.ones((len(x), 7), 'f4'))",
        "np.savez(out, logits=np.ones((len(x), 7), 'f4'))",
        "os.mkdir(out); np.save(out + '/linear.npy', np.ones((len(x), 7), 'f4'))",
    ],
)
def test_a_program_writes_npy_npz_or_a_folder(tmp_path: Path, body: str) -> None:
    outputs = run(program(tmp_path, body))
    assert_same(outputs.layers, {"linear": np.ones((2, 7), np.float32)})


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "wrote nothing"),
        ("sys.exit('no model')", "exit code 1; last words: no model"),
        ("os.abort()", "SIGABRT"),
        ("open(out, 'w').write('text')", "not a weights file"),
        ("np.save(out, np.array([{}]), allow_pickle=True)", "objects"),
        ("np.savez(out, conv=x)", "conv"),
    ],
)
def test_a_program_that_fails_is_reported_in_one_line(tmp_path: Path, body: str, says: str) -> None:
    assert says in str(failure(program(tmp_path, body)))


def test_a_program_that_takes_too_long_is_reported(tmp_path: Path) -> None:
    assert "took too long" in str(failure(program(tmp_path, "time.sleep(60)"), timeout=0.5))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("exec:", "does not say where"),
        ("exec:./port", "does not say where"),
        ("exec:./port {input}", "does not say where"),
        ("exec:'./port {input} {output}", "no command"),
        ("exec:/nowhere/port {input} {output}", "cannot be started"),
        ("exec:./a\0b {input} {output}", "cannot be started"),
    ],
)
def test_a_command_that_cannot_be_run_is_reported(command: str, says: str) -> None:
    assert says in str(failure(command))


def test_no_shell_reads_the_command(tmp_path: Path) -> None:
    command = f"exec:{sys.executable} -c pass {{input}} {{output}}; touch {tmp_path}/pwned"
    assert "wrote nothing" in str(failure(command))
    assert not list(tmp_path.iterdir())


def test_an_input_is_needed() -> None:
    for text in (f"{STRANGE}:logits", "exec:./port {input} {output}"):
        candidate = resolve(text, architecture())
        assert not isinstance(candidate, WeightsCandidate)
        with pytest.raises(CandidateFailure, match="input batch"):
            candidate.run(None)


# ------------------------------------------------------------------------- several calls


def module(folder: Path, text: str) -> ModuleCandidate:
    (folder / "port.py").write_text(text)
    spec = f"{folder}/port.py:net"
    return ModuleCandidate("port", spec, architecture(), timeout=60.0)


def test_a_module_keeps_its_process_from_call_to_call(tmp_path: Path) -> None:
    port = module(
        tmp_path,
        "import numpy as np\ncount = 0\n"
        "def net(x):\n    global count\n    count += 1\n"
        "    print('a port that talks'); input_is_closed = __import__('sys').stdin.read() == ''\n"
        "    assert input_is_closed\n"
        "    return np.full((len(x), 7), count, 'f4')\n",
    )
    with closing(port):
        found = [port.run_again(images(), 30).layers["linear"][0, 0] for _ in range(3)]
    assert found == [1, 2, 3]


def test_a_call_that_is_refused_or_ends_the_process_is_not_the_last(tmp_path: Path) -> None:
    port = module(
        tmp_path,
        "import os\nimport numpy as np\n"
        "def net(x):\n    if len(x) == 1: raise ValueError('two images')\n"
        "    if len(x) == 3: os._exit(4)\n    return np.ones((len(x), 7), 'f4')\n",
    )
    with closing(port):
        for batch, says in ((1, "two images"), (3, "exit code 4")):
            with pytest.raises(CandidateFailure, match=says) as raised:
                port.run(images(batch))
            assert raised.value.refused
            assert port.run(images()).layers["linear"].shape == (2, 7)


def test_the_time_limit_covers_loading_and_all_calls(tmp_path: Path) -> None:
    port = module(tmp_path, "import time\ntime.sleep(60)\ndef net(x): return x\n")
    port.timeout = 2.0
    started = time.monotonic()
    with closing(port), pytest.raises(CandidateFailure, match="no result after 2 s") as raised:
        port.run(images())
    assert not raised.value.refused
    assert time.monotonic() - started < 20
    assert port.timeout < 0.1


def test_whether_the_port_wrote_into_its_batch_is_known(tmp_path: Path) -> None:
    port = module(
        tmp_path,
        "import numpy as np\ndef net(x):\n    y = np.ones((len(x), 7), 'f4')\n"
        "    if len(x) == 2: x -= 1\n    return y\n",
    )
    with closing(port):
        assert port.run(images()).wrote_input
        assert not port.run(images(3)).wrote_input
