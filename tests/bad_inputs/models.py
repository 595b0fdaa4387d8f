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

from bad_inputs.case import EXTEND, Case, Command, Output, Workspace
from bad_inputs.folders import case
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
    intact = {**model.backbone.state_dict(), "fc.weight": model.linears()[0].weight, "fc.bias": model.linears()[0].bias}
    return {name: value.detach().clone() for name, value in intact.items()}


def labels(workspace: Workspace) -> Path:
    path = workspace.tmp_path / "labels.txt"
    path.write_text("\n".join(OLD.classes), encoding="utf-8")
    return path


def commands_opening(workspace: Workspace, model: Path, *contains: str, codes: tuple[int, ...] = (2,)) -> list[Command]:
    """A model before the commands that open one; nothing that hangs on the network or the images comes first."""
    flags = (*ARCH, "--labels", labels(workspace)) if model.is_file() else ()
    image = workspace.data / "blue" / "0.png"
    return [
        Command(
            ("extend", model, workspace.data, workspace.out, *EXTEND, "--method", "frozen", *flags), codes, contains
        ),
        Command(("predict", model, image, *flags), codes, contains),
        Command(("serve", model, "--trial", "--port", "0", "--workers", "1", *flags), codes, contains),
    ]


def malicious(workspace: Workspace) -> Sequence[Command]:
    trap, result = workspace.tmp_path / "trap", []
    checkpoint = {"state_dict": weights(), "x": Malicious(trap)}
    for name in ("zip.pth", "raw.pt", "legacy.bin"):
        path = workspace.tmp_path / name
        if name == "raw.pt":
            path.write_bytes(pickle.dumps({"x": Malicious(trap)}, 2))
        else:
            torch.save(checkpoint, path, _use_new_zipfile_serialization=name == "zip.pth")
        result += commands_opening(workspace, path, "would run code from the file", "system")[: 1 if result else 3]
    folder = workspace.tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"architecture": "test_resnet", "label_names": ["a", "b", "c"]}')
    shutil.copy(workspace.tmp_path / "zip.pth", folder / "pytorch_model.bin")

    def was_not_run(workspace: Workspace, _: Output) -> None:
        assert not trap.exists()

    return [
        command._replace(check=was_not_run)
        for command in (*result, commands_opening(workspace, folder, "would run code")[1])
    ]


def pickled_module(workspace: Workspace) -> Sequence[Command]:
    torch.save(parent(), workspace.tmp_path / "whole.pth")
    return commands_opening(
        workspace, workspace.tmp_path / "whole.pth", "whole pickled nn.Module", "model.state_dict()"
    )[:2]


