"""Bad inputs 20 to 36: what lies in data folders, and what classes and files are called."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import random
import shutil
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from bad_inputs.pictures import picture, rows_of
from bad_inputs.trying import EXTEND, TRAIN, Case, Place, Post, Told, Try

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>"


def put(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, (16, 16)).save(path, "PNG")
    return path


def classes(root: Path, *names: str, count: int = 6, start: int = 0) -> Path:
    for at, name in enumerate(names):
        for number in range(count):
            put(root / name / f"{number}.png", start + 1000 * at + number)
    return root


def case(
    number: int, what: str, promise: str, make: Callable[[Place], Sequence[Try | Post]], changed: str = ""
) -> Case:
    return Case(number, what, promise, make, changed)


def excluded(reason: str, *names: str) -> Callable[[Place, Told], str]:
    """OUT/excluded.csv has these files, each with the reason."""

    def look(place: Place, _: Told) -> str:
        found = rows_of(place.out / "excluded.csv")
        assert all(reason in found.get(name, "") for name in names), found
        return f"trained; excluded.csv: {reason}"

    return look


def told_of(reason: str, *names: str) -> Callable[[Place, Told], str]:
    """`check --json` lists these files as left out, each with the reason."""

    def look(_: Place, told: Told) -> str:
        found = dict(json.loads(told.out)["excluded"])
        assert all(reason in found.get(name, "") for name in names), found
        return f"listed: {reason}"

    return look


def left_out(reason: str, *names: str) -> Callable[[Place], Sequence[Try]]:
    def tries(place: Place) -> Sequence[Try]:
        return [
            Try(("check", place.data, "--json"), look=told_of(reason, *names)),
            Try(("train", place.data, place.out, *TRAIN), look=excluded(reason, *names)),
            Try(("extend", place.parent, place.data, place.out, *EXTEND, "--method", "frozen"),
                look=excluded(reason, *names)),
        ]  # fmt: skip

    return tries


def system_files(place: Place) -> Sequence[Try]:
    names = ("blue/.DS_Store", "blue/Thumbs.db", "red/._1.jpg", ".ipynb_checkpoints")
    (place.data / ".ipynb_checkpoints").mkdir()
    for name in names[:3]:
        (place.data / name).write_bytes(b"\0\0\0\1Bud1")
    return left_out("hidden or system file", *names)(place)


def empty_class(place: Place) -> Sequence[Try]:
    (place.data / "green").mkdir()
    says = ("class folder 'green' has no images; add some or remove it",)
    return [
        Try(("check", place.data), (2,), says),
        Try(("train", place.data, place.out, *TRAIN), (2,), says),
        Try(("extend", place.parent, place.data, place.out, *EXTEND), (2,), says),
    ]


def one_class(place: Place) -> Sequence[Try]:
    shutil.rmtree(place.data / "red")
    says = ("1 class (blue), but a classifier needs two",)
    return [
        Try(("check", place.data), (1,), ("a classifier needs at least two classes",)),
        Try(("train", place.data, place.out, *TRAIN), (2,), says),
        Try(("extend", place.parent, place.data, place.out, *EXTEND), (2,), says),
    ]


def other_classes(place: Place) -> Sequence[Try]:
    data = place.root / "split"
    classes(data / "train", "cat", "dog")
    classes(data / "val", "cat", "Dog", start=500)
    return [
        Try(("check", data), (1,), ("val: Dog: dog", "PROBLEMS: classes without training images")),
        Try(("train", data, place.out, *TRAIN), (2,), ("val has the class 'Dog'", "lack", "did you mean 'dog'?")),
        Try(("evaluate", place.parent, data, "--cache", "none"), (2,), ("which the model lacks",)),
    ]


def nested(place: Place) -> Sequence[Try]:
    put(place.data / "blue" / "more" / "1.png")
    put(place.root / "flat" / "1.png")
    deep = ("blue/more is a folder inside the class folder 'blue'", "<class>/<image>")
    return [
        Try(("check", place.data), (2,), deep),
        Try(("train", place.data, place.out, *TRAIN), (2,), deep),
        Try(("check", place.root / "flat"), (2,), ("flat/<class>/<image>", "flat/train/<class>/<image>")),
        Try(("train", place.root / "flat", place.out, *TRAIN), (2,), ("flat/<class>/<image>",)),
    ]


ONE, TWO = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"  # one name in two forms
STRANGE = (
    "../x", "a/b", "CON", "\N{AUTOMOBILE}", ONE, TWO, "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe", "x" * 300, ".hidden", SCRIPT,
    "=1+1",
)  # fmt: skip


def table_of(place: Place, labels: Sequence[str]) -> Path:
    """A table with eight images of each label, in a folder of their own."""
    home = place.root / "table"
    rows = []
    for at, label in enumerate(labels):
        for number in range(8):
            rows.append((put(home / f"{at}-{number}.png", 100 * at + number).name, label))
    with (home / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "paint"), *rows])
    return home / "labels.csv"


def inert(place: Place, _: Told) -> str:
    """Names are only text in what was written, and no file is called by one."""
    for page in ("report.html", "README.md"):
        text = (place.out / page).read_text(encoding="utf-8")
        assert SCRIPT not in text, page
        assert IMAGE not in text, page
    config = json.loads((place.out / "config.json").read_text(encoding="utf-8"))
    assert SCRIPT in config["label_names"]
    names = {path.name for path in place.out.rglob("*")}
    assert not names & set(STRANGE)
    assert {path.suffix for path in place.out.rglob("*") if path.is_file()} <= {
        ".json", ".safetensors", ".html", ".md", ".csv", ".npz", ".txt", ".jsonl", "",
    }  # fmt: skip
    return "names escaped, files named by tasks"


def strange_names(place: Place) -> Sequence[Try]:
    table, page = table_of(place, STRANGE), place.root / "out" / "check.html"

    def merged(place: Place, told: Told) -> str:
        found = json.loads(told.out)
        assert len(found["classes"]) == len(STRANGE) - 1
        assert found["classes"][ONE]["all"] == 16
        text = page.read_text(encoding="utf-8")
        assert SCRIPT not in text
        return "both forms of an accent are one class; names escaped"

    return [
        Try(("check", table, "--task", "paint", "--json", "--html", page), (0, 1), look=merged),
        Try(("train", table, place.out, *TRAIN), look=inert),
        Try(("extend", place.parent, table, place.out, *EXTEND, "--method", "frozen"), look=inert),
    ]


def two_forms(place: Place) -> Sequence[Try]:
    classes(place.data, ONE, TWO, "Blue")
    return [Try(("check", place.data), (1,), ("in two Unicode forms", "only in case, spaces or a plural"))]


def plain_report(place: Place, _: Told) -> str:
    assert IMAGE not in (place.out / "report.html").read_text(encoding="utf-8")
    return "inert in the report"


def script_names(place: Place) -> Sequence[Try]:
    table = table_of(place, (SCRIPT, IMAGE))
    odd = put(place.data / "blue" / f"{IMAGE}.png")
    return [
        Try(("train", table, place.out, *TRAIN), look=inert),
        Try(("train", place.data, place.out, *TRAIN), look=plain_report),
        Try(("predict", place.parent, odd), says=('"tasks"',)),
    ]  # fmt: skip


def no_text(place: Place) -> Sequence[Try]:
    folder = os.fsencode(place.data / "blue")
    shutil.copy(put(place.root / "good.png", 77), os.fsdecode(folder + b"/caf\xe9.png"))
    with open(folder + b"/bad\xff.jpg", "wb") as file:
        file.write(b"no image")
    shown = ("blue/bad\\udcff.jpg", "blue/caf\\udce9.png")

    def listed(place: Place, _: Told) -> str:
        assert shown[0] in rows_of(place.out / "excluded.csv")
        assert shown[1] in rows_of(place.out / "split.csv")
        return "used, or listed with its bytes escaped"

    return [
        Try(("check", place.data, "--json"), says=("bad\\\\udcff.jpg",)),
        Try(("train", place.data, place.out, *TRAIN), look=listed),
        Try(("extend", place.parent, place.data, place.out, *EXTEND, "--method", "frozen"), look=listed),
        Try(("predict", place.parent, folder + b"/caf\xe9.png"), says=("caf\\\\udce9.png",)),
        Try(("predict", place.parent, place.data, "--out", place.out / "answers.csv")),
        Try(
            ("train", place.data, os.fsencode(place.out) + b"/\xff", *TRAIN),
            (2,),
            ("is not valid UTF-8; choose another OUT",),
        ),
    ]


def outside(place: Place) -> Sequence[Try]:
    secret = put(place.root / "secret" / "1.png")
    (place.data / "blue" / "link.png").symlink_to(secret)
    (place.data / "green").symlink_to(secret.parent)
    reason = "a link to outside the data folder"
    return [
        *left_out(reason, "blue/link.png", "green")(place),
        Try(("predict", place.parent, place.data), says=(reason,), hides=('link.png"',)),
    ]


def circle(place: Place) -> Sequence[Try]:
    (place.data / "blue" / "self.png").symlink_to("self.png")
    shutil.copytree(place.data, place.root / "round", symlinks=True)
    (place.root / "round" / "red" / "up").symlink_to("../..", target_is_directory=True)
    reason = "Too many levels of symbolic links"
    return [
        *left_out(reason, "blue/self.png")(place),
        Try(("check", place.root / "round"), (0, 2), ("red/up",)),
        Try(("predict", place.parent, place.root / "round")),
    ]


def no_files(place: Place) -> Sequence[Try]:
    names = ["blue/pipe.jpg", "blue/socket.jpg"]
    os.mkfifo(place.data / names[0])
    with socket.socket(socket.AF_UNIX) as door:
        here = os.getcwd()
        os.chdir(place.data / "blue")  # a socket's path has at most 107 bytes
        door.bind("socket.jpg")
        os.chdir(here)
    with contextlib.suppress(PermissionError):
        os.mknod(place.data / "blue" / "null.jpg", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        names.append("blue/null.jpg")
    return [
        *left_out("not a regular file", *names)(place),
        Try(("predict", place.parent, *(place.data / name for name in names)), (1,), ("not a regular file",)),
    ]


def unreadable(place: Place) -> Sequence[Try]:
    (place.data / "blue" / "gone.png").symlink_to("was-here.png")
    names = ["blue/gone.png"]
    if os.geteuid():  # root may read everything
        locked = put(place.data / "blue" / "locked.png")
        locked.chmod(0)
        names.append("blue/locked.png")
    return left_out("cannot be read: ", *names)(place)


def two_classes(place: Place) -> Sequence[Try]:
    shutil.copy(place.data / "blue" / "0.png", place.data / "red" / "again.png")

    def noted(place: Place, _: Told) -> str:
        notes = json.loads((place.out / "record.json").read_text(encoding="utf-8"))["notes"]
        assert any("1 image(s) are in two classes" in note for note in notes)
        return "a note in the report"

    return [
        Try(("check", place.data), (1,), ("1 image is labeled with two classes: blue/0.png and red/again.png",)),
        Try(("train", place.data, place.out, *TRAIN), look=noted),
        Try(("extend", place.parent, place.data, place.out, *EXTEND, "--method", "frozen"), look=noted),
    ]


def leak(place: Place) -> Sequence[Try]:
    data = place.root / "split"
    classes(data / "train", "cat", "dog")
    classes(data / "val", "cat", "dog", start=500)
    shutil.copy(data / "train" / "cat" / "1.png", data / "val" / "cat" / "again.png")
    picture(1, (16, 16)).resize((64, 64)).save(data / "val" / "cat" / "larger.jpg", quality=80)

    def noted(place: Place, _: Told) -> str:
        notes = json.loads((place.out / "record.json").read_text(encoding="utf-8"))["notes"]
        assert any("1 image(s) are in two splits" in note for note in notes)
        return "a note in the report"

    return [
        Try(("check", data), (1,), ("1 image is in two splits: train/cat/1.png and val/cat/again.png",
                                    "1 near-duplicate is in another split: train/cat/1.png and val/cat/larger.jpg")),
        Try(("train", data, place.out, *TRAIN), look=noted),
    ]  # fmt: skip


def lopsided(place: Place) -> Sequence[Try]:
    classes(place.root / "uneven", "many", count=400)
    classes(place.root / "uneven", "few", count=4, start=5000)
    return [Try(("check", place.root / "uneven"), says=("imbalanced: 'many' has 400 training images, 'few' 4",))]


def single(place: Place) -> Sequence[Try]:
    data = classes(place.root / "single", "a", "b", "c", count=1)
    says = ("class 'a' has one image, but a validation split needs two",)
    return [
        Try(("check", data), (1,), ("classes with a single image cannot be split",)),
        Try(("train", data, place.out, *TRAIN), (2,), says),
        Try(("extend", place.parent, data, place.out, *EXTEND), (2,), says),
    ]


def many(place: Place) -> Sequence[Try]:
    rng = random.Random(0)
    for number in range(1500):
        home = place.root / "many" / f"class {number:04}"
        home.mkdir(parents=True)
        for at in range(2):
            (home / f"{at}.ppm").write_bytes(b"P6 5 5 255 " + rng.randbytes(75))
    return [Try(("check", place.root / "many"), says=("1,500 classes; images: 3000 all",))]


CASES: list[Case] = [
    case(20, ".DS_Store, Thumbs.db, ._x.jpg, .ipynb_checkpoints", "ignored, and listed", system_files),
    case(21, "empty class folder", "refused, by its name", empty_class),
    case(22, "one class", "refused, with the reason", one_class),
    case(23, "train and val with other classes, equally many", "refused, never scored by position", other_classes),
    case(
        24,
        "folders in class folders; images in the root",
        "explained with the expected layout",
        nested,
        "one line with the layout, not a tree: every error is one line",
    ),
    case(
        25,
        "class names: ../x, a/b, CON, emoji, two Unicode forms, 300 letters, …",
        "names are text only",
        strange_names,
    ),
    case(25, "two folders that are one name in Unicode, or but for case", "told", two_forms),
    case(26, "class or file named <script>", "inert in every page", script_names),
    case(27, "file names that are no UTF-8", "used by their bytes, shown escaped", no_text),
    case(28, "links to outside", "left out, and listed", outside),
    case(29, "circle of links", "ends", circle),
    case(30, "pipe, socket, device named .jpg", "left out without waiting", no_files),
    case(31, "file that cannot be read, or is gone when it is read", "left out, the run goes on", unreadable),
    case(32, "one image in two classes", "told as a conflict", two_classes),
    case(33, "equal and nearly equal images in train and val", "told as a leak", leak),
    case(
        34,
        "one class 100 times the other",
        "a warning",
        lopsided,
        "tried at 100:1; no balanced option: training on other shares than the data has would spoil the calibrated "
        "probabilities and the task card that `distribution` corrects with",
    ),
    case(35, "one image a class", "refuses to split, and says why", single),
    case(36, "1,500 classes, 3,000 files", "memory bounded", many, "tried with fewer files: the suite has to be quick"),
]
