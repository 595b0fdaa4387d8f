"""Opens a trained classifier: a bundle, a timm name, a hub or local folder, or a file of weights."""

from __future__ import annotations

import difflib
import os
import socket
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
from huggingface_hub import constants
from timm.data import ImageNetInfo, infer_imagenet_subset
from torch import Tensor, nn

from taskgraft.bundle.architecture import create_network, create_untrusted, find_head, image_size_args, require_arch
from taskgraft.bundle.format import Bundle, read_bundle, read_json
from taskgraft.bundle.weights import load_weights
from taskgraft.data import transforms
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import CheckpointError, InputError, SetupError
from taskgraft.models.classifier import wrap
from taskgraft.results.files import digest, fingerprint
from taskgraft.types import PathLike, Task, as_path

SUFFIXES = (".pth", ".pt", ".tar", ".bin", ".safetensors", ".ckpt")


def open_parent(
    source: PathLike,
    *,
    arch: str | None = None,
    labels: PathLike | None = None,
    preprocessing: str | None = None,
    task: str = "parent",
    unnamed: bool = False,
    cache: PathLike | None = None,
) -> Bundle:
    """Open a trained classifier. Nothing is ever loaded with names or shapes left over.

    Args:
        source: a bundle, a timm folder (also as `local-dir:FOLDER`), a timm name, `hf-hub:NAME`, or a file of weights.
        arch: the timm name of the architecture; a file of weights needs it unless it names its own.
        labels: a text file of class names, one per line in index order; needed where the source has none.
        preprocessing: what to change of the preprocessing, such as "96 squash bilinear imagenet".
        task: the name of the task of a model without task names.
        unnamed: number the classes where names are missing, for callers that want the backbone alone.
        cache: a folder that keeps the tensors of pickles, so that opening them again starts no process.

    Raises:
        CheckpointError: the source cannot be opened or does not match `arch` or `labels`.
        InputError: class names are missing, or `labels` cannot be used.
        SetupError: weights cannot be downloaded.
    """
    source, cache = os.fspath(source), as_path(cache)
    path = Path(source.removeprefix("local-dir:"))
    names = _read_labels(Path(labels)) if labels else ()
    config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
    if "taskgraft" in config:
        bundle = read_bundle(path)
    elif path.is_dir():
        bundle = _open_folder(path, config, names, task, unnamed)
    elif path.suffix in SUFFIXES or path.exists():
        bundle = _open_file(path, arch, names, task, preprocessing, unnamed, cache)
    elif source.startswith("hf-hub:") or timm.is_model(source):
        bundle = _open_pretrained(source, names, task, unnamed)
    else:
        matches = difflib.get_close_matches(source, timm.list_models(), n=1)
        hint = f"; did you mean the timm model {matches[0]!r}?" if matches else ""
        raise CheckpointError(f"parent {source!r} is not a file, folder or timm model{hint}")
    if preprocessing:
        bundle = replace(
            bundle,
            preprocessing=transforms.parse_preprocessing(preprocessing, bundle.preprocessing),
            preprocessing_source=describe_origin(preprocessing, bundle.preprocessing_source),
        )
    note = describe_preprocessing(bundle.preprocessing, bundle.preprocessing_source)
    return replace(bundle, notes=(*bundle.notes, note))


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
    tensors, texts, notes = load_weights(path, cache)
    if arch is None:
        arch = texts.get("arch", "")
        if not timm.is_model(arch):
            raise CheckpointError(f"{path} does not name its architecture; give --arch, a timm model such as resnet18")
        notes.append(f"architecture {arch} from its entry 'arch'")
    require_arch(arch)
    names = _class_names(path, labels, _count_rows(tensors, arch), unnamed)
    net, head, default = create_network(arch, len(names))
    model_args = image_size_args(arch, transforms.parse_preprocessing(preprocessing or "", default))
    shapes_differ = any(name in tensors and tensors[name].shape != v.shape for name, v in net.state_dict().items())
    model_args = model_args if shapes_differ else {}
    if model_args:
        net, head, _ = create_network(arch, len(names), **model_args)
    _load_strictly(net, tensors, path, arch)
    notes.append(f"all {len(tensors)} tensors match")
    origin = f"timm's default for {arch}, since a file of weights has none"
    return Bundle(wrap(net, head, [Task(task, names)]), default, {}, str(path), digest(path), arch, head, tuple(notes),
                  model_args=model_args, preprocessing_source=origin)  # fmt: skip


