"""A bundle whose JSON somebody changed: it opens in full, or it is a TaskgraftError. What a server says of it as
well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fuzz.fuzzing import Target
from taskgraft.bundle import Bundle, digests, read_bundle, write_bundle
from taskgraft.data.transforms import Preprocessing
from taskgraft.errors import TaskgraftError
from taskgraft.methods.composition import build
from taskgraft.methods.notation import parse
from taskgraft.quantification import task_card as cards
from taskgraft.results.files import write_json
from taskgraft.serving import model
from taskgraft.training import loop
from toys import RUN, make_data, parent_memory
from toys import parent as tiny

FILES = ("config.json", "digests.json", "cards/shape.json")
CARD = {
    "task": "shape", "classes": ["round", "square", "thin"], "images": 3, "train_counts": {"round": 4},
    "temperature": 1.5, "energy_level": 2.0, "confusion": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]],
    "mean_posterior": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
}  # fmt: skip
SEEDS = (
    b"{}", b'{"config.json/taskgraft/format": 2}', b'{"config.json/taskgraft/tasks/0/range": [0, 1e999]}',
    b'{"config.json/taskgraft/extras/0/at/0": "layer1"}', b'{"config.json/model_args": {"block_args": null}}',
    b'{"config.json/pretrained_cfg/mean": [0.5, 1e400, 0]}', b'{"config.json/taskgraft/heads": []}',
    b'{"config.json/taskgraft/heads/1/columns": [0, 64]}', b'{"config.json/taskgraft/lineage": [{"parent": "x"}]}',
    b'{"cards/shape.json/temperature": -1}', b'{"cards/shape.json/confusion": [[1], [1, 2]]}',
    b'{"digests.json/files": 7}', b'{"config.json/architecture": "resnet18", "config.json/num_classes": 3}',
    b'{"config.json/taskgraft/head": "conv1"}', b"config.json\n{", b"cards/shape.json\n[]", b"digests.json\nnull",
)  # fmt: skip
WORDS = (
    *(f'"{name}/'.encode() for name in FILES), b"taskgraft/", b"tasks/0/", b"heads/0/", b"extras/0/", b"model_args",
    b"range", b"classes", b"columns", b"rows", b"pretrained_cfg/", b"input_size", b"crop_pct", b"std", b"softmax",
    b"lineage", b"parent", b"architecture", b"num_classes", b'"(gone)"', b"null", b"1e999", b"NaN", b"-1", b"0",
    b"[]", b"{}", b'"../x"', b"true", b"temperature", b"confusion", b"mean_posterior", b"train_counts",
    b"energy_level", b"9" * 400, b'"\\ud800"', b'"layer2"',
)  # fmt: skip


def target(folder: Path) -> Target:
    whole = {}
    root = made(folder / "bundle")
    for name in FILES:
        whole[name] = (root / name).read_bytes()

    def one(data: bytes) -> None:
        changed = patched(whole, data)
        for name, content in changed.items():
            (root / name).write_bytes(content)
        try:
            opened(root)
        except TaskgraftError as error:
            in_one_line(error)
        finally:
            for name in changed:
                (root / name).write_bytes(whole[name])

    return Target(one, SEEDS, WORDS, longest=600, executions=120)


def in_one_line(error: TaskgraftError) -> None:
    assert "\n" not in str(error)


def opened(root: Path) -> None:
    bundle = read_bundle(root)
    digests.compare(root)
    for task in bundle.classifier.tasks:
        bundle.temperature(task)
        cards.read_card(bundle.cards.get(task.name), task.classes)
    json.dumps(model.describe_model(bundle, "m", "torch"))


def made(root: Path) -> Path:
    """A bundle with a branch beside its backbone, since it has more to describe than a plain one."""
    (root / "cards").mkdir(parents=True)
    images = make_data()
    from taskgraft.models.classifier import grow
    from toys import NEW

    child = grow(tiny(), NEW, 0)
    state = loop.start(child, build(parse("branch")), images, parent_memory(child), RUN)
    expected = Preprocessing(32, "squash", 0.875, "bilinear", (0.5,) * 3, (0.5,) * 3)
    known = (
        {"parent": {"source": "x", "tasks": ["shape"]}, "task": "paint", "method": "branch", "accuracy": {"a": 0.5}},
    )
    bundle = Bundle(
        state.classifier, expected, {}, "here", "0", "test_resnet", "fc", lineage=known, cards={"shape": CARD}
    )
    write_bundle(root, bundle, method="branch", parent={})
    write_json(root / "cards" / "shape.json", CARD)
    digests.write(root, {})
    return root


def patched(whole: dict[str, bytes], data: bytes) -> dict[str, bytes]:
    """Files with changes: a JSON object of "file/key/0/key": new value, or a file's name, a line break, its content."""
    name, _, content = data.partition(b"\n")
    if name.decode("latin-1") in FILES:
        return {name.decode("latin-1"): content}
    try:
        expected = json.loads(data)
    except (ValueError, RecursionError):
        return {"config.json": data}
    changed: dict[str, Any] = {}
    for key, value in expected.items() if isinstance(expected, dict) else ():
        file = next((file for file in FILES if key.startswith(file)), None)
        if file:
            changed.setdefault(file, json.loads(whole[file]))
            _set(changed[file], key.removeprefix(file).strip("/").split("/"), value)
    return {file: json.dumps(result).encode() for file, result in changed.items()}


def _set(result: Any, path: list[str], value: Any) -> None:
    *above, last = path
    inner: Any = result
    for key in above:
        try:
            inner = inner[int(key)] if isinstance(inner, list) else inner[key]
        except (KeyError, IndexError, TypeError, ValueError):
            return
    try:
        key: Any = int(last) if isinstance(inner, list) else last
        if value == "(gone)":
            del inner[key]
        else:
            inner[key] = value
    except (KeyError, IndexError, TypeError, ValueError):
        return
