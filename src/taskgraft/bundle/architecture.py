"""Networks from their description: a timm name with arguments, the heads, and the side networks."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import timm
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from taskgraft.bundle.channels import RGB, count_channels
from taskgraft.config import Softmax
from taskgraft.data import transforms
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import CheckpointError, first_line
from taskgraft.models import feature_points
from taskgraft.models.classifier import Classifier, HeadSpec
from taskgraft.models.side_networks import Ladder, Pooled, Tail
from taskgraft.models.trimmed_linear import TrimmedLinear
from taskgraft.types import Task

MAX_ARGUMENT = 100_000  # largest number among a network's arguments; the widest layers have some thousands
Width = Annotated[int, Field(ge=1, le=65_536)]


def create_network(arch: str, num_classes: int, **model_args: Any) -> tuple[nn.Module, str, Preprocessing]:
    """Create a timm network with random weights.

    Args:
        arch: a timm model name.
        num_classes: rows of the classifier layer.
        model_args: further arguments of `timm.create_model`.

    Returns:
        The network, the name of its classifier layer, and timm's default preprocessing.

    Raises:
        CheckpointError: timm has no such model, or it does not end in one linear layer.
    """
    require_arch(arch)
    net = timm.create_model(arch, num_classes=num_classes, **model_args)
    config: Any = net.pretrained_cfg
    preprocessing = transforms.from_timm(config).with_channels(count_channels(config, model_args))
    return net, find_head(net, arch), preprocessing


def require_arch(arch: str) -> None:
    """Raise CheckpointError, with the nearest name, where timm has no such model."""
    if not timm.is_model(arch):
        matches = difflib.get_close_matches(arch, timm.list_models(), n=1)
        hint = f"did you mean {matches[0]!r}?" if matches else "see timm.list_models()"
        raise CheckpointError(f"--arch {arch!r} is not a timm model; {hint}")


def create_untrusted(file: Path, arch: str, num_classes: int, model_args: Any) -> nn.Module:
    """Create a timm network from the arguments in a config.json that is not trusted.

    Arguments of `timm.create_model` itself, which can name files and addresses, and values with paths are refused.

    Args:
        file: the config.json, for messages.
        arch: its architecture.
        num_classes: rows of the classifier layer.
        model_args: `model_args` of the file, not yet validated.

    Raises:
        CheckpointError: timm does not know the architecture, an argument is not allowed, or the network cannot be
            built with them.
    """
    if not timm.is_model(arch):
        raise CheckpointError(f"{file}: timm does not know the architecture {arch!r}; upgrade timm")
    if not isinstance(model_args, Mapping):
        raise CheckpointError(f"{file} is damaged: model_args is not an object; copy it again")
    reserved = {*inspect.signature(timm.create_model).parameters, "num_classes"} - {"kwargs"}
    for name, value in model_args.items():
        items = value if isinstance(value, list) else [value]
        if name in reserved or not all(_is_harmless(item) for item in items):
            raise CheckpointError(f"{file}: model_args must not contain {name!r} ({str(value)[:60]!r}); remove it")
    try:
        return timm.create_model(arch, num_classes=num_classes, **model_args)
    except Exception as error:  # networks check few of their arguments
        raise CheckpointError(
            f"{file}: cannot build {arch} with its model_args: {first_line(error)}; fix them or copy the file again"
        ) from error


def _is_harmless(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) < 100 and not set(value) & set("/\\:")
    return value is None or isinstance(value, bool) or (isinstance(value, int | float) and abs(value) <= MAX_ARGUMENT)


def find_head(net: nn.Module, arch: str) -> str:
    """Return the name of a timm network's linear classifier layer.

    Raises:
        CheckpointError: the network has another kind of classifier.
    """
    name = net.pretrained_cfg.get("classifier")  # pyright: ignore
    if not isinstance(name, str) or not isinstance(dict(net.named_modules()).get(name), nn.Linear):
        raise CheckpointError(
            f"{arch!r} does not end in a single linear layer (classifier: {name}); choose another architecture"
        )
    return name


def input_args(arch: str, preprocessing: Preprocessing) -> dict[str, Any]:
    """Return the timm arguments that an input needs: its channels, if not RGB, and the size of a fixed-size network."""
    channels = {} if preprocessing.channels == RGB else {"in_chans": preprocessing.channels}
    config = timm.get_pretrained_cfg(arch) if timm.is_model(arch) else None
    if config is None or not config.fixed_input_size or config.input_size[-1] == preprocessing.size:
        return channels
    return {"img_size": preprocessing.size, **channels}


class HeadShape(BaseModel):
    """A head as config.json describes it: its task, its rows, and the feature columns [start, stop) that it reads.

    Of a head from which classes were removed also how many rows it had, and which of them are left.
    """

    model_config = ConfigDict(extra="forbid")
    task: str
    rows: int = Field(ge=1, le=100_000)
    columns: tuple[int, int]
    full: int = Field(default=0, ge=0, le=100_000)
    places: list[Annotated[int, Field(ge=0)]] = []

    @model_validator(mode="after")
    def _places_fit(self) -> HeadShape:
        pairs = zip(self.places, [*self.places[1:], self.full], strict=True)
        if self.places and (len(self.places) != self.rows or any(place >= after for place, after in pairs)):
            raise ValueError("its places are not those of its rows")
        return self


class ExtraShape(BaseModel):
    """A side network as config.json describes it: pooled stages, a copy of the last stages, or a ladder."""

    model_config = ConfigDict(extra="forbid")
    kind: Literal["pooled", "tail", "rungs"]
    at: list[str] = Field(min_length=1, max_length=1000)
    thumbnail: int = Field(default=0, ge=0, le=64)
    width: int = Field(default=1, ge=1, le=1_000_000)
    channels: list[Width] = []
    widths: list[Width] = []
    dropout: float = Field(default=0, ge=0, lt=1)


def describe_heads(classifier: Classifier) -> list[HeadShape]:
    """Describe the heads, oldest first."""
    return [
        HeadShape(
            task=spec.task,
            rows=head.out_features,
            columns=(spec.start, spec.stop),
            **({"full": head.full, "places": head.places.tolist()} if isinstance(head, TrimmedLinear) else {}),
        )
        for spec, head in zip(classifier.head_specs, classifier.linears(), strict=True)
    ]


def restore_places(classifier: Classifier, heads: Sequence[HeadShape]) -> Classifier:
    """Let the heads from which classes were removed compute the others as before; changes the classifier."""
    for number, (shape, head) in enumerate(zip(heads, classifier.linears(), strict=False)):
        if shape.places:
            classifier.heads[number] = TrimmedLinear(head.weight, head.bias, shape.places, shape.full)
    return classifier


def describe_extra(extra: nn.Module) -> ExtraShape:
    """Describe a side network.

    Raises:
        CheckpointError: bundles cannot store its kind.
    """
    if isinstance(extra, Pooled):
        return ExtraShape(kind="pooled", at=list(extra.at), thumbnail=extra.thumbnail, width=len(extra.center))
    if isinstance(extra, Tail):
        return ExtraShape(kind="tail", at=[extra.point])
    if isinstance(extra, Ladder):
        channels, widths = list(extra.channels), list(extra.widths)
        return ExtraShape(kind="rungs", at=list(extra.at), width=2 * sum(widths), channels=channels, widths=widths,
                          dropout=extra.dropout)  # fmt: skip
    raise CheckpointError(f"a bundle cannot store a {type(extra).__name__} side network; keep such a model in memory")


def build_classifier(
    net: nn.Module,
    head: str,
    tasks: Sequence[Task],
    softmax: Softmax,
    heads: Sequence[HeadShape],
    extras: Sequence[ExtraShape],
) -> Classifier:
    """Build a classifier with side networks and random weights from its description.

    Args:
        net: a fresh network; its classifier layer is replaced.
        head: the name of that layer.
        tasks: the tasks in the order of their rows.
        softmax: "per-task" or "joint".
        heads: the heads, oldest first.
        extras: the side networks, oldest first.

    Raises:
        CheckpointError: the description contradicts itself.
    """
    layer = dict(net.named_modules()).get(head)
    if not isinstance(layer, nn.Linear):
        raise CheckpointError(
            f"config.json is damaged: {head!r} is not a linear layer of {type(net).__name__}; copy it again"
        )
    net.set_submodule(head, nn.Identity())
    modules = [_build_extra(net, extra) for extra in extras]
    points = [point for extra in extras for point in extra.at if point != feature_points.LAST]
    backbone = feature_points.expose_points(net, list(dict.fromkeys(points)))
    width = layer.in_features + sum(layer.in_features if extra.kind == "tail" else extra.width for extra in extras)
    for shape in heads:
        start, stop = shape.columns
        if not 0 <= start < stop <= width:
            raise CheckpointError(
                f"config.json is damaged: a head of {shape.task!r} reads columns {start} to {stop} of {width}; "
                "copy it again"
            )
    linears = [nn.Linear(shape.columns[1] - shape.columns[0], shape.rows) for shape in heads]
    specs = [HeadSpec(shape.task, *shape.columns) for shape in heads]
    return Classifier(backbone, linears, tasks, softmax, extras=modules, head_specs=specs, width=layer.in_features)


def _build_extra(net: nn.Module, extra: ExtraShape) -> nn.Module:
    if extra.kind == "pooled":
        return Pooled(extra.at, extra.thumbnail, extra.width)
    if extra.kind == "tail":
        return Tail(extra.at[0], feature_points.copy_tail(net, extra.at[0]))
    if len(extra.at) == len(extra.channels) == len(extra.widths) and extra.width == 2 * sum(extra.widths):
        return Ladder(extra.at, extra.channels, extra.widths, extra.dropout)
    raise CheckpointError(
        f"config.json is damaged: {len(extra.widths)} rungs for the stages {', '.join(extra.at)[:80]}; copy it again"
    )
