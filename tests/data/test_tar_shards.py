"""Tar shards as input: the same images, labels and splits as folders, and archives that are damaged or hostile."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from opened_files import OpenedFiles
from taskgraft.data import Preprocessing, decode, file_index, open_images, streaming, tar_shards
from taskgraft.data.layouts import list_images
from taskgraft.errors import TaskgraftError
from toys import NEW, OLD, write_folder

WANTED = Preprocessing(16, "squash", 0.875, "bilinear")
Members = Iterable[tuple[str | tarfile.TarInfo, bytes]]


@pytest.fixture(autouse=True)
def _settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of a test are only just written; elsewhere they are not relied on for some seconds."""
    monkeypatch.setattr(file_index, "SETTLED", 0.0)


def packed(path: Path, members: Members, kind: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=kind) as archive:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def shards(folder: Path, out: Path, each: int) -> Path:
    """The images of a folder with class folders, in archives of so many images."""
    result = sorted(folder.rglob("*.png"))
    for first in range(0, len(result), each):
        members = []
        for number, image_path in enumerate(result[first : first + each]):
            members += [
                (f"{number:06d}.png", image_path.read_bytes()),
                (f"{number:06d}.cls", image_path.parent.name.encode()),
            ]
        packed(out / f"shard-{first // each:06d}.tar", members)
    return out


def png(value: int = 0) -> bytes:
    from PIL import Image

    result = io.BytesIO()
    Image.new("RGB", (16, 16), (value, value, value)).save(result, "PNG")
    return result.getvalue()


def labels(data: Path, *columns: str) -> dict[str, dict[str, str]]:
    return {entry.path: dict(entry.labels) for entry in list_images(data, "paint", columns).entries}


def test_archives_give_the_same_images_as_folders(tmp_path: Path) -> None:
    for part, count in (("train", 16), ("val", 8)):
        folder = write_folder(tmp_path / "folders" / part, NEW, count, 1, size=16)
        shards(folder, tmp_path / "shards" / part, 5)
    one, two = (
        open_images(tmp_path / name, "paint", WANTED, seed=0, cache_folder=tmp_path / "cache")
        for name in ("folders", "shards")
    )
    assert (one.decoded, two.decoded) == (24, 0)  # by content
    assert (two.layout, one.tasks, one.fingerprint) == ("tar shards train, val", two.tasks, two.fingerprint)
    for left, right in ((one.train, two.train), (one.val, two.val)):
        assert left is not None
        assert right is not None
        assert torch.equal(left.pixels, right.pixels)
        assert torch.equal(left.labels["paint"], right.labels["paint"])
    assert two.train is not None
    assert list(two.train.names)[5:7] == ["train/shard-000001.tar/000000.png", "train/shard-000001.tar/000001.png"]


def test_a_second_start_opens_no_archive(tmp_path: Path, opened_files: OpenedFiles) -> None:
    root = shards(write_folder(tmp_path / "folder", NEW, 20, 1, size=16), tmp_path / "data", 8)
    for _ in range(2):
        with opened_files(root) as read:
            result = open_images(root, "paint", WANTED, seed=0, cache_folder=tmp_path / "cache")
    assert (result.decoded, read) == (0, [])
    content = (root / "shard-000001.tar").read_bytes()
    packed(root / "shard-000001.tar", [("a.png", png(7)), ("a.cls", b"red")])
    changed = open_images(root, "paint", WANTED, seed=0, cache_folder=tmp_path / "cache")
    assert (changed.decoded, len(list(changed.splits()))) == (1, 13)
    (root / "shard-000001.tar").write_bytes(content)
    back = open_images(root, "paint", WANTED, seed=0, cache_folder=tmp_path / "cache")
    assert back.fingerprint == result.fingerprint


def test_one_archive_is_a_data_path(tmp_path: Path) -> None:
    path = packed(tmp_path / "all.tar", [(f"{n}.{kind}", png(n) if kind == "png" else b"a" if n % 2 else b"b")
                                         for n in range(20) for kind in ("cls", "png")])  # fmt: skip
    result = open_images(path, "x", WANTED, seed=0)
    assert result.tasks[0].classes == ("a", "b")
    for images in (result.train, result.val):
        assert images is not None
        for name, pixels in zip(images.names, images.pixels, strict=True):
            assert (pixels == int(Path(name).stem)).all()


