"""The queue on a journal file and on a real PostgreSQL: each piece once, dead workers noticed, nothing lost."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskgraft import TaskgraftError, TrainingConfig
from taskgraft.tuning import queue as queues
from taskgraft.tuning import space
from taskgraft.tuning.queue import claim, finish, finished, open_queue, pieces, publish, put, revive
from taskgraft.tuning.sampler import Suggestion
from tuning.databases import postgresql

IDENTITY = {"parent": "abc", "space": {"lr": "[0.1, 0.2]"}}
SPACE = space.parse("distill", "lr=0.1..0.2", TrainingConfig())
RESULT = {"reason": None, "old": 0.5, "new": 0.6, "score": 0.55}


@pytest.fixture(params=["journal", "postgresql"])
def storage(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "journal":
        yield ""
        return
    with postgresql() as url:
        yield url


def filled(storage: str, out: Path, count: int) -> queues.Queue:
    queue = open_queue(storage, "trial", out, IDENTITY)
    for place in range(count):
        put(queue, 0, place, 10, Suggestion({"lr": 0.1 + place / 100}, {}))
    return queue


def take_all(storage: str, out: Path, pipe: Any) -> None:
    queue, taken = open_queue(storage, "trial", out, IDENTITY), []
    while piece := claim(queue):
        taken.append(piece.place)
        finish(queue, piece, RESULT)
    pipe.send(taken)


def take_one_and_die(storage: str, out: Path) -> None:
    assert claim(open_queue(storage, "trial", out, IDENTITY))
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_piece_is_taken_once_by_one_of_three(storage: str, tmp_path: Path) -> None:
    filled(storage, tmp_path, 12)
    context = multiprocessing.get_context("spawn")
    workers = []
    for _ in range(3):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=take_all, args=(storage, tmp_path, theirs))
        process.start()
        workers.append((process, ours))
    taken = []
    for process, pipe in workers:
        taken += pipe.recv()
        process.join()
    assert sorted(taken) == list(range(12))
    assert {piece.state for piece in pieces(open_queue(storage, "trial", tmp_path, IDENTITY))} == {"done"}


def test_the_piece_of_a_dead_worker_waits_again_once(storage: str, tmp_path: Path) -> None:
    queue = filled(storage, tmp_path, 1)
    process = multiprocessing.get_context("spawn").Process(target=take_one_and_die, args=(storage, tmp_path))
    process.start()
    process.join()
    assert claim(queue) is None
    assert [piece.place for piece in revive(queue)] == [0]
    assert revive(queue) == []
    again = claim(queue)
    assert again
    assert again.params == {"lr": 0.1}
    finish(queue, again, RESULT)
    assert [piece.state for piece in pieces(queue)] == ["done"]


def test_a_living_worker_is_left_alone(tmp_path: Path) -> None:
    queue = filled("", tmp_path, 1)
    assert claim(queue)
    assert revive(queue) == []
    assert [piece.state for piece in pieces(queue)] == ["running"]


def test_a_worker_elsewhere_is_dead_after_a_long_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    queue, now = filled("", tmp_path, 1), [0.0]
    monkeypatch.setattr(queues, "_self", lambda: {"host": "far away", "boot": "b", "pid": 1, "born": "1"})
    monkeypatch.setattr(queues.time, "monotonic", lambda: now[0])
    piece = claim(queue)
    assert piece
    assert revive(queue) == []
    now[0] = queues.SILENCE - 1
    assert revive(queue) == []
    queues._trial(queue, piece).set_user_attr("beat", 1)
    now[0] = 2 * queues.SILENCE
    assert revive(queue) == []  # it gave a sign in between
    now[0] = 4 * queues.SILENCE
    assert len(revive(queue)) == 1


def test_two_that_put_the_same_piece_make_one(tmp_path: Path) -> None:
    queue = filled("", tmp_path, 1)
    put(queue, 0, 0, 10, Suggestion({"lr": 0.1}, {}))
    assert len(pieces(queue)) == 1
    first = claim(queue)
    assert first
    assert claim(queue) is None
    finish(queue, first, RESULT)
    assert [piece.state for piece in pieces(queue)] == ["done"]


def test_trials_are_published_once_and_in_order(tmp_path: Path) -> None:
    queue = filled("", tmp_path, 2)
    for piece in reversed(pieces(queue)):
        publish(queue, SPACE, piece, RESULT)
        publish(queue, SPACE, piece, {**RESULT, "old": 0.9})
    found = finished(queue, 1)
    assert [trial.params["lr"] for trial in found] == [0.1, 0.11]
    assert [trial.values for trial in found] == [[0.5, 0.6]] * 2


def test_a_search_of_something_else_is_refused(storage: str, tmp_path: Path) -> None:
    filled(storage, tmp_path, 1)
    with pytest.raises(TaskgraftError, match="parent was 'abc', is 'xyz'"):
        open_queue(storage, "trial", tmp_path, {**IDENTITY, "parent": "xyz"})


def test_a_half_written_line_of_the_journal_is_cut(tmp_path: Path) -> None:
    queue = filled("", tmp_path, 1)
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "work')
    again = open_queue("", "trial", tmp_path, IDENTITY)
    put(again, 0, 1, 10, Suggestion({"lr": 0.11}, {}))
    assert len(pieces(open_queue("", "trial", tmp_path, IDENTITY))) == 2
    assert pieces(queue)


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ("postgresql://nobody:secret@127.0.0.1:1/nothing", "127.0.0.1:1/nothing cannot be used"),
        ("study.db", "give a URL"),
    ],
)
def test_a_storage_that_cannot_be_used_is_one_line_without_its_password(
    storage: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(TaskgraftError, match=said) as caught:
        open_queue(storage, "trial", tmp_path, IDENTITY)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
