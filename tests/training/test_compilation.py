"""`--compile`: the same training through torch.compile, or one line on why not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._inductor import config as inductor

import taskgraft
from forks import last_line, run_cli
from taskgraft import InputError, TrainingConfig, distributed
from taskgraft.training import checkpoints, compilation, loop
from toys import RUN, start_run, weights

COMPILED = replace(RUN, compile="default")


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All of torch.compile but its last stage, which writes C++ and takes a minute for the smallest network."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("notation", ["finetune", "distill"])  # the newest head alone, and all heads
def test_a_compiled_run_is_the_plain_one_to_rounding(notation: str, traced: None, tmp_path: Path) -> None:
    state, method, images = start_run(notation)
    expected = weights(loop.fit(state, method, images, RUN))
    state, method, images = start_run(notation, COMPILED)
    half = loop.fit(state, method, images, COMPILED, until=3)
    saved = checkpoints.save(tmp_path, half)
    result = weights(loop.fit(half, method, images, COMPILED))
    assert result.keys() == expected.keys(), "names in bundles must be those of a plain run"
    for name, value in expected.items():
        torch.testing.assert_close(result[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
    blank = loop.prepare(start_run(notation, COMPILED)[0].classifier, method, images, COMPILED)
    resumed = weights(loop.fit(checkpoints.restore(saved, blank), method, images, COMPILED))
    assert all(torch.equal(resumed[name], value) for name, value in result.items()), "a resumed run has other bits"


def test_a_missing_compiler_is_named_before_training(alice: Path, new_folder: Path, tmp_path: Path) -> None:
    flags = ["--task", "paint", "--steps", "1", "--compile", "default", "--cache", "none"]
    with inductor.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):
        done = run_cli("extend", alice, new_folder, tmp_path / "out", *flags)
    assert done.returncode == 2
    assert last_line(done).startswith("--compile default: torch.compile does not work here (")
    assert last_line(done).endswith("header files of Python: install what is missing, or leave --compile out")
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_several_processes_do_not_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(InputError, match="--compile default works in one process, and there are 2"):
        compilation.check_compiler(COMPILED, torch.device("cpu"))


def chosen(config: TrainingConfig) -> tuple[str, str]:
    state, _, images = start_run("finetune")
    found, reason = compilation.choose_compilation(state.classifier, images, config)
    return found.compile, reason


AUTO = replace(RUN, compile="auto")


def test_auto_does_not_compile_where_it_cannot_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(COMPILED) == ("default", "")
    assert chosen(AUTO) == ("off", "auto: not tried on cpu, where compiling brings little")
    monkeypatch.setattr(compilation, "AUTO_DEVICES", ("cpu",))
    mode, reason = chosen(AUTO)
    assert mode == "off"
    assert re.fullmatch(r"auto: not tried, since training takes about \d+ s without", reason)
    monkeypatch.setattr(compilation, "_try_compiler", lambda device: "no compiler")
    assert chosen(replace(AUTO, steps=10**7)) == ("off", "auto: torch.compile does not work here (no compiler)")
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    assert chosen(AUTO) == ("off", "auto: not tried, since compiling works in one process only")


@pytest.mark.slow
@pytest.mark.parametrize(("slower", "mode"), [(1e-9, "reduce-overhead"), (1e9, "off")])
def test_auto_measures_whether_compiled_steps_are_faster(
    slower: float, mode: str, traced: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "AUTO_DEVICES", ("cpu",))
    monkeypatch.setattr(compilation, "_try_compiler", lambda device: "")
    monkeypatch.setattr(compilation, "MARGIN", slower)
    before = torch.get_rng_state()
    found, reason = chosen(replace(AUTO, steps=10**7))
    assert found == mode
    assert re.fullmatch(r"measured here: \S+ ms a step, \S+ ms compiled", reason)
    assert torch.equal(torch.get_rng_state(), before)


def test_auto_is_resolved_once_and_kept(alice: Path, new_folder: Path, tmp_path: Path) -> None:
    config = replace(AUTO, steps=2, eval_every=2, precision="fp32")
    done = taskgraft.extend(alice, new_folder, tmp_path / "out", task="paint", config=config)
    assert done.record.config["compile"] == "off"
    assert [why for name, _, why in done.record.settings if name == "compile"] == [
        "auto: not tried on cpu, where compiling brings little"
    ]
    again = taskgraft.extend(alice, new_folder, tmp_path / "out", task="paint", config=config)
    assert again.record == done.record
