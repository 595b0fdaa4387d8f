"""Before anything is learnt: the command line's start, decoding, and the time to the first step, cold and warm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed import peers, pictures
from benchmarks.speed.turns import Plan, Rival, close_houses, measure, open_houses, spread
from benchmarks.speed.worker import ROOT, House, ask

WORK = ROOT / "benchmarks" / ".work"  # git-ignored: drawn images, and runs that are removed again
SIZE = 128
PLAIN = "ImageFolder and a plain loop"
POLL = 0.005  # seconds
OUT = 8  # which word of an extend's command is its OUT; the fifth is the module


class Ended(NamedTuple):
    """A command that was watched: seconds to its first step (or its end), and its peak memory in bytes."""

    seconds: float
    peak: int


def part(
    houses: Mapping[str, House], plan: Plan, count: int, absent: Mapping[str, str], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Three tables: commands, decoding, first steps."""
    side = 64 if plan.quick else pictures.SIDE
    say(f"drawing {count} images below {WORK} (once)")
    folder = pictures.written(WORK / f"drawn-{count}-{side}", count, side)
    few = pictures.written(WORK / f"drawn-{min(count, 600)}-{side}", min(count, 600), side)
    tables = [_commands(plan, absent, say), _decoding(houses, few, min(count, 600), plan, absent, say)]
    return [*tables, *_first_steps(folder, count, houses, plan, say)]