def safetensors(workspace: Workspace) -> Sequence[Command]:
    save_file(weights(), workspace.tmp_path / "good.safetensors")
    intact = (workspace.tmp_path / "good.safetensors").read_bytes()
    size = struct.unpack("<Q", intact[:8])[0]
    head, body = json.loads(intact[8 : 8 + size]), intact[8 + size :]

    def with_header(change: Callable[[Config], object]) -> bytes:
        changed = json.loads(json.dumps(head))
        change(changed)
        text = json.dumps(changed).encode()
        return struct.pack("<Q", len(text)) + text + body

    name = next(iter(head))
    other = [key for key in head if key != "__metadata__"][-1]
    result: list[Command] = []
    for at, data in enumerate([
        intact[: len(intact) // 2],
        struct.pack("<Q", 2**63) + intact[8:],
        with_header(lambda h: h[other].update(data_offsets=h[name]["data_offsets"])),
        with_header(lambda h: h[other].update(data_offsets=[0, 2**40])),
        with_header(lambda h: h[other].update(shape=[2**62, 2**62])),
        intact + b"trailing",
        intact[:8] + b"{" * size + body,
        b"",
    ]):  # fmt: skip
        path = workspace.tmp_path / f"{at}.safetensors"
        path.write_bytes(data)
        result.append(commands_opening(workspace, path, "not a valid safetensors file")[at % 3])
    return result


def non_finite(workspace: Workspace) -> Sequence[Command]:
    result: list[Command] = []
    for at, value in enumerate((float("nan"), float("inf"))):
        broken = weights()
        broken["fc.bias"][1] = value
        torch.save(broken, workspace.tmp_path / f"{at}.pth")
        result += commands_opening(
            workspace, workspace.tmp_path / f"{at}.pth", "'fc.bias' contains NaN or infinite values"
        )[at : at + 2]
    bundle = copy_parent(workspace, "bundle")
    tensors = load_file(bundle / "model.safetensors")
    tensors["fc.bias"][0] = float("nan")
    save_file(tensors, bundle / "model.safetensors")
    memory = copy_parent(workspace, "memory")
    save_file({"ewc.fisher": torch.tensor([float("nan")])}, memory / "memory.safetensors")
    return [
        *result,
        *commands_opening(workspace, bundle, "NaN or infinite"),
        commands_opening(workspace, memory, "NaN or infinite")[0],
    ]


def copy_parent(workspace: Workspace, name: str) -> Path:
    return Path(shutil.copytree(workspace.parent, workspace.tmp_path / name))


def wrong_shape(workspace: Workspace) -> Sequence[Command]:
    def saved(name: str, tensors: object) -> Path:
        torch.save(tensors, workspace.tmp_path / name)
        return workspace.tmp_path / name

    good = weights()
    renamed = {name.replace("fc.", "head."): value for name, value in good.items()}
    shifted = {name.replace("conv1.", "stem."): value for name, value in good.items()}
    headless = {name: value for name, value in good.items() if not name.startswith("fc.")}
    wide = {**good, "fc.weight": torch.zeros(4, good["fc.weight"].shape[1]), "fc.bias": torch.zeros(4)}
    flags = ("--labels", labels(workspace))
    other = saved("other.pth", good)
    return [
        Command(("predict", other, workspace.data, *flags, "--arch", "test_vit"), (2,), ("is not a test_vit:",)),
        *commands_opening(workspace, saved("shifted.pth", shifted), "is not a test_resnet", "conv1.0.weight (missing")[
            :2
        ],
        commands_opening(workspace, saved("renamed.pth", renamed), codes=(0,))[1],
        commands_opening(workspace, saved("headless.pth", headless), "without its classifier: fc.weight is missing")[1],
        commands_opening(
            workspace, saved("extra.pth", {**good, "neck.step": torch.ones(2)}), "neck.step (2 in the file, missing in"
        )[1],
        commands_opening(workspace, saved("wide.pth", wide), "has 4 classes, but there are 3 class names")[1],
        commands_opening(workspace, saved("module.pth", {f"module.{k}": v for k, v in good.items()}), codes=(0,))[1],
        commands_opening(
            workspace,
            saved("half.pth", {k: v.half() if v.is_floating_point() else v for k, v in good.items()}),
            codes=(0,),
        )[0],
    ]


def edit_task(config: Config, **changes: object) -> None:
    config["taskgraft"]["tasks"][0].update(changes)


EDITS: list[tuple[str, Callable[[Config], object]]] = [
    ("does not match its rows", lambda c: edit_task(c, classes=["a", "b"])),
    ("does not match its rows", lambda c: edit_task(c, classes=["a", "a", "b"])),
    ("does not match its rows", lambda c: edit_task(c, range=[-3, 0])),
    (
        "does not match its rows",
        lambda c: c["taskgraft"]["tasks"].append({"name": "b", "classes": ["x"], "range": [2, 3]}),
    ),
    ("the tasks cover 3 of 4 rows", lambda c: c.update(num_classes=4)),
    ("damaged", lambda c: edit_task(c, name="../../evil")),
    ("damaged", lambda c: edit_task(c, classes=["x"] * 100_001, range=[0, 100_001])),
    ("damaged", lambda c: edit_task(c, classes=["x" * 2000, "b", "c"])),
    ("damaged", lambda c: edit_task(c, file="/etc/passwd")),
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


def configurations(workspace: Workspace) -> Sequence[Command]:
    result: list[Command] = []
    image = workspace.data / "blue" / "0.png"
    for at, (contains, edit) in enumerate(EDITS):
        folder = copy_parent(workspace, f"bundle{at}")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        edit(config)
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        result.append(Command(("predict", folder, image), (2,), (contains,)))
    large = copy_parent(workspace, "large")
    (large / "config.json").write_bytes((large / "config.json").read_bytes() + b" " * 70 * 2**20)
    endless = copy_parent(workspace, "endless")
    (endless / "config.json").write_text("[" * 200_000, encoding="utf-8")
    foreign = workspace.tmp_path / "foreign"
    foreign.mkdir()
    save_file(weights(), foreign / "model.safetensors")
    (foreign / "config.json").write_text(json.dumps({
        "architecture": "test_resnet", "label_names": ["a", "b"], "num_classes": 2,
        "pretrained_cfg": {"file": "/etc/passwd", "url": "http://169.254.169.254/"},
    }))  # fmt: skip
    return [
        *result,
        commands_opening(workspace, large, "larger than")[0],
        commands_opening(workspace, endless, "config.json")[1],
        commands_opening(workspace, foreign, "has 2 names, but the classifier has 3 classes")[1],
    ]


def same_task(workspace: Workspace) -> Sequence[Command]:
    data = workspace.tmp_path / "shapes"
    for name, label in zip(("blue", "red", "blue"), OLD.classes, strict=True):
        shutil.copytree(workspace.data / name, data / label)
    return [
        Command(("extend", workspace.parent, workspace.data, workspace.out, *EXTEND, "--task", "shape"), (2,),
            ("already has a task 'shape'",)),
        Command(("extend", workspace.parent, data, workspace.out, *EXTEND, "--method", "frozen"),
            contains=("these classes already exist in task shape", "--into shape")),
    ]  # fmt: skip


def lfs_pointer(workspace: Workspace) -> Sequence[Command]:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 123\n"
    (workspace.tmp_path / "x.safetensors").write_text(text)
    (workspace.tmp_path / "x.pth").write_text(text)
    bundle = copy_parent(workspace, "bundle")
    (bundle / "model.safetensors").write_text(text)
    contains = ("is a Git LFS pointer, not the weights; fetch them with: git lfs pull",)
    return [
        commands_opening(workspace, workspace.tmp_path / "x.safetensors", *contains)[0],
        commands_opening(workspace, workspace.tmp_path / "x.pth", *contains)[1],
        commands_opening(workspace, bundle, *contains)[2],
    ]


def newer_format(workspace: Workspace) -> Sequence[Command]:
    bundle = copy_parent(workspace, "bundle")
    config = json.loads((bundle / "config.json").read_text(encoding="utf-8"))
    config["taskgraft"]["format"] = 99
    (bundle / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return commands_opening(workspace, bundle, "has bundle format 99, but this taskgraft reads up to", "upgrade")


CASES: list[Case] = [
    case(42, "malicious pickle: .pth, .pt, .bin, zip and raw", "not run, its global named", malicious),
    case(43, "pickled nn.Module", "refused, with what to save instead", pickled_module),
    case(44, "safetensors: cut, header 2^63, overlapping, out of range, trailing", "one line", safetensors),
    case(45, "weights that are NaN or infinite", "refused, the tensor named", non_finite),
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
        "refused; reported",
        same_task,
        "equal class names are reported, not refused: two tasks may well have the same classes (color of car, of roof)",
    ),
    case(49, "Git LFS pointer", "named, with the command that fetches", lfs_pointer),
    case(50, "newer format", "says which is read", newer_format),
]
