"""Bad inputs 51 to 54: videos, configuration files, values, paths."""

from __future__ import annotations

import json
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bad_inputs.folders import case, excluded
from bad_inputs.trying import EXTEND, TRAIN, Case, Place, Told, Try
from films import SIDE, cut, film, turned


def frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8) for _ in range(count)]


def videos(place: Place) -> Sequence[Try]:
    root = place.root / "films"
    root.mkdir()
    whole = film(root / "whole.mp4", frames(20))
    (root / "empty.mp4").write_bytes(b"")
    (root / "text.mp4").write_text("#EXTM3U\nfile:///etc/passwd\n")
    cut(whole, 0.6, root / "cut.mp4")
    torn = bytearray(film(root / "torn.avi", frames(20)).read_bytes())
    torn[len(torn) // 3 : 2 * len(torn) // 3] = b"\xff" * (2 * len(torn) // 3 - len(torn) // 3)
    (root / "torn.avi").write_bytes(torn)
    with wave.open(str(root / "sound.mkv"), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(8000))
    film(root / "one.mp4", frames(1))
    film(root / "uneven.mp4", frames(6), times=[0, 0.1, 0.2, 3, 3.1, 9])
    film(root / "day.mkv", frames(9), times=[10_800 * number for number in range(9)])
    turned(whole, root / "turned.mp4")
    reads = {
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

    def kept(_: Place, told: Told) -> str:
        rows = [json.loads(line) for line in told.out.splitlines()]
        for name, (count, reason) in reads.items():
            own = [row for row in rows if Path(row["id"].partition("@")[0]).name == name]
            good, bad = [row for row in own if "tasks" in row], [row for row in own if "error" in row]
            assert len(good) >= count, (name, own)
            assert bool(bad) == (reason is not None), (name, own)
            assert not bad or (reason or "") in bad[0]["error"], (name, bad)
        return "frames so far kept; a row with the reason"

    names = [root / name for name in reads]
    return [
        Try(("predict", place.parent, *names), look=kept),
        Try(("distribution", place.parent, *names), (0, 2)),
        Try(("predict", place.parent, root / "empty.mp4", root / "text.mp4"), (1,)),
        Try(("check", root), (2,), ("has no class folder",)),
    ]


def configurations(place: Place) -> Sequence[Try]:
    path = place.root / "c.yaml"
    path.write_text("rate: !!python/object/apply:os.system ['touch trap']\nrate: 1e-4\na: &a [*a]\n\tb: 1\n")
    extend = ("extend", place.parent, place.data, place.out, *EXTEND, "--method")
    return [
        Try(("train", place.data, place.out, *TRAIN, "--config", path), (2,), ("invalid YAML",)),
        Try(("train", path, place.out, *TRAIN), (2,), ("is not a table",)),
        Try((*extend, "distill(strenght=1)"), (2,),
            ("did you mean 'strength'",)),
        Try((*extend, "distill(strength='1e-4')"), (2,)),
        Try((*extend, "distill(strength=1, strength=2)"), (2,)),
        Try((*extend, "__import__('os').system('x')"), (2,)),
        Try((*extend, "(" * 10_000), (2,)),
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


def values(place: Place) -> Sequence[Try]:
    def stopped(place: Place, told: Told) -> str:
        assert not (place.out / "model.safetensors").exists()
        return "stopped before the update"

    start = ("extend", place.root / "no parent", place.data, place.out, *EXTEND)
    good = ("extend", place.parent, place.data, place.out, *EXTEND)
    return [
        *(Try((*start, flag, value), (2,), (says,), ("no parent",)) for flag, value, says in VALUES),
        Try((*good, "--batch-size", "1000", "--method", "frozen")),
        Try((*good, "--seed", str(2**64), "--method", "frozen")),
        Try((*good, "--lr", "1e30", "--steps", "5", "--method", "finetune", "--clip-grad", "0"), (4,), ("not finite",),
            look=stopped),
    ]  # fmt: skip


def paths(place: Place) -> Sequence[Try]:
    file = place.root / "file"
    file.write_text("mine")
    odd = place.root / "out" / " with spaces\nand a line"
    inside = ("is inside", "which images are read from; choose an OUT elsewhere")
    tail = (*EXTEND, "--method", "frozen")
    found: list[Try] = []
    for command in (("train", place.data), ("extend", place.parent, place.data)):
        more = TRAIN if command[0] == "train" else tail
        found += [
            Try((*command, place.data / "out", *more), (2,), inside),
            Try((*command, place.data, *more), (2,), inside),
            Try((*command, file, *more), (2,), ("choose another OUT",)),
            Try((*command, file / "below", *more), (2,), ("choose another OUT",)),
            Try((*command, "/proc/no/such", *more), (2,), ("choose another OUT",)),
            Try((*command, place.root / ("x" * 256), *more), (2,), ("File name too long", "choose another OUT")),
            Try((*command, odd, *more), look=lambda _, told: "written"),
        ]
    (place.data / "blue" / "a b\n c.png").write_bytes(b"no image")
    return [
        *found,
        Try(("train", place.data, place.out, *TRAIN), look=excluded("known format", "blue/a b\n c.png")),
        Try(("predict", place.parent, place.data, "--out", file), (2,), ("one of .jsonl, .csv, .parquet",)),
        Try(("predict", place.parent, place.data, "--out", "/proc/no/such.csv"), (2, 3)),
        Try(("check", place.data, "--html", file), (2,), ("exists and is not a taskgraft page",)),
        Try(("check", place.data, "--write-manifest", file), (2,), ("already exists with other content",)),
        Try(("check", place.data, "--html", "/proc/no/such.html"), (2,), ("cannot be written",)),
        Try(("export", place.parent, file), (2,), ("already exists",)),
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
