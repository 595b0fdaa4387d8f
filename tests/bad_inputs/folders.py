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

from bad_inputs.case import EXTEND, TRAIN, Case, Command, Output, Post, Workspace
from bad_inputs.images import make_image, rows_of

SCRIPT = "<script>alert(1)</script>"
IMAGE = "<img src=x onerror=alert(1)>"


def write_image(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(seed, (16, 16)).save(path, "PNG")
    return path


def write_classes(root: Path, *names: str, count: int = 6, start: int = 0) -> Path:
    for at, name in enumerate(names):
        for number in range(count):
            write_image(root / name / f"{number}.png", start + 1000 * at + number)
    return root


def case(
    number: int, name: str, promise: str, make: Callable[[Workspace], Sequence[Command | Post]], note: str = ""
) -> Case:
    return Case(number, name, promise, make, note)


def excluded(reason: str, *names: str) -> Callable[[Workspace, Output], str]:
    """OUT/excluded.csv has these files, each with the reason."""

    def check(workspace: Workspace, _: Output) -> str:
        result = rows_of(workspace.out / "excluded.csv")
        assert all(reason in result.get(name, "") for name in names), result
        return f"trained; excluded.csv: {reason}"

    return check


def listed_by_check(reason: str, *names: str) -> Callable[[Workspace, Output], str]:
    """`check --json` lists these files as left out, each with the reason."""

    def check(_: Workspace, output: Output) -> str:
        result = dict(json.loads(output.stdout)["excluded"])
        assert all(reason in result.get(name, "") for name in names), result
        return f"listed: {reason}"

    return check


def left_out(reason: str, *names: str) -> Callable[[Workspace], Sequence[Command]]:
    def commands(workspace: Workspace) -> Sequence[Command]:
        return [
            Command(("check", workspace.data, "--json"), check=listed_by_check(reason, *names)),
            Command(("train", workspace.data, workspace.out, *TRAIN), check=excluded(reason, *names)),
            Command(("extend", workspace.parent, workspace.data, workspace.out, *EXTEND, "--method", "frozen"),
                check=excluded(reason, *names)),
        ]  # fmt: skip

    return commands


def system_files(workspace: Workspace) -> Sequence[Command]:
    names = ("blue/.DS_Store", "blue/Thumbs.db", "red/._1.jpg", ".ipynb_checkpoints")
    (workspace.data / ".ipynb_checkpoints").mkdir()
    for name in names[:3]:
        (workspace.data / name).write_bytes(b"\0\0\0\1Bud1")
    return left_out("hidden or system file", *names)(workspace)


def empty_class(workspace: Workspace) -> Sequence[Command]:
    (workspace.data / "green").mkdir()
    contains = ("class folder 'green' has no images; add some or remove it",)
    return [
        Command(("check", workspace.data), (2,), contains),
        Command(("train", workspace.data, workspace.out, *TRAIN), (2,), contains),
        Command(("extend", workspace.parent, workspace.data, workspace.out, *EXTEND), (2,), contains),
    ]


def one_class(workspace: Workspace) -> Sequence[Command]:
    shutil.rmtree(workspace.data / "red")
    contains = ("1 class (blue), but a classifier needs two",)
    return [
        Command(("check", workspace.data), (1,), ("a classifier needs at least two classes",)),
        Command(("train", workspace.data, workspace.out, *TRAIN), (2,), contains),
        Command(("extend", workspace.parent, workspace.data, workspace.out, *EXTEND), (2,), contains),
    ]


def other_classes(workspace: Workspace) -> Sequence[Command]:
    data = workspace.tmp_path / "split"
    write_classes(data / "train", "cat", "dog")
    write_classes(data / "val", "cat", "Dog", start=500)
    return [
        Command(("check", data), (1,), ("val: Dog: dog", "PROBLEMS: classes without training images")),
        Command(
            ("train", data, workspace.out, *TRAIN), (2,), ("val has the class 'Dog'", "lack", "did you mean 'dog'?")
        ),
        Command(("evaluate", workspace.parent, data, "--cache", "none"), (2,), ("which the model lacks",)),
    ]


def nested_folders(workspace: Workspace) -> Sequence[Command]:
    write_image(workspace.data / "blue" / "more" / "1.png")
    write_image(workspace.tmp_path / "flat" / "1.png")
    deep = ("blue/more is a folder inside the class folder 'blue'", "<class>/<image>")
    return [
        Command(("check", workspace.data), (2,), deep),
        Command(("train", workspace.data, workspace.out, *TRAIN), (2,), deep),
        Command(("check", workspace.tmp_path / "flat"), (2,), ("flat/<class>/<image>", "flat/train/<class>/<image>")),
        Command(("train", workspace.tmp_path / "flat", workspace.out, *TRAIN), (2,), ("flat/<class>/<image>",)),
    ]


ONE, TWO = "caf\N{LATIN SMALL LETTER E WITH ACUTE}", "cafe\N{COMBINING ACUTE ACCENT}"  # one name in two forms
STRANGE_NAMES = (
    "../x", "a/b", "CON", "\N{AUTOMOBILE}", ONE, TWO, "\N{RIGHT-TO-LEFT OVERRIDE}gpj.exe", "x" * 300, ".hidden", SCRIPT,
    "=1+1",
)  # fmt: skip


def table_of(workspace: Workspace, labels: Sequence[str]) -> Path:
    """A table with eight images of each label, in a folder of their own."""
    home = workspace.tmp_path / "table"
    rows = []
    for at, label in enumerate(labels):
        for number in range(8):
            rows.append((write_image(home / f"{at}-{number}.png", 100 * at + number).name, label))
    with (home / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("path", "paint"), *rows])
    return home / "labels.csv"


