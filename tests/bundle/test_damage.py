"""Values that a stranger may write into a bundle and that were a crash once: each is a TaskgraftError in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from fuzz.bundles import CARD
from taskgraft import pytree
from taskgraft.bundle import Bundle, read, write
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import TaskgraftError
from taskgraft.results.predictions import load_predictions
from taskgraft.results.record import Record, parsed
from taskgraft.serving import model
from toys import parent

WANTED = Preprocessing(32, "squash", 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "bundle"
    folder.mkdir()
    write(
        folder,
        Bundle(parent(), WANTED, {}, "x", "0", "test_resnet", "fc", cards={"shape": CARD}),
        method="x",
        parent={},
    )
    return folder


def changed(folder: Path, file: str, path: str, value: Any) -> Path:
    """The bundle with one value of one file changed; it is put back by the next call."""
    found = json.loads((folder / file).read_text())
    inner = found
    *above, last = path.split("/")
    for key in above:
        inner = inner[key]
    inner[last] = value
    (folder / file).write_text(json.dumps(found))
    return folder


@pytest.mark.parametrize(
    ("file", "path", "value", "words"),
    [
        ("config.json", "taskgraft/format", float("inf"), "cannot convert float infinity"),
        ("config.json", "taskgraft/lineage", [{"parent": "x"}], "taskgraft.lineage.0.parent"),
        ("config.json", "taskgraft/lineage", [{"accuracy": {"a": "x"}}], "taskgraft.lineage.0.accuracy"),
        ("config.json", "pretrained_cfg/mean", [0, 10**400, 0], "has mean"),
        ("config.json", "pretrained_cfg/crop_pct", 1e-300, "has crop_pct"),
        ("config.json", "model_args", {"stem_width": 0}, "cannot be built with its model_args"),
        ("cards/shape.json", "temperature", -1, "temperature: Input should be greater than 0"),
        ("cards/shape.json", "temperature", float("nan"), "temperature: Input should be a finite number"),
        ("cards/shape.json", "temperature", "hot", "temperature: Input should be a valid number"),
        ("cards/shape.json", "classes", 5, "classes: Input should be a valid list"),
        ("cards/shape.json", "train_counts", [1], "train_counts"),
        ("cards/shape.json", "confusion", [[1], [1, 2]], "its rows differ in length"),
        ("cards/shape.json", "mean_posterior", [["x"]], "mean_posterior.0.0"),
    ],
)
def test_a_strange_value_is_refused(whole: Path, file: str, path: str, value: Any, words: str) -> None:
    kept = (whole / file).read_bytes()
    try:
        with pytest.raises(TaskgraftError) as told:
            read(changed(whole, file, path, value))
        assert words in str(told.value)
        assert file in str(told.value)
        assert "\n" not in str(told.value)
    finally:
        (whole / file).write_bytes(kept)
    assert read(whole).cards["shape"] == CARD


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a"), ("a/b", "a/b/c")])
def test_names_below_each_other_are_refused(whole: Path, names: tuple[str, str]) -> None:
    tensors = {name: torch.ones(1) for name in names}
    with pytest.raises(ValueError, match="another tensor"):
        pytree.unflatten(tensors)
    try:
        save_file(tensors, whole / "memory.safetensors")
        with pytest.raises(TaskgraftError, match=r"memory.safetensors is damaged: 'a"):
            read(whole)
    finally:
        (whole / "memory.safetensors").unlink()


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.complex64])
def test_numbers_of_another_kind_are_refused(whole: Path, kind: torch.dtype) -> None:
    try:
        save_file({"a": torch.zeros(4).to(kind)}, whole / "memory.safetensors")
        with pytest.raises(TaskgraftError, match="save the weights as float32"):
            read(whole)
    finally:
        (whole / "memory.safetensors").unlink()


def test_a_damaged_record_is_named(whole: Path, tmp_path: Path) -> None:
    (whole / "record.json").write_text('{"format": 1, "tasks": 7}')
    try:
        with pytest.raises(TaskgraftError, match=r"record.json is damaged: \d+ validation errors for Record"):
            model.describe_model(read(whole), "m", "torch")
    finally:
        (whole / "record.json").unlink()
    with pytest.raises(TaskgraftError, match=r"nowhere\.json is damaged"):
        parsed(Record, tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\0", b"text"])
def test_damaged_predictions_are_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "predictions.npz").write_bytes(content)
    with pytest.raises(TaskgraftError, match=r"predictions.npz is damaged: \w+"):
        load_predictions(tmp_path / "predictions.npz")
