"""Tar files: WebDataset's layout read in place, hostile archives refused or harmless."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest

from repvgg_ref.data import DataError, Loader, evaluation_transform, open_data, splits_of
from repvgg_ref.data.decode import decoder
from repvgg_ref.data.places import read_at
from repvgg_ref.data.tar_shards import TarSource, tar_files
from tests.data.datasets import add, encoded, make_folder, make_tar, pixels
from tests.data.pictures import drawn

JPEG = encoded(drawn(12, 10))


def opened(*paths: Path) -> TarSource:
    return TarSource(paths, decode=decoder())


def archive(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add(tar, name, data)
    return path


def refusal(*paths: Path) -> str:
    with pytest.raises(DataError) as refused:
        opened(*paths)
    assert str(refused.value).isprintable()
    return str(refused.value)


def test_pictures_and_labels_are_found_in_every_shard(tmp_path: Path) -> None:
    shards = [make_tar(tmp_path / f"{i}.tar", 5, first=5 * i) for i in range(3)]
    source = opened(*shards)
    assert source.labels.tolist() == [i % 3 for i in range(15)]
    assert source.classes == ("0", "1", "2")
    assert source.name(7) == "1.tar:pictures/0007.jpg"
    for i in (14, 0, 7):
        wanted = decoder()("x", encoded(drawn(48, 40, seed=i)))
        np.testing.assert_array_equal(pixels(source.picture(i)), pixels(wanted))


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_strange_names_are_read_in_every_style_of_tar(style: int, tmp_path: Path) -> None:
    deep = "/".join(["folder" * 6] * 5) + "/p.q/ä b" if style != tarfile.USTAR_FORMAT else "d/p"
    with tarfile.open(tmp_path / "a.tar", "w", format=style) as tar:
        add(tar, f"{deep}.jpg", JPEG)
        add(tar, f"{deep}.CLS", b" 007\n")
        add(tar, f"{deep}.mask.png", b"another kind of file")
    source = opened(tmp_path / "a.tar")
    assert source.labels.tolist() == [7]
    assert source.picture(0).size == (12, 10)


def test_a_json_label_may_be_called_label_or_cls_and_cls_files_win(tmp_path: Path) -> None:
    path = archive(
        tmp_path / "a.tar",
        ("a.jpg", JPEG),
        ("a.json", b'{"label": 4, "wnid": "n01"}'),
        ("b.json", b'{"cls": 3}'),
        ("b.txt", b"a caption"),
        ("b.jpg", JPEG),
        ("c.json", b'{"label": 0}'),
        ("c.cls", b"2"),
        ("c.png", encoded(drawn(9, 9), "PNG")),
        ("about.txt", b"no sample"),
    )
    assert opened(path).labels.tolist() == [4, 3, 2]


def test_class_names_stand_beside_the_files(tmp_path: Path) -> None:
    make_tar(tmp_path / "train-0.tar", 6)
    make_tar(tmp_path / "val-0.tar", 3)
    (tmp_path / "classes.txt").write_text("cat\ndog\nowl, barn\nfox")
    source = open_data(tmp_path, split="train")
    assert (len(source), source.classes) == (6, ("cat", "dog", "owl, barn", "fox"))
    assert len(open_data(tmp_path, split="val")) == 3
    assert open_data(tmp_path / "train-{0..0}.tar", split="train").classes == source.classes
    assert splits_of(tmp_path) == ("train", "val")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(
        DataError, match=r"0002\.jpg: the label is out of range \(got 2 ; wanted 0 \.\.\. 1\)"
    ):
        open_data(tmp_path, split="train")


def test_folders_of_tars(tmp_path: Path) -> None:
    make_tar(tmp_path / "one" / "b.tar", 2)
    make_tar(tmp_path / "one" / "a.tar", 3)
    assert len(open_data(tmp_path / "one", split="val")) == 5
    make_tar(tmp_path / "two" / "train" / "a.tar", 4)
    make_tar(tmp_path / "two" / "val" / "a.tar", 2)
    assert [len(open_data(tmp_path / "two", split=s)) for s in ("train", "val")] == [4, 2]
    make_tar(tmp_path / "three" / "x-train-0.tar", 4)
    with pytest.raises(DataError, match=r"no tar file of the val split \(got x-train-0\.tar"):
        open_data(tmp_path / "three", split="val")


def test_tar_files_beside_class_folders_are_not_the_data_set(tmp_path: Path) -> None:
    make_folder(tmp_path)
    make_tar(tmp_path / "train.tar", 2)
    assert len(open_data(tmp_path, split="val")) == 12
    assert splits_of(tmp_path) == ()


def test_ranges_in_braces_count_with_leading_zeros(tmp_path: Path) -> None:
    for name in ("a-008", "a-009", "a-010"):
        make_tar(tmp_path / f"{name}.tar", 2)
    found = tar_files(f"{tmp_path}/a-{{008..010}}.tar")
    assert [path.name for path in found] == ["a-008.tar", "a-009.tar", "a-010.tar"]
    assert len(open_data(f"{tmp_path}/a-{{008..010}}.tar", split="train")) == 6
    with pytest.raises(DataError, match=r"a-011\.tar: no such file \(got 2 of 5 files missing"):
        tar_files(f"{tmp_path}/a-{{008..012}}.tar")
    for pattern in ("a-{9..1}.tar", "a-{0..9999}{0..9999}.tar"):
        with pytest.raises(DataError, match="no sensible number of files"):
            tar_files(pattern)


def test_a_loader_reads_shards_with_threads(tmp_path: Path) -> None:
    source = opened(*(make_tar(tmp_path / f"{i}.tar", 8, first=8 * i) for i in range(2)))
    transform = evaluation_transform(size=16)
    one, four = (
        list(Loader(source, transform=transform, batch_size=4, threads=t).epoch(0)) for t in (1, 4)
    )
    for left, right in zip(one, four, strict=True):
        np.testing.assert_array_equal(left.images, right.images)


def test_hostile_members_are_labels_and_never_paths(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("../../escape", "/etc/absolute", "a\nb\x1b[31m"):
            add(tar, f"{name}.jpg", JPEG)
            add(tar, f"{name}.cls", b"0")
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("link.jpg")
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        add(tar, "link.cls", b"0")
    before = sorted(tmp_path.rglob("*"))
    source = opened(path)
    assert len(source) == 3
    assert [source.picture(i).size for i in range(3)] == [(12, 10)] * 3
    assert all(source.name(i).isprintable() for i in range(3))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cut_off_archive_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "whole.tar", 3).read_bytes()
    end = len(whole.rstrip(b"\0"))
    blocks = -(-end // 512) * 512  # beyond it there is the end's mark only
    cut = tmp_path / "cut.tar"
    for length in [*range(0, blocks, 256), blocks]:
        cut.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"not a whole tar of pictures|no pictures"):
            opened(cut)
    cut.write_bytes(whole[: blocks + 1024])
    assert len(opened(cut)) == 3


def test_damage_in_the_middle_does_not_pass_for_the_end(tmp_path: Path) -> None:
    whole = make_tar(tmp_path / "a.tar", 4)
    data = bytearray(whole.read_bytes())
    with tarfile.open(whole) as tar:
        offsets = [member.offset for member in tar.getmembers()]
    for offset in offsets[1:]:
        broken = bytearray(data)
        broken[offset + 3] ^= 0xFF  # the header's checksum fails
        whole.write_bytes(broken)
        assert "not a whole tar" in refusal(whole)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    member = tarfile.TarInfo(name)
    member.type = kind
    member.size = size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("size", [-512, -1, 2**40, 2**62])
def test_impossible_sizes_are_refused(size: int, tmp_path: Path) -> None:
    """A negative one sends older tarfile modules round in circles (CVE-2025-8194)."""
    path = tmp_path / "a.tar"
    for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        path.write_bytes(header("b.cls", 0) + header("a.jpg", size, kind) + b"\0" * 2048)
        assert "tar" in refusal(path)


def test_sparse_files_and_bombs_of_headers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(header("a.jpg", 512, tarfile.GNUTYPE_SPARSE) + b"\0" * 4096)
    assert "sparse" in refusal(path) or "not a whole tar" in refusal(path)
    chain = header("x", 1, tarfile.GNUTYPE_LONGNAME) + b"n" + b"\0" * 511
    path.write_bytes(chain * 5000 + b"\0" * 1024)
    assert "not a whole tar" in refusal(path)


@pytest.mark.parametrize(
    "label",
    [
        b"",
        b"cat",
        b"-1",
        b"1.5",
        b"99999999999",
        b"{}",
        b"true",
        b"1" * 5000,
        b'{"label": "1"}',
        b"[" * 4000,
    ],
)
@pytest.mark.parametrize("kind", ["cls", "json"])
def test_what_is_no_label_is_refused_with_the_pictures_name(
    label: bytes, kind: str, tmp_path: Path
) -> None:
    path = archive(tmp_path / "a.tar", ("pic.jpg", JPEG), (f"pic.{kind}", label))
    assert "got pic.jpg without a label" in refusal(path)


def test_samples_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    assert "without a label" in refusal(archive(tmp_path / "a.tar", ("a.jpg", JPEG)))
    twice = archive(tmp_path / "b.tar", ("a.jpg", JPEG), ("a.png", JPEG), ("a.cls", b"0"))
    assert "two pictures called a.png" in refusal(twice)
    assert "no pictures in the tar files" in refusal(archive(tmp_path / "c.tar", ("a.cls", b"0")))
    (tmp_path / "d.tar").write_bytes(b"no archive " * 100)
    assert "not a whole tar" in refusal(tmp_path / "d.tar")
    with tarfile.open(tmp_path / "e.tar", "w:gz") as tar:
        add(tar, "a.jpg", JPEG)
    assert "a compressed tar has no random access" in refusal(tmp_path / "e.tar")


def test_a_file_that_shrinks_later_is_an_unreadable_picture(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", 12)
    source = opened(path)
    with path.open("r+b") as file:
        file.truncate(600)
    transform = evaluation_transform(size=16)
    made = Loader(source, transform=transform, batch_size=4, shuffle=False)
    with pytest.raises(DataError, match="too many pictures cannot be read"):
        list(made.epoch(0))
    assert "the file ends before byte" in made.skipped[0][1]
    with pytest.raises(OSError, match="the file ends"):
        read_at(str(path), 590, 20)
    assert read_at(str(path), 590, 10) == path.read_bytes()[590:]