def names_are_inert(workspace: Workspace, _: Output) -> str:
    """Names are only text in what was written, and no file is called by one."""
    for page in ("report.html", "README.md"):
        text = (workspace.out / page).read_text(encoding="utf-8")
        assert SCRIPT not in text, page
        assert IMAGE not in text, page
    config = json.loads((workspace.out / "config.json").read_text(encoding="utf-8"))
    assert SCRIPT in config["label_names"]
    names = {path.name for path in workspace.out.rglob("*")}
    assert not names & set(STRANGE_NAMES)
    assert {path.suffix for path in workspace.out.rglob("*") if path.is_file()} <= {
        ".json", ".safetensors", ".html", ".md", ".csv", ".npz", ".txt", ".jsonl", "",
    }  # fmt: skip
    return "names escaped, files named by tasks"


def strange_names(workspace: Workspace) -> Sequence[Command]:
    table, page = table_of(workspace, STRANGE_NAMES), workspace.tmp_path / "out" / "check.html"

    def merged(workspace: Workspace, output: Output) -> str:
        result = json.loads(output.stdout)
        assert len(result["classes"]) == len(STRANGE_NAMES) - 1
        assert result["classes"][ONE]["all"] == 16
        text = page.read_text(encoding="utf-8")
        assert SCRIPT not in text
        return "both forms of an accent are one class; names escaped"

    return [
        Command(("check", table, "--task", "paint", "--json", "--html", page), (0, 1), check=merged),
        Command(("train", table, workspace.out, *TRAIN), check=names_are_inert),
        Command(
            ("extend", workspace.parent, table, workspace.out, *EXTEND, "--method", "frozen"), check=names_are_inert
        ),
    ]


def unicode_forms(workspace: Workspace) -> Sequence[Command]:
    write_classes(workspace.data, ONE, TWO, "Blue")
    return [Command(("check", workspace.data), (1,), ("in two Unicode forms", "only in case, spaces or a plural"))]


def plain_report(workspace: Workspace, _: Output) -> str:
    assert IMAGE not in (workspace.out / "report.html").read_text(encoding="utf-8")
    return "inert in the report"


def script_names(workspace: Workspace) -> Sequence[Command]:
    table = table_of(workspace, (SCRIPT, IMAGE))
    odd = write_image(workspace.data / "blue" / f"{IMAGE}.png")
    return [
        Command(("train", table, workspace.out, *TRAIN), check=names_are_inert),
        Command(("train", workspace.data, workspace.out, *TRAIN), check=plain_report),
        Command(("predict", workspace.parent, odd), contains=('"tasks"',)),
    ]  # fmt: skip


