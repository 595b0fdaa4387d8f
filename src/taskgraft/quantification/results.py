"""What an estimate of class shares says: frozen records that JSON, tables and pages are made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ClassShare(BaseModel):
    """The share of a class (or of a pair, joined by " × ") in [0, 1]: as counted, and corrected with its interval."""

    model_config = ConfigDict(frozen=True)
    name: str
    naive: float
    share: float
    low: float
    high: float


class Unlike(BaseModel):
    """Whether the images look like those that the card was measured on; `flag` None = the card cannot tell."""

    model_config = ConfigDict(frozen=True)
    flag: bool | None
    share: float | None = None  # of images below the card's level; `expected` where nothing has changed
    expected: float | None = None
    text: str


class TaskShares(BaseModel):
    """The class shares of one task."""

    model_config = ConfigDict(frozen=True)
    task: str
    estimator: str
    classes: tuple[ClassShare, ...]
    images: int
    units: int
    unit: str  # what was resampled: "image", "track", "clip", "block of 10 s"
    effective: float  # so many independent images would vary as much
    unlike: Unlike
    notes: tuple[str, ...] = ()


class PairShares(BaseModel):
    """The shares of pairs of classes of two tasks; pairs of no share and no answer are left out."""

    model_config = ConfigDict(frozen=True)
    tasks: tuple[str, str]
    estimator: str
    pairs: tuple[ClassShare, ...]
    notes: tuple[str, ...] = ()


class Distribution(BaseModel):
    """Everything that the `distribution` command says."""

    model_config = ConfigDict(frozen=True)
    format: int = 1
    model: str
    sources: tuple[str, ...]
    tasks: tuple[TaskShares, ...]
    pairs: tuple[PairShares, ...] = ()
    images: int
    unreadable: int = 0
    notes: tuple[str, ...] = ()
