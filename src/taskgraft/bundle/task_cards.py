"""Task cards that a stranger may have written: what is reckoned with later is checked when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from taskgraft.bundle.validation import read_json, told
from taskgraft.errors import CheckpointError


def _alike(rows: list[list[float]]) -> list[list[float]]:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("its rows differ in length")
    return rows


Share = Annotated[float, Field(ge=0)]
Table = Annotated[list[list[Share]], AfterValidator(_alike)]


class _Card(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    classes: list[str] = Field(default=[], max_length=100_000)
    images: int = Field(default=0, ge=0)
    train_counts: dict[str, Share] = {}
    temperature: Annotated[float, Field(gt=0)] | None = None
    energy_level: float | None = Field(default=None, allow_inf_nan=True)  # unknown where there were no images
    confusion: Table = []
    mean_posterior: Table = []


def read(file: Path) -> dict[str, Any]:
    """A task card as it stands in its file; raises TaskgraftError where it is damaged."""
    card = read_json(file)
    try:
        _Card.model_validate(card)
    except ValidationError as error:
        raise CheckpointError(f"{file} is damaged: {told(error)}; copy it again") from error
    return card
