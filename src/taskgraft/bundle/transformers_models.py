"""Image classifiers of Hugging Face transformers as networks of timm: the same computation under other names.

A folder that `save_pretrained` wrote has a config.json with `architectures` and the sizes, and preprocessor_config.json
beside it. ViT, DeiT, Swin, ConvNeXt and ResNet are in timm too; their tensors are renamed, so that nothing of
transformers is needed to open, extend and serve them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from taskgraft.errors import CheckpointError
from taskgraft.types import Params

Rename = tuple[str, str]  # a pattern at the start of a name, and what stands there in timm


class Converted(NamedTuple):
    """A timm network: its name, its arguments, its tensors."""

    arch: str
    model_args: dict[str, Any]
    tensors: Params


class Architecture(NamedTuple):
    """How the tensors of an architecture are called in timm.

    Attributes:
        prefix: What all names but those of the classifier begin with.
        describe: Sizes -> timm's name and its arguments.
        renames: What is renamed in order; the first that matches counts.
        eps: The epsilon of its normalization layers in timm.
    """

    prefix: str
    describe: Callable[[_Sizes], tuple[str, dict[str, Any]]]
    renames: Sequence[Rename]
    eps: float


class _Sizes:
    """The sizes in a config.json that may come from anybody."""

    def __init__(self, file: object, config: Mapping[str, Any]) -> None:
        self.file, self.config = file, config

    def number(self, name: str, default: int | None = None) -> int:
        value = self.config.get(name, default)
        if isinstance(value, list) and len(set(map(str, value))) == 1:
            value = value[0]
        if type(value) is not int or value < 1:
            raise self.wrong(name)
        return value

    def numbers(self, name: str) -> list[int]:
        values = self.config.get(name)
        if not isinstance(values, list) or not values or any(type(value) is not int or value < 1 for value in values):
            raise self.wrong(name)
        return values

    def require(self, name: str, *allowed: object) -> None:
        """Check a setting that timm has no argument for; a missing one has the first value."""
        if self.config.get(name, allowed[0]) not in allowed:
            raise self.wrong(name)

    def wrong(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self.file}: {name} is {str(self.config.get(name))[:60]!r}, which timm's network of "
                               "this kind cannot have")  # fmt: skip


def _vit(sizes: _Sizes) -> tuple[str, dict[str, Any]]:
    sizes.require("hidden_act", "gelu")
    sizes.require("qkv_bias", True)
    hidden = sizes.number("hidden_size", 768)
    return "vit_base_patch16_224", {
        "img_size": sizes.number("image_size", 224),
        "patch_size": sizes.number("patch_size", 16),
        "embed_dim": hidden,
        "depth": sizes.number("num_hidden_layers", 12),
        "num_heads": sizes.number("num_attention_heads", 12),
        "mlp_ratio": sizes.number("intermediate_size", 3072) / hidden,
    }


def _deit(sizes: _Sizes) -> tuple[str, dict[str, Any]]:
    arch, model_args = _vit(sizes)
    return arch, {**model_args, "reg_tokens": 1}  # the distillation token, which the classifier does not read


def _swin(sizes: _Sizes) -> tuple[str, dict[str, Any]]:
    sizes.require("hidden_act", "gelu")
    sizes.require("qkv_bias", True)
    sizes.require("use_absolute_embeddings", False)
    return "swin_tiny_patch4_window7_224", {
        "img_size": sizes.number("image_size", 224),
        "patch_size": sizes.number("patch_size", 4),
        "embed_dim": sizes.number("embed_dim", 96),
        "depths": sizes.numbers("depths"),
        "num_heads": sizes.numbers("num_heads"),
        "window_size": sizes.number("window_size", 7),
        "mlp_ratio": float(sizes.config.get("mlp_ratio", 4.0)),
    }


def _convnext(sizes: _Sizes) -> tuple[str, dict[str, Any]]:
    sizes.require("hidden_act", "gelu")
    return "convnext_tiny", {
        "patch_size": sizes.number("patch_size", 4),
        "depths": sizes.numbers("depths"),
        "dims": sizes.numbers("hidden_sizes"),
    }


def _resnet(sizes: _Sizes) -> tuple[str, dict[str, Any]]:
    sizes.require("hidden_act", "relu")
    sizes.require("layer_type", "bottleneck", "basic")
    sizes.require("downsample_in_first_stage", False)
    sizes.require("downsample_in_bottleneck", False)
    sizes.require("embedding_size", 64)
    is_basic = sizes.config.get("layer_type") == "basic"
    widths = [width * (1 if is_basic else 4) for width in (64, 128, 256, 512)]
    sizes.require("hidden_sizes", [256, 512, 1024, 2048], widths)
    if sizes.config.get("hidden_sizes", [256, 512, 1024, 2048]) != widths:
        raise sizes.wrong("hidden_sizes")
    return "resnet18" if is_basic else "resnet50", {"layers": sizes.numbers("depths")}


def _block(old: str, new: str) -> list[Rename]:
    """The names inside a transformer block, below `old` here and `new` in timm."""
    return [
        (rf"{old}\.attention\.output\.dense", f"{new}.attn.proj"),
        (rf"{old}\.attention\.(?:attention|self)\.", f"{new}.attn."),
        (rf"{old}\.intermediate\.dense", f"{new}.mlp.fc1"),
        (rf"{old}\.output\.dense", f"{new}.mlp.fc2"),
        (rf"{old}\.layernorm_before", f"{new}.norm1"),
        (rf"{old}\.layernorm_after", f"{new}.norm2"),
    ]


VIT: list[Rename] = [
    (r"embeddings\.cls_token", "cls_token"),
    (r"embeddings\.distillation_token", "reg_token"),
    (r"embeddings\.position_embeddings", "pos_embed"),
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    *_block(r"encoder\.layer\.(\d+)", r"blocks.\1"),
    (r"layernorm", "norm"),
    (r"classifier", "head"),
]
SWIN: list[Rename] = [
    (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"embeddings\.norm", "patch_embed.norm"),
    *_block(r"encoder\.layers\.(\d+)\.blocks\.(\d+)", r"layers.\1.blocks.\2"),
    (r"layernorm", "norm"),
    (r"classifier", "head.fc"),
]
CONVNEXT: list[Rename] = [
    (r"embeddings\.patch_embeddings", "stem.0"),
    (r"embeddings\.layernorm", "stem.1"),
    (r"encoder\.stages\.(\d+)\.downsampling_layer", r"stages.\1.downsample"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv", r"stages.\1.blocks.\2.conv_dw"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layernorm", r"stages.\1.blocks.\2.norm"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.pwconv", r"stages.\1.blocks.\2.mlp.fc"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer_scale_parameter", r"stages.\1.blocks.\2.gamma"),
    (r"layernorm", "head.norm"),
    (r"classifier", "head.fc"),
]
RESNET: list[Rename] = [
    (r"embedder\.embedder\.convolution", "conv1"),
    (r"embedder\.embedder\.normalization", "bn1"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.convolution", r"layer\1.\2.downsample.0"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.shortcut\.normalization", r"layer\1.\2.downsample.1"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.convolution", r"layer\1.\2.conv\3"),
    (r"encoder\.stages\.(\d+)\.layers\.(\d+)\.layer\.(\d+)\.normalization", r"layer\1.\2.bn\3"),
    (r"classifier\.1", "fc"),
]
ARCHITECTURES = {
    "ViTForImageClassification": Architecture("vit.", _vit, VIT, 1e-6),
    "DeiTForImageClassification": Architecture("deit.", _deit, VIT, 1e-6),
    "SwinForImageClassification": Architecture("swin.", _swin, SWIN, 1e-5),
    "ConvNextForImageClassification": Architecture("convnext.", _convnext, CONVNEXT, 1e-6),
    "ResNetForImageClassification": Architecture("resnet.", _resnet, RESNET, 1e-5),
}
MAX_EPS = 1e-5  # with a larger epsilon than timm's the outputs would differ by more than rounding


def name_architecture(config: Mapping[str, Any]) -> str:
    """Return the class of transformers that a config.json names; empty for none."""
    kinds = config.get("architectures")
    return str(kinds[0])[:60] if isinstance(kinds, list) and kinds and not config.get("architecture") else ""


def convert(file: object, config: Mapping[str, Any], tensors: Params) -> Converted:
    """Convert a model of transformers to timm's network of the same computation.

    Args:
        file: The config.json, for messages.
        config: Its contents; the architecture is one of ARCHITECTURES.
        tensors: The tensors as `save_pretrained` writes them.

    Raises:
        CheckpointError: A size is missing, or timm's network cannot have it.
    """
    architecture = ARCHITECTURES[name_architecture(config)]
    sizes = _Sizes(file, config)
    eps = config.get("layer_norm_eps", architecture.eps)
    if not isinstance(eps, int | float) or not 0 < eps <= MAX_EPS:
        raise sizes.wrong("layer_norm_eps")
    arch, model_args = architecture.describe(sizes)
    renamed = {_rename(name, architecture): value for name, value in tensors.items()}
    return Converted(arch, model_args, _join_qkv(renamed))


def _rename(name: str, architecture: Architecture) -> str:
    name = name.removeprefix(architecture.prefix)
    for pattern, replacement in architecture.renames:
        match = re.match(pattern, name)
        if match:
            return _count_like_timm(match.expand(replacement) + name[match.end() :], architecture)
    # timm counts a stage's downsampling with the stage after it
    match = re.match(r"encoder\.layers\.(\d+)\.downsample\.(.*)", name)
    return f"layers.{int(match[1]) + 1}.downsample.{match[2]}" if match else name


def _count_like_timm(name: str, architecture: Architecture) -> str:
    """Count stages and layers of a ResNet from one, as timm does."""
    if architecture.renames is not RESNET:
        return name
    name = re.sub(r"^layer(\d+)", lambda match: f"layer{int(match[1]) + 1}", name)
    return re.sub(r"\.(conv|bn)(\d+)\.", lambda match: f".{match[1]}{int(match[2]) + 1}.", name)


def _join_qkv(tensors: Params) -> Params:
    """Join query, key and value, which timm has in one layer."""
    joined: Params = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"(.*\.attn)\.(query|key|value)\.(weight|bias)", name)
        if match is None:
            joined[name] = value
            continue
        parts = [tensors.get(f"{match[1]}.{part}.{match[3]}") for part in ("query", "key", "value")]
        if all(part is not None for part in parts):
            joined[f"{match[1]}.qkv.{match[3]}"] = torch.cat(parts)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return joined


# ---- preprocessor_config.json --------------------------------------------------------------------------------------

RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
SQUASHED_FROM = 384  # ConvNeXt's processor cuts no border off at this size and above


def read_preprocessor(file: object, config: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the keys of timm's `pretrained_cfg` that a preprocessor_config.json stands for, and what was assumed.

    Raises:
        CheckpointError: It does something to images that a preprocessing here cannot.
    """
    kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    if not config.get("do_resize", True) or not config.get("do_rescale", True):
        raise CheckpointError(f"{file} does not resize or rescale images; give --preprocessing")
    size, crop, notes = config.get("size"), config.get("crop_size"), list[str]()
    size = size if isinstance(size, dict) else {"shortest_edge": size} if "ConvNext" in kind else {"height": size}
    side = size.get("shortest_edge") or size.get("height")
    final = crop.get("height") if isinstance(crop, dict) else crop
    if type(side) is not int or (size.get("width") or side) != side:
        raise CheckpointError(f"{file}: size {str(config.get('size'))[:60]} is not one square; give --preprocessing")
    found: dict[str, Any] = {"input_size": [3, side, side], "crop_mode": "squash"}
    if "ConvNext" in kind:
        if side < SQUASHED_FROM:
            found |= {"crop_mode": "center", "crop_pct": config.get("crop_pct") or 224 / 256}
    elif config.get("do_center_crop") and type(final) is int:
        found = {"input_size": [3, final, final], "crop_mode": "center", "crop_pct": min(1.0, final / side)}
        if "shortest_edge" not in size:
            notes.append("its processor squashes images before it crops; here their sides keep their proportion")
    elif "shortest_edge" in size:
        found |= {"crop_mode": "center", "crop_pct": 1.0}
    resample = config.get("resample", 3 if "DeiT" in kind else 2)
    found["interpolation"] = RESAMPLE.get(resample, "bilinear") if isinstance(resample, int) else "bilinear"
    normalize = config.get("do_normalize", True)
    found["mean"] = config.get("image_mean", [0.5] * 3) if normalize else [0.0] * 3
    found["std"] = config.get("image_std", [0.5] * 3) if normalize else [1.0] * 3
    return found, notes
