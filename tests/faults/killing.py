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

import dying
from taskgraft import TrainingConfig
from taskgraft.commands.extend import extend
from taskgraft.commands.train import train
from taskgraft.commands.tune import tune
from taskgraft.pipeline.request import Request
from taskgraft.training.run_folder import LEFTOVER
from taskgraft.tuning import space
from taskgraft.tuning.search_config import SearchConfig
from toys import NEW, OLD, folder_of

EXTEND = TrainingConfig(steps=12, batch_size=8, head_steps=4, eval_every=3, save_every=2, log_every=3, precision="fp32")
TUNE = TrainingConfig(
    steps=8, batch_size=8, head_steps=5, eval_every=2, save_every=2, views=2, precision="fp32", lr=0.01
)
LATE = (
    "jinja2",
    "optuna.importance",
    "matplotlib.style",
    "matplotlib.backends.backend_svg",
)  # what a run imports when it needs it; here only once
CLOCKED = {"seconds", "saved", "cost", "command", "folder", "versions"}  # of search.json: what may differ


class Work(NamedTuple):
    """What is done in a folder and goes on after a stop; the files that must come out equal; where a kill fell."""

    name: str
    do: Callable[[Path], Any]
    files: tuple[str, ...]  # patterns
    moment: Callable[[Path], str]


class Kill(NamedTuple):
    """One kill: after how many seconds, what the folder showed then, what was not as it should be after the resume."""

    after: float
    moment: str
    wrong: str
    seconds: float  # that the resume took


def works(parent: Path, new: Path, old: Path) -> dict[str, Work]:
    """An extension that keeps something of everything, and a search that stops trials and continues others."""

    def extension(out: Path) -> Any:
        method = "distill + ewc(images=8)"
        return extend(parent, new, out, task="paint", method=method, config=EXTEND, old_val=[old], resume=True)

    def search(out: Path) -> Any:
        request = Request(str(parent), new, "paint", "finetune", TUNE, old_val=(old,))
        searched = space.parse("distill(strength=[0.1, 10]) + wise(points=2)", "lr=[0.01, 0.1]", TUNE)
        return tune(request, searched, out, search_config=SearchConfig(sampler="grid", prune="yes"))

    model = ("model.safetensors", "memory.safetensors", "metrics.jsonl", "split.csv", "excluded.csv", "cards/*.json")
    single = Work("extend", extension, (*model, "predictions.npz"), _in_a_run)
    trials = ("trials/*/metrics.jsonl", "trials/*/state/step-*/*.safetensors")
    many = Work("tune", search, (*trials, *(f"choices/*/{name}" for name in model), "search.json"), _in_a_search)
    return {one.name: one for one in (single, many)}


def calm(work: Work, out: Path) -> float:
    """The undisturbed run; the seconds that it takes."""
    for name in LATE:
        importlib.import_module(name)
    begun = time.monotonic()
    code, said = dying.end(dying.begin(lambda: work.do(out)))
    assert code == 0, said
    return time.monotonic() - begun


def kills(work: Work, calm: Path, length: float, home: Path, count: int, seed: int) -> Iterator[Kill]:
    """Kill `count` runs of about `length` seconds below `home`, resume each, and compare with the calm run."""
    drawn, done = random.Random(f"{work.name} {seed}"), 0
    expected = marks(work, calm)
    while done < count:
        out, after = home / f"{work.name}-{done}", drawn.uniform(0, length)
        child = dying.begin(lambda out=out: work.do(out))
        time.sleep(after)
        os.kill(child.pid, signal.SIGKILL)
        if dying.end(child)[0] == -signal.SIGKILL:
            moment, begun = work.moment(out), time.monotonic()
            code, said = dying.end(dying.begin(lambda out=out: work.do(out)))
            wrong = said or f"code {code}" if code else "; ".join(unlike(expected, marks(work, out), out))
            yield Kill(after, moment, wrong, time.monotonic() - begun)
            done += 1
            if wrong:
                continue  # its folder stays, to be looked at
        shutil.rmtree(out, ignore_errors=True)


