"""The coordinator on an executor that computes scores instead of training."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from taskgraft import Callbacks, TrainingConfig, TrainingError
from taskgraft.results.search import RungResult
from taskgraft.tuning import space
from taskgraft.tuning.coordinator import Coordinator, SearchPlan
from taskgraft.tuning.executor import Executor, Outcome
from taskgraft.tuning.study import StudyStore, open_storage
from taskgraft.tuning.trial import Job

SPACE = space.parse("distill(strength=0.1..10)", "lr=0.001..0.1", TrainingConfig(steps=8))
PLAN = SearchPlan(SPACE, "tpe", points=3, trials=10, wave=4, rungs=(2, 4, 8))


class FakeExecutor(Executor):
    """Ends jobs in random order; the score follows from the learning rate, and a large one fails."""

    def __init__(self, workers: int = 1, stop_after: int | None = None) -> None:
        self.workers, self.stop_after = workers, stop_after
        self.running: list[Job] = []
        self.jobs: list[tuple[int, int]] = []
        self.order = random.Random(workers)

    def submit(self, job: Job, deadline: float | None) -> None:
        assert len(self.running) < self.workers
        self.running.append(job)

    def wait(self) -> list[tuple[Job, Outcome]]:
        if len(self.jobs) == self.stop_after:
            raise KeyboardInterrupt
        job = self.running.pop(self.order.randrange(len(self.running)))
        self.jobs.append((job.trial, job.until))
        return [(job, self.train(job))]

    def train(self, job: Job) -> Outcome:
        result = {"method": job.method, "reached": job.until}
        if job.config.lr > 0.09:
            return RungResult(**result, reason="the loss is not finite")
        score = 1 - job.config.lr - 0.1 / job.until
        return RungResult(**result, old=score, new=score, score=score)


def run(out: Path, executor: Executor, plan: SearchPlan = PLAN, deadline: float | None = None) -> list[Any]:
    out.mkdir(exist_ok=True)
    store = StudyStore(open_storage("", out), "search", plan.identity())
    Coordinator(plan, store, executor, Callbacks()).run(deadline)
    return [(trial.params, trial.values, trial.user_attrs) for trial in store.trials()]


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "grid"])
def test_the_number_of_workers_does_not_change_the_trials(sampler: str, tmp_path: Path) -> None:
    plan = SearchPlan(SPACE, sampler, points=3, trials=10, wave=4, rungs=(2, 4, 8))
    trials = run(tmp_path / "a", FakeExecutor(1), plan)
    assert len(trials) == (9 if sampler == "grid" else 10)
    assert run(tmp_path / "b", FakeExecutor(3), plan) == trials


def test_an_interrupted_search_repeats_no_finished_job(tmp_path: Path) -> None:
    full = FakeExecutor(2)
    trials = run(tmp_path / "a", full)
    first, second = FakeExecutor(2, stop_after=7), FakeExecutor(2)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", first)
    assert run(tmp_path / "b", second) == trials
    assert sorted(first.jobs + second.jobs) == sorted(full.jobs)


def test_more_trials_extend_a_search(tmp_path: Path) -> None:
    trials = run(tmp_path / "a", FakeExecutor())
    run(tmp_path / "b", FakeExecutor(), SearchPlan(SPACE, "tpe", points=3, trials=6, wave=4, rungs=(2, 4, 8)))
    assert run(tmp_path / "b", FakeExecutor()) == trials


def test_nothing_starts_after_the_deadline(tmp_path: Path) -> None:
    executor = FakeExecutor()
    assert run(tmp_path / "a", executor, deadline=0.0) == []
    assert executor.jobs == []


def test_an_error_of_a_worker_is_raised(tmp_path: Path) -> None:
    class Failing(FakeExecutor):
        def train(self, job: Job) -> Outcome:
            return TrainingError("worker 1 died 4 times")

    with pytest.raises(TrainingError, match="died 4 times"):
        run(tmp_path / "a", Failing())