def test_what_a_label_may_be(tmp_path: Path) -> None:
    def beside(**kinds: Any) -> Members:
        for key, (kind, value) in kinds.items():
            yield f"deep/{key}.JPG", b"x"
            yield f"deep/{key}.{kind}", value if isinstance(value, bytes) else json.dumps(value).encode()

    path = packed(tmp_path / "a.tar", beside(
        one=("cls", b"7\n"), two=("txt", "caf\u00e9".encode()), three=("json", {"label": "red"}),
        four=("json", {"paint": "blue", "shape": 3, "label": "no"}), five=("json", {"shape": "thin", "paint": None}),
    ))  # fmt: skip
    assert labels(path, "shape") == {
        "a.tar/deep/one.JPG": {"paint": "7"},
        "a.tar/deep/two.JPG": {"paint": "caf\u00e9"},
        "a.tar/deep/three.JPG": {"paint": "red"},
        "a.tar/deep/four.JPG": {"paint": "blue", "shape": "3"},
        "a.tar/deep/five.JPG": {"shape": "thin"},
    }


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("b.png", b"x")], "no label file (b.json, b.cls, b.txt)"),
        ([("b.png", b"x"), ("b.cls", b"\xff")], "its .cls cannot be read"),
        ([("b.png", b"x"), ("b.json", b"[1]")], 'its .json is not of the form {"label"'),
        ([("b.png", b"x"), ("b.json", b"{")], "its .json cannot be read"),
        ([("b.png", b"x"), ("b.json", b'{"label": 1.5}')], "its label for paint is neither text nor an integer"),
        ([("b.png", b"x"), ("b.json", b'{"label": true}')], "neither text nor an integer"),
        ([("b.png", b"x"), ("b.jpg", b"x"), ("b.cls", b"1")], "a second image called b"),
        ([("b.png", b"x"), ("b.cls", b"1" * 2**20 + b"1")], "its label file is larger"),
    ],
)
def test_what_cannot_be_labeled_is_skipped_with_a_reason(tmp_path: Path, members: Members, reason: str) -> None:
    path = packed(tmp_path / "s.tar", [("a.png", b"x"), ("a.cls", b"red"), *members])
    listing = list_images(path, "paint")
    assert listing.entries[0].path == "s.tar/a.png"
    assert [reason in why for _, why in listing.skipped] == [True]
    assert listing.skipped[0][0].startswith("s.tar/b.")


def odd(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (odd("../../etc/b.png"), "leads out of the archive"),
        (odd("/etc/b.png"), "leads out of the archive"),
        (odd("b.png", tarfile.SYMTYPE, "/etc/passwd"), "a link, a device"),
        (odd("b.png", tarfile.LNKTYPE, "a.png"), "a link, a device"),
        (odd("b.png", tarfile.FIFOTYPE), "a link, a device"),
        (odd("b.png", tarfile.CHRTYPE), "a link, a device"),
        (odd("b\n\x1b[2J.png"), "control characters"),
        (odd("b\udcff.png"), "control characters"),
        (odd("b.2012.png"), "its suffix is .2012.png, counted from the first dot"),
        (odd("._b.png"), "hidden, or without a suffix"),
        (odd("a.png"), "is in the archive twice"),
    ],
)
def test_hostile_members_are_skipped_with_a_reason(tmp_path: Path, member: tarfile.TarInfo, reason: str) -> None:
    path = packed(tmp_path / "s.tar", [("a.png", png(1)), ("a.cls", b"red"), (member, b""), ("b.cls", b"red")])
    listing = list_images(path, "paint")
    assert [entry.path for entry in listing.entries] == ["s.tar/a.png"]
    assert [reason in why for _, why in listing.skipped] == [True]
    listing.skipped[0][0].encode()  # can be written
    assert decode.decode_file(tmp_path / "s.tar/a.png", WANTED).reason is None  # the first one, not its second
    assert "cannot" not in listing.skipped[0][0]


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_cut_off_archive_is_refused_and_not_read_in_part(tmp_path: Path, share: float) -> None:
    path = packed(tmp_path / "s.tar", [(f"{n}.{kind}", png(n)) for n in range(8) for kind in ("png", "cls")])
    content = path.read_bytes().rstrip(b"\0")
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(TaskgraftError, match=r"s\.tar: .*pack or copy it again"):
        list_images(path, "paint")


