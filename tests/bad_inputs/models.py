"""Bad inputs 42 to 50: files and folders that say they are models."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from bad_inputs.folders import case
from bad_inputs.trying import EXTEND, Case, Place, Told, Try
from toys import OLD, parent

ARCH = ("--arch", "test_resnet", "--preprocessing", "32 squash bilinear half", "--parent-task", "shape")
Config = dict[str, Any]


class Malicious:
    """Runs a command when it is unpickled without care."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.trap}'",)


def weights() -> dict[str, torch.Tensor]:
    """The tensors of the tiny network, as a plain checkpoint has them."""
    model = parent()
    whole = {**model.backbone.state_dict(), "fc.weight": model.linears()[0].weight, "fc.bias": model.linears()[0].bias}
    return {name: value.detach().clone() for name, value in whole.items()}


def labels(place: Place) -> Path:
    path = place.root / "labels.txt"
    path.write_text("\n".join(OLD.classes), encoding="utf-8")
    return path


def tried(place: Place, model: Path, *says: str, codes: tuple[int, ...] = (2,)) -> list[Try]:
    """A model before the commands that open one; nothing that hangs on the network or the images comes first."""
    flags = (*ARCH, "--labels", labels(place)) if model.is_file() else ()
    picture = place.data / "blue" / "0.png"
    return [
        Try(("extend", model, place.data, place.out, *EXTEND, "--method", "frozen", *flags), codes, says),
        Try(("predict", model, picture, *flags), codes, says),
        Try(("serve", model, "--trial", "--port", "0", "--workers", "1", *flags), codes, says),
    ]


def malicious(place: Place) -> Sequence[Try]:
    trap, found = place.root / "trap", []
    evil = {"state_dict": weights(), "x": Malicious(trap)}
    for name in ("zip.pth", "raw.pt", "legacy.bin"):
        path = place.root / name
        if name == "raw.pt":
            path.write_bytes(pickle.dumps({"x": Malicious(trap)}, 2))
        else:
            torch.save(evil, path, _use_new_zipfile_serialization=name == "zip.pth")
        found += tried(place, path, "would run code from the file", "system")[: 1 if found else 3]
    folder = place.root / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "test_resnet", "label_names": ["a", "b", "c"]}')
    shutil.copy(place.root / "zip.pth", folder / "pytorch_model.bin")

    def unsprung(place: Place, _: Told) -> None:
        assert not trap.exists()

    return [one._replace(look=unsprung) for one in (*found, tried(place, folder, "would run code")[1])]


def module(place: Place) -> Sequence[Try]:
    torch.save(parent(), place.root / "whole.pth")
    return tried(place, place.root / "whole.pth", "would run code from the file (", "model.state_dict()")[:2]


