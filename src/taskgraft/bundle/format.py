"""A bundle on disk: a folder that plain timm loads as one joint classifier, old rows then new rows.

A child with side networks is more than that: its tensors have taskgraft's own names, and config.json says so.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from safetensors.torch import save, save_file

from taskgraft import pytree
from taskgraft.bundle import digests, hub, model_card
from taskgraft.bundle.architecture import (
    ExtraShape,
    HeadShape,
    build_classifier,
    create_untrusted,
    describe_extra,
    describe_heads,
    restore_places,
)
from taskgraft.bundle.channels import count_channels, require_channels
from taskgraft.bundle.prediction import ImageLike, Prediction, predict_images
from taskgraft.bundle.weights import load_safetensors, load_weights, require_finite
from taskgraft.config import Softmax
from taskgraft.data import transforms
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import CheckpointError, InputError, first_line
from taskgraft.models import inference
from taskgraft.models.classifier import Classifier, merge_heads, wrap
from taskgraft.results.files import atomic, digest, write_json, write_text
from taskgraft.results.record import Record, load_record
from taskgraft.types import Memory, PathLike, Task

Model = TypeVar("Model", bound=BaseModel)
FORMAT = 1
MAX_JSON_BYTES = 64 * 2**20  # 100,000 class names with their rows take a tenth


@dataclass(frozen=True, repr=False, eq=False)
class Bundle:
    """An opened model with its metadata.

    Attributes:
        classifier: the network with its heads and tasks.
        preprocessing: how images become its input.
        memory: what methods need at the next extension.
        source: the path or name that it was opened from.
        digest: SHA-256 of its weights.
        arch: its timm name.
        head: the name of timm's classifier layer.
        notes: what was inferred when it was opened.
        lineage: an entry for each extension so far, oldest first.
        cards: the task card of each task that has one.
        model_args: arguments of `timm.create_model`.
        folder: the folder of a bundle; None for other checkpoints.
        preprocessing_source: where the preprocessing comes from, in words.
    """

    classifier: Classifier
    preprocessing: Preprocessing
    memory: Memory
    source: str
    digest: str
    arch: str
    head: str
    notes: tuple[str, ...] = ()
    lineage: tuple[dict[str, Any], ...] = ()
    cards: dict[str, dict[str, Any]] = field(default_factory=dict)
    model_args: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    preprocessing_source: str = ""

    def __repr__(self) -> str:
        """Name what it is and what it answers; the network would fill pages."""
        tasks = ", ".join(f"{task.name} ({len(task.classes)})" for task in self.classifier.tasks)
        return f"Bundle({self.arch}, tasks: {tasks}; from {self.source})"

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that it answers, oldest first."""
        return self.classifier.tasks

    def predict(
        self,
        images: ImageLike | torch.Tensor | Sequence[ImageLike],
        *,
        raw: bool = False,
        batch_size: int = inference.BATCH_SIZE,
    ) -> Prediction:
        """Predict every task for images at hand, on the device that the classifier is on; modes are restored.

        Args:
            images: A path, a Pillow image, pixels [H, W, C] or [N, H, W, C] as uint8, a list of those, or a float
                tensor [B, C, H, W], which is used as it is. All but a tensor are decoded as in training.
            raw: Do not calibrate the probabilities by the temperatures of the task cards.
            batch_size: Images that are held in memory and run at once.

        Raises:
            InputError: Something else was given.
            DataError: An image cannot be read; `predict_files` goes on, and reads folders and videos too.
        """
        temperatures = {task.name: 1.0 if raw else self.temperature(task) for task in self.tasks}
        return predict_images(self.classifier, self.preprocessing, temperatures, images, batch_size)

    def save_pretrained(self, folder: PathLike, *, memory: bool = True) -> Path:
        """Write the model into a folder that `from_pretrained` opens, with a model card; also one changed in memory.

        Args:
            folder: The folder, new or without a model.
            memory: Whether to write what methods need at the next extension, which may hold old images.

        Returns:
            The folder.

        Raises:
            InputError: The folder holds a model already, or cannot be written.
        """
        folder = Path(folder)
        if not (folder.is_dir() or not folder.exists()) or (folder / "config.json").exists():
            raise InputError(f"{folder} is a file or holds a model already; choose another folder")
        self._write_shared(folder, str(folder.resolve()), memory)
        return folder

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
        memory: bool = False,
        message: str = "Upload a taskgraft bundle",
    ) -> str:
        """Upload the model to the Hugging Face Hub, with a model card; `from_pretrained` opens it from there.

        Args:
            repo: Name of the repository, as user/name; it is made if there is none.
            private: Whether a new repository is private; None = as the account's settings say.
            revision: Branch; None = main.
            token: Access token; None = that of `hf auth login` or HF_TOKEN.
            memory: Whether to upload what methods need at the next extension, which may hold old images.
            message: Message of the commit.

        Returns:
            The address of the repository.

        Raises:
            InputError: The name is not one of a repository.
            SetupError: There is no login or no right to write, or no network.
        """
        with tempfile.TemporaryDirectory() as temporary:
            self._write_shared(Path(temporary), repo, memory)
            return hub.upload_folder(
                Path(temporary), repo, private=private, revision=revision, token=token, message=message
            )

    def _write_shared(self, folder: Path, name: str, memory: bool) -> None:
        """Write the model and its card, without what its run left and the folders that it was made in."""
        method, parent, record = "none", {"source": self.source, "digest": self.digest}, None
        if self.folder is not None and compute_digest(self) == self.digest:  # else they are of other weights
            origin = read_json(self.folder / "config.json").get("taskgraft")
            if isinstance(origin, dict):
                method, parent = origin.get("method", method), origin.get("parent", parent)
            file = self.folder / "record.json"
            record = load_record(Record, file) if file.is_file() else None
        lineage = tuple(
            {**entry, "parent": model_card.strip_paths(entry["parent"])} if "parent" in entry else entry
            for entry in self.lineage
        )
        shared = replace(self, memory=self.memory if memory else {}, lineage=lineage)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "README.md", model_card.format_card(self, record, name, bool(shared.memory)))
            write_bundle(folder, shared, method=method, parent=model_card.strip_paths(parent))
        except OSError as error:
            raise InputError(f"{folder} cannot be written: {error.strerror}; choose another folder") from error

    def temperature(self, task: Task) -> float:
        """Return the temperature on a task's card; 1 without one, or if the card is for other classes."""
        card = self.cards.get(task.name, {})
        return float(card.get("temperature") or 1.0) if tuple(card.get("classes", ())) == task.classes else 1.0


