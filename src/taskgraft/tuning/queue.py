"""Who tries what: a queue of work in Optuna's storage, from which workers on any machine take pieces, each once.

Two studies lie in the storage. "NAME work" is the queue: a piece is a trial of a wave and the step up to which it is to
be trained; Optuna hands a waiting piece to one worker only. "NAME" gets every trial once it is over, for samplers and
for whoever looks with Optuna's own tools. This, `storage` and `sampling` are the modules that know Optuna.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from taskgraft.errors import InputError
from taskgraft.training.run_folder import differences
from taskgraft.tuning.sampler import Suggestion, distributions
from taskgraft.tuning.space import Params, Space
from taskgraft.tuning.storage import open_storage

BEAT = 10.0  # seconds between two signs of life of a worker
SILENCE = 9 * BEAT  # without a sign for so long it counts as dead
State = Literal["waiting", "running", "done", "dead"]


class Piece(NamedTuple):
    """Train one trial up to a step. `result` is there once it is done."""

    number: int  # in the queue
    wave: int
    place: int
    params: Params
    until: int
    state: State
    result: dict[str, Any] | None
    worker: dict[str, Any]
    system: dict[str, Any]  # what the sampler notes of a trial


class Queue(NamedTuple):
    """Both studies, and since when a running piece shows the same sign of life (changed as it is looked at)."""

    work: optuna.Study
    trials: optuna.Study
    seen: dict[int, tuple[Any, float]]


def open_queue(storage: str, name: str, out: Path, identity: Mapping[str, Any]) -> Queue:
    """Open or begin a search. Raises TaskgraftError for a storage that does not answer or a search of something else."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        backend = open_storage(storage, out)
        work = optuna.create_study(storage=backend, study_name=f"{name} work", load_if_exists=True)
        trials = optuna.create_study(
            storage=backend, study_name=name, load_if_exists=True, directions=["maximize", "maximize"]
        )
        trials.set_metric_names(["old", "new"])
    known = work.user_attrs.get("identity")
    if known is None:
        work.set_user_attr("identity", json.loads(json.dumps(identity)))
    else:
        found = differences(known, json.loads(json.dumps(identity)))
        if found:
            raise InputError(
                f"the study {name!r} belongs to another search: {', '.join(found[:6])}; "
                "choose another OUT (or tune --study), or repeat its settings"
            )
    return Queue(work, trials, {})


def pieces(queue: Queue) -> list[Piece]:
    """All pieces, each once: where two workers put the same one in, the earlier counts."""
    found: dict[tuple[int, int, int], Piece] = {}
    for trial in queue.work.get_trials(deepcopy=False):
        piece = _piece(trial)
        if piece is None:
            continue
        key = piece.wave, piece.place, piece.until
        if key not in found or found[key].state == "dead":
            found[key] = piece
    return list(found.values())


def put(queue: Queue, wave: int, place: int, until: int, suggestion: Suggestion) -> None:
    """Let a piece wait for a worker."""
    attributes = {"wave": wave, "place": place, "until": until, **suggestion._asdict()}
    queue.work.enqueue_trial({}, user_attrs=json.loads(json.dumps(attributes)))


def claim(queue: Queue) -> Piece | None:
    """Take a waiting piece, so that nobody else does; None where none waits."""
    if not queue.work.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return None
    asked = queue.work.ask()
    taken = queue.work.get_trials(deepcopy=False)[asked.number]
    piece = _piece(taken)
    if piece is None:  # another worker was quicker, and Optuna made an empty one
        queue.work.tell(asked.number, state=TrialState.FAIL)
        return None
    twin = next(p for p in pieces(queue) if (p.wave, p.place, p.until) == (piece.wave, piece.place, piece.until))
    if twin.number != piece.number:
        queue.work.tell(asked.number, state=TrialState.FAIL)
        return None
    asked.set_user_attr("worker", _self())
    return piece