def undecodable_names(workspace: Workspace) -> Sequence[Command]:
    folder = os.fsencode(workspace.data / "blue")
    shutil.copy(write_image(workspace.tmp_path / "good.png", 77), os.fsdecode(folder + b"/caf\xe9.png"))
    with open(folder + b"/bad\xff.jpg", "wb") as file:
        file.write(b"no image")
    shown = ("blue/bad\\udcff.jpg", "blue/caf\\udce9.png")

    def listed(workspace: Workspace, _: Output) -> str:
        assert shown[0] in rows_of(workspace.out / "excluded.csv")
        assert shown[1] in rows_of(workspace.out / "split.csv")
        return "used, or listed with its bytes escaped"

    return [
        Command(("check", workspace.data, "--json"), contains=("bad\\\\udcff.jpg",)),
        Command(("train", workspace.data, workspace.out, *TRAIN), check=listed),
        Command(
            ("extend", workspace.parent, workspace.data, workspace.out, *EXTEND, "--method", "frozen"), check=listed
        ),
        Command(("predict", workspace.parent, folder + b"/caf\xe9.png"), contains=("caf\\\\udce9.png",)),
        Command(("predict", workspace.parent, workspace.data, "--out", workspace.out / "answers.csv")),
        Command(
            ("train", workspace.data, os.fsencode(workspace.out) + b"/\xff", *TRAIN),
            (2,),
            ("is not valid UTF-8; choose another OUT",),
        ),
    ]


def links_to_outside(workspace: Workspace) -> Sequence[Command]:
    elsewhere = write_classes(workspace.tmp_path / "elsewhere", "green", start=900) / "green"
    (workspace.data / "blue" / "link.png").symlink_to(elsewhere / "1.png")
    (workspace.data / "green").symlink_to(elsewhere)
    note = "1 class folder(s) and 1 image(s) are links, which were followed"
    gone = workspace.tmp_path / "gone"
    shutil.copytree(workspace.data, gone)
    (gone / "purple").symlink_to(workspace.tmp_path / "nowhere")
    lost = ("purple, where a class folder is expected: a broken link",)
    return [
        Command(("check", workspace.data), (1,), (note, "green  all     6")),
        Command(("train", workspace.data, workspace.out, *TRAIN), contains=(note,)),
        Command(("predict", workspace.parent, workspace.data), contains=('link.png"', "green/5.png")),
        Command(("check", gone), (2,), lost),
        Command(("train", gone, workspace.out, *TRAIN), (2,), lost),
    ]


def circular_links(workspace: Workspace) -> Sequence[Command]:
    (workspace.data / "blue" / "self.png").symlink_to("self.png")
    shutil.copytree(workspace.data, workspace.tmp_path / "round", symlinks=True)
    (workspace.tmp_path / "round" / "red" / "up").symlink_to("../..", target_is_directory=True)
    reason = "a link that leads back to itself"
    return [
        *left_out(reason, "blue/self.png")(workspace),
        Command(("check", workspace.tmp_path / "round"), (0, 2), ("red/up",)),
        Command(("predict", workspace.parent, workspace.tmp_path / "round")),
    ]


