"""Finds the tensors of a network in a checkpoint: the entry, the prefix of their names, and the classifier layer."""

from __future__ import annotations

import inspect
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn

from taskgraft.bundle import torchvision_models
from taskgraft.bundle.weights import Weights, require_finite, sort_naturally
from taskgraft.errors import CheckpointError
from taskgraft.types import Params

AVERAGED = re.compile(r"(^|[._])(ema|swa|averaged?)([._]|$)", re.IGNORECASE)
ENTRIES = ("state_dict", "model_state_dict", "model", "net")  # that training programs store weights in, best first
# prefixes of DistributedDataParallel, AveragedModel, torch.compile, Lightning and its users, and transformers
WRAPPERS = (
    "module",
    "_orig_mod",
    "model",
    "net",
    "network",
    "backbone",
    "encoder",
    "student",
    "ema_model",
    "timm_model",
)
# of training: a loss, a teacher, a second head at the top level; counters of averages and profilers anywhere
TRAINING = re.compile(
    r"(criterion\w*|\w*loss\w*|\w*metrics?|ema(_\w+)?|\w*teacher\w*|aux(_\w+)?|Aux\w*|queue(_\w+)?)(\.|$)"
    r"|(.*\.)?(n_averaged|total_ops|total_params|_extra_state)$"
)
# of networks that were trained to compare images, which nobody needs who wants the backbone alone
HEADS = re.compile(r"(.*\.)?(\w*heads?|fc|classifier|projector|projection\w*|predictor|prototypes?)\.")
POSITION = re.compile(r"pos_embed|rel_pos|relative_position|rope")  # in names of what depends on the image size
NORMALIZATION = re.compile(r"(^|[._])(mean|std)$")
MAX_PREFIXES = 50  # that are tried; no honest file has as many
COUNTER = "num_batches_tracked"  # of BatchNorm, which old files lack
FILTERS = ("checkpoint_filter_fn_classifier", "checkpoint_filter_fn", "_filter_fn")  # of timm's modules of models
TORCHVISION = re.compile(
    r"features\.\d+\.\d+\.|encoder\.layers\.encoder_layer_\d|trunk_output\.|layers\.\d+\.\d+\.layers\."
)
TRANSFORMERS = re.compile(
    r"embeddings\.(cls_token|patch_emb|position_emb|norm)|encoder\.layer\.\d+\.(attention|layernorm)|embedder\.embedder\."
    r"|encoder\.stages\.\d+\.layers\."
)
CLASSIFIER = re.compile(r"(classifier|fc|heads?)\..*weight$")
ULTRALYTICS = re.compile(r"model\.\d+\.(conv|cv1|m)\.")


class Fit(NamedTuple):
    """A network's tensors by its own names, the number of classes (None without a classifier), and what was inferred.

    `image_size` is the size in pixels that the positional embeddings of the file are for, where they were resampled.
    """

    tensors: Params
    rows: int | None
    notes: list[str]
    image_size: int | None = None


class _Candidate(NamedTuple):
    """Tensors of an entry below a prefix, by the rest of their names, and the entry's other tensors.

    `original` are the tensors as they were in the file, where timm converted them.
    """

    entry: str
    prefix: str
    tensors: Params
    outside: Params
    original: Params | None = None

    def describe(self) -> str:
        return f"{self.entry}.{self.prefix}".strip(".")


class _Failure(NamedTuple):
    """Why a candidate is not the network; the closer to it, the higher `rank`."""

    candidate: _Candidate
    rank: tuple[int, int]
    error: CheckpointError


def fit_network(path: Path, weights: Weights, net: nn.Module, arch: str, head: str, *, headless: bool = False) -> Fit:
    """Find the tensors of a network in a checkpoint; all but the size of the classifier must match.

    The names may have a prefix, old layouts are converted by timm, and the classifier may have another name. Averaged
    weights are preferred. What is left out is not of the network: a loss, counters, what lies outside of the prefix.

    Args:
        path: the file, for messages.
        weights: its contents.
        net: the network; only names and shapes are read, and it is given to timm's converter.
        arch: its timm name.
        head: the name of its classifier layer.
        headless: accept a file without a classifier.

    Raises:
        CheckpointError: no entry holds the network, or a value is not finite.
    """
    candidates = sorted(_list_candidates(weights.entries, net), key=_preference)
    failures: list[_Failure] = []
    for convert in (False, True):
        fits: list[tuple[_Candidate, Fit]] = []
        for candidate in candidates:
            if convert and fits:
                break
            attempt = _convert(candidate, net, arch, head) if convert else candidate
            result = _judge(path, attempt, net, arch, head, headless) if attempt else None
            if isinstance(result, Fit):
                fits.append((attempt or candidate, result))
            elif result:
                failures.append(result)
        if fits:
            chosen, fit = fits[0]
            require_finite(path, fit.tensors)
            others = [other for other, _ in fits[1:]]
            return fit._replace(notes=[*_describe_choice(chosen, others, failures), *fit.notes])
    raise max(failures, key=lambda failure: failure.rank).error