def test_a_damaged_header_is_no_end(tmp_path: Path) -> None:
    path = packed(tmp_path / "s.tar", [(f"{n}.{kind}", png(n)) for n in range(8) for kind in ("png", "cls")])
    content = bytearray(path.read_bytes())
    at = content.index(b"5.png\0")
    content[at : at + 4] = b"XXXX"
    path.write_bytes(content)
    with pytest.raises(TaskgraftError, match=f"damaged at byte {at}"):
        list_images(path, "paint")


@pytest.mark.parametrize("content", [b"", b"no tar at all " * 100, b"\x1f\x8b\x08" + b"\0" * 600])
def test_what_is_no_tar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(content)
    with pytest.raises(TaskgraftError, match="not a whole, uncompressed tar archive"):
        list_images(tmp_path, "paint")


def test_archives_beside_folders_are_refused(tmp_path: Path) -> None:
    packed(tmp_path / "one" / "a.tar", [("a.png", b"x"), ("a.cls", b"red")])
    (tmp_path / "one" / "red").mkdir()
    with pytest.raises(TaskgraftError, match="mixes tar archives with red"):
        list_images(tmp_path / "one", "paint")
    packed(tmp_path / "two" / "a.tar", [("a.png", b"x"), ("a.cls", b"red")])
    packed(tmp_path / "two" / "val" / "a.tar", [("a.png", b"x"), ("a.cls", b"red")])
    with pytest.raises(TaskgraftError, match=r"mixes tar archives with a\.tar"):
        list_images(tmp_path / "two", "paint")


def test_archives_without_labels_are_refused_with_the_first_reason(tmp_path: Path) -> None:
    packed(tmp_path / "a.tar", [("a.png", b"x")])
    with pytest.raises(
        TaskgraftError, match=r"no image in the archives has a label; .*first: a\.tar/a\.png \(no label"
    ):
        list_images(tmp_path, "paint")


def test_a_member_is_a_path_wherever_pictures_are_read(tmp_path: Path) -> None:
    path = packed(
        tmp_path / "s.tar", [("./deep/a.b.png", b"x"), ("./deep/c.png", png(9)), ("empty.png", b""), ("n.txt", b"x")]
    )
    assert decode.decode_file(path / "deep/c.png", WANTED).pixels is not None
    assert decode.decode_file(path / "empty.png", WANTED).reason == "empty"
    assert decode.decode_file(path / "gone.png", WANTED).reason == "no such file in the archive"
    assert (
        decode.decode_file(tmp_path / "t.tar" / "a.png", WANTED).reason == "cannot be read: No such file or directory"
    )
    result = streaming.find_media([tmp_path])
    assert [item.name for item in result.items] == [f"{path}/deep/c.png", f"{path}/empty.png"]
    images = list(streaming.stream_images(result.items, WANTED, 1.0))
    assert [(image_path.reason, image_path.pixels is None) for image_path in images] == [(None, False), ("empty", True)]
    (tmp_path / "t.csv").write_text("path,paint\ns.tar/deep/c.png,red\n")
    assert labels(tmp_path / "t.csv") == {"s.tar/deep/c.png": {"paint": "red"}}


def test_an_archive_that_shrinks_while_it_is_read_gives_a_reason(tmp_path: Path) -> None:
    path = packed(tmp_path / "s.tar", [("a.png", png(1)), ("b.png", png(2))])
    contents = tar_shards.read_index(path)
    assert [*contents.spans] == ["a.png", "b.png"]
    path.write_bytes(path.read_bytes()[:600])
    assert "cannot be read" in str(decode.decode_file(path / "b.png", WANTED).reason)


def test_other_tasks_of_archives_are_labeled_too(tmp_path: Path) -> None:
    rows = [{"paint": NEW.classes[n % 2], "shape": OLD.classes[n % 3]} for n in range(12)]
    members = [(f"{n}.{kind}", png(20 * n) if kind == "png" else json.dumps(row).encode())
               for n, row in enumerate(rows) for kind in ("png", "json")]  # fmt: skip
    result = open_images(packed(tmp_path / "s.tar", members), "paint", WANTED, seed=0, others=(OLD,))
    assert [task.name for task in result.tasks] == ["paint", "shape"]
    assert result.train is not None
    names = [int(Path(name).stem) for name in result.train.names]
    assert [OLD.classes[label] for label in result.train.labels["shape"].tolist()] == [rows[n]["shape"] for n in names]
