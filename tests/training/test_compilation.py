"""`--compile`: the same training through torch.compile, or one line on why not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._inductor import config

from forks import last_line, run_cli
from taskgraft import InputError, distributed
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
    with config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}):
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