def _preference(candidate: _Candidate) -> tuple[bool, bool, int]:
    known = ENTRIES.index(candidate.entry) if candidate.entry in ENTRIES else len(ENTRIES)
    place = candidate.describe()
    return not AVERAGED.search(place), bool(TRAINING.match(place)), known


def _describe_choice(chosen: _Candidate, others: Sequence[_Candidate], failures: Sequence[_Failure]) -> list[str]:
    notes = []
    places = [
        repr(place) for place in dict.fromkeys(other.describe() for other in others) if place != chosen.describe()
    ]
    reason = "averaged weights, which are those that training programs evaluate" if _is_averaged(chosen) else ""
    also = f"it also has the network in {', '.join(places[:3])}" if places else ""
    why = "".join(f"; {part}" for part in (reason if places else "", also) if part)
    if chosen.entry:
        notes.append(f"weights from its entry {chosen.entry!r}{why}")
    if chosen.prefix:
        notes.append(f"prefix {chosen.prefix!r} removed from the names{'' if chosen.entry else why}")
    skipped = [failure.candidate for failure in failures if failure.rank[0] and _is_averaged(failure.candidate)]
    if skipped and not _is_averaged(chosen):
        notes.append(
            f"the averaged weights in {skipped[0].describe()!r} were not taken: they are not the whole network"
        )
    return notes


def _is_averaged(candidate: _Candidate) -> bool:
    return bool(AVERAGED.search(candidate.describe()))


def _list_candidates(entries: Mapping[str, Params], net: nn.Module) -> Iterator[_Candidate]:
    """Yield every place that could hold the network: each entry below each prefix that it may have."""
    anchor = max(net.state_dict(), key=lambda name: name.count("."))  # a long name is found in few places
    for entry, tensors in entries.items():
        for prefix in _list_prefixes(tensors, anchor):
            inside = {name.removeprefix(prefix): v for name, v in tensors.items() if name.startswith(prefix)}
            outside = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
            yield _Candidate(entry, prefix, inside, outside)
    if len(entries) > 1 and not entries.get(""):  # a backbone and a head that are saved side by side
        together = {f"{entry}.{name}": value for entry, values in entries.items() for name, value in values.items()}
        yield from (c for c in _list_candidates({"": together}, net) if c.prefix.count(".") == 1)


def _list_prefixes(names: Mapping[str, Any], anchor: str) -> list[str]:
    prefixes = [""]
    for prefix in prefixes:  # grows while it is read: wrappers are nested
        if len(prefixes) > MAX_PREFIXES:
            break
        longer = (f"{prefix}{word}." for word in WRAPPERS)
        prefixes += [one for one in longer if any(name.startswith(one) for name in names)]
    found = [name.removesuffix(anchor) for name in names if name.endswith(f".{anchor}")]
    return list(dict.fromkeys([*prefixes[:MAX_PREFIXES], *found[:MAX_PREFIXES]]))


def _convert(candidate: _Candidate, net: nn.Module, arch: str, head: str) -> _Candidate | None:
    """Bring another layout into timm's own: torchvision's, or an older one by timm's reader; None where it cannot."""
    found = (
        torchvision_models.convert(candidate.tensors, net, arch, head) if _is_torchvision(candidate.tensors) else None
    )
    if found is not None:
        return candidate._replace(tensors=found, original=candidate.tensors)
    module = sys.modules[timm.models.model_entrypoint(arch).__module__]
    convert: Callable[..., Any] | None = next((vars(module)[n] for n in FILTERS if n in vars(module)), None)
    if convert is None or not candidate.tensors:
        return None
    takes_net = len(inspect.signature(convert).parameters) > 1
    try:
        converted = convert(dict(candidate.tensors), net) if takes_net else convert(dict(candidate.tensors))
        tensors = {str(name): value.detach() for name, value in converted.items()}
    except Exception:  # a converter expects the layouts it knows
        return None
    for name, value in tensors.items():  # timm would also resample the patches of another architecture
        before = candidate.tensors.get(name)
        if before is not None and before.numel() != value.numel() and not POSITION.search(name):
            return None
    return candidate._replace(tensors=tensors, original=candidate.tensors)