def marks(work: Work, out: Path) -> dict[str, str]:
    """The digest of each file that must be equal; of a search's result without times and places."""
    found = {}
    for file in sorted(path for pattern in work.files for path in out.glob(pattern)):
        content = file.read_bytes()
        if file.name == "search.json":
            content = json.dumps(_timeless(json.loads(content))).encode()
        found[str(file.relative_to(out))] = hashlib.sha256(content).hexdigest()
    return found


def unlike(expected: dict[str, str], found: dict[str, str], out: Path) -> list[str]:
    """The files that differ, and what is left behind or not there."""
    wrong = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    wrong += [f"left: {path.name}" for path in out.rglob(".*") if LEFTOVER.fullmatch(path.name)]
    return wrong + ["no report"] * (not (out / "report.html").exists())


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(part) for key, part in value.items() if key not in CLOCKED}
    return [_timeless(part) for part in value] if isinstance(value, list) else value


def _in_a_run(out: Path) -> str:
    if not (out / "run.json").exists():
        return "before the run began"
    if json.loads((out / "run.json").read_text())["done"]:
        return "when the model was whole, before the end"
    if any(LEFTOVER.fullmatch(path.name) for path in out.rglob(".*")):
        return "while a file was written"
    if (out / "predictions.npz").exists():
        return "between two files of the result"
    return "between two saves" if list(out.glob("state/step-*")) else "before the first checkpoint"


def _in_a_search(out: Path) -> str:
    if not list(out.glob("trials/*/run.json")):
        return "before the first trial"
    if any(LEFTOVER.fullmatch(path.name) or path.suffix == ".part" for path in out.rglob(".*")):
        return "while a file was written"
    if (out / "search.json").exists():
        return "when the result was there, before the end"
    return "while choices were handed over" if (out / "choices").exists() else "in a trial, between two saves"


def main() -> int:
    """Kill as often as was asked, print what happened; 1 if any resume came out otherwise."""
    asked = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    asked.add_argument("works", nargs="*", default=["extend", "tune"], help="extend, tune or both")
    asked.add_argument("--count", type=int, default=200, help="kills of each")
    asked.add_argument("--seed", type=int, default=0, help="of the moments")
    given = asked.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        home = Path(folder)
        for name, task, count, seed in (("old/train", OLD, 36, 1), ("old/val", OLD, 24, 2), ("new", NEW, 64, 3)):
            folder_of(home / name, task, count, seed)
        learn = TrainingConfig(steps=30, batch_size=12, lr=0.05, head_steps=0, eval_every=10, precision="fp32")
        asked_for: dict[str, Any] = {
            "task": "shape",
            "model": "test_resnet",
            "preprocessing": "32 squash bilinear half",
        }
        code, said = dying.end(dying.begin(lambda: train(home / "old", home / "alice", config=learn, **asked_for)))
        assert code == 0, said
        for work in map(works(home / "alice", home / "new", home / "old" / "val").__getitem__, given.works):
            length = calm(work, home / f"{work.name}-calm")
            print(f"{work.name}: an undisturbed run takes {length:.1f} s", flush=True)
            found = []
            for kill in kills(work, home / f"{work.name}-calm", length, home, given.count, given.seed):
                found.append(kill)
                if kill.wrong:
                    print(f"  {work.name} killed after {kill.after:.3f} s, {kill.moment}: {kill.wrong}", flush=True)
            for moment, count in Counter(kill.moment for kill in found).most_common():
                good = sum(not kill.wrong for kill in found if kill.moment == moment)
                print(f"  {count:4} {moment}: {good} resumed to the same bits", flush=True)
            wrong += sum(bool(kill.wrong) for kill in found)
            slowest = max(kill.seconds for kill in found)
            print(
                f"  {len(found)} kills, {sum(not kill.wrong for kill in found)} equal; slowest resume {slowest:.1f} s"
            )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
