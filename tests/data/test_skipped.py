"""Pictures that could not be read are told by kind."""

from __future__ import annotations

from repvgg_ref.data.skipped import told


def test_one_picture_has_its_line_with_its_name_once() -> None:
    assert told([("a.png", "a.png: not a picture")]) == ["skipped: a.png: not a picture"]
    assert told([("a.png", "permission denied")]) == ["skipped: a.png: permission denied"]
    assert told([]) == []


def test_forty_five_of_a_kind_are_one_line_with_examples() -> None:
    many = [(f"val/{i}.png", f"val/{i}.png: truncated (got {i} bytes)") for i in range(45)]
    other = ("val/x y.png", "val/x y.png: not a picture")
    assert told([*many[:20], other, *many[20:]]) == [
        "skipped: val/0.png: truncated (got 0 bytes) ; and 44 more for the same reason: "
        "val/1.png, val/2.png, val/3.png, ...",
        "skipped: val/x y.png: not a picture",
    ]


def test_two_name_each_other_without_dots() -> None:
    line = told([("a", "a: damaged"), ("b", "b: damaged")])
    assert line == ["skipped: a: damaged ; and 1 more for the same reason: b"]
