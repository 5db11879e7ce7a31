"""One test for each published way past a guard of pickles or weights that we could find.

Sources: the CVE records and GitHub advisories named at each case (torch's guard is
``weights_only=True``; picklescan, fickling and modelscan are scanners).
"""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import pytest

import weights_io
from tests.weights_io.forge import (
    ORDERED,
    OS_SYSTEM,
    Entry,
    proto,
    state_dict,
    storage,
    tensor,
    text,
    torch_legacy,
    torch_zip,
    zip_file,
)
from tests.weights_io.refusal import assert_refused, read_everything

ATTACK = proto(OS_SYSTEM + text("echo") + b"\x85R")
GOOD = state_dict({"w": tensor()})

# Scanners keep lists of dangerous names, and each of these was missing from one. Reference:
# (module, name). Our table lists what is allowed, so there is nothing to be missing from.
UNLISTED_NAMES: dict[str, tuple[str, str]] = {
    "CVE-2025-1716 picklescan: pip.main": ("pip", "main"),
    "CVE-2025-10157 picklescan: a submodule of a blocked module": (
        "asyncio.unix_events",
        "_UnixSubprocessTransport._start",
    ),
    "picklescan pull 40: data leaves by DNS": ("ssl", "get_server_certificate"),
    "picklescan pull 74: marshal": ("marshal", "loads"),
    "picklescan pull 74: importlib": ("importlib", "import_module"),
    "fickling pull 108: pty": ("pty", "spawn"),
    "CVE-2026-22608 fickling: pydoc and ctypes": ("pydoc", "locate"),
    "CVE-2026-56304 picklescan: files made by logging": ("logging", "FileHandler"),
    "CVE-2026-56315 picklescan: uuid": ("uuid", "_get_command_stdout"),
    "CVE-2026-56315 picklescan: imaplib": ("imaplib", "IMAP4_stream"),
    "CVE-2026-56315 picklescan: _osx_support": ("_osx_support", "_read_output"),
    "CVE-2022-45907 torch: eval in the JIT": ("torch.jit.annotations", "parse_type_line"),
    "CVE-2024-5480 torch: RPC": ("torch.distributed.rpc.internal", "PythonUDF"),
    "CVE-2024-48063 torch: RemoteModule": ("torch.distributed.nn", "RemoteModule"),
    "GHSA-4r9r-ch6f-vxmx picklescan": ("torch.utils.bottleneck.__main__", "run_cprofile"),
    "GHSA-86cj-95qr-2p4f picklescan": ("torch._dynamo.guards", "GuardBuilder.get"),
    "GHSA-f4x7-rfwp-v3xw picklescan": (
        "torch.fx.experimental.symbolic_shapes",
        "ShapeEnv.evaluate_guards_expression",
    ),
    "GHSA-f745-w6jp-hpxx picklescan": ("torch.utils.collect_env", "run"),
    "GHSA-h3qp-7fh3-f8h4 picklescan": (
        "torch.utils.data.datapipes.utils.decoder",
        "basichandlers",
    ),
    "GHSA-vr7h-p6mm-wpmh picklescan": ("torch.jit.unsupported_tensor_ops", "execWrapper"),
    "GHSA-vv6j-3g6g-2pvj picklescan": ("torch.utils._config_module", "ConfigModule.load_config"),
    "GHSA-m273-6v24-x4m4 picklescan": ("_operator", "attrgetter"),
    "GHSA-955r-x9j8-7rhh picklescan": ("operator", "methodcaller"),
    "GHSA-4675-36f9-wf6r picklescan": ("pdb", "run"),
    "GHSA-46h3-79wf-xr6c picklescan": ("profile", "Profile.runctx"),
    "GHSA-84r2-jw7c-4r5q picklescan: a pickle in a pickle": ("_pickle", "loads"),
    "GHSA-vqmv-47xg-9wpr picklescan": ("ensurepip", "_run_pip"),
    "GHSA-r8g5-cgf2-4m4m picklescan": ("idlelib.run", "Executive.runcode"),
    "GHSA-c59x-vh6j-3w8v nltk: a submodule of numpy": ("numpy.lib.npyio", "recfromtxt"),
    "picklescan pull 40: runstring": ("numpy.testing._private.utils", "runstring"),
    "fickling pull 210": ("numpy.f2py.crackfortran", "getlincoef"),
    "modelscan issue 89: builtins of an allowed module": ("numpy", "__builtins__"),
    "modelscan issue 89: a dotted walk": ("numpy", "core._internal.sys.modules"),
}


