"""Opens a trained classifier: a bundle, a timm name, a hub or local folder, or a file of weights."""

from __future__ import annotations

import difflib
import os
import re
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import timm
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import nn

from taskgraft.bundle import hub
from taskgraft.bundle.architecture import create_network, create_untrusted, find_head, input_args, require_arch
from taskgraft.bundle.channels import RGB, count_channels, find_channels, require_channels
from taskgraft.bundle.format import Bundle, read_bundle, read_json
from taskgraft.bundle.in_memory import copy_bundle
from taskgraft.bundle.matching import Fit, fit_network, wrap_transformers
from taskgraft.bundle.transformers_models import ARCHITECTURES, convert, name_architecture, read_preprocessor
from taskgraft.bundle.weights import INDEX, Weights, list_shards, load_weights, require_finite
from taskgraft.data import transforms
from taskgraft.data.class_names import parse_class_names, read_labels
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import CheckpointError, InputError, SetupError
from taskgraft.models.classifier import wrap
from taskgraft.results.files import digest, fingerprint
from taskgraft.types import PathLike, Task, as_path

ARCH_ENTRIES = ("arch", "architecture", "model", "model_name", "arch_name", "backbone")  # that may hold a timm name
WEIGHT_FILES = (  # of a folder, best first
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".safetensors", ".ckpt")


def open_parent(
    source: PathLike | Bundle,
    *,
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    task: str | None = None,
    unnamed: bool = False,
    cache: PathLike | None = None,
) -> Bundle:
    """Open a trained classifier. Nothing is ever loaded with names or shapes left over.

    Args:
        source: a bundle, a timm folder (also as `local-dir:FOLDER`), a timm name, `hf-hub:NAME`, or a file of weights;
            a Bundle in memory is copied, with the weights that it has now.
        arch: the timm name of the architecture; a file of weights needs it unless it names its own.
        labels: a file of class names, one per line in index order or JSON; needed where the source has none.
        preprocessing: what to change of the preprocessing, such as "96 squash bilinear imagenet".
        task: the name for the task of a model without task names; None = that of its file.
        unnamed: number the classes where names are missing, for callers that want the backbone alone.
        cache: a folder that keeps the tensors of pickles, so that opening them again starts no process.

    Raises:
        CheckpointError: the source cannot be opened or does not match `arch` or `labels`.
        InputError: class names are missing, or `labels` cannot be used.
        SetupError: weights cannot be downloaded.
    """
    names, form = read_labels(Path(labels)) if labels else ((), "")
    if isinstance(source, Bundle):
        bundle = copy_bundle(source)
    else:
        bundle = _open_path(os.fspath(source), arch, names, task, preprocessing, unnamed, as_path(cache))
        if task is None and not unnamed and bundle.folder is None:
            note = f"task {bundle.classifier.tasks[0].name!r}, named after {source}"
            bundle = replace(bundle, notes=(*bundle.notes, note))
    if preprocessing:
        bundle = replace(
            bundle,
            preprocessing=transforms.parse_preprocessing(preprocessing, bundle.preprocessing),
            preprocessing_source=describe_origin(preprocessing, bundle.preprocessing_source),
        )
    note = describe_preprocessing(bundle.preprocessing, bundle.preprocessing_source)
    return replace(bundle, notes=(*bundle.notes, *([form] if form else []), note))


def _open_path(
    source: str,
    arch: str | None,
    names: tuple[str, ...],
    named: str | None,
    preprocessing: str | None,
    unnamed: bool,
    cache: Path | None,
) -> Bundle:
    path = Path(source.removeprefix("local-dir:"))
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if "taskgraft" in config:
        return read_bundle(path)
    task = named or _name_task(source, arch)
    if path.is_dir():
        return _open_folder(path, config, names, task, unnamed)
    if path.suffix in SUFFIXES or path.exists():
        return _open_file(path, arch, names, task, preprocessing, unnamed, cache)
    if source.startswith(hub.PREFIX):
        return _open_hub(source, names, task, unnamed)
    if timm.is_model(source):
        return _open_pretrained(source, names, task, unnamed)
    matches = difflib.get_close_matches(source, timm.list_models(), n=1)
    hint = f"; did you mean the timm model {matches[0]!r}?" if matches else ""
    raise CheckpointError(f"parent {source!r} is not a file, folder or timm model{hint}")


