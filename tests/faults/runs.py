"""Faults 2, 6 to 13, 15, 20, 21 and 25: memory, other processes, data and versions, the clock, what comes last."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import dying
from faults.trying import UNDER_WAY, Fault, Place, begun, command, same_bits, stopped, waited_for
from taskgraft import Callbacks

HOUR, LATE = 3600.0, 2**31 + 86_400  # seconds; a day after what a signed 32-bit time can hold
PROCESSES = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system")


def shared() -> set[str]:
    """What this process has mapped of the shared memory's file system."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[-1] for line in maps if "/dev/shm" in line}


def no_workers(place: Place) -> str:
    """Reading and training start no process and use no shared memory: neither can be killed or too small."""
    out, note = place.root / "both", place.root / "seen"

    def watched() -> None:
        def hook(event: str, given: tuple[Any, ...]) -> None:
            if event in PROCESSES or (event == "open" and str(given[0]).startswith("/dev/shm")):
                note.write_text(f"{event} {given}")

        before = shared()  # the process that runs the tests may use some for itself
        sys.addaudithook(hook)
        place.extend(out)
        assert shared() == before

    code, said = dying.end(dying.begin(watched))
    assert code == 0, said
    assert not note.exists(), note.read_text()
    return f"no worker, no shared memory: {same_bits(out, place.calm)}"


def other_data(place: Place) -> str:
    data = place.root / "paints"
    shutil.copytree(place.new, data)
    at_data = place._replace(new=data)
    out = stopped(at_data, place.root / "both")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    first, second = sorted((data / "train").rglob("*.png"))[:2]
    happened = []

    def added() -> None:
        shutil.copy(second, first.with_name("more.png"))
        with first.with_name("more.png").open("ab") as file:
            file.write(b"other bytes after the image")

    for change, word in (
        (added, "added train/blue/more.png"),
        (first.unlink, f"removed {first.relative_to(data)}"),
        (lambda: second.write_bytes(second.read_bytes() + b"more"), "the same names, but other contents"),
    ):
        kept = place.root / "kept"
        shutil.copytree(data, kept)
        change()
        told = command(at_data.words(out, "--resume"), place.root)
        assert told.code == 2
        assert word in told.last, told.last
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        shutil.rmtree(data)
        kept.rename(data)
        happened.append(word)
    at_data.extend(out, resume=True)
    return f"refused with {'; '.join(happened)}; as it was: {same_bits(out, place.calm)}"


def other_versions(place: Place) -> str:
    out = stopped(place, place.root / "both")
    stored = json.loads((out / "run.json").read_text())
    assert stored["environment"]["torch"]
    (out / "run.json").write_text(json.dumps({**stored, "environment": {**stored["environment"], "torch": "2.9.0"}}))
    told: list[str] = []
    done = place.extend(out, resume=True, callbacks=Callbacks(info=told.append))
    (warned,) = [
        line for line in told if line.startswith("the run was begun in another environment (torch was '2.9.0', is ")
    ]
    assert [note for note in done.record.notes if "torch was '2.9.0'" in note]
    assert "another environment" not in str(place.extend(place.root / "new").record.notes)
    return f"told and in the record: {warned}; {same_bits(out, place.calm)}"


def jumping() -> None:
    """From now on the clock jumps an hour forward and two back, again and again."""
    real, count = time.time, [0]

    def now() -> float:
        count[0] += 1
        return real() + (HOUR, -HOUR, 400 * 24 * HOUR)[count[0] % 3]

    time.time = now
    os.environ["FORCE_COLOR"] = "1"  # bars with the time that is left, as on a terminal


def clock(place: Place) -> str:
    data, out = place.root / "paints", place.root / "both"
    shutil.copytree(place.new, data)
    for path in data.rglob("*"):
        os.utime(path, (LATE, LATE))
    told = command(place._replace(new=data).words(out, "--cache", place.root / "cache"), place.root, jumping)
    assert told.code == 0, told.err
    assert not re.search(r"-\d+:\d", told.err), "a negative time is left"
    assert min(json.loads((out / "record.json").read_text())["seconds"].values()) >= 0
    after = same_bits(out, place.calm)
    stuck, lock = begin_and_wait(place, place.root / "held")
    late = command(place.words(lock), place.root, jumping)
    stop(stuck)
    assert late.code == 2
    assert f"is being written by process {stuck.pid} on " in late.last
    return f"no time below 0, {after}; a lock is not older for it"


def begin_and_wait(place: Place, out: Path) -> tuple[dying.Child, Path]:
    """A run that holds its folder, and waits in the middle of its training until it is killed."""

    def work() -> None:
        place.extend(
            out, callbacks=Callbacks(progress=lambda *_: time.sleep(600) if (out / UNDER_WAY).exists() else None)
        )

    child = dying.begin(work)
    waited_for((out / UNDER_WAY).exists)
    return child, out


def stop(child: dying.Child) -> None:
    os.kill(child.pid, signal.SIGKILL)
    dying.end(child)


def two_at_once(place: Place) -> str:
    """Two extensions on one folder at once; then the one that holds it is killed."""
    first, out = begin_and_wait(place, place.root / "both")
    for more in ((), ("--resume",)):
        told = command(place.words(out, *more), place.root)
        assert told.code == 2
        assert f"{out} is being written by process {first.pid} on " in told.last, told.last
    stop(first)
    told = command(place.words(out, "--resume"), place.root)
    assert told.code == 0, told.err
    return f"the other is told: …process N on HOST; a dead one's lock is no lock, {same_bits(out, place.calm)}"


