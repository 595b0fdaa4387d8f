"""The coordinator of a search: samples waves of trials, has them trained up to their rungs and records the results."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from optuna.trial import FrozenTrial

from taskgraft.errors import TaskgraftError
from taskgraft.results.search import RungResult
from taskgraft.tuning import halving, sampler, space
from taskgraft.tuning.executor import Executor
from taskgraft.tuning.halving import Progress
from taskgraft.tuning.space import Space
from taskgraft.tuning.study import StudyStore, rung_results
from taskgraft.tuning.trial import Job
from taskgraft.types import Callbacks


@dataclass(frozen=True)
class SearchPlan:
    """Everything that decides which trials a search has.

    Attributes:
        space: Search space.
        sampler: "grid" or one of `sampler.SAMPLERS`.
        points: Grid points per range.
        trials: Number of trials; 0 = until the time is up.
        wave: Number of trials that are sampled and compared together.
        rungs: Steps at which trials are compared, ascending; the last is the full number of steps.
    """

    space: Space
    sampler: str
    points: int
    trials: int
    wave: int
    rungs: tuple[int, ...]

    def identity(self) -> dict[str, Any]:
        """Return what must be equal for a search to be resumed; the number of trials may grow."""
        return {
            "space": space.describe(self.space),
            "method": self.space.method,
            "config": asdict(self.space.config),
            "sampler": [self.sampler, self.points, self.wave, list(self.rungs)],
        }

    def wave_size(self, wave: int) -> int:
        """Return the number of trials of a wave; 0 after the last one. A grid is a single wave."""
        if self.sampler == "grid":
            return len(space.grid(self.space, self.points)) if wave == 0 else 0
        return self.wave if not self.trials else max(0, min(self.wave, self.trials - wave * self.wave))

    def wave_of(self, trial: int) -> int:
        """Return the wave that a trial belongs to."""
        return 0 if self.sampler == "grid" else trial // self.wave


class Coordinator:
    """Runs a search on an executor until it is complete or its time is up."""

    def __init__(self, plan: SearchPlan, store: StudyStore, executor: Executor, callbacks: Callbacks) -> None:
        self._plan, self._store, self._executor, self._callbacks = plan, store, executor, callbacks

    def run(self, deadline: float | None) -> None:
        """Train all trials; finished ones are not repeated.

        Args:
            deadline: When to stop, on the monotonic clock; None = never.

        Raises:
            TaskgraftError: as a worker raised it.
        """
        running: set[Job] = set()
        while True:
            due = self._due_jobs() if deadline is None or time.monotonic() < deadline else []
            pending = [job for job in due if job not in running]
            for job in pending[: self._executor.workers - len(running)]:
                self._callbacks.info(f"trial {job.trial}: {job.method}, lr {job.config.lr:g}, up to step {job.until}")
                running.add(job)
                self._executor.submit(job, deadline)
            if not running:
                return
            for job, outcome in self._executor.wait():
                running.remove(job)
                if isinstance(outcome, TaskgraftError):
                    raise outcome
                if outcome is not None:
                    self._record(job, outcome)

    def _due_jobs(self) -> list[Job]:
        """Return what to train now; samples the next wave where the last one is complete."""
        plan, rungs = self._plan, self._plan.rungs
        for wave in itertools.count():
            size, first = plan.wave_size(wave), wave * plan.wave
            if size == 0:
                return []
            trials = self._store.trials()
            if len(trials) < first + size:
                self._sample(wave, size, trials)
                trials = self._store.trials()
            results = [rung_results(trial, rungs) for trial in trials[first : first + size]]
            promotions = halving.next_promotions([_progress(result) for result in results], rungs)
            if promotions:
                return [self._job(trials[first + index], until) for index, until in promotions]
            if size < plan.wave and plan.sampler != "grid":
                return []  # with more --trials this wave would grow, and trials that were stopped could be promoted
            for trial, result in zip(trials[first : first + size], results, strict=True):
                if not trial.state.is_finished():
                    self._store.finish(trial.number, list(result.values())[-1])
        raise AssertionError("waves have an end")

    def _sample(self, wave: int, size: int, trials: list[FrozenTrial]) -> None:
        plan, first = self._plan, wave * self._plan.wave
        if plan.sampler == "grid":
            suggestions = [sampler.Suggestion(params, {}) for params in space.grid(plan.space, plan.points)]
        else:
            seed = plan.space.config.seed
            suggestions = sampler.suggest(plan.space, plan.sampler, trials[:first], wave, size, seed, plan.wave)
        for suggestion in suggestions[len(trials) - first :]:
            self._store.add(plan.space, suggestion)

    def _job(self, trial: FrozenTrial, until: int) -> Job:
        method, config = space.apply(self._plan.space, trial.params)
        return Job(trial.number, method, config, until)

    def _record(self, job: Job, result: RungResult) -> None:
        self._store.record(job.trial, job.until, result)
        if result.reason is not None or job.until == self._plan.rungs[-1]:
            self._store.finish(job.trial, result)
        self._callbacks.info(_describe(job, result))


def _progress(results: Mapping[int, RungResult]) -> Progress:
    scores = {until: result.score for until, result in results.items() if result.score is not None}
    return Progress(scores, failed=any(result.reason is not None for result in results.values()))


def _describe(job: Job, result: RungResult) -> str:
    if result.reason is not None:
        return f"trial {job.trial}: {result.method}: failed: {result.reason}"
    assert result.old is not None
    assert result.new is not None
    assert result.score is not None
    return (
        f"trial {job.trial}: {result.method}, lr {job.config.lr:g}, step {result.reached}: "
        f"old {result.old:.1%} new {result.new:.1%} Score {100 * result.score:.1f}"
    )