def _judge(path: Path, candidate: _Candidate, net: nn.Module, arch: str, head: str, headless: bool) -> Fit | _Failure:
    """Compare a candidate with the network, find its classifier, and name what is left over."""
    expected = net.state_dict()
    classifier = {f"{head}.weight", f"{head}.bias"}
    backbone = {name: value for name, value in expected.items() if name not in classifier}
    tensors = candidate.tensors
    wrong = [
        name
        for name, value in backbone.items()
        if _shape(tensors.get(name)) != _shape(value) and (name in tensors or not name.endswith(COUNTER))
    ]
    rest = {name: value for name, value in tensors.items() if name not in backbone}
    if wrong:
        return _describe_mismatch(path, candidate, expected, arch, [*wrong, *(n for n in rest if n not in classifier)])
    notes: list[str] = []
    width = net.get_submodule(head).in_features
    found = {name: value for name, value in tensors.items() if name in backbone}
    layer, place = _find_classifier(rest, candidate.outside, head, int(width))  # pyright: ignore[reportArgumentType]
    pool = {**rest, **candidate.outside} if layer is None else rest
    left = [name for name in pool if not TRAINING.match(name) and name not in (f"{place}.weight", f"{place}.bias")]
    if layer is None and headless and all(map(HEADS.match, left)):
        left = []
    if layer is None and left:
        return _Failure(candidate, (4, 0), _describe_head(path, arch, head, {n: pool[n] for n in left}))
    if layer is None and not headless:
        return _Failure(candidate, (3, 0), CheckpointError(
            f"{path} is the backbone of {arch} without its classifier: {head}.weight is missing; "
            "give a file that has it, or start a new model from the backbone by train with --weights"
        ))  # fmt: skip
    if left:
        return _describe_mismatch(path, candidate, expected, arch, left)
    if layer is not None:
        bias = layer[1] if layer[1] is not None else torch.zeros(len(layer[0]), dtype=layer[0].dtype)
        found |= {f"{head}.weight": layer[0], f"{head}.bias": bias}
        if place != head:
            notes.append(f"classifier from {place!r}, taken as a plain linear layer, which is {head!r} in {arch}")
        if layer[1] is None:
            notes.append(f"the classifier {place!r} has no bias: zeros")
    size = _describe_conversion(candidate, net, arch, notes)
    kept = {f"{place}.weight", f"{place}.bias"}
    passengers = [*(n for n in rest if n not in kept), *(n for n in candidate.outside if n not in kept)]
    if passengers:
        hint = "; a normalization among them belongs into --preprocessing" if _any(NORMALIZATION, passengers) else ""
        notes.append(f"left out, not of the network: {_enumerate(passengers)}{hint}")
    return Fit(found, None if layer is None else len(layer[0]), notes, size)


def _find_classifier(
    inside: Params, outside: Params, head: str, width: int
) -> tuple[tuple[Tensor, Tensor | None] | None, str]:
    """Find the weight and bias of the classifier, and its name: that of the network, or the only linear layer left."""

    def read(tensors: Params, name: str) -> tuple[Tensor, Tensor | None] | None:
        weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
        fits = weight is not None and weight.dim() == 2 and weight.shape[1] == width and len(weight) > 0
        return (weight, bias) if fits and (bias is None or bias.shape == weight.shape[:1]) else None  # pyright: ignore

    if layer := read(inside, head):
        return layer, head
    pool = {name: value for name, value in {**inside, **outside}.items() if not TRAINING.match(name)}
    linear = [name.removesuffix(".weight") for name in pool if name.endswith(".weight")]
    linear = [name for name in linear if read(pool, name)]
    if len(linear) == 1 and not pool.keys() - {f"{linear[0]}.weight", f"{linear[0]}.bias"}:
        return read(pool, linear[0]), linear[0]
    return None, ""


def _describe_conversion(candidate: _Candidate, net: nn.Module, arch: str, notes: list[str]) -> int | None:
    """Note what timm converted; return the image size of the file's positional embeddings, where it was another."""
    tensors, original = candidate.tensors, candidate.original
    if original is None:
        return None
    if _is_torchvision(original):
        notes.append(f"weights of torchvision, converted to timm's {arch}: the outputs of both agree")
        return None
    if tensors.keys() - original.keys():
        notes.append(f"names and layout converted by timm's own reader of {arch}")
    adapted = [name for name in tensors if name in original and tensors[name].shape != original[name].shape]
    if adapted:
        shapes = f"{adapted[0]} from {_shape(original[adapted[0]])} to {_shape(tensors[adapted[0]])}"
        more = f" and {len(adapted) - 1} more" if len(adapted) > 1 else ""
        notes.append(f"resampled by timm to the shapes of this input size: {shapes}{more}")
    patch: Any = getattr(getattr(net, "patch_embed", None), "patch_size", None)
    if "pos_embed" not in adapted or not isinstance(patch, tuple) or original["pos_embed"].dim() != 3:
        return None
    others = 0 if getattr(net, "no_embed_class", False) else getattr(net, "num_prefix_tokens", 0)
    tokens = original["pos_embed"].shape[1] - int(others)
    side = math.isqrt(max(tokens, 0))
    return side * int(patch[0]) if side and side**2 == tokens and patch[0] == patch[-1] else None


