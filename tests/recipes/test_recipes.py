"""The programs of recipes/, run on toy images with few steps: what each promises holds."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader

from taskgraft import SearchConfig, TrainingConfig, WorkerConfig, open_parent
from toys import NEW, OLD, write_folder

pytestmark = pytest.mark.usefixtures("no_charts")

RECIPES = Path(__file__).parents[2] / "recipes"
RUN = TrainingConfig(steps=4, batch_size=8, head_steps=4, eval_every=2, views=2, precision="fp32")


def recipe(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"recipes_{name}", RECIPES / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def paint(new_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The new images in a folder that bears their task's name."""
    return Path(shutil.copytree(new_folder, tmp_path_factory.mktemp("recipes") / "paint"))


@pytest.fixture(scope="module")
def shape(old_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(old_folder, tmp_path_factory.mktemp("recipes") / "shape"))


def test_programs_are_short_and_complete() -> None:
    programs = sorted(RECIPES.glob("*.py"))
    assert len(programs) == 11
    for path in programs:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 80, path
        assert f"recipe({path.stem!r})".replace("'", '"') in Path(__file__).read_text(encoding="utf-8")


def test_page_shows_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPES.parent / "docs")
    page = importlib.import_module("programs").page()
    for path in RECIPES.glob("*.py"):
        head, _, code = path.read_text(encoding="utf-8").partition('"""\n\n')
        assert code.strip() in page, path
        assert head.splitlines()[0].removeprefix('"""') in page


def test_timm_model(paint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=3)
    timm.models.save_for_hf(
        net, str(tmp_path / "hub"), model_config={"label_names": list(OLD.classes)}, safe_serialization=True
    )
    child = recipe("timm_model").main(paint, tmp_path / "out", f"local-dir:{tmp_path / 'hub'}", RUN)
    assert isinstance(child, nn.Module)
    assert child(torch.zeros(1, 3, 160, 160)).shape == (1, len(OLD.classes) + len(NEW.classes))
    output = capsys.readouterr().out
    assert "imagenet: agreement with the parent" in output
    assert "paint: accuracy" in output


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    return pytest.importorskip("transformers")


def resnet(transformers: Any, folder: Path, **sizes: object) -> Any:
    """Save a ResNet of transformers for the old task, with its image processor."""
    config = transformers.ResNetConfig(
        layer_type="basic", id2label=dict(enumerate(OLD.classes)),
        label2id={name: row for row, name in enumerate(OLD.classes)}, **sizes,
    )  # fmt: skip
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return model


@pytest.mark.filterwarnings("ignore")  # transformers deprecates parts of itself while it is imported
def test_hugging_face(transformers: Any, tmp_path: Path) -> None:
    resnet(
        transformers, tmp_path / "resnet18", embedding_size=64, hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2]
    )
    few = write_folder(tmp_path / "paint", NEW, 12, 3)
    opened = recipe("hugging_face").main(
        str(tmp_path / "resnet18"), str(few), str(tmp_path / "out"), "paint", replace(RUN, steps=2)
    )
    assert {row["label"] for row in opened(str(next(few.rglob("*.png"))), top_k=9)} == {*OLD.classes, *NEW.classes}


@pytest.mark.filterwarnings("ignore")
def test_any_transformers_model(transformers: Any, paint: Path, tmp_path: Path) -> None:
    parent = resnet(transformers, tmp_path / "parent", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    result = recipe("any_transformers_model").main(
        tmp_path / "parent", paint, tmp_path / "child", replace(RUN, steps=20, lr=0.01)
    )
    assert result["new"] > 1.5 / len(NEW.classes)
    assert 0 <= result["agreement"] <= 1
    child = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "child").eval()
    assert list(child.config.id2label.values()) == [*OLD.classes, *sorted(NEW.classes)]
    assert child(pixel_values=torch.zeros(2, 3, 32, 32)).logits.shape == (2, 7)
    assert not torch.equal(
        child.resnet.embedder.embedder.convolution.weight, parent.resnet.embedder.embedder.convolution.weight
    )