def from_pretrained(
    name: PathLike,
    *,
    revision: str | None = None,
    token: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    task: str | None = None,
) -> Bundle:
    """Open a model from the Hugging Face Hub or from a folder: a bundle, as `push_to_hub` leaves it, or another model.

    Args:
        name: A repository of the Hub, as user/name, or a folder.
        revision: Branch, tag or commit of the repository.
        token: Access token; None = that of `hf auth login` or HF_TOKEN.
        labels: As for `open_parent`, like the next two.
        preprocessing: What to change of the preprocessing.
        task: The name for the task of a model without task names; None = that of its file.

    Raises:
        CheckpointError: The model cannot be opened.
        InputError: Class names are missing, or a folder was given with a revision.
        SetupError: There is no such repository or no access to it, or no network.
    """
    source = os.fspath(name)
    if Path(source.removeprefix("local-dir:")).exists():
        if revision:
            raise InputError(f"{source} is a folder, and revision={revision!r} is of a repository; leave one out")
    else:
        source = f"{hub.PREFIX}{source.removeprefix(hub.PREFIX)}" + (f"@{revision}" if revision else "")
        if token:
            hub.fetch_model(source, token)  # into the cache, from which it is opened
    return open_parent(source, labels=labels, preprocessing=preprocessing, task=task)


def _name_task(source: str, arch: str | None = None) -> str:
    """Name the task of a model without task names after its file, folder or repository, less its architecture."""
    name = Path(source.removeprefix("local-dir:")).absolute().name
    if source.startswith(hub.PREFIX) or timm.is_model(source):
        name = name.partition("@")[0].partition(".")[0]  # no revision, and no tag of timm such as .a1_in1k
    while Path(name).suffix in SUFFIXES:  # such as .pth.tar
        name = Path(name).stem
    names = (re.sub(f"[-_.]?{re.escape(arch)}", "", name), name) if arch else (name,)
    cleaned = (re.sub(r"[^A-Za-z0-9_-]+", "-", one).strip("-_")[:64] for one in names)
    return next(filter(None, cleaned), "parent")


def _open_hub(source: str, names: tuple[str, ...], task: str, unnamed: bool) -> Bundle:
    """Open a repository: a bundle if it holds one, else the model of timm that it names."""
    file = hub.fetch_config(source)
    config = read_json(file) if file else {}
    if "taskgraft" in config:
        return replace(read_bundle(hub.fetch_model(source)), source=source)
    if name_architecture(config):
        return replace(_open_folder(hub.fetch_model(source), config, names, task, unnamed), source=source)
    return _open_pretrained(source, names, task, unnamed, config)


def describe_origin(preprocessing: str | None, default: str) -> str:
    """Describe where a preprocessing comes from: the flag, as far as it goes, and `default`."""
    if not preprocessing:
        return default
    return "from --preprocessing" + ("" if transforms.is_complete(preprocessing) else f", the rest {default}")


def describe_preprocessing(preprocessing: Preprocessing, origin: str) -> str:
    """Describe a preprocessing in words and as --preprocessing takes it, and where it comes from."""
    hint = "" if origin.startswith("from --preprocessing") else "; change it with --preprocessing"
    return f"preprocessing '{preprocessing.to_text()}' ({preprocessing.describe()}), {origin}{hint}"


