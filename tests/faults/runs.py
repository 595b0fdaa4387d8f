"""Faults 2, 6 to 13, 15, 20, 21 and 25: memory, other processes, data and versions, the clock, what comes last."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import forks
from faults.scenario import STEP_4, Fault, Workspace, assert_same_bits, extend_until_killed, wait_until
from forks import last_line, run_cli, start_cli
from taskgraft import Callbacks

HOUR, BEYOND_2038 = 3600.0, 2**31 + 86_400  # seconds; a day after what a signed 32-bit time can hold
PROCESSES = ("subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system")


def shared_memory() -> set[str]:
    """What this process has mapped of the shared memory's file system."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[-1] for line in maps if "/dev/shm" in line}


def no_workers(workspace: Workspace) -> str:
    """Reading and training start no process and use no shared memory: neither can be killed or too small."""
    out, seen = workspace.tmp_path / "both", workspace.tmp_path / "seen"

    def watched() -> None:
        def hook(event: str, args: tuple[Any, ...]) -> None:
            if event in PROCESSES or (event == "open" and str(args[0]).startswith("/dev/shm")):
                seen.write_text(f"{event} {args}")

        before = shared_memory()  # the process that runs the tests may use some for itself
        sys.addaudithook(hook)
        workspace.extend(out)
        assert shared_memory() == before

    forks.run(watched)
    assert not seen.exists(), seen.read_text()
    return f"no worker, no shared memory: {assert_same_bits(out, workspace.expected)}"


def other_data(workspace: Workspace) -> str:
    data = workspace.tmp_path / "paints"
    shutil.copytree(workspace.images, data)
    copied = workspace._replace(images=data)
    out = extend_until_killed(copied, workspace.tmp_path / "both")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    first, second = sorted((data / "train").rglob("*.png"))[:2]
    refused = []

    def added() -> None:
        shutil.copy(second, first.with_name("more.png"))
        with first.with_name("more.png").open("ab") as file:
            file.write(b"other bytes after the image")

    for change, word in (
        (added, "added train/blue/more.png"),
        (first.unlink, f"removed {first.relative_to(data)}"),
        (lambda: second.write_bytes(second.read_bytes() + b"more"), "the same names, but other contents"),
    ):
        backup = workspace.tmp_path / "backup"
        shutil.copytree(data, backup)
        change()
        done = run_cli(*copied.command(out, "--resume"))
        assert done.returncode == 2
        assert word in last_line(done), last_line(done)
        assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
        shutil.rmtree(data)
        backup.rename(data)
        refused.append(word)
    copied.extend(out, resume=True)
    return f"refused with {'; '.join(refused)}; as it was: {assert_same_bits(out, workspace.expected)}"


def other_versions(workspace: Workspace) -> str:
    out = extend_until_killed(workspace, workspace.tmp_path / "both")
    stored = json.loads((out / "run.json").read_text())
    assert stored["environment"]["torch"]
    (out / "run.json").write_text(json.dumps({**stored, "environment": {**stored["environment"], "torch": "2.9.0"}}))
    messages: list[str] = []
    done = workspace.extend(out, resume=True, callbacks=Callbacks(info=messages.append))
    warning = "the run was begun in another environment (torch was '2.9.0', is "
    (warned,) = [line for line in messages if line.startswith(warning)]
    assert [note for note in done.record.notes if "torch was '2.9.0'" in note]
    assert "another environment" not in str(workspace.extend(workspace.tmp_path / "new").record.notes)
    return f"told and in the record: {warned}; {assert_same_bits(out, workspace.expected)}"


def make_clock_jump() -> None:
    """From now on the clock jumps an hour forward and two back, again and again."""
    original, jumps = time.time, itertools.cycle((HOUR, -HOUR, 400 * 24 * HOUR))
    time.time = lambda: original() + next(jumps)
    os.environ["FORCE_COLOR"] = "1"  # bars with the time that is left, as on a terminal


