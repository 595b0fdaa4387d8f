"""Bad inputs 37 to 41: tables and archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bad_inputs.folders import case, excluded, put
from bad_inputs.trying import TRAIN, Case, Place, Try


def good_rows(place: Place) -> list[str]:
    return [f"data/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(place.data.glob("*/*.png"))]


def table(place: Place, *lines: str, head: str = "path,paint", name: str = "t.csv", start: bytes = b"") -> Path:
    """A table of all good images and further lines, which stand from line 82 on."""
    path = place.root / name
    path.write_bytes(start + "\n".join([head, *good_rows(place), *lines, ""]).encode())
    return path


def refused(path: Path, place: Place, *says: str) -> list[Try]:
    return [
        Try(("check", path, "--task", "paint"), (2,), says),
        Try(("train", path, place.out, *TRAIN), (2,), says),
    ]


def bad_tables(place: Place) -> Sequence[Try]:
    gone = table(place, "data/gone.png,red", name="gone.csv")
    marked = table(place, name="marked.csv", start=b"\xef\xbb\xbf")
    semicolons = place.root / "semicolons.csv"
    semicolons.write_text(gone.read_text().replace(",", ";"))
    return [
        Try(("train", gone, place.out, *TRAIN), look=excluded("line 82: no such file", "data/gone.png")),
        Try(("train", marked, place.out, *TRAIN)),
        *refused(semicolons, place, "no column 'path'", "path;paint"),
        *refused(table(place, "data/blue/0.png,blue", name="twice.csv"), place, "line 82", "in the table twice"),
        *refused(table(place, "data/blue/0.png,nan", name="nan.csv"), place, "the label 'nan' is not a class name"),
        *refused(table(place, "data/blue/0.png", name="short.csv"), place, "line 82: the number of fields differs"),
        *refused(table(place, name="text.parquet"), place, "not a readable Parquet table"),
    ]  # fmt: skip


def numbers(place: Place) -> Sequence[Try]:
    """Labels that are numbers: 1 in Parquet is "1" in CSV; 1 and 1.0 in one column are told."""
    import pyarrow
    import pyarrow.parquet as parquet

    paths = [row.split(",")[0] for row in good_rows(place)]
    labels = [1 + number % 2 for number in range(len(paths))]
    parquet.write_table(pyarrow.table({"path": paths, "paint": labels}), place.root / "n.parquet")
    lines = [f"{path},{label}" for path, label in zip(paths, labels, strict=True)]
    (place.root / "n.csv").write_text("\n".join(["path,paint", *lines]), encoding="utf-8")
    (place.root / "mixed.csv").write_text("\n".join(["path,paint", *lines[:-2], f"{paths[-1]},1.0"]), encoding="utf-8")
    same = ("2 classes", "  1  all    40", "  2  all    40")
    return [
        Try(("check", place.root / "n.parquet", "--task", "paint"), says=same),
        Try(("check", place.root / "n.csv", "--task", "paint"), says=same),
        Try(
            ("check", place.root / "mixed.csv", "--task", "paint"),
            (1,),
            ("differ only in case, spaces or a plural", "1 and 1.0"),
        ),
    ]


def escaping(place: Place) -> Sequence[Try]:
    put(place.root / "secret.png")
    home = place.root / "data"
    found: list[Try] = []
    for number, path in enumerate(("../secret.png", str(place.root / "secret.png"), "blue/../../secret.png")):
        file = home / f"{number}.csv"
        file.write_text(f"path,paint\nblue/0.png,blue\n{path},red\n", encoding="utf-8")
        found += refused(file, place, "line 3", "is outside the table's folder")
    return found


def member(archive: tarfile.TarFile, name: str, data: bytes = b"", **more: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def hostile(archive: tarfile.TarFile) -> None:
    """Members that would write outside, and a link to write through."""
    data = b"written by an archive"
    member(archive, "../outside.jpg", data)
    member(archive, "../outside.cls", b"red")
    member(archive, "/tmp/absolute.jpg", data)
    member(archive, "link", type=tarfile.SYMTYPE, linkname="../..")
    member(archive, "link/through.jpg", data)
    member(archive, "hard.jpg", type=tarfile.LNKTYPE, linkname="/etc/passwd")
    member(archive, "device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=3)


def tarred(path: Path, fill: Callable[[tarfile.TarFile], None]) -> Path:
    with tarfile.open(path, "w") as archive:
        fill(archive)
    return path


def zipped(path: Path, *names: str, data: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return path


NO_ZIP = "is not a table; use a folder"


def archives(place: Place) -> Sequence[Try]:
    def mixed(archive: tarfile.TarFile) -> None:
        hostile(archive)
        for path in sorted(place.data.glob("*/*.png")):
            archive.add(path, f"{path.parent.name}-{path.stem}.png")
            member(archive, f"{path.parent.name}-{path.stem}.cls", path.parent.name.encode())

    bad, good = tarred(place.root / "bad.tar", hostile), tarred(place.root / "good.tar", mixed)
    out = ("../outside.jpg", "its name leads out of the archive")
    packed = zipped(place.root / "bad.zip", "../../outside.jpg", "/absolute.jpg", "a/b.jpg")
    return [
        Try(("check", bad), (2,), ("no image in the archives has a label", *out)),
        Try(("train", bad, place.out, *TRAIN), (2,), ("no image in the archives has a label",)),
        Try(("check", good, "--json"), says=(*out, "a link, a device or a sparse file")),
        Try(("train", good, place.out, *TRAIN), look=excluded(out[1], "good.tar/../outside.jpg")),
        Try(("check", packed), (2,), (NO_ZIP,)),
        Try(("train", packed, place.out, *TRAIN), (2,), (NO_ZIP,)),
        Try(("predict", place.parent, packed), (1,), ("not an image in a known format",)),
    ]


def bombs(place: Place) -> Sequence[Try]:
    bomb = zipped(place.root / "bomb.zip", "zeros.png", data=bytes(100 * 2**20))

    def many(archive: tarfile.TarFile) -> None:
        for number in range(10_000):
            member(archive, f"{number}.jpg")

    crowd = tarred(place.root / "crowd.tar", many)
    return [
        Try(("check", bomb), (2,), (NO_ZIP,)),
        Try(("train", bomb, place.out, *TRAIN), (2,), (NO_ZIP,)),
        Try(("predict", place.parent, bomb), (1,), ("not an image in a known format",)),
        Try(("check", crowd), (2,), ("no image in the archives has a label",)),
    ]


def broken(place: Place) -> Sequence[Try]:
    half = zipped(place.root / "half.zip", "a.png", data=bytes(range(256)) * 99)
    half.write_bytes(half.read_bytes()[:100])
    secret = zipped(place.root / "secret.zip", "a.png")
    locked = bytearray(secret.read_bytes())
    locked[6] |= 1  # the flag that says it is encrypted
    secret.write_bytes(locked)
    torn = tarred(place.root / "torn.tar", lambda archive: archive.add(place.data, "data"))
    torn.write_bytes(torn.read_bytes()[: torn.stat().st_size // 2 + 100])
    return [
        *(Try(("check", path), (2,), (NO_ZIP,)) for path in (half, secret)),
        *(Try(("train", path, place.out, *TRAIN), (2,), (NO_ZIP,)) for path in (half, secret)),
        Try(("check", torn), (2,), ("torn.tar",)),
        Try(("train", torn, place.out, *TRAIN), (2,), ("torn.tar",)),
    ]


CASES: list[Case] = [
    case(37, "table: missing file, BOM, wrong delimiter, row twice, NaN, short row", "by line number", bad_tables),
    case(37, "table: label 1 as number and as text, 1 beside 1.0", "one class; told", numbers),
    case(38, "table: path that leaves its folder", "refused by line number", escaping),
    case(
        39,
        "tar, zip: ../, absolute, link then write, hard link, device",
        "nothing is unpacked or written",
        archives,
        "tar archives are read member by member; zip is not read at all",
    ),
    case(40, "zip bomb; 10,000 members", "bounded", bombs, "tried with 10,000 members, not a million"),
    case(41, "encrypted zip; zip and tar cut off", "one clear line", broken),
]
