"""Every public function takes plain strings for its paths, as every script of a newcomer gives them."""

from __future__ import annotations

import inspect
import os
import pickle
import pkgutil
import shutil
import typing
from dataclasses import replace
from pathlib import Path
from types import UnionType
from typing import Any

import pytest

import taskgraft
from taskgraft import Request, SearchConfig, TrainingConfig
from taskgraft.commands.compare import variants
from taskgraft.tuning import space
from toys import OLD

RUN = TrainingConfig(steps=2, batch_size=4, head_steps=0, precision="fp32", eval_every=1)
NO_PATHS = {"doctor", "fisher_diagonal", "grow", "learn", "predict", "wrap"}
TAKING = [
    name
    for name in taskgraft.__all__
    if inspect.isfunction(getattr(taskgraft, name)) and name not in NO_PATHS
]  # fmt: skip


@pytest.fixture(scope="module")
def home(alice: Path, new_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle, a file of weights with its labels, and images of both tasks."""
    home = tmp_path_factory.mktemp("strings")
    shutil.copytree(alice, home / "shapes_bundle")
    shutil.copy(alice / "model.safetensors", home / "shapes.safetensors")
    (home / "labels.txt").write_text("\n".join(OLD.classes), encoding="utf-8")
    shutil.copytree(new_folder, home / "paints")
    shutil.copytree(old_folder, home / "shapes")
    return home


@pytest.fixture
def here(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(home, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


FOREIGN: dict[str, Any] = {"arch": "test_resnet", "labels": "labels.txt", "preprocessing": "32 squash bilinear half"}


def extended() -> None:
    done = taskgraft.extend(
        "shapes.safetensors", "paints", "both/", task="paint", config=RUN, old="shapes/train", old_val="shapes/val",
        cache="cache", **FOREIGN,
    )  # fmt: skip
    assert done.record.reproduce_command == (
        "taskgraft extend shapes.safetensors paints both --task paint --method branch --old shapes/train "
        "--old-val shapes/val --arch test_resnet --labels labels.txt --preprocessing '32 squash bilinear half' "
        "--steps 2 --batch-size 4 --head-steps 0 --precision fp32 --eval-every 1"
    )
    several = taskgraft.extend("shapes_bundle", "paints", "again", task="paint", config=RUN, old_val=["shapes/val"])
    assert len(taskgraft.load("both").record.tasks) == len(several.record.tasks) == 2


def compressed() -> None:
    config = replace(RUN, norm="frozen", views=0)
    done = taskgraft.compress("shapes_bundle", "shapes", "one", unlabeled="paints", config=config, cache="cache")
    assert done.record.one_backbone


def merged() -> None:
    taskgraft.train("paints", "painter", task="paint", model="test_resnet", config=RUN)
    done = taskgraft.merge(
        "shapes_bundle", "painter", "both_merged", images="paints/train", val="shapes/val", ancestor="shapes_bundle",
        config=replace(RUN, norm="frozen", views=0), cache="cache",
    )  # fmt: skip
    assert [task.name for task in done.record.tasks] == ["shape", "paint"]


def refreshed() -> None:
    config = replace(RUN, norm="frozen", views=0)
    done = taskgraft.refresh("shapes_bundle", "shapes", "later", old_val="shapes/val", config=config, cache="cache")
    assert [task.name for task in done.record.tasks] == ["shape", "shape, new images"]


def removed() -> None:
    less = taskgraft.remove("shapes_bundle", "fewer", task="shape", classes="thin")
    again = taskgraft.remove("shapes.safetensors", "same", task="shapes", classes=["thin"], **FOREIGN)
    assert [len(task.classes) for task in (*less.bundle.tasks, *again.bundle.tasks)] == [2, 2]


def compared() -> None:
    request = Request("shapes_bundle", "paints", "paint", config=RUN, old_val="shapes/val")
    result = taskgraft.compare(request, variants(["finetune"], [], RUN), "table", seeds=1, separate=0, cache="cache")
    assert result.variants[0].records
    assert Path("table/report.html").is_file()


def tuned() -> None:
    request = Request("shapes_bundle", "paints", "paint", config=RUN, old_val=["shapes/val"])
    searched = space.parse("distill(strength=[0.1, 10])", "", RUN)
    result = taskgraft.tune(request, searched, "search", search_config=SearchConfig(sampler="grid"), cache="cache")
    assert Path(result.choices[0].folder).is_dir()


def trained() -> None:
    preprocessing = "32 squash bilinear half"
    done = taskgraft.train(
        "shapes", "first", task="shape", model="test_resnet", preprocessing=preprocessing, config=RUN, cache="cache"
    )
    assert done.out == Path("first")
    taskgraft.train("paints", "second", model="test_resnet", weights="shapes_bundle", config=RUN)
    taskgraft.train(
        "paints", "third", model="test_resnet", weights="shapes.safetensors", preprocessing=preprocessing, config=RUN
    )


def looked() -> None:
    result = taskgraft.check(
        "paints", manifest="table.csv", against="shapes.safetensors", arch="test_resnet", labels="labels.txt",
        html="check.html",
    )  # fmt: skip
    assert result["data"] == "paints"
    assert Path("check.html").is_file()
    assert Path("table.csv").is_file()


def measured() -> None:
    result = taskgraft.evaluate("shapes.safetensors", "shapes", html="page.html", cache="cache", **FOREIGN)
    assert result["accuracy"] > 0.5
    assert Path("page.html").is_file()
    assert taskgraft.calibrate("shapes_bundle", "shapes/val", cache="cache")["task"] == "shape"


def answered() -> None:
    image = sorted(Path("paints/val").rglob("*.png"))[0]
    assert len(list(taskgraft.predict_files("shapes.safetensors", str(image), **FOREIGN))) == 1
    assert len(list(taskgraft.predict_files("shapes_bundle", ["paints/val", "shapes/val"]))) == 48
    assert taskgraft.predict_to("shapes_bundle", "paints/val", "answers.csv").predicted == 24
    assert taskgraft.predict_to("shapes_bundle", ["paints/val"], "more.jsonl").done


def counted() -> None:
    one = taskgraft.distribution("shapes_bundle", "shapes/val", out="shares")
    assert one.sources == ("shapes/val",)
    assert Path("shares/distribution.html").is_file()
    several = taskgraft.distribution("shapes.safetensors", ["shapes/val", "paints/val"], **FOREIGN)
    assert several.images == 48


def exported() -> None:
    done = taskgraft.export("shapes_bundle", "timm", format="safetensors", check="shapes/val", cache="cache")
    assert done.checks[0].images == 24
    taskgraft.export("shapes.safetensors", "more", format="safetensors", check=["shapes/val"], **FOREIGN)


def signed() -> None:
    pytest.importorskip("cryptography")
    shutil.copytree("shapes_bundle", "signed_bundle")
    fingerprint = taskgraft.sign("signed_bundle", "me.key", new_key=True)
    assert taskgraft.verify_signature("signed_bundle", "me.key.pub") == fingerprint


def shared() -> None:
    taskgraft.open_parent("shapes_bundle").save_pretrained("shared")
    assert taskgraft.from_pretrained("shared").source == "shared"


def opened() -> None:
    assert taskgraft.open_parent("shapes.safetensors", **FOREIGN).source == "shapes.safetensors"
    assert taskgraft.open_parent("shapes_bundle").folder == Path("shapes_bundle")
    assert taskgraft.load("shapes_bundle").out == Path("shapes_bundle")


def served() -> None:
    pytest.importorskip("fastapi")
    assert taskgraft.serve("shapes.safetensors", trial=True, port=0, **FOREIGN)["tasks"]


# What calls which of the public functions; `demo` takes minutes and is only asked what it would do first.
CALLS = {
    extended: {"extend", "load"}, compressed: {"compress"}, merged: {"merge"}, refreshed: {"refresh"},
    removed: {"remove"},
    compared: {"compare"}, tuned: {"tune"},
    trained: {"train"}, looked: {"check"}, measured: {"evaluate", "calibrate"},
    answered: {"predict_files", "predict_to"}, counted: {"distribution"}, exported: {"export"},
    signed: {"sign", "verify_signature"}, shared: {"from_pretrained"}, opened: {"open_parent", "load"},
    served: {"serve"},
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
def test_strings_do(call, here: Path) -> None:
    call()


def test_the_demo_too(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from taskgraft.commands import demo

    class Drawn(Exception):
        pass

    def draw(folder: Path, **given: object) -> None:
        raise Drawn(folder)

    monkeypatch.setattr(demo, "write_cars", draw)
    with pytest.raises(Drawn) as drawn:
        taskgraft.demo("demo-run", cache="cache")
    assert drawn.value.args == (Path("demo-run/data/makes"),)


def test_nothing_public_is_left_out() -> None:
    assert set().union(*CALLS.values()) | {"demo"} == set(TAKING)


def test_no_module_takes_the_place_of_a_public_name() -> None:
    """Once imported, a module is an attribute of its package and hides what `__getattr__` would give."""
    assert {module.name for module in pkgutil.iter_modules(taskgraft.__path__)}.isdisjoint(taskgraft.__all__)


def kinds(annotation: object) -> set[object]:
    """All types that an annotation is made of."""
    parts = typing.get_args(annotation)
    full = set() if isinstance(annotation, UnionType) else {annotation}
    return full.union(*(kinds(part) for part in parts)) if parts else {annotation}


@pytest.mark.parametrize("name", [*TAKING, "Request"])
def test_the_annotations_say_so(name: str) -> None:
    called = getattr(taskgraft, name)
    called = called.__init__ if inspect.isclass(called) else called
    hints = typing.get_type_hints(called)
    hints.pop("return", None)
    paths = [name for name, hint in hints.items() if kinds(hint) & {Path, os.PathLike[str]}]
    assert paths
    for one in paths:
        assert str in kinds(hints[one]), one
        assert Path not in kinds(hints[one]), one


def test_a_request_is_the_same_however_its_paths_are_given() -> None:
    strings = Request("a", "b", "paint", old="o", old_val="v", labels="l.txt")
    paths = Request(Path("a"), Path("b"), "paint", old=Path("o"), old_val=(Path("v"),), labels=Path("l.txt"))
    assert strings == paths
    assert hash(strings) == hash(paths)
    assert (strings.parent, strings.data, strings.old, strings.old_val) == ("a", Path("b"), Path("o"), (Path("v"),))
    assert Request("a", "b", "paint", old_val=["v", Path("w")]).old_val == (Path("v"), Path("w"))
    assert replace(strings, method="ewc", old_val=()) == Request("a", "b", "paint", "ewc", old="o", labels="l.txt")
    assert pickle.loads(pickle.dumps(strings)) == strings
    with pytest.raises(AttributeError):
        strings.task = "other"  # pyright: ignore[reportAttributeAccessIssue]
    assert "old_val=(" in repr(strings)