def jumping_clock(workspace: Workspace) -> str:
    data, out = workspace.tmp_path / "paints", workspace.tmp_path / "both"
    shutil.copytree(workspace.images, data)
    for path in data.rglob("*"):
        os.utime(path, (BEYOND_2038, BEYOND_2038))
    command = workspace._replace(images=data).command(out, "--cache", workspace.tmp_path / "cache")
    done = run_cli(*command, before=make_clock_jump)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"-\d+:\d", done.stderr), "a negative time is left"
    assert min(json.loads((out / "record.json").read_text())["seconds"].values()) >= 0
    result = assert_same_bits(out, workspace.expected)
    locked = workspace.tmp_path / "locked"
    holder = extend_until_waiting(workspace, locked)
    refused = run_cli(*workspace.command(locked), before=make_clock_jump)
    holder.kill()
    assert refused.returncode == 2
    assert f"is being written by process {holder.pid} on " in last_line(refused)
    return f"no time below 0, {result}; a lock is not older for it"


def extend_until_waiting(workspace: Workspace, out: Path) -> forks.Fork:
    """A run that locks its folder, and waits in the middle of its training until it is killed."""

    def wait_at_step_4(*_: object) -> None:
        if (out / STEP_4).exists():
            time.sleep(600)

    child = forks.fork(lambda: workspace.extend(out, callbacks=Callbacks(progress=wait_at_step_4)))
    wait_until((out / STEP_4).exists)
    return child


def two_at_once(workspace: Workspace) -> str:
    """Two extensions on one folder at once; then the one that holds it is killed."""
    out = workspace.tmp_path / "both"
    holder = extend_until_waiting(workspace, out)
    for flags in ((), ("--resume",)):
        done = run_cli(*workspace.command(out, *flags))
        assert done.returncode == 2
        assert f"{out} is being written by process {holder.pid} on " in last_line(done), last_line(done)
    holder.kill()
    run_cli(*workspace.command(out, "--resume"), check=True)
    result = assert_same_bits(out, workspace.expected)
    return f"the other is refused: …process N on HOST; a dead one's lock is no lock, {result}"


def terminal_closed(workspace: Workspace) -> str:
    """SIGHUP, as when a terminal is closed; and a run whose reader of the log goes away."""
    out = workspace.tmp_path / "both"
    process = start_cli(*workspace.command(out, "--steps", "400"))
    wait_until((out / "run.json").exists)
    process.send_signal(signal.SIGHUP)
    done = process.wait()
    assert done.returncode == -signal.SIGHUP
    assert "Traceback" not in done.stderr
    shutil.rmtree(out)

    def close_reader_of_stderr() -> None:
        reading, writing = os.pipe()
        os.close(reading)
        os.dup2(writing, 2)

    done = run_cli(*workspace.command(out), before=close_reader_of_stderr)
    assert (done.returncode, done.stderr) == (0, "")
    return f"quiet; without a reader of stderr it goes on: {assert_same_bits(out, workspace.expected)}"


def report_fails(workspace: Workspace) -> str:
    from taskgraft.pipeline import recording
    from taskgraft.pipeline.run import load

    out = workspace.tmp_path / "both"

    def break_report() -> None:
        def fail(*_: Any) -> str:
            raise ValueError("a page that cannot be drawn")

        recording.report.render_run = fail

    done = run_cli(*workspace.command(out), before=break_report)
    assert done.returncode == 1
    assert "is complete, but its report could not be written (ValueError: a page that cannot be drawn)" in last_line(
        done
    )
    assert [task.name for task in load(out).bundle.classifier.tasks] == ["shape", "paint"]
    assert not (out / "report.html").exists()
    run_cli(*workspace.command(out, "--resume"), check=True)
    return f"the model is there, exit 1; the next start writes it, {assert_same_bits(out, workspace.expected)}"