def special_files(workspace: Workspace) -> Sequence[Command]:
    names = ["blue/pipe.jpg", "blue/socket.jpg"]
    os.mkfifo(workspace.data / names[0])
    with socket.socket(socket.AF_UNIX) as server:
        previous = os.getcwd()
        os.chdir(workspace.data / "blue")  # a socket's path has at most 107 bytes
        server.bind("socket.jpg")
        os.chdir(previous)
    with contextlib.suppress(PermissionError):
        os.mknod(workspace.data / "blue" / "null.jpg", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        names.append("blue/null.jpg")
    return [
        *left_out("not a regular file", *names)(workspace),
        Command(
            ("predict", workspace.parent, *(workspace.data / name for name in names)), (1,), ("not a regular file",)
        ),
    ]


def unreadable(workspace: Workspace) -> Sequence[Command]:
    (workspace.data / "blue" / "gone.png").symlink_to("was-here.png")
    commands = [*left_out("a broken link: was-here.png does not exist", "blue/gone.png")(workspace)]
    if os.geteuid():  # root may read everything
        write_image(workspace.data / "blue" / "locked.png").chmod(0)
        commands += left_out("cannot be read: ", "blue/locked.png")(workspace)
    return commands


def two_classes(workspace: Workspace) -> Sequence[Command]:
    shutil.copy(workspace.data / "blue" / "0.png", workspace.data / "red" / "again.png")

    def noted(workspace: Workspace, _: Output) -> str:
        notes = json.loads((workspace.out / "record.json").read_text(encoding="utf-8"))["notes"]
        assert any("1 image(s) are in two classes" in note for note in notes)
        return "a note in the report"

    return [
        Command(
            ("check", workspace.data), (1,), ("1 image is labeled with two classes: blue/0.png and red/again.png",)
        ),
        Command(("train", workspace.data, workspace.out, *TRAIN), check=noted),
        Command(
            ("extend", workspace.parent, workspace.data, workspace.out, *EXTEND, "--method", "frozen"), check=noted
        ),
    ]


def leak(workspace: Workspace) -> Sequence[Command]:
    data = workspace.tmp_path / "split"
    write_classes(data / "train", "cat", "dog")
    write_classes(data / "val", "cat", "dog", start=500)
    shutil.copy(data / "train" / "cat" / "1.png", data / "val" / "cat" / "again.png")
    make_image(1, (16, 16)).resize((64, 64)).save(data / "val" / "cat" / "larger.jpg", quality=80)

    def noted(workspace: Workspace, _: Output) -> str:
        notes = json.loads((workspace.out / "record.json").read_text(encoding="utf-8"))["notes"]
        assert any("1 image(s) are in two splits" in note for note in notes)
        return "a note in the report"

    return [
        Command(("check", data), (1,), ("1 image is in two splits: train/cat/1.png and val/cat/again.png",
                                    "1 near-duplicate is in another split: train/cat/1.png and val/cat/larger.jpg")),
        Command(("train", data, workspace.out, *TRAIN), check=noted),
    ]  # fmt: skip


def imbalanced(workspace: Workspace) -> Sequence[Command]:
    write_classes(workspace.tmp_path / "uneven", "many", count=400)
    write_classes(workspace.tmp_path / "uneven", "few", count=4, start=5000)
    return [
        Command(
            ("check", workspace.tmp_path / "uneven"), contains=("imbalanced: 'many' has 400 training images, 'few' 4",)
        )
    ]


def single_images(workspace: Workspace) -> Sequence[Command]:
    data = write_classes(workspace.tmp_path / "single", "a", "b", "c", count=1)
    contains = ("class 'a' has one image, but a validation split needs two",)
    return [
        Command(("check", data), (1,), ("classes with a single image cannot be split",)),
        Command(("train", data, workspace.out, *TRAIN), (2,), contains),
        Command(("extend", workspace.parent, data, workspace.out, *EXTEND), (2,), contains),
    ]


def many_classes(workspace: Workspace) -> Sequence[Command]:
    rng = random.Random(0)
    for number in range(1500):
        home = workspace.tmp_path / "many" / f"class {number:04}"
        home.mkdir(parents=True)
        for at in range(2):
            (home / f"{at}.ppm").write_bytes(b"P6 5 5 255 " + rng.randbytes(75))
    return [Command(("check", workspace.tmp_path / "many"), contains=("1,500 classes; images: 3000 all",))]


CASES: list[Case] = [
    case(20, ".DS_Store, Thumbs.db, ._x.jpg, .ipynb_checkpoints", "ignored, and listed", system_files),
    case(21, "empty class folder", "refused, by its name", empty_class),
    case(22, "one class", "refused, with the reason", one_class),
    case(23, "train and val with other classes, equally many", "refused, never scored by position", other_classes),
    case(
        24,
        "folders in class folders; images in the root",
        "explained with the expected layout",
        nested_folders,
        "one line with the layout, not a tree: every error is one line",
    ),
    case(
        25,
        "class names: ../x, a/b, CON, emoji, two Unicode forms, 300 letters, …",
        "names are text only",
        strange_names,
    ),
    case(25, "two folders that are one name in Unicode, or but for case", "reported", unicode_forms),
    case(26, "class or file named <script>", "inert in every page", script_names),
    case(27, "file names that are no UTF-8", "used by their bytes, shown escaped", undecodable_names),
    case(28, "links to outside", "read, and said; a link to nowhere loses no class", links_to_outside),
    case(29, "circle of links", "ends", circular_links),
    case(30, "pipe, socket, device named .jpg", "left out without waiting", special_files),
    case(31, "file that cannot be read, or is gone when it is read", "left out, the run goes on", unreadable),
    case(32, "one image in two classes", "reported as a conflict", two_classes),
    case(33, "equal and nearly equal images in train and val", "reported as a leak", leak),
    case(
        34,
        "one class 100 times the other",
        "a warning",
        imbalanced,
        "tried at 100:1; no balanced option: training on other shares than the data has would spoil the calibrated "
        "probabilities and the task card that `distribution` corrects with",
    ),
    case(35, "one image a class", "refuses to split, and says why", single_images),
    case(
        36,
        "1,500 classes, 3,000 files",
        "memory bounded",
        many_classes,
        "tried with fewer files: the suite has to be quick",
    ),
]
