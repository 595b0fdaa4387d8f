"""What an earlier run computed: the same bits, by content, within bounds, and never a damaged file."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from taskgraft import pytree
from taskgraft.bundle import weights
from taskgraft.commands.extend import extend
from taskgraft.config import TrainingConfig
from taskgraft.models import inference, tensor_cache
from taskgraft.models.classifier import Classifier, grow
from taskgraft.models.inference import cached_features, compute_features, predict
from taskgraft.training import loop
from taskgraft.types import Params
from toys import NEW, RUN, equal, make_data, make_images, parent, start_run

pytestmark = pytest.mark.usefixtures("no_charts")


class Counting:
    """A cache that counts what had to be computed."""

    def __init__(self, folder: Path, *about: str) -> None:
        self.made: list[str] = []
        self.inner = tensor_cache.memoize_in(folder, *about)

    def __call__(self, name: str, make: Callable[[], Params]) -> Params:
        return self.inner(name, lambda: self.made.append(name) or make())


def some(seed: int = 0) -> Params:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return {"a": torch.randn(7, 5), "b": torch.arange(3)}


def test_second_run_reads_the_cache(tmp_path: Path) -> None:
    first, second, other = Counting(tmp_path, "x"), Counting(tmp_path, "x"), Counting(tmp_path, "y")
    assert equal(first("name", some), some())
    assert equal(second("name", some), some())
    other("name", some)
    second("another", some)
    assert (first.made, second.made, other.made) == (["name"], ["another"], ["name"])
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "other"])
def test_damaged_file_is_recomputed(damage: str, tmp_path: Path) -> None:
    tensor_cache.memoize_in(tmp_path)("name", some)
    (file,) = tmp_path.iterdir()
    full = file.read_bytes()
    bad = {"bit": bytearray(full), "cut": full[:-4], "empty": b"", "other": b"x" * 100}[damage]
    if isinstance(bad, bytearray):
        bad[-9] ^= 1  # inside a tensor: the format itself would not notice
    file.write_bytes(bytes(bad))
    again = Counting(tmp_path)
    assert equal(again("name", some), some())
    assert again.made == ["name"]
    assert file.read_bytes() == full


def test_unwritable_folder_is_tolerated(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert equal(tensor_cache.memoize_in(tmp_path / "file")("name", some), some())


def test_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor_cache.memoize_in(tmp_path)("0", some)
    (first,) = tmp_path.iterdir()
    monkeypatch.setattr(tensor_cache, "MAX_SIZE", 3 * first.stat().st_size)
    left = tmp_path / ".half.123"
    left.touch()
    os.utime(left, (0, 0))
    for number in range(1, 6):
        tensor_cache.memoize_in(tmp_path)(str(number), some)
        for at, file in enumerate(sorted(tmp_path.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)):
            os.utime(file, (at, at))  # a clock that ticks between them
        kept = tensor_cache.memoize_in(tmp_path)
        kept("0", some)  # wanted all the time, so it stays
    requested = Counting(tmp_path)
    for number in ("0", "5", "4"):
        requested(number, some)
    assert requested.made == []
    assert len(list(tmp_path.iterdir())) == 3


def test_large_tensors_are_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_cache, "MAX_FILE_SIZE", 100)
    assert equal(tensor_cache.memoize_in(tmp_path)("name", some), some())
    assert not tmp_path.exists() or not list(tmp_path.iterdir())
    monkeypatch.setattr(inference, "MAX_FILE_SIZE", 100)
    requested = Counting(tmp_path)
    cached_features(parent(), make_images(20, NEW, 5), requested)
    assert requested.made == []  # not even asked: no time is spent on marks


@pytest.mark.parametrize("notation", ["finetune", "branch", "taps", "ladder"])
def test_cached_features_equal_computed_ones(notation: str, tmp_path: Path) -> None:
    model, images = start_run(notation)[0].classifier, make_images(40, NEW, 8)
    for turn in range(2):
        requested = Counting(tmp_path)
        assert torch.equal(cached_features(model, images, requested), compute_features(model, images))
        assert len(requested.made) == 1 - turn


def changed_weight(model: Classifier) -> None:
    next(model.backbone.parameters()).data.view(-1)[0] += 1


def changed_statistics(model: Classifier) -> None:
    next(value for name, value in model.backbone.named_buffers() if "running_mean" in name)[0] += 1


def other_layout(model: Classifier) -> None:
    model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("change", [changed_weight, changed_statistics, other_layout])
def test_changed_weights_miss_the_cache(change: Callable[[Classifier], None], tmp_path: Path) -> None:
    model, images = parent(), make_images(20, NEW, 5)
    cached_features(model, images, Counting(tmp_path))
    change(model)
    requested = Counting(tmp_path)
    assert torch.equal(cached_features(model, images, requested), compute_features(model, images))
    assert len(requested.made) == 1


def test_cache_key(tmp_path: Path) -> None:
    model, images = parent(), make_images(20, NEW, 5)
    cached_features(model, images, Counting(tmp_path))
    requested = Counting(tmp_path)
    cached_features(model, images, requested, precision="bf16")
    cached_features(model, images._replace(pixels=images.pixels.flip(0)), requested)
    cached_features(model, images._replace(std=(0.3,) * 3), requested)
    assert len(set(requested.made)) == 3
    cached_features(grow(model, NEW, 1), images, requested)
    cached_features(model, images._replace(labels={}), requested)
    assert len(requested.made) == 3


def test_cached_logits_are_bit_identical(tmp_path: Path) -> None:
    model, images = start_run("branch")[0].classifier, make_images(70, NEW, 5)
    plain = predict(model, images)
    for _ in range(2):
        kept = predict(model, images, cache=tensor_cache.memoize_in(tmp_path))
        assert all(np.array_equal(plain.logits[task], kept.logits[task]) for task in plain.logits)
        assert kept.ids == plain.ids


def test_head_steps_use_the_precision_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = inference.compute_features
    monkeypatch.setattr(inference, "compute_features", lambda *args: seen.append(args[3]) or real(*args))
    for precision in ("fp32", "bf16"):
        start_run("finetune", replace(RUN, precision=precision))
    assert seen == ["fp32", "bf16"]


SHORT = TrainingConfig(steps=4, batch_size=8, head_steps=10, eval_every=2, precision="bf16")


@pytest.mark.parametrize("method", ["branch", "distill"])
def test_cold_and_warm_cache_give_equal_runs(
    method: str, tmp_path: Path, alice: Path, old_folder: Path, new_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one without a cache; the warm one computes no columns at all."""
    requested: list[int] = []
    real = inference.compute_features
    monkeypatch.setattr(
        inference, "compute_features", lambda *args: requested.append(len(args[1].pixels)) or real(*args)
    )
    counts = {}
    for name, cache in (("cold", tmp_path / "cache"), ("warm", tmp_path / "cache"), ("none", None)):
        requested.clear()
        extend(
            alice, new_folder, tmp_path / name, task="paint", method=method, config=SHORT,
            old_val=[old_folder / "val"], cache=cache,
        )  # fmt: skip
        counts[name] = sum(count > 2 for count in requested)  # two tell a branch how wide it is
    assert counts["cold"] >= 4
    assert counts["warm"] == 0
    for name in ("warm", "none"):
        for file in ("model.safetensors", "metrics.jsonl"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "cold" / file).read_bytes()


