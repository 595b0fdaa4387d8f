"""A classifier's shape as plain values, and back: which heads read what, and what was grafted beside the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from taskgraft.config import Softmax
from taskgraft.errors import CheckpointError
from taskgraft.models import feature_points
from taskgraft.models.classifier import Classifier, Part
from taskgraft.models.side_networks import Ladder, Pooled, Tail
from taskgraft.types import Task

Size = Annotated[int, Field(ge=1, le=65_536)]


class HeadShape(BaseModel):
    """One head: rows of a task, and the columns of the features that it reads."""

    model_config = ConfigDict(extra="forbid")
    task: str
    rows: int = Field(ge=1, le=100_000)
    columns: tuple[int, int]


class ExtraShape(BaseModel):
    """What makes further columns: pooled stages ("taps"), a copy of the last stages ("branch"), a side network."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["taps", "branch", "ladder"]
    at: list[str] = Field(min_length=1, max_length=1000)
    thumbnail: int = Field(default=0, ge=0, le=64)
    width: int = Field(default=1, ge=1, le=1_000_000)
    channels: list[Size] = []
    widths: list[Size] = []
    dropout: float = Field(default=0, ge=0, lt=1)


def heads(classifier: Classifier) -> list[HeadShape]:
    """The heads, oldest first."""
    return [
        HeadShape(task=part.task, rows=head.out_features, columns=(part.start, part.stop))
        for part, head in zip(classifier.parts, classifier.linears(), strict=True)
    ]


def extras(classifier: Classifier) -> list[ExtraShape]:
    """What stands beside the backbone; nothing for a classifier that plain timm can load."""
    found = []
    for extra in classifier.extras:
        if isinstance(extra, Pooled):
            found.append(ExtraShape(kind="taps", at=list(extra.at), thumbnail=extra.thumbnail, width=len(extra.center)))
        elif isinstance(extra, Tail):
            found.append(ExtraShape(kind="branch", at=[extra.point]))
        elif isinstance(extra, Ladder):
            channels, widths = list(extra.channels), list(extra.widths)
            found.append(
                ExtraShape(
                    kind="ladder", at=list(extra.at), width=2 * sum(widths), channels=channels, widths=widths,
                    dropout=extra.dropout,
                )
            )  # fmt: skip
        else:
            raise CheckpointError(
                f"a {type(extra).__name__} beside the backbone cannot be stored in a bundle; "
                "keep such a model in memory"
            )
    return found


def rebuild(
    net: nn.Module,
    head: str,
    tasks: Sequence[Task],
    softmax: Softmax,
    shapes: Sequence[HeadShape],
    beside: Sequence[ExtraShape],
) -> Classifier:
    """A classifier of this shape without its weights, on a fresh network; raises TaskgraftError where they do not fit."""
    layer = dict(net.named_modules()).get(head)
    if not isinstance(layer, nn.Linear):
        raise CheckpointError(
            f"config.json: {head!r} is no linear layer of {type(net).__name__}, so the file is damaged; copy it again"
        )
    net.set_submodule(head, nn.Identity())
    made: list[nn.Module] = []
    for extra in beside:
        if extra.kind == "taps":
            made.append(Pooled(extra.at, extra.thumbnail, extra.width))
        elif extra.kind == "branch":
            made.append(Tail(extra.at[0], feature_points.copy_tail(net, extra.at[0])))
        elif len(extra.at) == len(extra.channels) == len(extra.widths) and extra.width == 2 * sum(extra.widths):
            made.append(Ladder(extra.at, extra.channels, extra.widths, extra.dropout))
        else:
            raise CheckpointError(
                f"config.json: a ladder with stages {extra.at}, but {len(extra.widths)} rungs: damaged; copy it again"
            )
    points = [point for extra in beside for point in extra.at if point != feature_points.LAST]
    staged = feature_points.expose_points(net, list(dict.fromkeys(points)))
    width = layer.in_features + sum(layer.in_features if extra.kind == "branch" else extra.width for extra in beside)
    outside = next((shape for shape in shapes if not 0 <= shape.columns[0] < shape.columns[1] <= width), None)
    if outside:
        start, stop = outside.columns
        raise CheckpointError(
            f"config.json: a head of {outside.task!r} reads columns {start} to {stop} of {width}: damaged; "
            "copy it again"
        )
    return Classifier(
        staged,
        [nn.Linear(shape.columns[1] - shape.columns[0], shape.rows) for shape in shapes],
        tasks,
        softmax,
        extras=made,
        parts=[Part(shape.task, *shape.columns) for shape in shapes],
    )
