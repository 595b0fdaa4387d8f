"""Tables and archives of images: what they list lies below their folder, or they are refused."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from fuzz.fuzzing import Target
from taskgraft.data import tar_shards
from taskgraft.data.layouts import list_images
from taskgraft.errors import TaskgraftError

ROWS = (
    b"path,label\na.png,x\nb.png,y\n", b"\xef\xbb\xbfpath,label,split\r\na.png,x,train\r\nb.png,,val\r\n",
    b'file_name,label,paint\n"a.png","x ""1""",red\n', b"filename,colour\nb.png,blue\n", b"path\tlabel\na.png\tx\n",
    b"path,label\n\0/a.png,x\n",  # was a crash once
)  # fmt: skip
CELLS = (
    b"path,", b"label", b"split", b"a.png", b"b.png", b"../", b"/etc/passwd", b'"', b'""', b",,", b"\r\n", b"\0",
    b"\xff", b"nan", b"./",
)  # fmt: skip
HEADERS = (
    b"ustar\x0000", b"a.jpg", b"a.cls", b"../", b"0000644\0", b"77777777777\0", b"\x80\0\0\0\0\0\0\xff", b"1", b"2",
    b"5", b"L", b"x", b"g", b"S", b"30 path=../x\n", b"././@LongLink", b'{"label": "x"}',
)  # fmt: skip


def tables(folder: Path) -> Target:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(b"x")

    def one(data: bytes) -> None:
        table = folder / ("t.tsv" if b"\t" in data[:12] else "t.csv")
        table.write_bytes(data)
        try:
            result = list_images(table, "label", ("paint",))
        except TaskgraftError:
            return
        assert result.entries
        for entry in result.entries:
            assert entry.labels
            assert (folder / entry.path).resolve().is_relative_to(folder.resolve())

    return Target(one, ROWS, CELLS, longest=1000, executions=400)


def archives(folder: Path) -> Target:
    file = folder / "a.tar"

    def one(data: bytes) -> None:
        file.write_bytes(data)
        skipped: list[tuple[str, str]] = []
        try:
            for sample in tar_shards.read_samples(file, skipped):
                labels = tar_shards.parse_labels(sample, ("label", "paint"))
                assert isinstance(labels, str | dict)
                assert isinstance(tar_shards.read_member(file / sample.name, 2**20), bytes | str)
                assert not sample.name.startswith("/")
                assert ".." not in sample.name.split("/")
            tar_shards.list_members(file)
        except TaskgraftError:
            pass

    return Target(one, [packed(kind) for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)],
                  HEADERS, longest=12_000, executions=300)  # fmt: skip


def packed(kind: int) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=kind) as archive:
        members = {"a.jpg": b"\xff\xd8", "a.cls": b"x", "d/b.png": b"png", "d/b.json": b'{"label": 1, "paint": "red"}'}
        for name, content in {**members, "n" * 60 + "/" + "n" * 60 + ".png": b"?", "é.txt": b"y"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()