# ---- config.json and task cards, which may come from anybody --------------------------------------------------------


class _Task(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str = Field(max_length=1024, pattern=r"^[^/\\]+$")  # it becomes a file name and a part of a URL
    classes: list[Annotated[str, Field(max_length=1024)]] = Field(max_length=100_000)
    range: tuple[int, int]


class _Ancestor(BaseModel):
    model_config = ConfigDict(extra="allow")
    parent: dict[str, Any] = {}
    task: str | None = None
    method: str | None = None
    accuracy: dict[str, float] = {}


class _Taskgraft(BaseModel):
    format: int = Field(le=FORMAT)
    tasks: list[_Task] = Field(min_length=1, max_length=1000)
    softmax: Softmax
    head: str
    parent: dict[str, Any]
    method: str
    lineage: list[_Ancestor] = []
    heads: list[HeadShape] = []  # empty: one head for each task, on the backbone's own features
    extras: list[ExtraShape] = []  # not empty: plain timm cannot rebuild the model
    bits: int | None = Field(default=None, ge=8, le=16)  # that 16-bit files use


class _Config(BaseModel):
    architecture: str
    num_classes: int
    model_args: dict[str, Any] = {}
    pretrained_cfg: dict[str, Any]
    taskgraft: _Taskgraft


def _require_rectangular(rows: list[list[float]]) -> list[list[float]]:
    if len({len(row) for row in rows}) > 1:
        raise ValueError("its rows differ in length")
    return rows


_Amount = Annotated[float, Field(ge=0)]
_Matrix = Annotated[list[list[_Amount]], AfterValidator(_require_rectangular)]


class _Card(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    classes: list[str] = Field(default=[], max_length=100_000)
    images: int = Field(default=0, ge=0)
    train_counts: dict[str, _Amount] = {}
    temperature: Annotated[float, Field(gt=0)] | None = None
    energy_level: float | None = Field(default=None, allow_inf_nan=True)  # unknown where there were no images
    confusion: _Matrix = []
    mean_posterior: _Matrix = []


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Raises:
        CheckpointError: the file is missing, damaged, too large, or holds something else.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(
                f"{path} is larger than {MAX_JSON_BYTES // 2**20} MiB, too large to describe a model; "
                "give the model's own config.json"
            )
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(path, first_line(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it is not a JSON object")
    return content


def _validate(model: type[Model], path: Path, content: dict[str, Any]) -> Model:
    """Validate the contents of a file; raises CheckpointError with the first thing that is wrong, in one line."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _damaged(path, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{path} is damaged: {reason[:200]}; copy it again")


# ---- writing -------------------------------------------------------------------------------------------------------


def write_bundle(folder: Path, bundle: Bundle, *, method: str, parent: dict[str, Any]) -> None:
    """Write config.json, model.safetensors, memory.safetensors and cards/ into a folder, each file atomically.

    Args:
        folder: an existing folder; older files of the same names are replaced.
        bundle: what to write.
        method: notation of the method that trained it.
        parent: what it was extended from, as plain values.
    """
    _save_tensors(folder / "model.safetensors", _list_tensors(bundle))
    if bundle.memory:
        _save_tensors(folder / "memory.safetensors", dict(pytree.flatten(bundle.memory)))
    for task, card in bundle.cards.items():
        write_card(folder, task, card)
    write_json(folder / "config.json", _describe(bundle, method, parent))  # last: with it the bundle is complete


def compute_digest(bundle: Bundle) -> str:
    """Compute the SHA-256 that `model.safetensors` has when the bundle is written."""
    return hashlib.sha256(save(_make_contiguous(_list_tensors(bundle)), {"format": "pt"})).hexdigest()


def _list_tensors(bundle: Bundle) -> dict[str, torch.Tensor]:
    """The tensors of model.safetensors: timm's names, or with side networks taskgraft's own."""
    classifier = bundle.classifier
    if len(classifier.extras):
        return dict(classifier.state_dict())
    weight, bias = merge_heads(classifier)
    layer = {f"{bundle.head}.weight": weight, f"{bundle.head}.bias": bias}
    return {**classifier.backbone.state_dict(), **layer}


def write_card(folder: Path, task: str, card: dict[str, Any]) -> None:
    """Write the card of one task into a bundle, atomically, and update its digest."""
    write_json(folder / "cards" / f"{task}.json", card)
    digests.update(folder, f"cards/{task}.json")


def _describe(bundle: Bundle, method: str, parent: dict[str, Any]) -> dict[str, Any]:
    """The contents of config.json: timm's keys, and taskgraft's own below "taskgraft"."""
    classifier, tasks, row = bundle.classifier, [], 0
    for task in classifier.tasks:
        tasks.append({"name": task.name, "classes": list(task.classes), "range": [row, row + len(task.classes)]})
        row += len(task.classes)
    return {
        "architecture": bundle.arch,
        "num_classes": row,
        "num_features": classifier.width,
        "label_names": [name for task in classifier.tasks for name in task.classes],
        "model_args": bundle.model_args,
        "pretrained_cfg": {
            **transforms.to_timm(bundle.preprocessing),
            "num_classes": row,
            "classifier": bundle.head,
        },
        "taskgraft": {
            "format": FORMAT,
            "tasks": tasks,
            "softmax": classifier.softmax,
            "head": bundle.head,
            "heads": [shape.model_dump(mode="json", exclude_defaults=True) for shape in describe_heads(classifier)],
            "extras": [describe_extra(extra).model_dump(mode="json") for extra in classifier.extras],
            "plain_timm": not len(classifier.extras),
            "parent": parent,
            "method": method,
            "lineage": list(bundle.lineage),
            # timm's own keys know no such thing
            **({"bits": bundle.preprocessing.bits} if bundle.preprocessing.bits else {}),
        },
    }


def _save_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    with atomic(path) as temporary:
        save_file(_make_contiguous(tensors), temporary, {"format": "pt"})


def _make_contiguous(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


# ---- reading -------------------------------------------------------------------------------------------------------


def read_bundle(folder: Path) -> Bundle:
    """Open a bundle.

    Args:
        folder: what `write_bundle` wrote.

    Raises:
        CheckpointError: its format is newer than this taskgraft, a file is missing or damaged, or its files
            contradict each other.
    """
    file = folder / "config.json"
    content = read_json(file)
    section = content.get("taskgraft")
    version = section.get("format") if isinstance(section, dict) else None
    if isinstance(version, int) and version > FORMAT:
        raise CheckpointError(
            f"{folder} has bundle format {version}, but this taskgraft reads up to {FORMAT}; upgrade it"
        )
    config = _validate(_Config, file, content)
    tasks = _read_tasks(file, config)
    tensors = load_weights(folder / "model.safetensors").entries[""]
    require_finite(folder / "model.safetensors", tensors)
    return Bundle(
        classifier=_load_classifier(folder, config, tasks, tensors),
        preprocessing=_read_preprocessing(file, config),
        memory=_read_memory(folder / "memory.safetensors"),
        source=str(folder),
        digest=digest(folder / "model.safetensors"),
        arch=config.architecture,
        head=config.taskgraft.head,
        notes=(f"a taskgraft bundle with the tasks {', '.join(task.name for task in tasks)}",),
        lineage=tuple(entry.model_dump(exclude_unset=True) for entry in config.taskgraft.lineage),
        cards={path.stem: _read_card(path) for path in sorted((folder / "cards").glob("*.json"))},
        model_args=config.model_args,
        folder=folder,
        preprocessing_source=f"from {file}",
    )


def _read_preprocessing(file: Path, config: _Config) -> Preprocessing:
    channels = require_channels(file, count_channels(config.pretrained_cfg, config.model_args))
    preprocessing = transforms.from_timm(config.pretrained_cfg, str(file))
    if preprocessing.channels != channels:
        raise _damaged(file, f"mean and std are for {preprocessing.channels} channels, its network is for {channels}")
    return preprocessing._replace(bits=config.taskgraft.bits)


def _read_card(path: Path) -> dict[str, Any]:
    card = read_json(path)
    _validate(_Card, path, card)
    return card


def _read_memory(path: Path) -> Memory:
    if not path.exists():
        return {}
    tensors = {name: value.clone() for name, value in load_safetensors(path).items()}
    require_finite(path, tensors)
    try:
        return pytree.unflatten(tensors)
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _read_tasks(file: Path, config: _Config) -> list[Task]:
    """The tasks of config.json; checks that their rows and heads add up."""
    tasks, row = [], 0
    for entry in config.taskgraft.tasks:
        if entry.range != (row, row + len(entry.classes)) or len(set(entry.classes)) != len(entry.classes):
            raise _damaged(file, f"task {entry.name!r} does not match its rows {entry.range}")
        row = entry.range[1]
        tasks.append(Task(entry.name, tuple(entry.classes)))
    if row != config.num_classes or len({task.name for task in tasks}) != len(tasks):
        raise _damaged(file, f"the tasks cover {row} of {config.num_classes} rows")
    sizes: Counter[str] = Counter()
    for shape in config.taskgraft.heads:
        sizes[shape.task] += shape.rows
    if config.taskgraft.heads and sizes != {task.name: len(task.classes) for task in tasks}:
        raise _damaged(file, "the heads do not have the rows of the tasks")
    return tasks


def _load_classifier(folder: Path, config: _Config, tasks: list[Task], tensors: dict[str, torch.Tensor]) -> Classifier:
    """The network that config.json describes, with all tensors loaded."""
    section, file = config.taskgraft, folder / "config.json"
    net = create_untrusted(file, config.architecture, config.num_classes, config.model_args)
    model = net
    if section.extras:
        _check_sizes(folder, section, tensors)
        model = build_classifier(net, section.head, tasks, section.softmax, section.heads, section.extras)
    try:
        model.load_state_dict(tensors, strict=True)
    except RuntimeError as error:
        raise _mismatch(folder, str(error).splitlines()[-1].strip()[:200]) from error
    if isinstance(model, Classifier):
        return restore_places(model, section.heads)
    sizes = [(shape.task, shape.rows) for shape in section.heads]
    return restore_places(wrap(net, section.head, tasks, section.softmax, sizes), section.heads)


def _check_sizes(folder: Path, section: _Taskgraft, tensors: dict[str, torch.Tensor]) -> None:
    """Compare described heads and rungs with the stored tensors, before memory is allocated for them."""
    if not section.heads:
        raise _damaged(folder / "config.json", "it has extras but no heads")
    expected = {
        f"heads.{number}.weight": (shape.rows, shape.columns[1] - shape.columns[0])
        for number, shape in enumerate(section.heads)
    }
    for number, extra in enumerate(section.extras):
        for rung, size in enumerate(zip(extra.widths, extra.channels, strict=False)):
            expected[f"extras.{number}.rungs.{rung}.read.0.weight"] = size
    for name, size in expected.items():
        stored = tensors.get(name)
        if stored is None or tuple(stored.shape[:2]) != size:
            raise _mismatch(folder, f"{name} is not of {size[0]} rows and {size[1]} columns")


def _mismatch(folder: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{folder}/model.safetensors does not match its config.json: {reason}; copy both again")