def no_runtime(workspace: Workspace) -> str:
    from taskgraft import errors

    out = workspace.tmp_path / "exported"

    def hide_onnxruntime() -> None:
        find_spec = errors.importlib.util.find_spec
        errors.importlib.util.find_spec = lambda name, *args: None if name == "onnxruntime" else find_spec(name, *args)

    done = run_cli("export", workspace.child, out, before=hide_onnxruntime)
    assert done.returncode == 3
    assert "onnxruntime" in last_line(done)
    assert "pip install" in last_line(done)
    assert not out.exists()

    def break_runtime() -> None:
        from taskgraft.exports import verify

        def crash(*_: Any, **__: Any) -> None:
            raise RuntimeError("the runtime is broken")

        verify.compare = crash

    done = run_cli("export", workspace.child, out, "--format", "safetensors", before=break_runtime)
    assert done.returncode == 1
    assert "the runtime is broken" in last_line(done)
    assert sorted(path.name for path in workspace.tmp_path.iterdir() if "exported" in path.name) == []
    return "one line with the command that installs it; nothing is left where the runtime breaks"


FORWARD, COMMAND, EQUAL = (
    "tests/training/test_micro_batching.py",
    "tests/distributed/test_command.py",
    "tests/distributed/test_equal.py",
)
FOLDER, SIGNALS = "tests/training/test_run_folder.py", "tests/faults/test_signals.py"
FAULTS = [
    Fault(2, "SIGINT and SIGTERM, once and twice", "what was saved is whole, exit 130 or 143, --resume: the same bits",
          tests=(f"{SIGNALS}::test_signal_loses_nothing",)),
    Fault(6, "a gradient that is not finite, in one of two processes only",
          "all stop before the update, with one and the same line",
          tests=(f"{EQUAL}::test_failure_of_one_process_stops_all",
                  "tests/faults/test_faults.py::test_non_finite_loss_keeps_checkpoints")),
    Fault(7, "memory runs out at the first step, later, or for good",
          "half the piece, the same batch, told and recorded", no_workers,
          (f"{FORWARD}::test_out_of_memory_doubles_micro_batches",
                       f"{FORWARD}::test_out_of_memory_with_single_images"),
          "there are no loader processes and no shared memory that could fail: images are decoded in threads"),
    Fault(8, "one of two processes is killed, or hangs",
          "all go on from the last checkpoint; --heartbeat-timeout bounds the wait",
          tests=(f"{COMMAND}::test_killed_process_is_restarted",
                  f"{EQUAL}::test_failure_of_one_process_stops_all")),
    Fault(9, "another number of processes on --resume", "the same run, up to the rounding of sums",
          tests=(f"{COMMAND}::test_resume_with_another_world_size",)),
    Fault(10, "images are added, removed or changed between stop and --resume",
          "refused, with names; nothing is touched", other_data,
          note="there is no flag to go on: other data are another run, in another OUT"),
    Fault(11, "another torch, processor or number of threads on --resume", "told, and in the record", other_versions),
    Fault(12, "the clock jumps; images from beyond 2038", "no negative time, no stolen lock, the same bits",
          jumping_clock),
    Fault(13, "two processes on one folder; the lock of a dead one",
          "the other is told who holds it; a dead one holds nothing", two_at_once,
          (f"{FOLDER}::test_lock_names_holder_and_ends_with_process",)),
    Fault(15, "a tracker that is down or hangs", "a line of warning; the training does not wait",
          tests=("tests/pipeline/test_tracking.py::test_a_tracker_that_is_down_costs_a_line",)),
    Fault(20, "the report cannot be made", "the model is saved, the exit code tells, the next start makes it",
          report_fails),
    Fault(21, "the runtime of an export is missing, breaks or disagrees", "told, and no half file", no_runtime,
          ("tests/exports/test_export.py::test_refused_export_is_removed",)),
    Fault(25, "the terminal is closed, the parent dies, the reader of stdout or stderr goes away", "quiet",
          terminal_closed,
          (f"{SIGNALS}::test_closed_pipe_is_no_error",
           "tests/commands/test_tune.py::test_workers_end_with_their_search")),
]  # fmt: skip
