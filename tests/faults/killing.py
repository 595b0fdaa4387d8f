"""kill -9 at random moments of an `extend` and of a `tune`: each resume must end in the same bits. `make kills`.

Work is done in forks of this process, so that a run takes about a second. A moment is drawn from the length of the
undisturbed run; one at which the run was over already does not count, and another is drawn.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import forks
from taskgraft import TrainingConfig
from taskgraft.commands.extend import extend
from taskgraft.commands.train import train
from taskgraft.commands.tune import tune
from taskgraft.pipeline.request import Request
from taskgraft.training.run_folder import LEFTOVER
from taskgraft.tuning import space
from taskgraft.tuning.search_config import SearchConfig
from toys import NEW, OLD, write_folder

EXTEND = TrainingConfig(steps=12, batch_size=8, head_steps=4, eval_every=3, save_every=2, log_every=3, precision="fp32")
TUNE = TrainingConfig(
    steps=8, batch_size=8, head_steps=5, eval_every=2, save_every=2, views=2, precision="fp32", lr=0.01
)
# What a run imports when it needs it; here only once.
IMPORTED_LATE = ("jinja2", "optuna.importance", "matplotlib.style", "matplotlib.backends.backend_svg")
MAY_DIFFER = {"seconds", "saved", "cost", "command", "folder", "versions"}  # in search.json


class Work(NamedTuple):
    """A resumable command on a folder; patterns of the files that must be equal; what the folder tells of a kill."""

    name: str
    do: Callable[[Path], Any]
    files: tuple[str, ...]
    moment: Callable[[Path], str]


class Kill(NamedTuple):
    """One kill: after how many seconds, in which phase, what was wrong after the resume and how long that took."""

    after: float
    moment: str
    error: str
    seconds: float


def resumable_commands(parent: Path, new: Path, old: Path) -> dict[str, Work]:
    """An extension that keeps something of everything, and a search that stops trials and continues others."""

    def extension(out: Path) -> Any:
        method = "distill + ewc(images=8)"
        return extend(parent, new, out, task="paint", method=method, config=EXTEND, old_val=[old], resume=True)

    def search(out: Path) -> Any:
        request = Request(str(parent), new, "paint", "finetune", TUNE, old_val=(old,))
        searched = space.parse("distill(strength=[0.1, 10]) + wise(points=2)", "lr=[0.01, 0.1]", TUNE)
        return tune(request, searched, out, search_config=SearchConfig(sampler="grid", prune="yes"))

    model = ("model.safetensors", "memory.safetensors", "metrics.jsonl", "split.csv", "excluded.csv", "cards/*.json")
    extension_work = Work("extend", extension, (*model, "predictions.npz"), _phase_of_run)
    trials = ("trials/*/metrics.jsonl", "trials/*/state/step-*/*.safetensors")
    choices = tuple(f"choices/*/{name}" for name in model)
    search_work = Work("tune", search, (*trials, *choices, "search.json"), _phase_of_search)
    return {work.name: work for work in (extension_work, search_work)}


def run_undisturbed(work: Work, out: Path) -> float:
    """The run without a kill; the seconds that it takes."""
    for name in IMPORTED_LATE:
        importlib.import_module(name)
    start = time.monotonic()
    forks.run(lambda: work.do(out))
    return time.monotonic() - start


def kill_and_resume(work: Work, expected: Path, length: float, root: Path, count: int, seed: int) -> Iterator[Kill]:
    """Kill `count` runs of about `length` seconds, resume each, and compare it with the run in `expected`."""
    rng, done = random.Random(f"{work.name} {seed}"), 0
    expected_digests = digests(work, expected)
    while done < count:
        out, after = root / f"{work.name}-{done}", rng.uniform(0, length)
        child = forks.fork(lambda out=out: work.do(out))
        time.sleep(after)
        os.kill(child.pid, signal.SIGKILL)
        if child.wait()[0] == -signal.SIGKILL:
            moment, start = work.moment(out), time.monotonic()
            code, message = forks.fork(lambda out=out: work.do(out)).wait()
            differences = differences_between(expected_digests, digests(work, out), out)
            error = (message or f"exit code {code}") if code else "; ".join(differences)
            yield Kill(after, moment, error, time.monotonic() - start)
            done += 1
            if error:
                continue  # its folder stays, to be looked at
        shutil.rmtree(out, ignore_errors=True)


def digests(work: Work, out: Path) -> dict[str, str]:
    """The digest of each file that must be equal; of a search's result without times and paths."""
    result = {}
    for file in sorted(path for pattern in work.files for path in out.glob(pattern)):
        content = file.read_bytes()
        if file.name == "search.json":
            content = json.dumps(_without_times(json.loads(content))).encode()
        result[str(file.relative_to(out))] = hashlib.sha256(content).hexdigest()
    return result


