"""Arguments and flags that several commands share. A flag's description stands where the flag is declared."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from taskgraft.config import TrainingConfig
from taskgraft.errors import InputError

# The panels of a command's help, in this order.
PANEL_NAMES = ("Options", "Data", "Method", "Training", "Search", "Limits", "Model", "Hardware", "Output")
PANELS = tuple(Group(name, sort_key=index) for index, name in enumerate(PANEL_NAMES))
OPTIONS, DATA, METHOD, TRAINING, SEARCH, LIMITS, MODEL, HARDWARE, OUTPUT = PANELS

_SOURCES = "a bundle (the OUT of train, extend or remove), a weights file, a timm folder or a timm model name"
Model = Annotated[str, Parameter(help=f"Model: {_SOURCES}")]
Bundle = Annotated[Path, Parameter(help="A bundle: the OUT folder of train or extend")]
Parent = Annotated[str, Parameter(help=f"Model to extend: {_SOURCES}")]
Data = Annotated[
    Path, Parameter(help="Labeled images: one folder per class, optionally below train/ and val/, or a CSV table")
]
Out = Annotated[Path, Parameter(help="Folder to write the model and its report to")]
Task = Annotated[str, Parameter(group=DATA, help="Name of the task to learn")]
Config = Annotated[TrainingConfig, Parameter(name="*", group=TRAINING)]
Cache = Annotated[
    str,
    Parameter(
        group=HARDWARE, help="Folder for decoded images; 'none' keeps them in memory", show_default="the user's cache"
    ),
]
BatchSize = Annotated[int, Parameter(group=HARDWARE, help="Images per forward pass", validator=Number(gte=1))]
Device = Annotated[
    str, Parameter(group=HARDWARE, help="Device to compute on: auto (a GPU if there is one), cpu, cuda, cuda:1 or mps")
]
Workers = Annotated[
    int, Parameter(group=HARDWARE, help="Threads that decode images; 0 = one per core", validator=Number(gte=0))
]
Track = Annotated[
    Literal["tensorboard", "mlflow", "wandb"] | None, Parameter(group=OUTPUT, help="Also log to this tracker")
]
Resume = Annotated[bool, Parameter(group=OUTPUT, help="Continue an interrupted run in OUT")]
Json = Annotated[bool, Parameter(name="--json", group=OUTPUT, help="Print JSON")]
SettingsFile = Annotated[
    Path | None,
    Parameter(
        name="--config", group=OUTPUT, help="TOML or YAML file with flags; `taskgraft config COMMAND` prints a template"
    ),
]


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True)
class ModelOptions:
    """How to open a model that does not declare it.

    Attributes:
        arch: timm architecture of a weights file
        labels: Class names of a weights file that has none: one per line in index order, JSON, YAML or CSV
        preprocessing: Preprocessing such as '96 squash bilinear imagenet', if the model does not declare its own
        parent_task: Name for the task of a model without task names; else that of its file
    """

    arch: str | None = None
    labels: Path | None = None
    preprocessing: str | None = None
    parent_task: str | None = None


@Parameter(name="*", group=MODEL)
@dataclass(frozen=True)
class ParentOptions(ModelOptions):
    """How to open a parent, and what remains of its data.

    Attributes:
        no_parent_check: Continue even if the parent is no better than chance on --old-val
        unlabeled: Images without labels, such as a day of the camera, for methods with a teacher; repeat for more
        old: Sample of old training images, for methods that use them
        old_val: Old validation images, to measure forgetting; repeat for each old task
    """

    no_parent_check: bool = False
    unlabeled: Annotated[list[Path] | None, Parameter(group=DATA)] = None
    old: Annotated[Path | None, Parameter(group=DATA)] = None
    old_val: Annotated[list[Path] | None, Parameter(group=DATA)] = None


@Parameter(name="*", group=HARDWARE)
@dataclass(frozen=True)
class DeviceOptions:
    """What a command computes on, and decodes with."""

    device: Device = "auto"
    workers: Workers = 0


@Parameter(name="*", group=HARDWARE)
@dataclass(frozen=True)
class HardwareOptions(DeviceOptions):
    """What a command trains on.

    Attributes:
        amp: Mixed precision; the same as --precision bf16
    """

    amp: Annotated[bool, Parameter(group=TRAINING)] = False


@Parameter(name="*", group=HARDWARE)
@dataclass(frozen=True)
class ProcessOptions(HardwareOptions):
    """Several processes that train one model.

    Attributes:
        gpus: Processes to train with, one per GPU (on CPU if there are no GPUs)
        max_restarts: Automatic restarts from the last checkpoint after a process died (with --gpus)
        heartbeat_timeout: Seconds without a sign of life after which a process counts as dead (with --gpus)
    """

    gpus: Annotated[int, Parameter(name=("--gpus", "--processes"), validator=Number(gte=1))] = 1
    max_restarts: Annotated[int, Parameter(validator=Number(gte=0))] = 3
    heartbeat_timeout: Annotated[float, Parameter(validator=Number(gte=1))] = 300.0


NO_MODEL_OPTIONS = ModelOptions()
NO_PARENT_OPTIONS = ParentOptions()
ONE_PROCESS = ProcessOptions()
ANY_HARDWARE = HardwareOptions()
ANY_DEVICE = DeviceOptions()


@contextmanager
def on_hardware(options: DeviceOptions) -> Iterator[None]:
    """Use the device and the number of decoding threads that the options name.

    Raises:
        InputError: There is no such device.
    """
    from taskgraft import distributed
    from taskgraft.data import decode

    with distributed.use_device(options.device), decode.use_workers(options.workers):
        yield


def refuse_device(options: DeviceOptions, flag: str) -> None:
    """Raise InputError if a device is named for what other processes do, which `flag` starts."""
    if options.device != "auto":
        raise InputError(f"--device and {flag}: workers choose a device for themselves; leave one of them out")


def training_config(config: Any, options: HardwareOptions) -> TrainingConfig:
    """Return the training settings of a command, with what --amp stands for.

    Raises:
        InputError: --amp and --precision contradict each other.
    """
    config = TrainingConfig(**asdict(config))
    if options.amp and config.precision not in ("auto", "bf16"):
        raise InputError(f"--amp is --precision bf16, but --precision {config.precision} was given; give one of them")
    return replace(config, precision="bf16") if options.amp else config


def cache_folder(value: str) -> Path | None:
    """Return the folder that --cache names, or None for memory."""
    if value:
        return None if value == "none" else Path(value)
    import platformdirs

    return platformdirs.user_cache_path("taskgraft")


def command_line() -> str:
    """Return the command as it was typed, for the record."""
    from taskgraft.results.files import escape_surrogates

    return escape_surrogates("taskgraft " + shlex.join(sys.argv[1:]))
