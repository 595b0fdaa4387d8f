"""What a search leaves behind: every trial, the frontier, the choices and what it all cost; JSON, no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from taskgraft.results.record import Interval, StepMetrics

FORMAT = 1

Goal = Literal["score", "new", "old"]


class Candidate(BaseModel):
    """A model that could be handed over: a trial at its kept step, at one point of wise's path where there is one."""

    model_config = ConfigDict(frozen=True)
    trial: int
    method: str
    lr: float
    old: Interval  # accuracy of the old tasks, or agreement with the parent
    new: Interval

    @property
    def score(self) -> float:
        """Mean of old and new."""
        return (self.old.mean + self.new.mean) / 2


class TrialResult(BaseModel):
    """One trial: what was set, how far it came, what it reached at its kept step so far."""

    model_config = ConfigDict(frozen=True)
    number: int  # over all waves, in the order in which they were asked
    wave: int
    params: dict[str, Any]
    method: str = ""
    variant: str = ""  # which methods act: those of strength 0 do not
    config: dict[str, Any] = {}
    state: Literal["complete", "stopped", "failed", "open"]  # stopped: better trials went on in its place
    reached: int = 0
    step: int = 0
    old: float | None = None
    new: float | None = None
    score: float | None = None
    path: tuple[dict[str, float], ...] = ()
    history: tuple[StepMetrics, ...] = ()
    seconds: float = 0.0
    saved: dict[str, float] = {}  # seconds, by what another trial had computed already
    reason: str | None = None
    folder: str = ""


class SelectedModel(BaseModel):
    """A named choice; `folder` holds its bundle. `test` and `optimism` (validation - test) are of the new task."""

    model_config = ConfigDict(frozen=True)
    goal: Goal
    rule: str
    candidate: Candidate | None
    folder: str = ""
    command: str = ""
    test: Interval | None = None
    optimism: float | None = None


class SearchResult(BaseModel):
    """A whole search."""

    model_config = ConfigDict(frozen=True)
    format: int = FORMAT
    command: str
    title: str
    tasks: tuple[str, ...]  # old ones, then the new one
    proxy: bool  # old accuracy is agreement with the parent
    before: float  # the parent's old accuracy; 1 where agreement stands in for it
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