def _open_file(
    path: Path,
    arch: str | None,
    labels: tuple[str, ...],
    task: str,
    preprocessing: str | None,
    unnamed: bool,
    cache: Path | None,
) -> Bundle:
    weights = load_weights(path, cache)
    notes: list[str] = []
    if arch is None:
        entry, arch = _find_arch(weights)
        if not arch:
            raise CheckpointError(f"{path} does not name its architecture; give --arch, a timm model such as resnet18")
        notes.append(f"architecture {arch} from its entry {entry!r}")
    require_arch(arch)
    rows = _count_rows(weights, arch) or 1
    net, head, default = create_network(arch, rows)
    channels = require_channels(path, find_channels(weights, net))
    origin = f"timm's default for {arch}, since a file of weights has none{_describe_average(default, channels)}"
    default = default.with_channels(channels)

    def fit(default: Preprocessing) -> tuple[nn.Module, dict[str, Any], Fit]:
        model_args = input_args(arch, transforms.parse_preprocessing(preprocessing or "", default))
        sized = create_network(arch, rows, **model_args)[0] if model_args else net
        return sized, model_args, fit_network(path, weights, sized, arch, head, headless=unnamed)

    net, model_args, found = fit(default)
    if found.image_size and "size" not in transforms.list_fields(preprocessing or ""):
        default = default._replace(size=found.image_size)
        origin += f", but for the size {found.image_size} of its positional embeddings"
        net, model_args, found = fit(default)
    names, note = _class_names(path, labels, weights.class_names, found.rows, unnamed)
    if len(names) != rows:
        net = create_network(arch, len(names), **model_args)[0]
    notes += [*_load(net, found), *note]
    return Bundle(wrap(net, head, [Task(task, names)]), default, {}, str(path), _digest(path), arch, head, tuple(notes),
                  model_args=model_args, preprocessing_source=origin)  # fmt: skip


def _find_arch(weights: Weights) -> tuple[str, str]:
    """Find a text of the file that is a timm name, and the entry that has it; two empty texts without one."""
    for key in ARCH_ENTRIES:
        for entry, text in weights.texts.items():
            if entry.rpartition(".")[2] == key and timm.is_model(text):
                return entry, text
    return "", ""


def _describe_average(preprocessing: Preprocessing, channels: int) -> str:
    """Say that a normalization of three channels becomes one of one channel."""
    return ", averaged for one channel" if channels < preprocessing.channels else ""


def _open_folder(path: Path, config: dict[str, Any], labels: tuple[str, ...], task: str, unnamed: bool) -> Bundle:
    file, arch = path / "config.json", str(config.get("architecture", ""))
    kind = name_architecture(config)
    if kind in ARCHITECTURES:
        return _open_transformers(path, config, labels, task, unnamed)
    if not arch:
        if kind:
            raise CheckpointError(
                f"{file} names no timm architecture, but {kind} of Hugging Face transformers; "
                f"{wrap_transformers(str(path))}"
            )
        raise CheckpointError(f"{file} is missing or names no timm architecture; give the weights file with --arch")
    weight_file = _find_weights(path)
    weights = load_weights(weight_file)
    model_args = {} if config.get("model_args") is None else config["model_args"]  # transformers write null
    if isinstance(model_args, dict):  # timm writes the number of classes here too; a child has another
        model_args = {name: value for name, value in model_args.items() if name != "num_classes"}
    rows = _count_rows(weights, arch) or 1
    net = create_untrusted(file, arch, rows, model_args)
    channels = require_channels(file, model_args.get("in_chans") or find_channels(weights, net))
    if channels != RGB and "in_chans" not in model_args:
        model_args = {**model_args, "in_chans": channels}
        net = create_untrusted(file, arch, rows, model_args)
    head = find_head(net, arch)
    found = fit_network(weight_file, weights, net, arch, head, headless=unnamed)
    stored = {key: config[key] for key in ("label_names", "id2label", "label2id") if config.get(key)}
    names, note = _class_names(weight_file, labels, stored, found.rows, unnamed)
    if len(names) != rows:
        net = create_untrusted(file, arch, len(names), model_args)
    notes = [*_load(net, found), *note]
    changes = config.get("pretrained_cfg", {})
    if not isinstance(changes, dict):
        raise CheckpointError(f"{file} is damaged: pretrained_cfg is not an object; copy it again")
    default = transforms.from_timm(net.pretrained_cfg)  # pyright: ignore[reportArgumentType]
    preprocessing = transforms.from_timm({**transforms.to_timm(default), **changes}, str(file))
    origin = f"from {file}" if changes else f"timm's default for {arch}, since {file} has none"
    origin += _describe_average(preprocessing, channels)
    preprocessing = preprocessing.with_channels(channels)
    return Bundle(wrap(net, head, [Task(task, names)]), preprocessing, {}, str(path), _digest(weight_file), arch, head,
                  tuple(notes), model_args=model_args, preprocessing_source=origin)  # fmt: skip


