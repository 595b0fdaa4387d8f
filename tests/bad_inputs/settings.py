"""Bad inputs 51 to 54: videos, configuration files, values, paths."""

from __future__ import annotations

import json
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bad_inputs.case import EXTEND, TRAIN, Case, Command, Output, Workspace
from bad_inputs.folders import case, excluded
from videos import SIZE, rotate, truncate, write_video


def frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for _ in range(count)]


def videos(workspace: Workspace) -> Sequence[Command]:
    root = workspace.tmp_path / "films"
    root.mkdir()
    intact = write_video(root / "whole.mp4", frames(20))
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("#EXTM3U\nfile:///etc/passwd\n")
    truncate(intact, 0.6, root / "cut.mp4")
    damaged = bytearray(write_video(root / "torn.avi", frames(20)).read_bytes())
    damaged[len(damaged) // 3 : 2 * len(damaged) // 3] = b"\xff" * (2 * len(damaged) // 3 - len(damaged) // 3)
    (root / "torn.avi").write_bytes(damaged)
    with wave.open(str(root / "sound.mkv"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    write_video(root / "one.mp4", frames(1))
    write_video(root / "uneven.mp4", frames(6), times=[0, 0.1, 0.2, 3, 3.1, 9])
    write_video(root / "day.mkv", frames(9), times=[10_800 * number for number in range(9)])
    rotate(intact, root / "turned.mp4")
    expected = {
        "empty.mp4": (0, "empty"),
        "text.mp4": (0, "cannot be read as a video"),
        "cut.mp4": (2, "cut off at"),
        "torn.avi": (1, "earlier frames are used"),
        "sound.mkv": (0, ""),
        "one.mp4": (1, None),
        "uneven.mp4": (3, None),
        "day.mkv": (9, None),
        "turned.mp4": (4, None),
    }

    def frames_are_kept(_: Workspace, output: Output) -> str:
        rows = [json.loads(line) for line in output.stdout.splitlines()]
        for name, (count, reason) in expected.items():
            own_rows = [row for row in rows if Path(row["id"].partition("@")[0]).name == name]
            good, bad = [row for row in own_rows if "tasks" in row], [row for row in own_rows if "error" in row]
            assert len(good) >= count, (name, own_rows)
            assert bool(bad) == (reason is not None), (name, own_rows)
            assert not bad or (reason or "") in bad[0]["error"], (name, bad)
        return "frames so far kept; a row with the reason"

    names = [root / name for name in expected]
    return [
        Command(("predict", workspace.parent, *names), check=frames_are_kept),
        Command(("distribution", workspace.parent, *names), (0, 2)),
        Command(("predict", workspace.parent, root / "empty.mp4", root / "text.mp4"), (1,)),
        Command(("check", root), (2,), ("has no class folder",)),
    ]


def configurations(workspace: Workspace) -> Sequence[Command]:
    path = workspace.tmp_path / "c.yaml"
    path.write_text("rate: !!python/object/apply:os.system ['touch trap']\nrate: 1e-4\na: &a [*a]\n\tb: 1\n")
    extend = ("extend", workspace.parent, workspace.data, workspace.out, *EXTEND, "--method")
    return [
        Command(("train", workspace.data, workspace.out, *TRAIN, "--config", path), (2,), ("invalid YAML",)),
        Command(("train", path, workspace.out, *TRAIN), (2,), ("is not a table",)),
        Command((*extend, "distill(strenght=1)"), (2,),
            ("did you mean 'strength'",)),
        Command((*extend, "distill(strength='1e-4')"), (2,)),
        Command((*extend, "distill(strength=1, strength=2)"), (2,)),
        Command((*extend, "__import__('os').system('x')"), (2,)),
        Command((*extend, "(" * 10_000), (2,)),
    ]  # fmt: skip


VALUES: list[tuple[str, str, str]] = [
    ("--lr", "0", "must be above 0"),
    ("--lr", "-1", "must be above 0"),
    ("--lr", "nan", "give a number"),
    ("--lr", "inf", "give a number"),
    ("--steps", "0", "must be at least 1"),
    ("--batch-size", "0", "must be at least 1"),
    ("--batch-size", "1.5", "give a whole number"),
    ("--momentum", "1", "at most 0.9999"),
    ("--weight-decay", "-1", "must be at least 0"),
    ("--seed", "-1", "must be at least 0"),
    ("--method", "distill(temperature=0)", "must be above 0"),
    ("--method", "wise(weight=2)", "at most 1"),
    ("--method", "ewc(strength=nan)", ""),
]


def values(workspace: Workspace) -> Sequence[Command]:
    def stopped(workspace: Workspace, output: Output) -> str:
        assert not (workspace.out / "model.safetensors").exists()
        return "stopped before the update"

    start = ("extend", workspace.tmp_path / "no parent", workspace.data, workspace.out, *EXTEND)
    good = ("extend", workspace.parent, workspace.data, workspace.out, *EXTEND)
    return [
        *(Command((*start, flag, value), (2,), (contains,), ("no parent",)) for flag, value, contains in VALUES),
        Command((*good, "--batch-size", "1000", "--method", "frozen")),
        Command((*good, "--seed", str(2**64), "--method", "frozen")),
        Command(
            (*good, "--lr", "1e30", "--steps", "5", "--method", "finetune", "--clip-grad", "0"),
            (4,),
            ("not finite",),
            check=stopped,
        ),
    ]


def paths(workspace: Workspace) -> Sequence[Command]:
    file = workspace.tmp_path / "file"
    file.write_text("mine")
    with_line_break = workspace.tmp_path / "out" / " with spaces\nand a line"
    inside = ("is inside", "which images are read from; choose an OUT elsewhere")
    extend_flags = (*EXTEND, "--method", "frozen")
    result: list[Command] = []
    for command in (("train", workspace.data), ("extend", workspace.parent, workspace.data)):
        flags = TRAIN if command[0] == "train" else extend_flags
        result += [
            Command((*command, workspace.data / "out", *flags), (2,), inside),
            Command((*command, workspace.data, *flags), (2,), inside),
            Command((*command, file, *flags), (2,), ("choose another OUT",)),
            Command((*command, file / "below", *flags), (2,), ("choose another OUT",)),
            Command((*command, "/proc/no/such", *flags), (2,), ("choose another OUT",)),
            Command(
                (*command, workspace.tmp_path / ("x" * 256), *flags), (2,), ("File name too long", "choose another OUT")
            ),
            Command((*command, with_line_break, *flags), check=lambda _, output: "written"),
        ]
    (workspace.data / "blue" / "a b\n c.png").write_bytes(b"no image")
    return [
        *result,
        Command(("train", workspace.data, workspace.out, *TRAIN), check=excluded("known format", "blue/a b\n c.png")),
        Command(
            (
                "extend",
                workspace.parent,
                workspace.data,
                f"{workspace.parent}/../{workspace.parent.name}",
                *extend_flags,
            ),
            (2,),
            ("is the model that is read; choose another OUT",),
        ),
        Command(("predict", workspace.parent, workspace.data, "--out", file), (2,), ("use .jsonl, .csv, .parquet",)),
        Command(("predict", workspace.parent, workspace.data, "--out", "/proc/no/such.csv"), (2, 3)),
        Command(("check", workspace.data, "--html", file), (2,), ("exists and is not a taskgraft page",)),
        Command(("check", workspace.data, "--write-manifest", file), (2,), ("already exists with other content",)),
        Command(("check", workspace.data, "--html", "/proc/no/such.html"), (2,), ("cannot be written",)),
        Command(("export", workspace.parent, file), (2,), ("already exists",)),
    ]


CASES: list[Case] = [
    case(
        51,
        "video: empty, text, cut, torn, sound alone, uneven, turned, one frame, a day long",
        "what was read before is kept, errors are rows",
        videos,
    ),
    case(
        52,
        "YAML with tabs, objects, duplicates; method notation as a program",
        "refused",
        configurations,
        "no configuration file is read: settings are flags, and run.json says what they were",
    ),
    case(
        53,
        "values out of range",
        "refused before anything is opened",
        values,
        "a rate of 1e9 is legal, batch may exceed the data; what is not finite stops the run before the update",
    ),
    case(
        54,
        "OUT in the data, a file, unwritable, too long, with spaces and a line break",
        "refused early; or used",
        paths,
        "another user's folder cannot be tried as root: a path that nobody can write stands for it",
    ),
]
