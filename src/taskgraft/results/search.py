"""The result of a hyperparameter search: every trial, the Pareto front, the selected models and the cost. No torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from taskgraft.results.record import Interval, StepMetrics

FORMAT = 1

Goal = Literal["score", "new", "old"]


class Candidate(BaseModel):
    """A model that can be selected: a trial's best checkpoint, or one point of its interpolation path.

    Attributes:
        trial: Number of the trial.
        method: The method in the notation, with the interpolation weight where there is one.
        lr: Learning rate.
        old: Accuracy on the old tasks, or agreement with the parent where it cannot be measured.
        new: Accuracy on the new task.
    """

    model_config = ConfigDict(frozen=True)
    trial: int
    method: str
    lr: float
    old: Interval
    new: Interval

    @property
    def score(self) -> float:
        """Mean of old and new accuracy."""
        return (self.old.mean + self.new.mean) / 2


class RungResult(BaseModel):
    """What a trial achieved up to a rung.

    Attributes:
        method: The trial's method in the notation.
        config: The trial's `TrainingConfig` as a dictionary.
        folder: Name of the trial's run folder, below OUT/trials.
        reached: Last training step.
        step: Step of the best checkpoint so far.
        old: Accuracy on the old tasks at `step`, or agreement with the parent where it cannot be measured.
        new: Accuracy on the new task at `step`.
        score: Mean of `old` and `new`.
        path: `weight`, `old` and `new` of each point of the interpolation path, once training is complete.
        seconds: Time that training and evaluation took.
        saved: Seconds that results shared with other trials saved, by what was shared.
        reason: Why training failed; None if it did not.
    """

    model_config = ConfigDict(frozen=True)
    method: str = ""
    config: dict[str, Any] = {}
    folder: str = ""
    reached: int = 0
    step: int = 0
    old: float | None = None
    new: float | None = None
    score: float | None = None
    path: tuple[dict[str, float], ...] = ()
    seconds: float = 0.0
    saved: dict[str, float] = {}
    reason: str | None = None


class TrialResult(RungResult):
    """A trial with its last rung's result; `seconds` and `saved` are the sums over its rungs.

    Attributes:
        number: Number of the trial, counted over all waves from 0.
        wave: Number of its wave.
        params: Sampled hyperparameters.
        variant: The methods that act, without those of strength 0.
        state: "stopped" means pruned at a rung, "open" that no rung is complete yet.
        history: Training and validation metrics.
    """

    number: int
    wave: int
    params: dict[str, Any]
    variant: str = ""
    state: Literal["complete", "stopped", "failed", "open"]
    history: tuple[StepMetrics, ...] = ()


class SelectedModel(BaseModel):
    """A selected model.

    Attributes:
        goal: What it is the best of; also the name of its folder.
        rule: The same in words.
        candidate: None if no candidate qualifies.
        folder: The model's bundle.
        command: The `taskgraft extend` command that trains it again.
        test: Accuracy on the new task's test split.
        optimism: Validation minus test accuracy on the new task.
    """

    model_config = ConfigDict(frozen=True)
    goal: Goal
    rule: str
    candidate: Candidate | None
    folder: str = ""
    command: str = ""
    test: Interval | None = None
    optimism: float | None = None


class SearchResult(BaseModel):
    """The result of a hyperparameter search, as written to search.json.

    Attributes:
        format: Version of this format.
        command: The command or function that was called.
        title: Title of the report.
        tasks: Names of the tasks, the new one last.
        proxy: Whether old accuracy is agreement with the parent, for lack of old validation images.
        before: The parent's accuracy on the old tasks; 1 where agreement replaces it.
        sampler: Search algorithm.
        space: Searched values of each hyperparameter, as text.
        rungs: Steps at which trials are compared, ascending; the last is the full number of steps.
        trials: All trials in the order in which they were sampled.
        frontier: The Pareto front, by ascending new accuracy.
        choices: The selected models.
        importance: Importance of each hyperparameter for "old" and for "new" accuracy.
        cost: Totals over all trials: trials, steps, seconds.
        versions: Versions of Python and of the packages that matter.
        notes: Remarks for the report.
    """

    model_config = ConfigDict(frozen=True)
    format: int = FORMAT
    command: str
    title: str
    tasks: tuple[str, ...]
    proxy: bool
    before: float
    sampler: str
    space: dict[str, str]
    rungs: tuple[int, ...]
    trials: tuple[TrialResult, ...]
    frontier: tuple[Candidate, ...]
    choices: tuple[SelectedModel, ...]
    importance: dict[str, dict[str, float]] = {}
    cost: dict[str, float] = {}
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()