def _open_folder(path: Path, config: dict[str, Any], labels: tuple[str, ...], task: str, unnamed: bool) -> Bundle:
    file, arch = path / "config.json", str(config.get("architecture", ""))
    if not arch:
        raise CheckpointError(f"{file} is missing or names no timm architecture; give the weights file with --arch")
    weights = [file for file in (path / "model.safetensors", path / "pytorch_model.bin") if file.is_file()]
    if not weights:
        raise CheckpointError(f"{path} has neither model.safetensors nor pytorch_model.bin; add the weights")
    tensors, _, notes = load_weights(weights[0])
    model_args = config.get("model_args", {})
    if isinstance(model_args, dict):  # timm writes the number of classes here too; a child has another
        model_args = {name: value for name, value in model_args.items() if name != "num_classes"}
    stored = tuple(map(str, config.get("label_names") or ()))
    names = _class_names(weights[0], labels or stored, _count_rows(tensors, arch), unnamed)
    net = create_untrusted(file, arch, len(names), model_args)
    head = find_head(net, arch)
    _load_strictly(net, tensors, weights[0], arch)
    changes = config.get("pretrained_cfg", {})
    if not isinstance(changes, dict):
        raise CheckpointError(f"{file} is damaged: pretrained_cfg is not an object; copy it again")
    default = transforms.from_timm(net.pretrained_cfg)  # pyright: ignore[reportArgumentType]
    preprocessing = transforms.from_timm({**transforms.to_timm(default), **changes}, str(file))
    origin = f"from {file}" if changes else f"timm's default for {arch}, since {file} has none"
    return Bundle(wrap(net, head, [Task(task, names)]), preprocessing, {}, str(path), digest(weights[0]), arch, head,
                  tuple(notes), model_args=model_args, preprocessing_source=origin)  # fmt: skip


def _open_pretrained(source: str, labels: tuple[str, ...], task: str, unnamed: bool) -> Bundle:
    net = _download(source)
    arch = str(net.pretrained_cfg["architecture"])  # pyright: ignore
    head = find_head(net, arch)
    subset = infer_imagenet_subset(net)
    imagenet = tuple(ImageNetInfo(subset).label_names()) if subset and not unnamed else ()
    names = _class_names(source, labels or imagenet, int(net.get_submodule(head).out_features), unnamed)  # pyright: ignore
    preprocessing = transforms.from_timm(net.pretrained_cfg)  # pyright: ignore[reportArgumentType]
    digest = fingerprint(f"{name} {value.sum().item()}" for name, value in net.state_dict().items())
    return Bundle(wrap(net, head, [Task(task, names)]), preprocessing, {}, source, digest, arch, head,
                  preprocessing_source=f"from timm's {source}")  # fmt: skip


def _download(source: str) -> nn.Module:
    """A pretrained timm network, from the hub or its cache."""
    try:
        with _offline_without_network(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return timm.create_model(source, pretrained=True)
    except Exception as error:  # timm and the hub's client raise anything
        reason = " ".join(str(error).split())[:120]
        raise SetupError(
            f"cannot download the weights of {source!r} ({type(error).__name__}: {reason}); without a network "
            "give a local folder (local-dir:FOLDER) or a file of weights with --arch"
        ) from error


@contextmanager
def _offline_without_network() -> Iterator[None]:
    """Put the hub's client in offline mode where its host cannot be resolved: else it retries for up to a minute."""
    before = constants.HF_HUB_OFFLINE
    try:
        if not urllib.request.getproxies():  # a proxy resolves the name itself
            socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, None)
    except OSError:
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _read_labels(file: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read --labels {file}: {error}; give a text file of class names") from error
    duplicates = {name for name in names if names.count(name) > 1}
    if duplicates:
        raise InputError(f"--labels {file} lists {min(duplicates)!r} twice; class names must differ")
    return names


def _class_names(source: str | Path, names: tuple[str, ...], rows: int | None, unnamed: bool) -> tuple[str, ...]:
    """Check the class names of a classifier of `rows` classes; numbers where there are none and `unnamed` allows it."""
    if not names and not unnamed:
        raise InputError(f"{source} has no class names; give --labels, a file with one name per line in index order")
    names = names or tuple(map(str, range(rows or 1)))
    if rows not in (None, len(names)):
        raise CheckpointError(f"{source} has {rows} classes, but there are {len(names)} class names; fix --labels")
    return names


def _count_rows(tensors: dict[str, Tensor], arch: str) -> int | None:
    """The rows of the classifier layer; None where the tensors are of another architecture."""
    config = timm.get_pretrained_cfg(arch)
    weight = tensors.get(f"{config.classifier}.weight") if config else None
    return None if weight is None or not weight.dim() else len(weight)


def _load_strictly(net: nn.Module, tensors: dict[str, Tensor], path: Path, arch: str) -> None:
    """Load all tensors; every name and shape must match, but for counters that old files of BatchNorm lack."""
    expected = net.state_dict()
    counters = {name for name in expected.keys() - tensors.keys() if name.endswith("num_batches_tracked")}
    mismatches = [
        f"{name} ({_shape(tensors.get(name))} in the file, {_shape(expected.get(name))} in {arch})"
        for name in {**expected, **tensors}
        if name not in counters and _shape(tensors.get(name)) != _shape(expected.get(name))
    ]
    if mismatches:
        raise CheckpointError(
            f"{path} is not a {arch}: {len(mismatches)} tensors differ, first {', '.join(mismatches[:5])}; "
            "give the right --arch"
        )
    net.load_state_dict({**expected, **tensors}, strict=True)


def _shape(value: Tensor | None) -> str:
    return "missing" if value is None else "x".join(map(str, value.shape)) or "scalar"
