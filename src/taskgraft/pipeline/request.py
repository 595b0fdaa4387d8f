"""What a run is asked to do: everything that decides its result, checked before anything is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

from taskgraft.bundle import Bundle, describe_classifier, describe_transformers
from taskgraft.config import COMPRESSION_DEFAULTS, REFRESH_DEFAULTS, TRAIN_DEFAULTS, TrainingConfig, validate
from taskgraft.data.labeled_images import ImageSource, LabeledImages, as_source
from taskgraft.errors import InputError
from taskgraft.methods import composition, notation
from taskgraft.methods.presets import COMPRESSION, DEFAULT_METHOD, INTO_FEW, REFRESH, REFRESH_UNMEASURED
from taskgraft.methods.protocol import MethodLike, Plan
from taskgraft.models.classifier import Classifier
from taskgraft.report import commands
from taskgraft.types import PathLike, as_path, as_paths

TASK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 _-]{0,63}")  # it becomes a file name


ParentLike = PathLike | Bundle | Classifier | nn.Module  # of modules those of transformers, with an Auto class
DataLike = Any  # whatever `as_source` takes


def _as_parent(value: Any) -> str | Bundle:
    """Return a path or name as text, and a model in memory as a bundle.

    Raises:
        InputError: It is something else, or a network that a bundle cannot describe.
    """
    if isinstance(value, str | os.PathLike):
        return os.fspath(value)
    if isinstance(value, Classifier):
        return describe_classifier(value)
    if isinstance(value, nn.Module) and type(value).__module__.startswith("transformers."):
        return describe_transformers(value)
    if not isinstance(value, Bundle):
        raise InputError(
            f"parent is a {type(value).__name__}; give a path or a name, a Bundle, or make a Classifier of it by "
            "taskgraft.wrap"
        )
    return value


def _as_sources(value: Any, what: str) -> tuple[ImageSource, ...]:
    """Return one source of images or several: a list, or a tuple of paths alone, are several."""
    is_several = isinstance(value, tuple) and all(isinstance(one, str | os.PathLike | LabeledImages) for one in value)
    if is_several or isinstance(value, list | Iterator):
        return tuple(as_source(one, what) for one in value)
    return (as_source(value, what),)


@dataclass(init=False, frozen=True)  # hashable: a search caches what it opens by request
class Request:
    """An extension of a trained classifier. Equal requests on equal data give equal children.

    Attributes:
        parent: Bundle, file of weights, timm folder or timm name; or a Bundle in memory, as a wrapped network becomes.
        data: Images of the new task: a path, or images in memory. The same for `old` and `old_val`.
        task: Name of the task to learn.
        method: Method in its notation; given as objects, it becomes that. Empty: the default for added classes.
        config: Training settings.
        old: Sample of old training images, for methods that use one.
        old_val: Old validation images, one folder for each old task that has any.
        arch: timm name of the parent's architecture, for a file that does not name it.
        labels: File with the parent's class names, for a file that does not have them.
        preprocessing: The parent's preprocessing, where it differs from what the model says.
        parent_task: Name for the task of a model without task names; None = that of its file.
        into: Whether `task` is an old task, and `data` has more classes of it.
        check_parent: Whether to stop if the parent does no better than guessing on its own validation images.
        unlabeled: Images without labels, which methods with a teacher learn from: folders, files or archives.
    """

    parent: str | Bundle
    data: ImageSource
    task: str
    method: str
    config: TrainingConfig
    old: ImageSource | None
    old_val: tuple[ImageSource, ...]
    arch: str | None
    labels: Path | None
    preprocessing: str | None
    parent_task: str | None
    into: bool
    check_parent: bool
    unlabeled: tuple[Path, ...]

    def __init__(
        self,
        parent: ParentLike,
        data: DataLike,
        task: str,
        method: MethodLike = "",
        config: TrainingConfig = TrainingConfig(),  # noqa: B008 - immutable
        old: DataLike | None = None,
        old_val: DataLike | Iterable[DataLike] = (),
        arch: str | None = None,
        labels: PathLike | None = None,
        preprocessing: str | None = None,
        parent_task: str | None = None,
        into: bool = False,
        check_parent: bool = True,
        unlabeled: PathLike | Iterable[PathLike] = (),
    ) -> None:
        """Convert paths and what is in memory; `old_val` and `unlabeled` are one path or several. See the class.

        An empty `method` is `presets.DEFAULT_METHOD`; with `into` it stays empty until the added classes are counted.
        """
        method = notation.as_text(method or ("" if into else DEFAULT_METHOD))
        self.__dict__.update(  # a frozen dataclass refuses assignment
            parent=_as_parent(parent), data=as_source(data), task=task, method=method, config=config,
            old=None if old is None else as_source(old, "old"), old_val=_as_sources(old_val, "old_val"), arch=arch,
            labels=as_path(labels), preprocessing=preprocessing, parent_task=parent_task, into=into,
            check_parent=check_parent, unlabeled=as_paths(unlabeled),
        )  # fmt: skip

    @property
    def default_config(self) -> TrainingConfig:
        """The training settings that apply where nothing is set."""
        return TrainingConfig()

    @property
    def parent_name(self) -> str:
        """The path or name of the parent; of a model in memory what it was made from."""
        return self.parent if isinstance(self.parent, str) else self.parent.source

    @property
    def is_in_memory(self) -> bool:
        """Whether the model or some images are in memory, so that no command can name them."""
        return isinstance(self.parent, Bundle) or any(
            isinstance(source, LabeledImages) for source in (self.data, self.old, *self.old_val)
        )

    def require_paths(self, what: str) -> None:
        """Check that everything has a path, for what starts the same extension again and again.

        Args:
            what: Who asks, for the message.

        Raises:
            InputError: The model or some images are in memory.
        """
        if self.is_in_memory:
            raise InputError(
                f"{what} names its parent and images in commands, and some are in memory here; give paths: write a "
                "model by save_pretrained, and images as a folder or a table"
            )

    def list_sources(self) -> tuple[Path, ...]:
        """Return the files and folders that images are read from."""
        sources = (self.data, self.old, *self.old_val, *self.unlabeled)
        return tuple(source for source in sources if isinstance(source, Path))

    def list_models(self) -> tuple[str, ...]:
        """Return the models that the request names, as they were given."""
        return (self.parent,) if isinstance(self.parent, str) else ()

    def build_command(self, out: Path) -> str:
        """Return the `taskgraft extend` command that reproduces this request in `out`; defaults are left out.

        Of what is in memory it is the call in Python, in which the objects are named by what they are.
        """
        if self.is_in_memory:
            return self._build_call("extend", out)
        values = [
            ("--into" if self.into else "--task", self.task),
            ("--method", self.method),
            ("--old", self.old),
            *(("--old-val", path) for path in self.old_val),
            *(("--unlabeled", path) for path in self.unlabeled),
            ("--arch", self.arch),
            ("--labels", self.labels),
            ("--preprocessing", self.preprocessing),
            ("--parent-task", self.parent_task),
        ]
        flags: list[commands.Flag] = [(flag, str(value)) for flag, value in values if value]
        flags += commands.config_flags(asdict(self.config))
        flags += [] if self.check_parent else [("--no-parent-check", None)]
        return str(commands.Command("extend", (self.parent_name, str(self.data), str(out)), tuple(flags)))

    def _build_call(self, function: str, out: Path) -> str:
        """The call in Python: texts are quoted, and objects in memory stand in angle brackets."""

        def show(value: object) -> str:
            if isinstance(value, tuple):
                return f"[{', '.join(map(show, value))}]"
            if isinstance(value, LabeledImages | Bundle):
                return f"<{value!r}>"
            return repr(value if isinstance(value, bool) else str(value))

        changed = {
            name: value for name, value in asdict(self.config).items() if value != getattr(self.default_config, name)
        }
        options = {
            "task": self.task if function == "extend" else "", "method": self.method, "old": self.old,
            "old_val": self.old_val, "unlabeled": self.unlabeled, "arch": self.arch, "labels": self.labels,
            "preprocessing": self.preprocessing, "into": self.into,
        }  # fmt: skip
        words = [show(self.parent), show(self.data), f"out={str(out)!r}"]
        words += [f"{name}={show(value)}" for name, value in options.items() if value]
        words += ["check_parent=False"] if not self.check_parent else []
        words += [f"config=TrainingConfig({', '.join(f'{n}={v!r}' for n, v in changed.items())})"] if changed else []
        return f"taskgraft.{function}({', '.join(words)})"


@dataclass(init=False, frozen=True)
class CompressionRequest(Request):
    """A finished model teaches one plain backbone all its tasks: an extension whose parent answers the new task too.

    Attributes:
        student: timm name of the student's architecture, or a model to start from; None = the model's own backbone,
            with its weights.
    """

    student: str | None

    def __init__(
        self,
        parent: ParentLike,
        data: DataLike,
        task: str = "",
        method: MethodLike = COMPRESSION,
        config: TrainingConfig = COMPRESSION_DEFAULTS,
        student: str | None = None,
        **options: Any,
    ) -> None:
        """See `Request` for the other arguments; the classes in `data` decide the task."""
        super().__init__(parent, data, task, method, config, **options)
        self.__dict__["student"] = student

    @property
    def default_config(self) -> TrainingConfig:
        """The training settings that apply where nothing is set."""
        return COMPRESSION_DEFAULTS

    def list_models(self) -> tuple[str, ...]:
        """Return the model, and the one that the student starts from, as they were given."""
        return (*super().list_models(), *([self.student] if self.student else []))

    def build_command(self, out: Path) -> str:
        """Return the `taskgraft compress` command that reproduces this request in `out`; defaults are left out."""
        if self.is_in_memory:
            return self._build_call("compress", out)
        values = [
            ("--method", self.method if self.method != COMPRESSION else None),
            *(("--old-val", path) for path in self.old_val),
            *(("--unlabeled", path) for path in self.unlabeled),
            ("--student", self.student),
            ("--arch", self.arch),
            ("--labels", self.labels),
            ("--preprocessing", self.preprocessing),
        ]
        flags: list[commands.Flag] = [(flag, str(value)) for flag, value in values if value]
        flags += commands.config_flags(asdict(self.config), COMPRESSION_DEFAULTS)
        flags += [] if self.check_parent else [("--no-parent-check", None)]
        return str(commands.Command("compress", (self.parent_name, str(self.data), str(out)), tuple(flags)))


@dataclass(init=False, frozen=True)
class MergeRequest(Request):
    """Two finished models teach one plain backbone the tasks of both, on images without labels.

    Attributes:
        other: The second model; `parent` is the first, and `old_val` has labeled images of any of the tasks.
        student: timm name of the student's architecture, or a model to start from; None = the first model's own
            backbone, with its weights.
        ancestor: The model that both were trained from, for baselines that need it.
    """

    other: str
    student: str | None
    ancestor: str | None

    def __init__(
        self,
        parent: PathLike,
        other: PathLike,
        images: PathLike | Iterable[PathLike] = (),
        task: str = "",
        method: MethodLike = COMPRESSION,
        config: TrainingConfig = COMPRESSION_DEFAULTS,
        student: str | None = None,
        ancestor: PathLike | None = None,
        **options: Any,
    ) -> None:
        """`images` become `unlabeled`, and the first of them `data`. See `Request` for the other arguments."""
        paths = options.pop("unlabeled", ()) or as_paths(images)
        data = options.pop("data", None) or next(iter(paths), Path())
        super().__init__(parent, data, task, method, config, unlabeled=paths, **options)
        self.__dict__.update(
            other=os.fspath(other), student=student, ancestor=None if ancestor is None else os.fspath(ancestor)
        )

    @property
    def default_config(self) -> TrainingConfig:
        """The training settings that apply where nothing is set."""
        return COMPRESSION_DEFAULTS

    def list_models(self) -> tuple[str, ...]:
        """Return both models, as they were given."""
        return (*super().list_models(), self.other, *([self.student] if self.student else []))

    def build_command(self, out: Path) -> str:
        """Return the `taskgraft merge` command that reproduces this request in `out`; defaults are left out."""
        values = [
            *(("--images", path) for path in self.unlabeled),
            *(("--val", path) for path in self.old_val),
            ("--method", self.method if self.method != COMPRESSION else None),
            ("--student", self.student),
            ("--ancestor", self.ancestor),
            ("--arch", self.arch),
            ("--labels", self.labels),
            ("--preprocessing", self.preprocessing),
        ]
        flags: list[commands.Flag] = [(flag, str(value)) for flag, value in values if value]
        flags += commands.config_flags(asdict(self.config), COMPRESSION_DEFAULTS)
        flags += [] if self.check_parent else [("--no-parent-check", None)]
        return str(commands.Command("merge", (self.parent_name, self.other, str(out)), tuple(flags)))


@dataclass(init=False, frozen=True)
class RefreshRequest(Request):
    """A task learns new images of the classes that it has: an extension whose task and classes the parent knows."""

    def __init__(
        self,
        parent: ParentLike,
        data: DataLike,
        task: str = "",
        method: MethodLike = "",
        config: TrainingConfig = REFRESH_DEFAULTS,
        **options: Any,
    ) -> None:
        """See `Request` for the other arguments; without a task, the classes in `data` decide it.

        An empty `method` is `presets.REFRESH`, or `presets.REFRESH_UNMEASURED` without old validation images.
        """
        measured = bool(_as_sources(options.get("old_val", ()), "old_val"))
        super().__init__(parent, data, task, method or self._default_method(measured), config, **options)

    @staticmethod
    def _default_method(measured: bool) -> str:
        return REFRESH if measured else REFRESH_UNMEASURED

    @property
    def default_config(self) -> TrainingConfig:
        """The training settings that apply where nothing is set."""
        return REFRESH_DEFAULTS

    def build_command(self, out: Path) -> str:
        """Return the `taskgraft refresh` command that reproduces this request in `out`; defaults are left out."""
        if self.is_in_memory:
            return self._build_call("refresh", out)
        values = [
            ("--task", self.task),
            ("--method", self.method if self.method != self._default_method(bool(self.old_val)) else None),
            *(("--old-val", path) for path in self.old_val),
            *(("--unlabeled", path) for path in self.unlabeled),
            ("--arch", self.arch),
            ("--labels", self.labels),
            ("--preprocessing", self.preprocessing),
            ("--parent-task", self.parent_task),
        ]
        flags: list[commands.Flag] = [(flag, str(value)) for flag, value in values if value]
        flags += commands.config_flags(asdict(self.config), REFRESH_DEFAULTS)
        flags += [] if self.check_parent else [("--no-parent-check", None)]
        return str(commands.Command("refresh", (self.parent_name, str(self.data), str(out)), tuple(flags)))


@dataclass(frozen=True)
class TrainingRequest:
    """A training of a first task: an extension without a parent.

    Attributes:
        data: Images of the task.
        task: Name of the task.
        model: timm name of the architecture, or of that of `weights`.
        weights: Model whose backbone training starts from; None = random weights.
        preprocessing: Preprocessing, where it differs from what the model says.
        config: Training settings.
        keep: Methods in their notation whose memory is stored for the first extension.
    """

    data: Path
    task: str
    model: str | None = None
    weights: str | None = None
    preprocessing: str | None = None
    config: TrainingConfig = TRAIN_DEFAULTS
    keep: str = ""

    @property
    def default_config(self) -> TrainingConfig:
        """The training settings that apply where nothing is set."""
        return TRAIN_DEFAULTS

    def list_sources(self) -> tuple[Path, ...]:
        """Return the files and folders that images are read from."""
        return (self.data,)

    def list_models(self) -> tuple[str, ...]:
        """Return the model that the request begins with, as it was given."""
        return (self.weights,) if self.weights else ()

    def build_command(self, out: Path) -> str:
        """Return the `taskgraft train` command that reproduces this request in `out`."""
        values = [
            ("--task", self.task),
            ("--model", self.model),
            ("--weights", self.weights),
            ("--preprocessing", self.preprocessing),
            ("--keep", self.keep),
        ]
        flags: list[commands.Flag] = [(flag, value) for flag, value in values if value]
        flags += commands.config_flags(asdict(self.config), TRAIN_DEFAULTS)
        return str(commands.Command("train", (str(self.data), str(out)), tuple(flags)))


R = TypeVar("R", bound=Request)


def validate_request(request: R) -> tuple[R, Plan]:
    """Check the values of a request.

    Returns:
        The request with its method in the standard notation, and the settings of each method by name.

    Raises:
        InputError: A value is not allowed.
    """
    plan = notation.parse(request.method or INTO_FEW)
    reason = composition.requires(plan, request.config)
    if reason:
        raise InputError(reason)
    for name in (request.task, request.parent_task):
        if name is not None and not TASK_NAME.fullmatch(name):
            raise InputError(
                f"task name {name!r} is not allowed: use up to 64 letters, digits, spaces, - and _, beginning with a "
                "letter or digit"
            )
    return replace(request, method=notation.show(plan), config=validate(request.config, request.default_config)), plan