def _describe_head(path: Path, arch: str, head: str, tensors: Params) -> CheckpointError:
    names = sorted(tensors, key=sort_naturally)
    layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight") and tensors[name].dim() == 2]
    return CheckpointError(
        f"{path} is the same backbone as {arch} with another head ({_enumerate(names)}), not one linear layer; "
        f"with net = timm.create_model({arch!r}), net.{head} = … and net.load_state_dict(…), "
        f"{wrap_in_python(layers[-1] if layers else head)}"
    )


def _describe_mismatch(
    path: Path, candidate: _Candidate, expected: Params, arch: str, names: Sequence[str]
) -> _Failure:
    """Name the first tensors that differ, and say whether it is another architecture, a changed one, or other names."""
    tensors = candidate.tensors
    same = sum(name in tensors for name in expected)
    equal = sum(_shape(tensors.get(name)) == _shape(value) for name, value in expected.items())
    rank = (int(2 * same >= len(expected)), equal)
    if not rank[0] and (foreign := _describe_foreign(path, tensors, arch)):
        return _Failure(candidate, rank, foreign)
    listed = ", ".join(
        f"{name} ({_shape(tensors.get(name))} in the file, {_shape(expected.get(name))} in {arch})"
        for name in names[:5]
    )
    if all(name not in expected for name in names):
        remedy = f"it is {arch} with layers of its own: {wrap_in_python()}"
    elif rank[0] and equal >= len(expected) - 2:
        remedy = f"give the right --arch, or if it is a changed {arch}, {wrap_in_python()}"
    elif rank[0]:
        remedy = "give the right --arch"
    else:
        remedy = f"give the right --arch, or if it is right, its names are not those of timm: {wrap_in_python()}"
    error = CheckpointError(f"{path} is not a {arch}: {len(names)} tensors differ, first {listed}; {remedy}")
    return _Failure(candidate, rank, error)


def _describe_foreign(path: Path, tensors: Params, arch: str) -> CheckpointError | None:
    """Say which other program's names these are, and how its network is wrapped; None for none that is known."""
    linear = [
        name for name in sorted(tensors, key=sort_naturally) if CLASSIFIER.match(name) and tensors[name].dim() == 2
    ]
    layer = linear[-1].removesuffix(".weight") if linear else "LAYER"
    if _is_torchvision(tensors):
        return CheckpointError(
            f"{path} has the names of torchvision, but is not what {arch} is there; give the right --arch "
            f"(those that are converted: {', '.join(sorted(torchvision_models.TWINS))}), or "
            f"{wrap_in_python(layer)}, with a net of torchvision.models that has loaded the file"
        )
    if _any(TRANSFORMERS, tensors):
        return CheckpointError(
            f"{path} has the names of Hugging Face transformers, not of timm; give the folder that it lies in, whose "
            f"config.json has the sizes, or {wrap_transformers('FOLDER', layer)}"
        )
    if _any(ULTRALYTICS, tensors):
        return CheckpointError(f"{path} has the names of Ultralytics, which timm does not have; {wrap_in_python()}")
    return None


def wrap_in_python(layer: str = "LAYER") -> str:
    """Say how a network that the commands cannot open is used: in Python, by the name of its last layer."""
    return f"wrap it in Python: taskgraft.wrap(net, {layer!r}, [taskgraft.Task('parent', CLASSES)])"


def wrap_transformers(folder: str, layer: str = "classifier") -> str:
    """Say how a model of Hugging Face transformers is wrapped: it returns an object, not logits."""
    return (
        f"{wrap_in_python(f'model.{layer}')}, with a net whose forward(x) returns self.model(x).logits and whose "
        f"self.model is AutoModelForImageClassification.from_pretrained({folder!r})"
    )


def _is_torchvision(tensors: Params) -> bool:
    return _any(TORCHVISION, tensors)


def _any(pattern: re.Pattern[str], names: Mapping[str, Any] | Sequence[str]) -> bool:
    return any(pattern.search(name) for name in names)


def _enumerate(names: Mapping[str, Any] | Sequence[str]) -> str:
    first = sorted(names, key=sort_naturally)[:4]
    return ", ".join(first) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _shape(value: Tensor | None) -> str:
    return "missing" if value is None else "x".join(map(str, value.shape)) or "scalar"