@contextmanager
def alive(queue: Queue, piece: Piece) -> Iterator[None]:
    """Give signs of life while a piece is worked at."""
    over, trial = (
        threading.Event(),
        _trial(queue, piece),
    )

    def beat() -> None:
        count = 0
        while not over.wait(BEAT):
            count += 1
            try:
                trial.set_user_attr("beat", count)
            except Exception:  # a storage that is away for a moment must not stop the training
                continue

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def finish(queue: Queue, piece: Piece, result: Mapping[str, Any]) -> None:
    """Note what came of a piece; nothing where another worker took this one for dead and does it again."""
    try:
        _trial(queue, piece).set_user_attr("result", json.loads(json.dumps(result)))
        queue.work.tell(piece.number, 0.0)
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError, RuntimeError):
        return


def release(queue: Queue, piece: Piece) -> None:
    """Put a piece back that was not finished: it waits again, and is continued from its last checkpoint."""
    _give_up(queue, piece)


def revive(queue: Queue) -> list[Piece]:
    """Mark the pieces of dead workers, let them wait again, and tell which they were."""
    found = []
    for piece in pieces(queue):
        if piece.state == "running" and _dead(queue, piece) and _give_up(queue, piece):
            found.append(piece)
    return found


def publish(queue: Queue, space: Space, piece: Piece, result: Mapping[str, Any]) -> None:
    """Add a trial that is over to the study of trials, once; `piece` is any of its pieces."""
    for trial in queue.trials.get_trials(deepcopy=False):
        if (trial.user_attrs.get("wave"), trial.user_attrs.get("place")) == (piece.wave, piece.place):
            return
    failed = result.get("reason") is not None
    trial = create_trial(
        state=TrialState.FAIL if failed else TrialState.COMPLETE,
        values=None if failed else [result["old"], result["new"]],
        params=piece.params,
        distributions=distributions(space),
        user_attrs=json.loads(json.dumps({"wave": piece.wave, "place": piece.place, **result})),
        system_attrs=piece.system,
    )
    queue.trials.add_trial(trial)


def finished(queue: Queue, waves: int) -> list[FrozenTrial]:
    """The trials of the first waves, in their order, each once."""
    found = {}
    for trial in queue.trials.get_trials(deepcopy=False):
        key = trial.user_attrs.get("wave", 0), trial.user_attrs.get("place", 0)
        if key[0] < waves:
            found.setdefault(key, trial)
    return [found[key] for key in sorted(found)]


def _piece(trial: FrozenTrial) -> Piece | None:
    attributes = trial.user_attrs
    if "wave" not in attributes:
        return None
    states: dict[TrialState, State] = {
        TrialState.WAITING: "waiting", TrialState.RUNNING: "running", TrialState.COMPLETE: "done",
    }  # fmt: skip
    return Piece(
        trial.number,
        attributes["wave"],
        attributes["place"],
        attributes["params"],
        attributes["until"],
        states.get(trial.state, "dead"),
        attributes.get("result") if trial.state == TrialState.COMPLETE else None,
        {**attributes.get("worker", {}), "beat": attributes.get("beat")},
        attributes["system"],
    )


def _trial(queue: Queue, piece: Piece) -> optuna.Trial:
    return optuna.Trial(queue.work, queue.work.get_trials(deepcopy=False)[piece.number]._trial_id)


def _give_up(queue: Queue, piece: Piece) -> bool:
    try:
        queue.work.tell(piece.number, state=TrialState.FAIL)
    except (optuna.exceptions.UpdateFinishedTrialError, ValueError, RuntimeError):
        return False  # another worker noticed it first
    put(queue, piece.wave, piece.place, piece.until, Suggestion(piece.params, piece.system))
    return True


def _dead(queue: Queue, piece: Piece) -> bool:
    worker = piece.worker
    if worker.get("host") == socket.gethostname() and worker.get("boot") == _boot():
        return _born(worker["pid"]) != worker["born"]
    sign, since = queue.seen.setdefault(piece.number, (worker, time.monotonic()))
    if sign != worker:
        queue.seen[piece.number] = (worker, time.monotonic())
        return False
    named = "host" in worker  # a worker says who it is as soon as it has a piece
    return time.monotonic() - since > (SILENCE if named else BEAT)


def _self() -> dict[str, Any]:
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "born": _born(os.getpid())}


def _boot() -> str:
    """What tells this start of this machine from any other; containers of one name are told apart by it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return "unknown"


def _born(pid: int) -> str:
    """When a process began, in the kernel's ticks: a number that a later process of the same pid does not have."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""