@pytest.mark.parametrize("reference", UNLISTED_NAMES)
def test_a_name_that_a_scanner_forgot_is_refused(reference: str) -> None:
    module, name = UNLISTED_NAMES[reference]
    by_line = proto(f"c{module}\n{name}\n)R".encode())
    by_stack = proto(text(module) + text(name) + b"\x93)R", 4)
    for data in (by_line, by_stack, torch_zip(by_line), torch_legacy(by_line, (), ())):
        message = assert_refused(data, "refused global", weights_io.RefusedGlobalError)
        assert f"{module}.{name}" in message


def test_cve_2025_32434_a_tar_checkpoint_with_a_pickle_outside_the_guard() -> None:
    """GHSA-53q9-r3pm-6pq6: torch's tar reader unpickled `sys_info` without the guard."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            member = tarfile.TarInfo(name)
            member.size = len(ATTACK)
            tar.addfile(member, io.BytesIO(ATTACK))
    assert_refused(buffer.getvalue(), "tar archive")


@pytest.mark.parametrize("position", range(3))
def test_cve_2025_32434_a_legacy_preamble_that_runs(position: int) -> None:
    """The same lesson for the legacy stream: every one of its five pickles is guarded."""
    good = torch_legacy(state_dict({}), (), ())
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
    parts.append(good[len(b"".join(parts)) :].partition(b".")[0] + b".")
    preamble = b"".join(parts)
    assert good.startswith(preamble)
    parts[position] = ATTACK
    evil = b"".join(parts) + good[len(preamble) :]
    assert_refused(evil, "refused global os.system", weights_io.RefusedGlobalError)


def test_cve_2025_32434_a_legacy_key_list_that_runs() -> None:
    good = torch_legacy(state_dict({}), (), ())
    keys = pickle.dumps([], 2)
    assert good.endswith(keys)
    evil = good.removesuffix(keys) + ATTACK
    assert_refused(evil, "refused global os.system", weights_io.RefusedGlobalError)


@pytest.mark.parametrize(
    "items", [text("0") + b"K\x01s", b"(" + text("0") + b"K\x01u", b"(K\x00K\x01u"]
)
def test_cve_2026_24747_setting_items_on_a_tensor(items: bytes) -> None:
    """GHSA-63cw-57p8-fm3p, pytorch pull 170085: SETITEM(S) wrote into tensor memory."""
    assert_refused(torch_zip(proto(tensor() + items)), "no dict")


@pytest.mark.parametrize("count", [3, 5, 1 << 40])
def test_cve_2026_24747_a_storage_count_that_its_record_does_not_have(count: int) -> None:
    """The other half of pytorch pull 170085: numel in the pickle against the record's size."""
    assert_refused(torch_zip(proto(tensor([1], of=storage(count)))), "wrong size")


def test_cve_2026_24747_a_persistent_id_that_prints_itself() -> None:
    """The third part of pytorch pull 170085: the id must not be shown by its own repr."""
    message = assert_refused(torch_zip(proto(text("\x1b[2J") + b"Q")), "no torch storage")
    assert "[2J" not in message


def test_cve_2025_1889_a_second_pickle_under_another_suffix() -> None:
    """GHSA-769v-p64c-89pr: `torch.load(pickle_file="config.p")` runs what scanners skip."""
    evil = torch_zip(GOOD, None, Entry("m/config.p", ATTACK))
    assert "config.p" in assert_refused(evil, "a member that no torch writes")


def test_cve_2025_1944_a_member_with_two_names() -> None:
    """GHSA-7q5r-7gvp-wc82: torch reads the directory's name, zipfile fails on the local one."""
    evil = zip_file(
        [Entry("m/data.pkl", ATTACK, local_name="m/data.pk_"), Entry("m/version", b"3")]
    )
    assert_refused(evil, "two zip headers disagree")