def test_pickle_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, cache = tmp_path / "model.pth", tmp_path / "cache"
    state = {"state_dict": parent().state_dict(), "arch": "test_resnet", "epoch": 3}
    torch.save(state, file)
    first = weights.load_pickle(file, cache)
    bare = weights.load_pickle(file)
    monkeypatch.setattr(weights._READER, "read", lambda path: pytest.fail("opened again"))
    again = weights.load_pickle(file, cache)
    for result in (first, again):
        assert equal(dict(pytree.flatten(result[0])), dict(pytree.flatten(bare[0])))
        assert result[1:] == bare[1:]
    monkeypatch.undo()
    torch.save({**state, "state_dict": {"x": torch.zeros(1)}}, file)
    assert set(weights.load_pickle(file, cache)[0]["state_dict"]) == {"x"}


def test_head_steps_with_cache_are_bit_identical(tmp_path: Path) -> None:
    requested = Counting(tmp_path)
    given = (make_data(), make_data()._replace(tensor_cache=requested), make_data()._replace(tensor_cache=requested))
    heads = [dict(loop.train_head(grow(parent(), NEW, 0), one, RUN).named_parameters()) for one in given]
    assert len(requested.made) == 1
    assert equal(heads[0], heads[1])
    assert equal(heads[0], heads[2])