def test_tensors_without_images() -> None:
    pytest.importorskip("sklearn")
    recipes = recipe("no_pictures")
    plain, kept = recipes.digits(method="finetune"), recipes.digits()
    assert plain["old, before"] > 0.95
    assert kept["old"] > plain["old"] + 0.02
    assert min(kept.values()) > 0.8
    assert min(recipes.words().values()) > 0.9


def test_chain_of_three(shape: Path, paint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    third = write_folder(tmp_path / "again", OLD, 40, 9)
    table = recipe("chain").main(
        tmp_path / "out", [shape, paint, third], "test_resnet", "32 squash bilinear half", "ewc(images=8) + distill",
        first=RUN, later=RUN,
    )  # fmt: skip
    assert list(table) == ["shape", "paint", "again"]
    assert list(table["again"]) == ["shape", "paint", "again"]
    assert "2 extensions stand in the lineage" in capsys.readouterr().out
    assert [task.name for task in open_parent(str(tmp_path / "out/again")).classifier.tasks] == [
        "shape",
        "paint",
        "again",
    ]


def test_cluster_search(
    alice: Path, paint: Path, old_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_ADDRESS", "SLURM_CPUS_PER_TASK", "SLURM_GPUS", "SEARCH_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    search = recipe("cluster_search")
    assert search.worker_config().jobs == max(1, (os.cpu_count() or 1) // 4)
    with monkeypatch.context() as patch:
        patch.setenv("SLURM_CPUS_PER_TASK", "6")
        assert search.worker_config() == WorkerConfig(jobs=1, threads=6)
        patch.setenv("SLURM_GPUS", "a100:2")
        assert search.worker_config() == WorkerConfig(jobs=2, threads=3)
        patch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        assert search.worker_config().ray == "10.0.0.1:6379"
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    bundles = search.main(
        alice, paint, tmp_path / "search", old_folder / "val", SearchConfig(trials=2, wave=2), RUN,
        "distill(strength=[0.1, 10])",
    )  # fmt: skip
    assert "score" in bundles
    assert [task.name for task in open_parent(str(bundles["score"])).classifier.tasks] == ["shape", "paint"]


@pytest.mark.parametrize("name", ["ewc", "lwf"])
def test_penalties_in_a_loop_of_ones_own(name: str) -> None:
    pytest.importorskip("sklearn")
    program = {"ewc": recipe("ewc_in_your_loop"), "lwf": recipe("lwf_in_your_loop")}[name]
    (plain, _), (kept, new) = program.main(strength=0.0).values(), program.main().values()
    assert kept > plain + 0.1
    assert min(kept, new) > 0.8


def test_fisher_of_a_torchvision_model(tmp_path: Path) -> None:
    images = torchvision.datasets.FakeData(5, (3, 40, 40), transform=torchvision.transforms.ToTensor())
    model = torchvision.models.resnet18(num_classes=4)
    means = recipe("fisher").main(model, DataLoader(images, batch_size=2), str(tmp_path / "fisher.pt"))
    assert means.keys() == dict(model.named_parameters()).keys()
    assert list(means.values()) == sorted(means.values(), reverse=True)
    assert torch.load(tmp_path / "fisher.pt").keys() == means.keys()


def test_heads_on_a_module(capsys: pytest.CaptureFixture[str]) -> None:
    images = torchvision.datasets.FakeData(12, (3, 16, 16), 4, torchvision.transforms.ToTensor())
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    child = recipe("heads_on_a_module").main(net, "4", OLD, NEW, images, RUN)
    assert child.tasks == (OLD, NEW)
    assert "'distill'" in capsys.readouterr().out


def test_grid_search() -> None:
    pytest.importorskip("sklearn")
    found = recipe("grid_search").main(steps=20)
    assert found["tasks"] == ["low", "high"]
    assert found["accuracy"] > 0.8