def differences_between(expected: dict[str, str], actual: dict[str, str], out: Path) -> list[str]:
    """The files that differ, temporary files left behind, and a missing report."""
    differences = [name for name in sorted(expected | actual) if expected.get(name) != actual.get(name)]
    differences += [f"left: {path.name}" for path in out.rglob(".*") if LEFTOVER.fullmatch(path.name)]
    return differences + ["no report"] * (not (out / "report.html").exists())


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in MAY_DIFFER}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _phase_of_run(out: Path) -> str:
    if not (out / "run.json").exists():
        return "before the run began"
    if json.loads((out / "run.json").read_text())["done"]:
        return "after the model was written"
    if any(LEFTOVER.fullmatch(path.name) for path in out.rglob(".*")):
        return "while a file was written"
    if (out / "predictions.npz").exists():
        return "between two files of the result"
    return "between two saves" if list(out.glob("state/step-*")) else "before the first checkpoint"


def _phase_of_search(out: Path) -> str:
    if not list(out.glob("trials/*/run.json")):
        return "before the first trial"
    if any(LEFTOVER.fullmatch(path.name) or path.suffix == ".part" for path in out.rglob(".*")):
        return "while a file was written"
    if (out / "search.json").exists():
        return "after the result was written"
    return "while selected models were written" if (out / "choices").exists() else "in a trial, between two saves"


def main() -> int:
    """Kill as often as requested and print what happened; 1 if any resume came out otherwise."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("works", nargs="*", default=["extend", "tune"], help="extend, tune or both")
    parser.add_argument("--count", type=int, default=200, help="kills of each")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    torch.set_num_threads(1)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        root = Path(folder)
        for name, task, count, seed in (("old/train", OLD, 36, 1), ("old/val", OLD, 24, 2), ("new", NEW, 64, 3)):
            write_folder(root / name, task, count, seed)
        config = TrainingConfig(steps=30, batch_size=12, lr=0.05, head_steps=0, eval_every=10, precision="fp32")
        options: dict[str, Any] = {"model": "test_resnet", "preprocessing": "32 squash bilinear half"}
        forks.run(lambda: train(root / "old", root / "parent", task="shape", config=config, **options))
        works = resumable_commands(root / "parent", root / "new", root / "old" / "val")
        for name in args.works:
            expected = root / f"{name}-expected"
            length = run_undisturbed(works[name], expected)
            print(f"{name}: an undisturbed run takes {length:.1f} s", flush=True)
            kills = []
            for kill in kill_and_resume(works[name], expected, length, root, args.count, args.seed):
                kills.append(kill)
                if kill.error:
                    print(f"  {name} killed after {kill.after:.3f} s, {kill.moment}: {kill.error}", flush=True)
            for moment, count in Counter(kill.moment for kill in kills).most_common():
                equal = sum(not kill.error for kill in kills if kill.moment == moment)
                print(f"  {count:4} {moment}: {equal} resumed to the same bits", flush=True)
            equal = sum(not kill.error for kill in kills)
            slowest = max(kill.seconds for kill in kills)
            print(f"  {len(kills)} kills, {equal} equal; slowest resume {slowest:.1f} s")
            failed += len(kills) - equal
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
