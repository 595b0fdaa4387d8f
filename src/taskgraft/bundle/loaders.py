"""Opening a parent: a bundle, a timm name, a hub or local folder, or a file of weights that anybody wrote."""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from taskgraft.bundle import weights
from taskgraft.bundle.format import Bundle, read
from taskgraft.bundle.hub import fetched
from taskgraft.bundle.validation import create_model, read_json
from taskgraft.data import transforms
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import CheckpointError
from taskgraft.models.classifier import wrap
from taskgraft.results.files import digest, fingerprint
from taskgraft.types import PathLike, Task, as_path

FILES = (".pth", ".pt", ".tar", ".bin", ".safetensors", ".ckpt")


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
    """Open a trained classifier.

    `source`: a bundle folder, `local-dir:FOLDER`, a timm name, `hf-hub:NAME`, or a file of weights, which needs
    `arch` (a timm name) unless the file names it, and `labels` (a text file, one class a line, in index order).
    `wanted` is the preprocessing line; `task` names the task of a model that has no task names. `unnamed`
    takes numbers where class names are missing, for who wants the backbone alone. `cache` is a folder in which the
    tensors of a pickle are kept, so that opening it again takes no process of its own. Raises TaskgraftError for anything that
    does not fit; nothing is ever loaded with names or shapes left over.
    """
    source, labels, cache = os.fspath(source), as_path(labels), as_path(cache)
    path = Path(source.removeprefix("local-dir:"))
    if path.is_dir():
        bundle = _folder(path, labels, task, unnamed)
    elif path.suffix in FILES or path.exists():
        bundle = _file(path, arch, labels, task, preprocessing, unnamed, cache)
    elif source.startswith("hf-hub:") or timm.is_model(source):
        bundle = _named(source, labels, task, unnamed)
    else:
        near = difflib.get_close_matches(source, timm.list_models(), n=1)
        hint = f" (did you mean the timm model {near[0]!r}?)" if near else ""
        raise CheckpointError(f"parent {source!r} is no file, no folder and no timm model{hint}; give one of them")
    if preprocessing:
        told = told_by(preprocessing, bundle.preprocess_from)
        bundle = bundle._replace(
            preprocessing=transforms.parse_preprocessing(preprocessing, bundle.preprocessing), preprocess_from=told
        )
    return bundle._replace(found=(*bundle.found, pictures_line(bundle.preprocessing, bundle.preprocess_from)))


def told_by(preprocessing: str | None, otherwise: str) -> str:
    """Who says how images are shown: --preprocessing, as far as it goes, and `otherwise`."""
    if not preprocessing:
        return otherwise
    return (
        "as --preprocessing says"
        if transforms.is_complete(preprocessing)
        else f"as --preprocessing says, the rest {otherwise}"
    )


def pictures_line(preprocessing: Preprocessing, told: str) -> str:
    """How images are shown to a model, in words and as --preprocessing takes it, and who says so."""
    change = "" if told.startswith("as --preprocessing") else "; --preprocessing sets it"
    return f"images are shown as '{preprocessing.to_text()}' ({preprocessing.describe()}), {told}{change}"


def create(arch: str, classes: int, **options: Any) -> tuple[nn.Module, str, Preprocessing]:
    """A timm network without weights, the name of its classifier layer, and its default preprocessing."""
    if not timm.is_model(arch):
        near = difflib.get_close_matches(arch, timm.list_models(), n=1)
        hint = f"did you mean {near[0]!r}?" if near else "timm.list_models() names those there are"
        raise CheckpointError(f"--arch {arch!r} is no timm model; {hint}")
    net = timm.create_model(arch, num_classes=classes, **options)
    return net, head_of(net, arch), transforms.from_timm(net.pretrained_cfg)  # pyright: ignore[reportArgumentType]