@pytest.mark.parametrize("flags", [0x0001, 0x0020, 0x0040, 0x2000])
def test_cve_2025_1945_zip_flags_that_make_scanners_stop(flags: int) -> None:
    """GHSA-w8jq-xcqf-f792: torch ignores the flag bits that make zipfile give up."""
    evil = zip_file([Entry("m/data.pkl", ATTACK, flags=flags), Entry("m/version", b"3")])
    assert_refused(evil, "encrypted|unknown zip flags")


def test_cve_2025_10155_a_pickle_named_as_something_else(tmp_path: Path) -> None:
    """GHSA-jgw4-cr84-mqxg: the kind of a file was taken from its suffix."""
    for suffix in (".bin", ".pt", ".safetensors", ".npz", ".txt"):
        path = (tmp_path / "weights").with_suffix(suffix)
        path.write_bytes(ATTACK)
        with pytest.raises(weights_io.RefusedGlobalError, match=r"os\.system"):
            weights_io.open_weights(path)


def test_cve_2025_10156_a_wrong_checksum_that_makes_scanners_stop() -> None:
    """GHSA-mjqp-26hc-grxg: torch reads a member whose CRC is wrong; zipfile raises."""
    evil = zip_file([Entry("m/data.pkl", ATTACK, crc=0), Entry("m/version", b"3")])
    assert_refused(evil, "checksum of m/data.pkl is wrong")


@pytest.mark.parametrize("broken_end", [b"", b"\x00", b"R", b"\xff\xff"])
def test_a_broken_pickle_runs_up_to_its_break(broken_end: bytes) -> None:
    """ReversingLabs "nullifAI", 2025: 7-Zip archives, and pickles that run, then break."""
    evil = ATTACK[:-1] + broken_end
    assert_refused(evil, "refused global os.system", weights_io.RefusedGlobalError)
    assert_refused(b"7z\xbc\xaf\x27\x1c" + evil, "7-Zip")


def test_ghsa_9gvj_pp9x_gcfr_a_parser_that_loses_track_of_the_stack() -> None:
    """STACK_GLOBAL whose names are not the two opcodes just before it."""
    evil = proto(text("os") + b"q\x09" + text("system") + b"}" + text("x") + b"K\x01s", 4)
    assert_refused(evil, "other than one object")
    named = proto(b"(" + text("os") + b"q\x09" + text("system") + b"q\x07t(h\x09h\x07\x93", 4)
    assert_refused(named, "refused global os.system", weights_io.RefusedGlobalError)


def test_picklescan_pull_23_a_memo_out_of_order() -> None:
    evil = proto(
        b"(" + text("os") + b"q\x02" + text("system") + b"q\x03" + text("torch") + b"q\x00"
        b"" + text("LongStorage") + b"q\x01th\x02h\x03\x93",
        4,
    )
    assert_refused(evil, "refused global os.system", weights_io.RefusedGlobalError)


def test_ghsa_mhc9_48gj_9gp3_a_build_that_hides_the_call_before_it() -> None:
    """fickling took a REDUCE for harmless when a BUILD followed it."""
    evil = proto(OS_SYSTEM + text("echo") + b"\x85R}b")
    assert_refused(evil, "refused global os.system", weights_io.RefusedGlobalError)


def test_gh_115952_a_memo_index_that_allocates() -> None:
    """CPython 115952 and CVE-2018-20406: a huge LONG_BINPUT made the C memo huge."""
    for index in (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x00\x00\x00\x10"):
        assert read_everything(torch_zip(proto(b"]r" + index))) == []
        assert_refused(proto(b"]r" + index + b"cos\nsystem\n"), r"refused global os\.system")


def test_gh_115952_text_opcodes_that_allocate() -> None:
    """The issue's own examples use PUT and replace the object under it."""
    assert_refused(proto(b"]p4294967295\n"), "refused pickle opcode PUT")


def test_burn_issue_4965_a_memo_that_doubles() -> None:
    """tracel-ai/burn 4965, huggingface/candle 3617: TUPLE2 of the same part, 2**40 times."""
    doubling = b")q\x00" + b"h\x00h\x00\x86q\x00" * 40
    assert_refused(proto(b"(" + doubling + b"t"), "too many objects", weights_io.LimitError)
    assert_refused(proto(ORDERED + text("a") + b"(" + doubling + b"ts"), "too many objects")