def safetensors(place: Place) -> Sequence[Try]:
    save_file(weights(), place.root / "good.safetensors")
    whole = (place.root / "good.safetensors").read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    head, body = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def again(change: Callable[[Config], object]) -> bytes:
        changed = json.loads(json.dumps(head))
        change(changed)
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + body

    name = next(iter(head))
    other = [key for key in head if key != "__metadata__"][-1]
    found: list[Try] = []
    for at, data in enumerate([
        whole[: len(whole) // 2],
        struct.pack("<Q", 2**63) + whole[8:],
        again(lambda h: h[other].update(data_offsets=h[name]["data_offsets"])),
        again(lambda h: h[other].update(data_offsets=[0, 2**40])),
        again(lambda h: h[other].update(shape=[2**62, 2**62])),
        whole + b"trailing",
        whole[:8] + b"{" * size + body,
        b"",
    ]):  # fmt: skip
        path = place.root / f"{at}.safetensors"
        path.write_bytes(data)
        found.append(tried(place, path, "not a valid safetensors file")[at % 3])
    return found


def not_finite(place: Place) -> Sequence[Try]:
    found: list[Try] = []
    for at, value in enumerate((float("nan"), float("inf"))):
        broken = weights()
        broken["fc.bias"][1] = value
        torch.save(broken, place.root / f"{at}.pth")
        found += tried(place, place.root / f"{at}.pth", "'fc.bias' contains NaN or infinite values")[at : at + 2]
    bundle = copied(place, "bundle")
    tensors = load_file(bundle / "model.safetensors")
    tensors["fc.bias"][0] = float("nan")
    save_file(tensors, bundle / "model.safetensors")
    memory = copied(place, "memory")
    save_file({"ewc.fisher": torch.tensor([float("nan")])}, memory / "memory.safetensors")
    return [*found, *tried(place, bundle, "NaN or infinite"), tried(place, memory, "NaN or infinite")[0]]


def copied(place: Place, name: str) -> Path:
    return Path(shutil.copytree(place.parent, place.root / name))


def wrong_shape(place: Place) -> Sequence[Try]:
    def saved(name: str, tensors: object) -> Path:
        torch.save(tensors, place.root / name)
        return place.root / name

    good = weights()
    renamed = {name.replace("fc.", "head."): value for name, value in good.items()}
    headless = {name: value for name, value in good.items() if not name.startswith("fc.")}
    wide = {**good, "fc.weight": torch.zeros(4, good["fc.weight"].shape[1]), "fc.bias": torch.zeros(4)}
    flags = ("--labels", labels(place))
    other = saved("other.pth", good)
    return [
        Try(("predict", other, place.data, *flags, "--arch", "test_vit"), (2,), ("is not a test_vit:",)),
        *tried(place, saved("renamed.pth", renamed), "head.weight", "missing in test_resnet", "fc.weight (missing")[:2],
        tried(place, saved("headless.pth", headless), "2 tensors differ, first fc.weight (missing")[1],
        tried(place, saved("extra.pth", {**good, "ema.step": torch.ones(1)}), "ema.step (1 in the file, missing in")[1],
        tried(place, saved("wide.pth", wide), "has 4 classes, but there are 3 class names")[1],
        tried(place, saved("module.pth", {f"module.{k}": v for k, v in good.items()}), codes=(0,))[1],
        tried(place, saved("half.pth", {k: v.half() if v.is_floating_point() else v for k, v in good.items()}),
              codes=(0,))[0],
    ]  # fmt: skip


def task(config: Config, **changes: object) -> None:
    config["taskgraft"]["tasks"][0].update(changes)


EDITS: list[tuple[str, Callable[[Config], object]]] = [
    ("does not match its rows", lambda c: task(c, classes=["a", "b"])),
    ("does not match its rows", lambda c: task(c, classes=["a", "a", "b"])),
    ("does not match its rows", lambda c: task(c, range=[-3, 0])),
    (
        "does not match its rows",
        lambda c: c["taskgraft"]["tasks"].append({"name": "b", "classes": ["x"], "range": [2, 3]}),
    ),
    ("the tasks cover 3 of 4 rows", lambda c: c.update(num_classes=4)),
    ("damaged", lambda c: task(c, name="../../evil")),
    ("damaged", lambda c: task(c, classes=["x"] * 100_001, range=[0, 100_001])),
    ("damaged", lambda c: task(c, classes=["x" * 2000, "b", "c"])),
    ("damaged", lambda c: task(c, file="/etc/passwd")),
    ("timm does not know the architecture", lambda c: c.update(architecture="../../evil")),
    ("model_args", lambda c: c.update(model_args={"checkpoint_path": "/etc/passwd"})),
    ("model_args", lambda c: c.update(model_args={"pretrained": True})),
    ("model_args", lambda c: c.update(model_args={"pretrained_cfg_overlay": {"file": "/etc/passwd"}})),
    ("model_args", lambda c: c.update(model_args={"no_such_thing": 1})),
    ("input_size", lambda c: c["pretrained_cfg"].update(input_size=[3, 10**9, 10**9])),
    ("input_size", lambda c: c["pretrained_cfg"].update(input_size="large")),
    ("mean", lambda c: c["pretrained_cfg"].update(mean=[float("nan")] * 3)),
    ("std", lambda c: c["pretrained_cfg"].update(std=[0, 1, 1])),
    ("crop_pct", lambda c: c["pretrained_cfg"].update(crop_pct=-1)),
]


def configurations(place: Place) -> Sequence[Try]:
    found: list[Try] = []
    picture = place.data / "blue" / "0.png"
    for at, (says, edit) in enumerate(EDITS):
        folder = copied(place, f"bundle{at}")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        edit(config)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        found.append(Try(("predict", folder, picture), (2,), (says,)))
    large = copied(place, "large")
    (large / "config.json").write_bytes((large / "config.json").read_bytes() + b" " * 70 * 2**20)
    endless = copied(place, "endless")
    (endless / "config.json").write_text("[" * 200_000, encoding="utf-8")
    foreign = place.root / "foreign"
    foreign.mkdir()
    save_file(weights(), foreign / "model.safetensors")
    (foreign / "config.json").write_text(json.dumps({
        "architecture": "test_resnet", "label_names": ["a", "b"], "num_classes": 2,
        "pretrained_cfg": {"file": "/etc/passwd", "url": "http://169.254.169.254/"},
    }))  # fmt: skip
    return [
        *found,
        tried(place, large, "larger than")[0],
        tried(place, endless, "config.json")[1],
        tried(place, foreign, "has 3 classes, but there are 2 class names")[1],
    ]


def equal_task(place: Place) -> Sequence[Try]:
    data = place.root / "shapes"
    for name, label in zip(("blue", "red", "blue"), OLD.classes, strict=True):
        shutil.copytree(place.data / name, data / label)
    return [
        Try(("extend", place.parent, place.data, place.out, *EXTEND, "--task", "shape"), (2,),
            ("already has a task 'shape'",)),
        Try(("extend", place.parent, data, place.out, *EXTEND, "--method", "frozen"),
            says=("these classes already exist in task shape", "--into shape")),
    ]  # fmt: skip


def pointer(place: Place) -> Sequence[Try]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    (place.root / "x.safetensors").write_text(text)
    (place.root / "x.pth").write_text(text)
    bundle = copied(place, "bundle")
    (bundle / "model.safetensors").write_text(text)
    says = ("is a Git LFS pointer, not the weights; fetch them with: git lfs pull",)
    return [
        tried(place, place.root / "x.safetensors", *says)[0],
        tried(place, place.root / "x.pth", *says)[1],
        tried(place, bundle, *says)[2],
    ]


def newer(place: Place) -> Sequence[Try]:
    bundle = copied(place, "bundle")
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    config["taskgraft"]["format"] = 99
    (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return tried(place, bundle, "has bundle format 99, but this taskgraft reads up to", "upgrade")


CASES: list[Case] = [
    case(42, "malicious pickle: .pth, .pt, .bin, zip and raw", "not run, its global named", malicious),
    case(43, "pickled nn.Module", "refused, with what to save instead", module),
    case(44, "safetensors: cut, header 2^63, overlapping, out of range, trailing", "one line", safetensors),
    case(45, "weights that are NaN or infinite", "refused, the tensor named", not_finite),
    case(
        46,
        "wrong architecture, renamed, module., no head, half precision, extra",
        "the differences listed",
        wrong_shape,
    ),
    case(47, "config.json: too many or equal labels, wrong ranges, paths, arguments, sizes", "refused", configurations),
    case(
        48,
        "a new task with an old one's name; with an old one's classes",
        "refused; told",
        equal_task,
        "equal class names are told, not refused: two tasks may well have the same answers (colour of car, of roof)",
    ),
    case(49, "Git LFS pointer", "named, with the command that fetches", pointer),
    case(50, "newer format", "says which is read", newer),
]
