"""Checkpoints: whole or not at all, verified before use, the one before where the newest is damaged."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from taskgraft import pytree
from taskgraft.methods.protocol import Method
from taskgraft.models.classifier import grow
from taskgraft.training import checkpoints as states
from taskgraft.training import loop, run_folder
from taskgraft.training.checkpoints import TrainState
from toys import NEW, RUN, equal, make_data, parent, weights

EMPTY = Method()
QUICK = replace(RUN, head_steps=0)


def at(step: int, optimizer: str = "sgd") -> TrainState:
    config = replace(QUICK, optimizer=optimizer)
    state = loop.prepare(grow(parent(), NEW, 3), EMPTY, make_data(), config)
    memory = {"m": {"deep": {"f": torch.rand(3), "i": torch.tensor([1, -5])}, "b": torch.tensor([True, False])}}
    state = replace(state, memory=memory)
    for _ in range(step):
        state, _ = loop.train_step(state, EMPTY, make_data(), config)
    return state


def blank(optimizer: str = "sgd") -> TrainState:
    return loop.prepare(grow(parent(), NEW, 9), EMPTY, make_data(), replace(QUICK, optimizer=optimizer))


def saved(folder: Path, *numbers: int) -> list[Path]:
    state = at(1)
    return [states.save(folder, replace(state, step=number)) for number in numbers]


def packed(state: TrainState) -> dict[str, torch.Tensor]:
    result = {}
    for row, entries in state.optimizer.state_dict()["state"].items():
        result |= {f"{row}/{key}": torch.as_tensor(value) for key, value in entries.items()}
    return result


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_restore_returns_saved_state(tmp_path: Path, optimizer: str) -> None:
    before = at(2, optimizer)
    path = states.save(tmp_path, before)
    after = states.restore(path, blank(optimizer))
    assert (after.seed, after.step) == (before.seed, 2)
    assert equal(weights(after), weights(before))
    assert len(packed(before)) > 10
    assert equal(packed(after), packed(before))
    assert equal(dict(pytree.flatten(after.memory)), dict(pytree.flatten(before.memory)))
    assert after.memory["m"]["deep"]["i"].dtype == torch.int64
    config = replace(QUICK, optimizer=optimizer)
    ends = [weights(loop.fit(state, EMPTY, make_data(), config)) for state in (before, after)]
    assert equal(*ends)


@pytest.mark.parametrize("harm", ["more", "fewer"])
def test_restore_refuses_other_network(tmp_path: Path, harm: str) -> None:
    path = states.save(tmp_path, at(1))
    result = load_file(path / "model.safetensors")
    name = sorted(result)[0]
    changed = {**result, "else": torch.zeros(1)} if harm == "more" else {k: v for k, v in result.items() if k != name}
    save_file(changed, path / "model.safetensors")
    with pytest.raises(RuntimeError, match="else" if harm == "more" else name):
        states.restore(path, blank())


def test_restore_matches_memory_layout(tmp_path: Path) -> None:
    def last(state: TrainState) -> TrainState:
        net = state.classifier.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return replace(state, classifier=net)

    state = last(at(1))
    name, kernel = next((k, v) for k, v in state.classifier.named_parameters() if v.dim() == 4 and v.shape[1] > 1)
    assert not kernel.is_contiguous()
    memory = {"anchor": {name: kernel.detach().clone()}, "flat": {name: torch.rand(3)}, "alone": kernel.detach()[0]}
    after = states.restore(states.save(tmp_path, replace(state, memory=memory)), last(blank()))
    assert after.memory["anchor"][name].stride() == kernel.stride()
    assert torch.equal(after.memory["anchor"][name], kernel.detach())
    assert after.memory["flat"][name].shape == (3,)
    assert not after.memory["anchor"][name].requires_grad


def test_checkpoint_is_independent_of_state(tmp_path: Path) -> None:
    state = at(1)
    path = states.save(tmp_path, state)
    before = weights(state)
    after = states.restore(path, blank())
    loop.train_step(state, EMPTY, make_data(), QUICK)
    shutil.rmtree(path)
    assert equal(weights(after), before)


def test_save_creates_folder_and_deletes_leftovers(tmp_path: Path) -> None:
    deep = tmp_path / "config" / "state"
    (deep.parent).mkdir()
    states.save(deep, at(1))
    (deep / ".step-000000009.77").mkdir()
    (deep / ".step-000000009.77" / "model.safetensors").write_bytes(b"half")
    states.save(deep, replace(at(1), step=2))
    assert sorted(path.name for path in deep.iterdir()) == ["step-000000001", "step-000000002"]


def test_save_keeps_newest(tmp_path: Path) -> None:
    paths = saved(tmp_path, 1, 2, 30, 100)
    assert states.list_checkpoints(tmp_path) == paths[: -states.KEEP - 1 : -1]
    assert states.find_newest(tmp_path) == (paths[-1], [])


@pytest.mark.parametrize("number", [3, 2])
def test_kill_during_deletion(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1, 2)

    def killed(path: Path, **options: bool) -> None:
        if path.exists():
            (path / "manifest.json").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(states.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            saved(tmp_path, number)
    assert all((path / "manifest.json").exists() for path in states.list_checkpoints(tmp_path))
    with run_folder.lock(tmp_path):
        left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [".holder", ".lock", *(f"step-{step:09d}" for step in ((2, 3) if number == 3 else (1,)))]


def test_save_replaces_same_step(tmp_path: Path) -> None:
    saved(tmp_path, 4)
    state = at(1)
    with torch.no_grad():
        next(state.classifier.parameters()).zero_()
    states.save(tmp_path, replace(state, step=4))
    assert len(states.list_checkpoints(tmp_path)) == 1
    assert equal(weights(states.restore(states.list_checkpoints(tmp_path)[0], blank())), weights(state))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("part", ["model", "optimizer", "memory"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_find_newest_skips_damaged_tensors(tmp_path: Path, part: str, harm: str) -> None:
    old, new = saved(tmp_path, 2, 4)
    path = new / f"{part}.safetensors"
    if harm == "flip":
        flip(path)
    elif harm == "truncate":
        path.write_bytes(path.read_bytes()[:-8])
    else:
        path.unlink()
    result, lines = states.find_newest(tmp_path)
    assert result == old
    assert len(lines) == 1
    assert lines[0].startswith("checkpoint step-000000004 is damaged (")
    assert part in lines[0]
    assert lines[0].endswith("trying the one before")


@pytest.mark.parametrize("text", [None, "", '{"step": 4', "[]", "{}", '{"sha256": {}}', '{"sha256": []}'])
def test_find_newest_skips_damaged_manifest(tmp_path: Path, text: str | None) -> None:
    old, new = saved(tmp_path, 2, 4)
    (new / "manifest.json").unlink()
    if text is not None:
        (new / "manifest.json").write_text(text)
    result, lines = states.find_newest(tmp_path)
    assert result == old
    assert len(lines) == 1


def test_find_newest_without_intact_checkpoint(tmp_path: Path) -> None:
    for path in saved(tmp_path, 2, 4):
        flip(path / "model.safetensors")
    result, lines = states.find_newest(tmp_path)
    assert result is None
    assert len(lines) == 2
    assert states.find_newest(tmp_path / "nothing") == (None, [])


def test_find_newest_ignores_leftovers(tmp_path: Path) -> None:
    (path,) = saved(tmp_path, 2)
    shutil.copytree(path, tmp_path / ".step-000000004.123")
    assert states.find_newest(tmp_path) == (path, [])
    assert states.list_checkpoints(tmp_path) == [path]