def sized(arch: str, preprocessing: Preprocessing) -> dict[str, Any]:
    """The timm options that an input size needs: networks of fixed size, such as ViTs, are built for theirs."""
    config = timm.get_pretrained_cfg(arch) if timm.is_model(arch) else None
    if config is None or not config.fixed_input_size or config.input_size[-1] == preprocessing.size:
        return {}
    return {"img_size": preprocessing.size}


def head_of(net: nn.Module, arch: str) -> str:
    """The name of a timm network's one linear classifier layer; raises TaskgraftError where it has another kind."""
    name = net.pretrained_cfg.get("classifier")  # pyright: ignore
    if not isinstance(name, str) or not isinstance(dict(net.named_modules()).get(name), nn.Linear):
        raise CheckpointError(
            f"{arch!r} does not end in one linear layer (its classifier: {name}); choose a model that does"
        )
    return name


def _file(
    path: Path,
    arch: str | None,
    labels: Path | None,
    task: str,
    preprocessing: str | None,
    unnamed: bool,
    cache: Path | None = None,
) -> Bundle:
    tensors, rest, found = weights.load(path, cache)
    if arch is None:
        named = rest.get("arch")
        if not isinstance(named, str) or not timm.is_model(named):
            raise CheckpointError(
                f"{path} does not tell its architecture; give --arch NAME, a timm model such as resnet18"
            )
        arch = named
        found.append(f"architecture {arch} from its entry 'arch'")
    names = _numbered(path, tensors, arch) if unnamed and labels is None else _labels(path, labels)
    net, head, default = create(arch, len(names))
    options = sized(arch, transforms.parse_preprocessing(preprocessing or "", default))
    if options and any(name in tensors and tensors[name].shape != v.shape for name, v in net.state_dict().items()):
        net, head, _ = create(arch, len(names), **options)
    else:
        options = {}
    _load(net, tensors, path, arch, head, names)
    found.append(f"{len(tensors)} tensors matched")
    classifier = wrap(net, head, [Task(task, names)])
    mark = digest(path)
    told = f"timm's default for {arch}, since a file of weights does not say"
    return Bundle(
        classifier, default, {}, str(path), mark, arch, head, tuple(found), options=options, preprocess_from=told
    )


def _folder(path: Path, labels: Path | None, task: str, unnamed: bool) -> Bundle:
    config = path / "config.json"
    if not config.is_file():
        raise CheckpointError(
            f"{path} holds no config.json; a bundle or a timm folder has one; for bare weights give the file itself"
        )
    settings = read_json(config)
    if "taskgraft" in settings:
        return read(path)
    if "architecture" not in settings:
        raise CheckpointError(f"{config} names no timm architecture; give the weights file itself, with its --arch")
    files = [file for file in (path / "model.safetensors", path / "pytorch_model.bin") if file.is_file()]
    if not files:
        raise CheckpointError(f"{path} holds neither model.safetensors nor pytorch_model.bin; add the weights")
    tensors, _, found = weights.load(files[0])
    arch = str(settings["architecture"])
    given = settings.get("label_names")
    options = settings.get("model_args", {})
    if isinstance(options, dict):  # timm writes the number of classes here too; a child has another
        options = {name: value for name, value in options.items() if name != "num_classes"}
    if not timm.is_model(arch):
        raise CheckpointError(f"{config}: timm does not know the architecture {arch!r}; upgrade timm")
    if unnamed and not given:
        names = _numbered(files[0], tensors, arch)
    else:
        names = _labels(files[0], labels) if labels or not given else tuple(map(str, given))
    net = create_model(config, arch, len(names), options)
    head = head_of(net, arch)
    _load(net, tensors, files[0], arch, head, names)
    default = transforms.from_timm(net.pretrained_cfg)  # pyright: ignore[reportArgumentType]
    told = settings.get("pretrained_cfg", {})
    if not isinstance(told, dict):
        raise CheckpointError(f"{config} is damaged: pretrained_cfg holds no named values; copy it again")
    preprocessing = transforms.from_timm({**transforms.to_timm(default), **told}, str(config))
    classifier = wrap(net, head, [Task(task, names)])
    source = f"as {config} says" if told else f"timm's default for {arch}, since {config} does not say"
    return Bundle(
        classifier, preprocessing, {}, str(path), digest(files[0]), arch, head, tuple(found), options=options,
        preprocess_from=source,
    )  # fmt: skip