def hung_up(place: Place) -> str:
    """SIGHUP, as when a terminal is closed; and a run whose reader of the log goes away."""
    out, streams = place.root / "both", [place.root / "out", place.root / "err"]
    slow = place.words(out, "--steps", "400")
    child = begun(slow, streams)
    waited_for((out / "run.json").exists)
    os.kill(child.pid, signal.SIGHUP)
    assert dying.end(child)[0] == -signal.SIGHUP
    assert "Traceback" not in streams[1].read_text()
    shutil.rmtree(out)

    def unheard() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 2)

    told = command(place.words(out), place.root, unheard)
    assert (told.code, told.err) == (0, "")
    return f"quiet; with nobody at the end of the log it goes on: {same_bits(out, place.calm)}"


def report_fails(place: Place) -> str:
    from taskgraft.pipeline import publishing
    from taskgraft.pipeline.run import load

    out = place.root / "both"

    def broken() -> None:
        def fail(*_: Any) -> str:
            raise ValueError("a page that cannot be drawn")

        publishing.report.render_run = fail

    told = command(place.words(out), place.root, broken)
    assert told.code == 1
    assert "is complete, but its report could not be written (ValueError: a page that cannot be drawn)" in told.last
    assert [task.name for task in load(out).bundle.classifier.tasks] == ["shape", "paint"]
    assert not (out / "report.html").exists()
    again = command(place.words(out, "--resume"), place.root)
    assert again.code == 0, again.err
    return f"the model is there, exit 1; the next start writes it, {same_bits(out, place.calm)}"


def no_runtime(place: Place) -> str:
    from taskgraft import errors

    out = place.root / "exported"

    def without() -> None:
        real = errors.importlib.util.find_spec
        errors.importlib.util.find_spec = lambda name, *more: None if name == "onnxruntime" else real(name, *more)

    told = command(("export", place.plain, out), place.root, without)
    assert told.code == 3
    assert "onnxruntime" in told.last
    assert "pip install" in told.last
    assert not out.exists()

    def crashing() -> None:
        from taskgraft.exports import verify

        def crash(*_: Any, **more: Any) -> None:
            raise RuntimeError("the runtime is broken")

        verify.compare = crash

    told = command(("export", place.plain, out, "--format", "safetensors"), place.root, crashing)
    assert told.code == 1
    assert "the runtime is broken" in told.last
    assert sorted(path.name for path in place.root.iterdir() if "exported" in path.name) == []
    return "one line with the command that installs it; nothing is left where the runtime breaks"


FORWARD, COMMAND, EQUAL = (
    "tests/training/test_micro_batching.py",
    "tests/distributed/test_command.py",
    "tests/distributed/test_equal.py",
)
FOLDER, SIGNALS = "tests/training/test_run_folder.py", "tests/faults/test_signals.py"
FAULTS = [
    Fault(2, "SIGINT and SIGTERM, once and twice", "what was saved is whole, exit 130 or 143, --resume: the same bits",
          tested=(f"{SIGNALS}::test_signal_loses_nothing",)),
    Fault(6, "a gradient that is not finite, in one of two processes only",
          "all stop before the update, with one and the same line",
          tested=(f"{EQUAL}::test_failure_of_one_process_stops_all",
                  "tests/faults/test_faults.py::test_non_finite_loss_keeps_checkpoints")),
    Fault(7, "memory runs out at the first step, later, or for good",
          "half the piece, the same batch, told and recorded", no_workers,
          (f"{FORWARD}::test_out_of_memory_doubles_micro_batches",
                       f"{FORWARD}::test_out_of_memory_with_single_images"),
          "there are no loader processes and no shared memory that could fail: images are decoded in threads"),
    Fault(8, "one of two processes is killed, or hangs",
          "all go on from the last checkpoint; --patience bounds the wait",
          tested=(f"{COMMAND}::test_killed_process_is_restarted",
                  f"{EQUAL}::test_failure_of_one_process_stops_all")),
    Fault(9, "another number of processes on --resume", "the same run, up to the rounding of sums",
          tested=(f"{COMMAND}::test_resume_with_another_world_size",)),
    Fault(10, "images are added, removed or changed between stop and --resume",
          "refused, with names; nothing is touched", other_data,
          changed="there is no flag to go on: other data are another run, in another OUT"),
    Fault(11, "another torch, processor or number of threads on --resume", "told, and in the record", other_versions),
    Fault(12, "the clock jumps; images from beyond 2038", "no negative time, no stolen lock, the same bits", clock),
    Fault(13, "two processes on one folder; the lock of a dead one",
          "the other is told who holds it; a dead one holds nothing", two_at_once,
          (f"{FOLDER}::test_lock_names_holder_and_ends_with_process",)),
    Fault(15, "a tracker that is down or hangs", "a line of warning; the training does not wait",
          tested=("tests/pipeline/test_tracking.py::test_a_tracker_that_is_down_costs_a_line",)),
    Fault(20, "the report cannot be made", "the model is saved, the exit code tells, the next start makes it",
          report_fails),
    Fault(21, "the runtime of an export is missing, breaks or disagrees", "told, and no half file", no_runtime,
          ("tests/exports/test_export.py::test_refused_export_is_removed",)),
    Fault(25, "the terminal is closed, the parent dies, the reader of stdout or stderr goes away", "quiet", hung_up,
          (f"{SIGNALS}::test_closed_pipe_is_no_error",
           "tests/commands/test_tune.py::test_workers_end_with_their_search")),
]  # fmt: skip
