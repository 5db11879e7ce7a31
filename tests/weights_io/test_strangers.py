"""Unlisted classes are dead records beside the weights; whatever else is named is refused."""

from __future__ import annotations

import sys

import pytest

import weights_io
from tests.weights_io.forge import ORDERED, proto, state_dict, tensor, text, torch_zip
from tests.weights_io.refusal import CANARY, assert_refused, read_everything

MARK = f"c{CANARY}\nMark\n".encode()  # a class; importing its module would be seen
MADE = {
    "named": MARK,
    "called": MARK + text("x") + b"\x85R",
    "made": MARK + b")\x81",
    "with a state": MARK + b")\x81}" + text("w") + tensor() + b"sb",
    "with a state that holds it": MARK + b")\x81q\x07}" + text("self") + b"h\x07sb",
    "with items": MARK + b")\x81(" + text("a") + b"K\x01u",
    "with a list": MARK + b")\x81(K\x01K\x02e",
    "a method of it": f"c{CANARY}\nMark.fire\n".encode(),
    "in a list": b"](" + MARK + b")\x81" + MARK + b"e",
    "as a key": b"}" + MARK + b")\x81K\x01s",
    "with a parameter as a key": MARK + b")\x81}" + tensor() + b"K\x01sb",
    "in a partial": b"cfunctools\npartial\n" + MARK + b"\x85R(" + MARK + b")}Ntb",
}


@pytest.mark.parametrize("case", MADE)
def test_an_object_of_an_unlisted_class_is_stepped_over(case: str) -> None:
    data = torch_zip(state_dict({"w": tensor(), "beside": MADE[case]}))
    before = set(sys.modules)
    root = read_everything(data)
    assert CANARY not in sys.modules.keys() - before
    assert isinstance(root, dict)
    assert root["w"].shape == (4,)


def test_what_is_left_of_it_is_its_name_and_that_nobody_knows_it() -> None:
    for body, left in (
        (MADE["with a state"], weights_io.Inert(f"{CANARY}.Mark", None, is_listed=False)),
        (MARK, weights_io.Inert("type", f"{CANARY}.Mark", is_listed=False)),
    ):
        root = read_everything(torch_zip(state_dict({"w": tensor(), "beside": body})))
        assert isinstance(root, dict)
        assert root["beside"] == left


REFUSED = [
    (CANARY, "fire"),
    (CANARY, "fire.Mark"),
    (CANARY, ""),
    ("", "Mark"),
    ("torch.hub", "load"),
    ("torch.serialization", "load"),
    ("numpy.testing._private.utils", "runstring"),
    ("subprocess", "Popen"),
    ("posix", "System"),
    ("nt", "System"),
    ("os", "Popen"),
    ("os.path", "Popen"),
    ("builtins", "Exec"),
    ("__builtin__", "Exec"),
    ("code", "InteractiveInterpreter"),
    ("pickle", "Unpickler"),
    ("types", "CodeType"),
    ("types", "FunctionType"),
    ("ctypes", "CDLL"),
    ("distutils.file_util", "Write_file"),
    ("commands", "Getoutput"),
    ("operator", "MethodCaller"),
    ("functools", "Partial"),
]


@pytest.mark.parametrize(("module", "name"), REFUSED)
def test_functions_and_names_of_pythons_own_library_are_refused(module: str, name: str) -> None:
    evil = f"c{module}\n{name}\n".encode()
    for body in (evil, evil + b")R", evil + b")\x81"):
        data = torch_zip(state_dict({"w": tensor(), "beside": body}))
        message = assert_refused(data, "refused global", weights_io.RefusedGlobalError)
        assert "beside" in message


@pytest.mark.parametrize("hidden", ["an argument", "a state", "an item"])
def test_what_hides_in_a_dead_record_is_refused(hidden: str) -> None:
    evil = b"cos\nsystem\n" + text("echo") + b"\x85R"
    bodies = {
        "an argument": MARK + evil + b"\x85R",
        "a state": MARK + b")\x81}" + text("x") + evil + b"sb",
        "an item": MARK + b")\x81(" + text("x") + evil + b"u",
    }
    data = torch_zip(state_dict({"w": tensor(), "beside": bodies[hidden]}))
    assert "os.system" in assert_refused(data, "refused global", weights_io.RefusedGlobalError)


def test_a_file_that_is_one_object_is_refused_by_its_name() -> None:
    for body in (MARK + b")\x81}b", MARK):
        for data in (torch_zip(proto(body)), proto(body)):
            message = assert_refused(data, "refused global", weights_io.RefusedGlobalError)
            assert f"{CANARY}.Mark" in message


def test_a_dead_record_is_no_array_state_or_storage() -> None:
    for body in (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + MARK + b")\x81K\x00))\x89" + ORDERED + b"tR",
        b"ctorch._utils\n_rebuild_parameter\n(" + MARK + b")\x81\x88" + ORDERED + b"tR",
    ):
        assert_refused(torch_zip(state_dict({"w": body})), "malformed")
