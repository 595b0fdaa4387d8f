"""Bad inputs 37 to 41: tables and archives."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bad_inputs.case import TRAIN, Case, Command, Workspace
from bad_inputs.folders import case, excluded, write_image


def rows_of_images(workspace: Workspace) -> list[str]:
    return [
        f"data/{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(workspace.data.glob("*/*.png"))
    ]


def table(workspace: Workspace, *lines: str, head: str = "path,paint", name: str = "t.csv", start: bytes = b"") -> Path:
    """A table of all good images and further lines, which stand from line 82 on."""
    path = workspace.tmp_path / name
    path.write_bytes(start + "\n".join([head, *rows_of_images(workspace), *lines, ""]).encode())
    return path


def refused(path: Path, workspace: Workspace, *contains: str) -> list[Command]:
    return [
        Command(("check", path, "--task", "paint"), (2,), contains),
        Command(("train", path, workspace.out, *TRAIN), (2,), contains),
    ]


def bad_tables(workspace: Workspace) -> Sequence[Command]:
    missing = table(workspace, "data/gone.png,red", name="gone.csv")
    with_bom = table(workspace, name="marked.csv", start=b"\xef\xbb\xbf")
    semicolons = workspace.tmp_path / "semicolons.csv"
    semicolons.write_text(missing.read_text().replace(",", ";"))
    return [
        Command(("train", missing, workspace.out, *TRAIN), check=excluded("line 82: no such file", "data/gone.png")),
        Command(("train", with_bom, workspace.out, *TRAIN)),
        Command(("train", semicolons, workspace.out, *TRAIN), check=excluded("line 82: no such file", "data/gone.png")),
        *refused(
            table(workspace, "data/blue/0.png,blue", name="twice.csv"), workspace, "line 82", "in the table twice"
        ),
        *refused(
            table(workspace, "data/blue/0.png,nan", name="nan.csv"), workspace, "the label 'nan' is not a class name"
        ),
        *refused(
            table(workspace, "data/blue/0.png", name="short.csv"), workspace, "line 82: the number of fields differs"
        ),
        *refused(table(workspace, name="text.parquet"), workspace, "not a readable Parquet table"),
    ]


def numeric_labels(workspace: Workspace) -> Sequence[Command]:
    """Labels that are numbers: 1 in Parquet is "1" in CSV; 1 and 1.0 in one column are reported."""
    import pyarrow
    import pyarrow.parquet as parquet

    paths = [row.split(",")[0] for row in rows_of_images(workspace)]
    labels = [1 + number % 2 for number in range(len(paths))]
    parquet.write_table(pyarrow.table({"path": paths, "paint": labels}), workspace.tmp_path / "n.parquet")
    lines = [f"{path},{label}" for path, label in zip(paths, labels, strict=True)]
    (workspace.tmp_path / "n.csv").write_text("\n".join(["path,paint", *lines]), encoding="utf-8")
    (workspace.tmp_path / "mixed.csv").write_text(
        "\n".join(["path,paint", *lines[:-2], f"{paths[-1]},1.0"]), encoding="utf-8"
    )
    expected = ("2 classes", "  1  all    40", "  2  all    40")
    return [
        Command(("check", workspace.tmp_path / "n.parquet", "--task", "paint"), contains=expected),
        Command(("check", workspace.tmp_path / "n.csv", "--task", "paint"), contains=expected),
        Command(
            ("check", workspace.tmp_path / "mixed.csv", "--task", "paint"),
            (1,),
            ("differ only in case, spaces or a plural", "1 and 1.0"),
        ),
    ]


def paths_outside(workspace: Workspace) -> Sequence[Command]:
    write_image(workspace.tmp_path / "secret.png")
    folder = workspace.tmp_path / "data"
    result: list[Command] = []
    for number, path in enumerate(("../secret.png", str(workspace.tmp_path / "secret.png"), "blue/../../secret.png")):
        file = folder / f"{number}.csv"
        file.write_text(f"path,paint\nblue/0.png,blue\n{path},red\n", encoding="utf-8")
        result += refused(file, workspace, "line 3", "is outside the table's folder")
    return result


def member(archive: tarfile.TarFile, name: str, data: bytes = b"", **more: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def add_hostile_members(archive: tarfile.TarFile) -> None:
    """Members that would write outside, and a link to write through."""
    data = b"written by an archive"
    member(archive, "../outside.jpg", data)
    member(archive, "../outside.cls", b"red")
    member(archive, "/tmp/absolute.jpg", data)
    member(archive, "link", type=tarfile.SYMTYPE, linkname="../..")
    member(archive, "link/through.jpg", data)
    member(archive, "hard.jpg", type=tarfile.LNKTYPE, linkname="/etc/passwd")
    member(archive, "device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=3)


def tar_of(path: Path, fill: Callable[[tarfile.TarFile], None]) -> Path:
    with tarfile.open(path, "w") as archive:
        fill(archive)
    return path


def zip_of(path: Path, *names: str, data: bytes = b"x") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, data)
    return path


NO_ZIP = "is not a table; use a folder"


def archives(workspace: Workspace) -> Sequence[Command]:
    def mixed(archive: tarfile.TarFile) -> None:
        add_hostile_members(archive)
        for path in sorted(workspace.data.glob("*/*.png")):
            archive.add(path, f"{path.parent.name}-{path.stem}.png")
            member(archive, f"{path.parent.name}-{path.stem}.cls", path.parent.name.encode())

    bad, good = (
        tar_of(workspace.tmp_path / "bad.tar", add_hostile_members),
        tar_of(workspace.tmp_path / "good.tar", mixed),
    )
    out = ("../outside.jpg", "its name leads out of the archive")
    packed = zip_of(workspace.tmp_path / "bad.zip", "../../outside.jpg", "/absolute.jpg", "a/b.jpg")
    return [
        Command(("check", bad), (2,), ("no image in the archives has a label", *out)),
        Command(("train", bad, workspace.out, *TRAIN), (2,), ("no image in the archives has a label",)),
        Command(("check", good, "--json"), contains=(*out, "a link, a device or a sparse file")),
        Command(("train", good, workspace.out, *TRAIN), check=excluded(out[1], "good.tar/../outside.jpg")),
        Command(("check", packed), (2,), (NO_ZIP,)),
        Command(("train", packed, workspace.out, *TRAIN), (2,), (NO_ZIP,)),
        Command(("predict", workspace.parent, packed), (1,), ("not an image in a known format",)),
    ]


def archive_bombs(workspace: Workspace) -> Sequence[Command]:
    bomb = zip_of(workspace.tmp_path / "bomb.zip", "zeros.png", data=bytes(100 * 2**20))

    def many(archive: tarfile.TarFile) -> None:
        for number in range(10_000):
            member(archive, f"{number}.jpg")

    many_members = tar_of(workspace.tmp_path / "crowd.tar", many)
    return [
        Command(("check", bomb), (2,), (NO_ZIP,)),
        Command(("train", bomb, workspace.out, *TRAIN), (2,), (NO_ZIP,)),
        Command(("predict", workspace.parent, bomb), (1,), ("not an image in a known format",)),
        Command(("check", many_members), (2,), ("no image in the archives has a label",)),
    ]


def damaged_archives(workspace: Workspace) -> Sequence[Command]:
    half_zip = zip_of(workspace.tmp_path / "half.zip", "a.png", data=bytes(range(256)) * 99)
    half_zip.write_bytes(half_zip.read_bytes()[:100])
    secret = zip_of(workspace.tmp_path / "secret.zip", "a.png")
    encrypted = bytearray(secret.read_bytes())
    encrypted[6] |= 1  # the flag that says it is encrypted
    secret.write_bytes(encrypted)
    truncated = tar_of(workspace.tmp_path / "torn.tar", lambda archive: archive.add(workspace.data, "data"))
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2 + 100])
    return [
        *(Command(("check", path), (2,), (NO_ZIP,)) for path in (half_zip, secret)),
        *(Command(("train", path, workspace.out, *TRAIN), (2,), (NO_ZIP,)) for path in (half_zip, secret)),
        Command(("check", truncated), (2,), ("torn.tar",)),
        Command(("train", truncated, workspace.out, *TRAIN), (2,), ("torn.tar",)),
    ]


CASES: list[Case] = [
    case(37, "table: missing file, BOM, wrong delimiter, row twice, NaN, short row", "by line number", bad_tables),
    case(37, "table: label 1 as number and as text, 1 beside 1.0", "one class; reported", numeric_labels),
    case(38, "table: path that leaves its folder", "refused by line number", paths_outside),
    case(
        39,
        "tar, zip: ../, absolute, link then write, hard link, device",
        "nothing is unpacked or written",
        archives,
        "tar archives are read member by member; zip is not read at all",
    ),
    case(40, "zip bomb; 10,000 members", "bounded", archive_bombs, "tried with 10,000 members, not a million"),
    case(41, "encrypted zip; zip and tar cut off", "one clear line", damaged_archives),
]