def describe_transformers(model: nn.Module) -> Bundle:
    """Describe an image classifier of Hugging Face transformers, such as AutoModelForImageClassification gives.

    Raises:
        CheckpointError: timm has no network of the same computation.
    """
    saved: Any = model
    with tempfile.TemporaryDirectory() as folder:
        saved.save_pretrained(folder)  # under the names that files have, which are those that are converted
        bundle = open_parent(
            folder, task=_name_task(str(getattr(saved.config, "name_or_path", "")) or type(model).__name__)
        )
    origin = f"timm's default for {bundle.arch}, since a model has none"
    source = f"a {type(model).__name__} in memory"
    return replace(bundle, source=source, preprocessing_source=origin)


def _find_weights(folder: Path) -> Path:
    files = [folder / name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not files:
        raise CheckpointError(f"{folder} has neither model.safetensors nor pytorch_model.bin; add the weights")
    return files[0]


def _open_transformers(path: Path, config: dict[str, Any], labels: tuple[str, ...], task: str, unnamed: bool) -> Bundle:
    """Open a folder of Hugging Face transformers whose network is in timm too."""
    file, weight_file = path / "config.json", _find_weights(path)
    arch, model_args, tensors = convert(file, config, load_weights(weight_file).entries[""])
    require_finite(weight_file, tensors)
    channels = require_channels(file, config.get("num_channels", RGB))
    model_args = model_args if channels == RGB else {**model_args, "in_chans": channels}
    net = create_untrusted(file, arch, 1, model_args)
    head = find_head(net, arch)
    found = fit_network(weight_file, Weights({"": tensors}, {}, {}), net, arch, head, headless=unnamed)
    stored = {key: config[key] for key in ("id2label", "label2id") if config.get(key)}
    names, note = _class_names(weight_file, labels, stored, found.rows, unnamed)
    net = create_untrusted(file, arch, len(names), model_args)
    origin = f"timm's default for {arch}, since {path} has no preprocessor_config.json"
    preprocessing = transforms.from_timm(net.pretrained_cfg)  # pyright: ignore[reportArgumentType]
    preprocessing = preprocessing._replace(size=model_args.get("img_size", preprocessing.size))
    notes = [f"{name_architecture(config)} of transformers, converted to timm's {arch} of the same sizes"]
    if (path / "preprocessor_config.json").is_file():
        processor = path / "preprocessor_config.json"
        changes, assumed = read_preprocessor(processor, read_json(processor))
        preprocessing = transforms.from_timm(changes, str(processor))
        notes, origin = [*notes, *assumed], f"from {processor}"
    origin += _describe_average(preprocessing, channels)
    preprocessing = preprocessing.with_channels(channels)
    notes += [*_load(net, found), *note]
    return Bundle(wrap(net, head, [Task(task, names)]), preprocessing, {}, str(path), _digest(weight_file), arch, head,
                  tuple(notes), model_args=model_args, preprocessing_source=origin)  # fmt: skip


def _open_pretrained(
    source: str, labels: tuple[str, ...], task: str, unnamed: bool, described: Mapping[str, Any] = MappingProxyType({})
) -> Bundle:
    """Open what timm downloads; `described` is the config.json of a repository, which timm has followed by itself."""
    net = _download(source)
    arch = str(net.pretrained_cfg["architecture"])  # pyright: ignore
    head = find_head(net, arch)
    subset = infer_imagenet_subset(net)
    imagenet = tuple(ImageNetInfo(subset).label_names()) if subset and not unnamed else ()
    rows = int(net.get_submodule(head).out_features)  # pyright: ignore[reportArgumentType]
    names_of_hub = described.get("label_names")
    known = {"label_names": names_of_hub} if names_of_hub and not imagenet and not unnamed else {}
    names, _ = _class_names(source, labels or imagenet, known, rows, unnamed)
    config: Any = net.pretrained_cfg
    stored = described.get("model_args")
    model_args = stored if isinstance(stored, dict) else {}
    channels = require_channels(source, count_channels(config, model_args))
    preprocessing = transforms.from_timm(config)
    origin = f"from timm's {source}{_describe_average(preprocessing, channels)}"
    preprocessing = preprocessing.with_channels(channels)
    own = {name: value for name, value in model_args.items() if name != "num_classes"}
    digest = fingerprint(f"{name} {value.sum().item()}" for name, value in net.state_dict().items())
    return Bundle(wrap(net, head, [Task(task, names)]), preprocessing, {}, source, digest, arch, head,
                  model_args={**input_args(arch, preprocessing), **own}, preprocessing_source=origin)  # fmt: skip


def _download(source: str) -> nn.Module:
    """A pretrained timm network, from the hub or its cache."""
    try:
        with hub.offline_without_network(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(source, pretrained=True)
    except Exception as error:  # timm and the hub's client raise anything
        reason = " ".join(str(error).split())[:120].rstrip(" .")
        raise SetupError(
            f"cannot download the weights of {source!r} ({type(error).__name__}: {reason}); without a network "
            "give a local folder (local-dir:FOLDER) or a file of weights with --arch"
        ) from error


def _class_names(
    source: str | Path, names: tuple[str, ...], stored: Mapping[str, Any], rows: int | None, unnamed: bool
) -> tuple[tuple[str, ...], list[str]]:
    """Check the class names of a classifier of `rows` classes, and note where they come from if not from --labels.

    Without --labels they are those that the file stores; numbers where there are none and `unnamed` allows it.
    """
    notes, given = [], names
    for entry, value in stored.items():
        try:
            found = parse_class_names(value)
        except ValueError as error:
            notes += [] if given else [f"its entry {entry!r} has no class names: {error}"]
            continue
        if rows in (None, len(found)):
            if given and found != given:
                notes.append(
                    f"its entry {entry!r} has other class names, such as {found[0]!r}: those of --labels count"
                )
            names = given or found
            notes += [] if given else [f"class names from its entry {entry!r}"]
            break
        if not given:
            notes.append(f"its entry {entry!r} has {len(found)} names, but the classifier has {rows} classes: not used")
    if not names and not unnamed:
        reason = f" ({'; '.join(notes)[:200]})" if notes else ""
        raise InputError(
            f"{source} has no class names{reason}; give --labels, a file with one name per line in index order"
        )
    names = names or tuple(map(str, range(rows or 1)))
    if rows not in (None, len(names)):
        raise CheckpointError(f"{source} has {rows} classes, but there are {len(names)} class names; fix --labels")
    return names, notes


def _count_rows(weights: Weights, arch: str) -> int | None:
    """The rows that the classifier layer probably has; None where no tensor is named like it."""
    config = timm.get_pretrained_cfg(arch)
    name = f"{config.classifier}.weight" if config else ""
    found = [v for entry in weights.entries.values() for key, v in entry.items() if f".{key}".endswith(f".{name}")]
    return next((len(value) for value in found if value.dim() == 2 and len(value)), None)


def _load(net: nn.Module, found: Fit) -> list[str]:
    """Load tensors that match; counters that old files of BatchNorm lack, or a missing classifier, stay as they are."""
    net.load_state_dict({**net.state_dict(), **found.tensors}, strict=True)
    return [*found.notes, f"all {len(found.tensors)} tensors match"]


def _digest(path: Path) -> str:
    return fingerprint(map(digest, list_shards(path))) if path.name.endswith(INDEX) else digest(path)