def _named(source: str, labels: Path | None, task: str, unnamed: bool) -> Bundle:
    net = fetched(source)
    arch = str(net.pretrained_cfg["architecture"])  # pyright: ignore
    head = head_of(net, arch)
    rows = int(net.get_submodule(head).out_features)  # pyright: ignore[reportArgumentType]
    if unnamed and not labels:
        names = tuple(map(str, range(rows)))
    else:
        names = _labels(Path(source), labels) if labels else _imagenet(net, source)
    if len(names) != rows:
        raise CheckpointError(
            f"{labels}: {len(names)} names, but the classifier of {source!r} has {rows} rows; give one name a row"
        )
    preprocessing = transforms.from_timm(net.pretrained_cfg)  # pyright: ignore[reportArgumentType]
    mark = fingerprint(f"{name} {value.sum().item()}" for name, value in net.state_dict().items())
    told = f"as timm says of {source}"
    return Bundle(
        wrap(net, head, [Task(task, names)]), preprocessing, {}, source, mark, arch, head, (), preprocess_from=told
    )


def _imagenet(net: nn.Module, source: str) -> tuple[str, ...]:
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset(net)
    if not subset:
        raise CheckpointError(
            f"{source!r} comes without class names; give --labels FILE, one name a line, in index order"
        )
    return tuple(ImageNetInfo(subset).label_names())


def _numbered(path: Path, tensors: dict[str, Tensor], arch: str) -> tuple[str, ...]:
    """Numbers in the place of class names that are missing, as many as the classifier has rows."""
    head = create(arch, 2)[1]
    rows = tensors.get(f"{head}.weight")
    if rows is None:
        raise CheckpointError(f"{path} is no {arch}: it holds no classifier {head!r}; give the right --arch")
    return tuple(map(str, range(len(rows))))


def _labels(path: Path, labels: Path | None) -> tuple[str, ...]:
    if labels is None:
        raise CheckpointError(f"{path} comes without class names; give --labels FILE, one name a line, in index order")
    try:
        names = tuple(line.strip() for line in labels.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"--labels {labels} cannot be read: {error}; give a text file with one class name a line"
        ) from error
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise CheckpointError(
            f"--labels {labels}: {sorted(twice)[0]!r} stands there twice; give each class a name of its own"
        )
    return names


def _load(net: nn.Module, tensors: dict[str, Tensor], path: Path, arch: str, head: str, names: tuple[str, ...]) -> None:
    """Load all tensors; every name and shape must match."""
    expected = net.state_dict()
    rows = tensors.get(f"{head}.weight")
    if rows is not None and rows.dim() == 2 and len(rows) != len(names):
        raise CheckpointError(
            f"{path}: its classifier {head!r} has {len(rows)} rows, "
            f"but there are {len(names)} class names; give one name a row with --labels"
        )
    wrong = [
        f"{name} ({_shape(tensors.get(name))} in the file, {_shape(value)} in {arch})"
        for name, value in expected.items()
        if (name not in tensors and not name.endswith("num_batches_tracked"))
        or (name in tensors and tensors[name].shape != value.shape)
    ]
    wrong += [
        f"{name} ({_shape(value)} in the file, unknown to {arch})"
        for name, value in tensors.items()
        if name not in expected
    ]
    if wrong:
        raise CheckpointError(
            f"{path} is no {arch}: {len(wrong)} tensors differ, first {', '.join(wrong[:5])}; give the right --arch"
        )
    net.load_state_dict({**expected, **tensors}, strict=True)


def _shape(value: Tensor | None) -> str:
    return "missing" if value is None else "x".join(map(str, value.shape)) or "scalar"