def _commands(plan: Plan, absent: Mapping[str, str], say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds from the start of a process to its end, the interpreter's own start and torch's import beside them."""
    own = [sys.executable, "-W", "ignore"]
    asked = {
        "taskgraft --help": [*own, "-m", "taskgraft.cli", "--help"],
        "taskgraft extend --help": [*own, "-m", "taskgraft.cli", "extend", "--help"],
        "import taskgraft": [*own, "-c", "import taskgraft"],
        "an interpreter alone": [*own, "-c", "pass"],
        "import torch": [*own, "-c", "import torch"],
        "import timm": [*own, "-c", "import timm"],
        "import avalanche": [peers.python(), "-W", "ignore", "-c", "import avalanche"],
    }
    if "avalanche" in absent:
        del asked["import avalanche"]
    seconds: dict[str, list[float]] = {name: [] for name in asked}
    for turn in range(1 if plan.quick else 6):
        say(f"  commands, turn {turn + 1}")
        for name, command in asked.items():
            seconds[name].append(watched(command, None).seconds)
    kept = {name: taken[1:] or taken for name, taken in seconds.items()}  # the first reads the disk
    rows = [{"rival": name, "house": _house("taskgraft" in name), "unit": "s", **spread(taken)}
            for name, taken in kept.items()]  # fmt: skip
    return {"case": {"what": "commands"}, "rows": rows}


def _decoding(
    houses: Mapping[str, House],
    folder: Path,
    count: int,
    plan: Plan,
    absent: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Files to pixels at training size, all cores."""
    say(f"decoding {count} images")
    workers = open_houses([houses[name] for name in ("taskgraft", "pytorch")], plan)
    case = {"folder": str(folder), "size": SIZE, "images": count, "what": "decoding"}
    shown = (
        Rival("taskgraft", "taskgraft", "files:read"),
        Rival("ImageFolder, 2 workers", "pytorch", "files:read_plainly"),
    )
    rows = measure(shown, workers, case, plan._replace(seconds=30.0), "taskgraft", say, absent)
    with tempfile.TemporaryDirectory(dir=WORK) as cache:
        told = {**case, "cache": cache}
        for run in ("first", "second"):
            found = ask(workers["taskgraft"], do="once", function="files:decoded", case=told)["value"]
            rows.append({"rival": f"decoded in the {run} run", **found})
    close_houses(workers)
    return {"case": {key: case[key] for key in ("what", "size", "images")}, "rows": rows}


def _first_steps(
    folder: Path, count: int, houses: Mapping[str, House], plan: Plan, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Seconds from the command to the end of the first training step, each run in a new OUT; a second start's parts."""
    seconds: dict[str, list[float]] = {}
    peaks: dict[str, list[int]] = {}
    rounds = 1 if plan.quick or count > 10_000 else 3
    with tempfile.TemporaryDirectory(dir=WORK) as runs:
        parent = Path(runs) / "parent.pth"
        workers = open_houses([houses["pytorch"]], plan)
        ask(workers["pytorch"], do="once", function="files:write_parent", case={"path": str(parent)})
        close_houses(workers)
        for turn in range(rounds):
            for name, command, mark in _ways(parent, folder, Path(runs), turn):
                say(f"  {name}, turn {turn + 1}")
                ended = watched(command, mark)
                seconds.setdefault(name, []).append(ended.seconds)
                peaks.setdefault(name, []).append(ended.peak)
        _, known, _ = _ways(parent, folder, Path(runs), 0)[1]
        parts = _parts(known, 1 if plan.quick else 5, say)
    rows = [
        {"rival": name, "house": _house(name != PLAIN), "unit": "s", **spread(taken), "peak": max(peaks[name])}
        for name, taken in seconds.items()
    ]
    case = {"images": count, "size": SIZE, "arch": "resnet18"}
    return [
        {"case": {"what": "first step", **case}, "rows": rows},
        {"case": {"what": "parts of a warm start", **case}, "rows": parts},
    ]


def _parts(command: Sequence[str], turns: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """What a second start's seconds go to, each turn in a new OUT: a row for each part and one for all."""
    seconds: dict[str, list[float]] = {}
    for turn in range(turns):
        place = f"{command[OUT]}-parts-{turn}"
        begun = [*command[:4], "benchmarks.speed.parts", str(time.monotonic()), *command[5:OUT], place]
        begun += command[OUT + 1 :]
        done = subprocess.run(begun, cwd=ROOT, capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
        for name, taken in {**found["parts"], "all": found["total"]}.items():
            seconds.setdefault(name, []).append(taken)
    rows = [{"rival": name, "house": "taskgraft", "unit": "s", **spread(taken)} for name, taken in seconds.items()]
    say("  a second start: " + ", ".join(f"{row['rival']} {row['median']:.2f} s" for row in rows))
    return rows


def _house(own: bool) -> str:
    return "taskgraft" if own else "others"


def _ways(parent: Path, folder: Path, runs: Path, turn: int) -> list[tuple[str, list[str], Path | None]]:
    """(name, command, the file whose second line tells of the first step): each finds what the one before left."""
    own = [sys.executable, "-W", "ignore", "-m"]
    extend = [*own, "taskgraft.cli", "extend", str(parent), str(folder)]
    rest = [
        "--task", "paint", "--method", "finetune", "--arch", "resnet18", "--labels", str(parent.with_suffix(".txt")),
        "--preprocessing", f"{SIZE} squash bilinear imagenet", "--cache", str(runs / f"cache-{turn}"),
    ]  # fmt: skip
    found: list[tuple[str, list[str], Path | None]] = []
    for name, extra in (("cold", []), ("warm", []), ("warm, no head warm-up", ["--head-steps", "0"])):
        out = runs / f"{name.replace(' ', '-').replace(',', '')}-{turn}"
        found.append((name, [*extend, str(out), *rest, *extra], out / "metrics.jsonl"))
    found.append((PLAIN, [*own, "benchmarks.speed.first_step", str(parent), str(folder), str(SIZE)], None))
    return found


def watched(command: Sequence[str], mark: Path | None) -> Ended:
    """Run a command to its end, or to the line of step 1 in `mark`; then it is stopped."""
    with tempfile.TemporaryFile("w+") as stream:
        begin = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stdout=stream, stderr=stream)
        reached: float | None = None
        ended = 0
        while not ended:
            time.sleep(POLL)
            ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            if not ended and reached is None and mark is not None and _stepped(mark):
                reached = time.monotonic() - begin
                process.kill()
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.monotonic() - begin if reached is None else reached
        stream.seek(0)
        said = stream.read().strip().split("\n")[-1]
    if process.returncode and reached is None:
        raise RuntimeError(f"{' '.join(command[:6])} … ended with {process.returncode}: {said[:200]}")
    return Ended(seconds, usage.ru_maxrss * 1024)


def _stepped(mark: Path) -> bool:
    try:
        return any(json.loads(line).get("step", 0) >= 1 for line in mark.read_text().split("\n")[:-1])
    except OSError:
        return False
