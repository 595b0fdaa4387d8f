"""Children that are more than one linear layer on one backbone go to disk and come back as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taskgraft.bundle import Bundle, format
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import TaskgraftError
from taskgraft.models.classifier import Classifier, grow, widen
from taskgraft.models.inference import predict
from toys import NEW, OLD, RUN, finished, parent, pictures

SIZE = Preprocessing(size=32, crop="squash")


def stored(classifier: Classifier, folder: Path, arch: str = "test_resnet") -> Bundle:
    head = {"test_resnet": "fc", "test_efficientnet": "classifier"}[arch]
    bundle = Bundle(classifier.eval(), SIZE, {}, "here", "0" * 64, arch, head)
    folder.mkdir(parents=True, exist_ok=True)
    format.write(folder, bundle, method="x", parent={})
    return format.read(folder)


def answers(classifier: Classifier) -> dict[str, np.ndarray]:
    return predict(classifier, pictures(12, NEW, 8)).logits


def equal(one: Classifier, two: Classifier) -> bool:
    left, right = answers(one), answers(two)
    return list(left) == list(right) and all(np.array_equal(left[task], right[task]) for task in left)


@pytest.mark.parametrize("arch", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize(
    "text", ["taps", "branch(shared=0.5)", "ladder", "branch(shared=0.5) + ladder + taps", "taps(backbone=trained)"]
)
def test_a_grafted_child_comes_back_bit_for_bit(text: str, arch: str, tmp_path: Path) -> None:
    child, _ = finished(text, model=parent(arch))
    again = stored(child, tmp_path / "b", arch).classifier
    assert equal(child, again)
    assert again.parts == child.parts
    assert not json.loads((tmp_path / "b/config.json").read_text())["taskgraft"]["plain_timm"]


def test_a_chain_of_taps_branch_and_added_classes_comes_back(tmp_path: Path) -> None:
    first, _ = finished("taps")
    second = stored(first, tmp_path / "one").classifier
    wider = widen(second, NEW.name, ("violet", "brown"), 5)
    again = stored(wider, tmp_path / "two").classifier
    assert equal(wider, again)
    assert [task.classes for task in again.tasks] == [OLD.classes, (*NEW.classes, "violet", "brown")]
    third = grow(again, OLD._replace(name="size"), 2)
    assert equal(third, stored(third, tmp_path / "three").classifier)


def test_added_classes_join_the_rows_of_their_task(tmp_path: Path) -> None:
    child, _ = finished("distill")
    wider = widen(child, OLD.name, ("oval",), 5)
    again = stored(wider, tmp_path / "b")
    assert equal(wider, again.classifier)
    config = json.loads((tmp_path / "b/config.json").read_text())
    assert config["label_names"] == [*OLD.classes, "oval", *NEW.classes]
    assert [entry["range"] for entry in config["taskgraft"]["tasks"]] == [[0, 4], [4, 8]]


def moved(config: dict[str, Any], columns: list[int]) -> list[dict[str, Any]]:
    """The heads, the newest of which reads other columns."""
    *others, last = config["taskgraft"]["heads"]
    return [*others, {**last, "columns": columns}]


def test_a_damaged_structure_is_refused(tmp_path: Path) -> None:
    child, _ = finished("taps")
    stored(child, tmp_path / "b")
    good = json.loads((tmp_path / "b/config.json").read_text())
    for change, message in (
        ({"extras": [{"kind": "taps", "at": ["nowhere"], "width": 9}]}, "has no stage 'nowhere'"),
        ({"extras": [{"kind": "magic", "at": ["x"]}]}, "damaged"),
        ({"extras": [{"kind": "ladder", "at": ["layer1.0"], "channels": [32], "width": 8}]}, "0 rungs: damaged"),
        ({"extras": []}, "does not fit"),
        ({"heads": good["taskgraft"]["heads"][:1]}, "do not have the rows"),
        ({"heads": []}, "extras but no heads"),
        ({"heads": moved(good, [0, 10**9])}, "has not 4 rows of the columns"),
        ({"heads": moved(good, [105, 1241])}, "reads columns 105 to 1241 of 1232"),
        ({"head": "conv1"}, "'conv1' is no linear layer"),
        ({"head": "nowhere.else"}, "is no linear layer"),
    ):
        (tmp_path / "b/config.json").write_text(json.dumps({**good, "taskgraft": {**good["taskgraft"], **change}}))
        with pytest.raises(TaskgraftError, match=message):
            format.read(tmp_path / "b")


@pytest.mark.parametrize(
    ("key", "sizes", "message"),
    [
        ("widths", [60_000], "rung 0 of a ladder has not 60000 rows of 96 channels"),
        ("channels", [65_000], "rung 0 of a ladder has not 8 rows of 65000 channels"),
        ("widths", [8, 8], "2 rungs: damaged"),
    ],
)
def test_a_ladder_of_other_sizes_than_its_weights_is_refused(
    key: str, sizes: list[int], message: str, tmp_path: Path
) -> None:
    child, _ = finished("ladder(rungs=1, width=8)")
    stored(child, tmp_path / "b")
    config = json.loads((tmp_path / "b/config.json").read_text())
    (extra,) = config["taskgraft"]["extras"]
    extra[key] = sizes
    (tmp_path / "b/config.json").write_text(json.dumps(config))
    with pytest.raises(TaskgraftError, match=message):
        format.read(tmp_path / "b")


def test_growing_a_grafted_child_leaves_its_answers_alone() -> None:
    child, _ = finished("branch(shared=0.5) + taps")
    before = answers(child)
    after = answers(grow(child, OLD._replace(name="size"), RUN.seed))
    assert all(np.array_equal(before[task], after[task]) for task in before)
    assert torch.equal(child.linears()[0].weight, grow(child, OLD._replace(name="size"), 1).linears()[0].weight)
