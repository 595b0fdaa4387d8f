"""Children with side networks or added classes are read back bit for bit; a damaged description is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taskgraft.bundle import Bundle, read_bundle, write_bundle
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import TaskgraftError
from taskgraft.models.classifier import Classifier, grow, widen
from taskgraft.models.inference import predict
from toys import NEW, OLD, RUN, make_images, parent, run_to_end

HEADS = {"test_resnet": "fc", "test_efficientnet": "classifier"}


def roundtrip(classifier: Classifier, folder: Path, arch: str = "test_resnet") -> Classifier:
    bundle = Bundle(classifier.eval(), Preprocessing(size=32, crop="squash"), {}, "here", "0" * 64, arch, HEADS[arch])
    folder.mkdir(parents=True, exist_ok=True)
    write_bundle(folder, bundle, method="x", parent={})
    return read_bundle(folder).classifier


def logits(classifier: Classifier) -> dict[str, np.ndarray]:
    return predict(classifier, make_images(12, NEW, 8)).logits


def equal(one: Classifier, two: Classifier) -> bool:
    first, second = logits(one), logits(two)
    return list(first) == list(second) and all(np.array_equal(first[task], second[task]) for task in first)


@pytest.mark.slow
@pytest.mark.parametrize("arch", HEADS)
@pytest.mark.parametrize(
    "method", ["taps", "branch(shared=0.5)", "ladder", "branch(shared=0.5) + ladder + taps", "taps(backbone=trained)"]
)
def test_side_networks_roundtrip(method: str, arch: str, tmp_path: Path) -> None:
    child, _ = run_to_end(method, model=parent(arch))
    again = roundtrip(child, tmp_path, arch)
    assert equal(child, again)
    assert again.head_specs == child.head_specs
    assert not json.loads((tmp_path / "config.json").read_text())["taskgraft"]["plain_timm"]


def test_chain_with_added_classes_roundtrips(tmp_path: Path) -> None:
    first = roundtrip(run_to_end("taps")[0], tmp_path / "one")
    wider = widen(first, NEW.name, ("violet", "brown"), 5)
    again = roundtrip(wider, tmp_path / "two")
    assert equal(wider, again)
    assert [task.classes for task in again.tasks] == [OLD.classes, (*NEW.classes, "violet", "brown")]
    third = grow(again, OLD._replace(name="size"), 2)
    assert equal(third, roundtrip(third, tmp_path / "three"))


def test_added_classes_join_the_rows_of_their_task(tmp_path: Path) -> None:
    wider = widen(run_to_end("distill")[0], OLD.name, ("oval",), 5)
    assert equal(wider, roundtrip(wider, tmp_path))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["label_names"] == [*OLD.classes, "oval", *NEW.classes]
    assert [entry["range"] for entry in config["taskgraft"]["tasks"]] == [[0, 4], [4, 8]]


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pooled")
    roundtrip(run_to_end("taps")[0], folder)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"extras": [{"kind": "pooled", "at": ["nowhere"], "width": 9}]}, "has no stage 'nowhere'"),
        ({"extras": [{"kind": "magic", "at": ["x"]}]}, "is damaged"),
        ({"extras": [{"kind": "rungs", "at": ["layer1.0"], "channels": [32], "width": 8}]}, "is damaged: 0 rungs"),
        ({"extras": []}, "does not match"),
        ({"heads": [{"task": "shape", "rows": 3, "columns": [0, 96]}]}, "do not have the rows"),
        ({"heads": []}, "extras but no heads"),
        ({"columns": [0, 10**9]}, "heads.1.weight is not of 4 rows and 1000000000 columns"),
        ({"columns": [105, 1241]}, "reads columns 105 to 1241 of 1232"),
        ({"head": "conv1"}, "'conv1' is not a linear layer"),
        ({"head": "nowhere.else"}, "is not a linear layer"),
    ],
)
def test_inconsistent_description_is_refused(
    pooled: Path, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    config = json.loads((pooled / "config.json").read_text())
    if "columns" in change:
        config["taskgraft"]["heads"][1].update(change)
    else:
        config["taskgraft"].update(change)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").symlink_to(pooled / "model.safetensors")
    with pytest.raises(TaskgraftError, match=message):
        read_bundle(tmp_path)


@pytest.mark.parametrize(
    ("key", "sizes", "message"),
    [
        ("widths", [60_000], "read.0.weight is not of 60000 rows and 96 columns"),
        ("channels", [65_000], "read.0.weight is not of 8 rows and 65000 columns"),
        ("widths", [8, 8], "is damaged: 2 rungs"),
    ],
)
def test_rungs_must_match_their_weights(key: str, sizes: list[int], message: str, tmp_path: Path) -> None:
    roundtrip(run_to_end("ladder(rungs=1, width=8)")[0], tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["taskgraft"]["extras"][0][key] = sizes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(TaskgraftError, match=message):
        read_bundle(tmp_path)


def test_growing_keeps_old_logits() -> None:
    child, _ = run_to_end("branch(shared=0.5) + taps")
    before, size = logits(child), OLD._replace(name="size")
    after = logits(grow(child, size, RUN.seed))
    assert all(np.array_equal(before[task], after[task]) for task in before)
    assert torch.equal(child.linears()[0].weight, grow(child, size, 1).linears()[0].weight)
