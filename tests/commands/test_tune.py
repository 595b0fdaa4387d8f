"""A search end to end at toy size, in one process, in several and on Ray; interrupted and resumed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from forks import CliProcess, run_cli, start_cli
from taskgraft import Callbacks, InputError, TaskgraftError, TrainingConfig, open_parent
from taskgraft.commands.tune import tune
from taskgraft.pipeline.request import Request
from taskgraft.results.search import SearchResult
from taskgraft.training import run_folder
from taskgraft.tuning import space
from taskgraft.tuning.search_config import SearchConfig, WorkerConfig
from toys import NEW, write_folder
from tuning.databases import postgresql

CONFIG = TrainingConfig(
    steps=8, batch_size=8, head_steps=5, eval_every=2, save_every=2, views=2, precision="fp32", lr=0.01
)
METHOD, SETTINGS = "distill(strength=[0.1, 10]) + wise(points=2)", "lr=[0.01, 0.1]"
TIMEOUT = 120.0  # seconds
Inputs = tuple[Path, Path, Path]  # parent, new images, old validation images
pytestmark = pytest.mark.usefixtures("no_charts")


@pytest.fixture(scope="module")
def inputs(alice: Path, new_folder: Path, old_folder: Path) -> Inputs:
    return alice, new_folder, old_folder / "val"


def search(inputs: Inputs, out: Path, method: str = METHOD, settings: str = SETTINGS, **options: Any) -> SearchResult:
    parent, new, old = inputs
    request = Request(str(parent), new, "paint", config=CONFIG, old_val=options.pop("old_val", (old,)))
    worker_config, callbacks = options.pop("worker_config", WorkerConfig()), options.pop("callbacks", Callbacks())
    config = SearchConfig(**{"sampler": "grid", **options})
    search_space = space.parse(method, settings, CONFIG)
    return tune(request, search_space, out, search_config=config, worker_config=worker_config, callbacks=callbacks)


def trials_of(result: SearchResult) -> list[tuple[Any, ...]]:
    """What must not depend on the workers or on interruptions."""
    return [(t.number, t.state, t.method, t.reached, t.step, t.old, t.new, t.path, t.history) for t in result.trials]


@pytest.fixture(scope="module")
def undisturbed(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchResult, Path]:
    """An undisturbed search of the grid."""
    out = tmp_path_factory.mktemp("undisturbed") / "search"
    return search(inputs, out), out


def test_a_grid_tries_every_point_and_writes_the_best(undisturbed: tuple[SearchResult, Path]) -> None:
    result, out = undisturbed
    assert [trial.state for trial in result.trials] == ["complete"] * 4
    assert {(trial.params["distill.strength"], trial.config["lr"]) for trial in result.trials} == {
        (strength, lr) for strength in (0.1, 10.0) for lr in (0.01, 0.1)
    }
    best = result.choices[0]
    assert best.candidate
    assert best.candidate.score == max(p["old"] + p["new"] for trial in result.trials for p in trial.path) / 2
    assert [task.name for task in open_parent(best.folder).classifier.tasks] == ["shape", "paint"]
    record = json.loads((Path(best.folder) / "record.json").read_text())
    assert record["score"] == pytest.approx(best.candidate.score)  # at the selected weight, without training again
    assert SearchResult.model_validate_json((out / "search.json").read_text()) == result
    assert (out / "report.html").is_file()
    assert "distill + wise (low rate)" in (out / "table.md").read_text()


def test_the_same_command_again_trains_nothing(undisturbed: tuple[SearchResult, Path], inputs: Inputs) -> None:
    result, out = undisturbed
    lines: list[str] = []
    assert trials_of(search(inputs, out, callbacks=Callbacks(info=lines.append))) == trials_of(result)
    assert not [line for line in lines if "up to step" in line]


def test_shared_results_are_computed_once_and_change_nothing(
    undisturbed: tuple[SearchResult, Path], inputs: Inputs, tmp_path: Path
) -> None:
    result, out = undisturbed
    assert not result.trials[0].saved
    assert all(set(trial.saved) == {"features", "logits"} for trial in result.trials[1:])
    assert len(list((out / "shared").glob("*.safetensors"))) == 2
    unshared = search(inputs, tmp_path / "unshared", no_share=True)
    assert not (tmp_path / "unshared" / "shared").exists()
    scores = [trial.score for trial in unshared.trials]
    assert scores == pytest.approx([trial.score for trial in result.trials], abs=0.05)  # shared logits are float16


def test_pruned_trials_save_steps_and_promoted_ones_continue(inputs: Inputs, tmp_path: Path) -> None:
    result = search(inputs, tmp_path / "s", prune="yes")
    assert result.rungs == (2, 4, 8)
    assert sorted(trial.state for trial in result.trials) == ["complete", "stopped", "stopped", "stopped"]
    assert result.cost["steps"] == 2 * 2 + 4 + 8
    best = next(trial for trial in result.trials if trial.state == "complete")
    validated = [line for line in best.history if line.accuracy]
    assert [line.step for line in validated] == [0, 2, 4, 6, 8]
    assert best.score == pytest.approx(max(sum(line.accuracy.values()) / 2 for line in validated[1:]))


@pytest.mark.cluster
def test_a_killed_worker_is_replaced_and_the_result_is_the_same(
    undisturbed: tuple[SearchResult, Path], inputs: Inputs, tmp_path: Path
) -> None:
    out, messages = tmp_path / "s", []

    def kill_a_worker() -> None:
        wait_for(lambda: bool(list(out.glob("trials/*/state/step-*"))))
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill_a_worker)
    killer.start()
    workers = WorkerConfig(jobs=2, threads=1)
    result = search(inputs, out, worker_config=workers, callbacks=Callbacks(info=messages.append))
    killer.join()
    assert [line for line in messages if "died and is replaced" in line]
    assert trials_of(result) == trials_of(undisturbed[0])


@pytest.mark.cluster
def test_a_ray_cluster_gives_the_same_result(
    undisturbed: tuple[SearchResult, Path], inputs: Inputs, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (taskgraft[ray])")
    workers = WorkerConfig(jobs=2, threads=1, ray="local")
    assert trials_of(search(inputs, tmp_path / "s", worker_config=workers)) == trials_of(undisturbed[0])


@pytest.mark.cluster
def test_a_database_stores_the_search(undisturbed: tuple[SearchResult, Path], inputs: Inputs, tmp_path: Path) -> None:
    lines: list[str] = []
    with postgresql() as url:
        assert trials_of(search(inputs, tmp_path / "s", storage=url)) == trials_of(undisturbed[0])
        again = search(inputs, tmp_path / "s", storage=url, callbacks=Callbacks(info=lines.append))
        assert trials_of(again) == trials_of(undisturbed[0])
        with pytest.raises(InputError, match="belongs to another search: out was"):
            search(inputs, tmp_path / "elsewhere" / "s", storage=url)
    assert not [line for line in lines if "up to step" in line]


def test_a_sampled_search_is_extended_by_more_trials(inputs: Inputs, tmp_path: Path) -> None:
    settings = {"method": "distill(strength=0.1..10)", "settings": "lr=0.001..0.1", "sampler": "tpe", "wave": 2}
    part = search(inputs, tmp_path / "s", trials=2, **settings)
    result = search(inputs, tmp_path / "s", trials=4, **settings)
    assert [trial.wave for trial in result.trials] == [0, 0, 1, 1]
    assert len({tuple(trial.params.values()) for trial in result.trials}) == 4
    assert trials_of(result)[:2] == trials_of(part)


def test_a_diverging_trial_is_reported_and_the_others_continue(inputs: Inputs, tmp_path: Path) -> None:
    result = search(inputs, tmp_path / "s", "finetune", "lr=[0.01, 1e30], clip_grad=0, optimizer=sgd")
    good, bad = result.trials
    assert (good.state, bad.state) == ("complete", "failed")
    assert "not finite" in (bad.reason or "")
    assert "not finite" in (tmp_path / "s" / "report.html").read_text()


def test_agreement_replaces_missing_old_validation_images(inputs: Inputs, tmp_path: Path) -> None:
    result = search(inputs, tmp_path / "s", "distill(strength=[0.1, 10])", "", old_val=())
    assert result.proxy
    assert result.before == 1.0
    assert all(trial.old is not None and trial.history[0].agreement for trial in result.trials)


def test_a_search_that_ran_out_of_time_is_resumed(
    undisturbed: tuple[SearchResult, Path], inputs: Inputs, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="longer --budget"):
        search(inputs, tmp_path / "s", budget="0.01s")
    assert trials_of(search(inputs, tmp_path / "s", budget="1h")) == trials_of(undisturbed[0])


def start_search(inputs: Inputs, out: Path) -> CliProcess:
    parent, new, old = inputs
    words = ["tune", parent, new, out, "--task", "paint", "--old-val", old, "--method", METHOD]
    words += ["--space", SETTINGS, "--sampler", "grid", "--jobs", "2", "--threads", "1", "--cache", "none"]
    for name in ("steps", "batch_size", "head_steps", "eval_every", "save_every", "views", "precision", "lr"):
        words += [f"--{name.replace('_', '-')}", str(getattr(CONFIG, name))]
    return start_cli(*words, new_session=True)


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def group_is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.cluster
def test_a_search_that_was_killed_is_resumed_with_the_same_result(
    undisturbed: tuple[SearchResult, Path], inputs: Inputs, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    process = start_search(inputs, out)
    wait_for(lambda: len(list(out.glob("trials/*/state/step-*"))) >= 6)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: group_is_gone(process.pid))  # its workers end by themselves
    finished = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/state/step-000000008/manifest.json")}
    resumed = start_search(inputs, out).wait()
    assert resumed.returncode == 0, resumed.stderr
    assert "best Score" in resumed.stdout
    result = SearchResult.model_validate_json((out / "search.json").read_text())
    assert trials_of(result) == trials_of(undisturbed[0])
    assert [model.candidate for model in result.choices] == [model.candidate for model in undisturbed[0].choices]
    assert {path: path.stat().st_mtime_ns for path in finished} == finished  # no finished trial was repeated


@pytest.mark.cluster
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_workers_end_with_their_search(number: signal.Signals, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "s"
    process = start_search(inputs, out)
    wait_for(lambda: bool(list(out.glob("trials/*/state/step-*"))))
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as Ctrl-C in a terminal
    else:
        process.send_signal(number)
    done = process.wait()
    wait_for(lambda: group_is_gone(process.pid))
    assert "Traceback" not in done.stderr
    assert done.returncode == 128 + number
    assert done.stderr.splitlines()[-1] == "taskgraft: stopped; rerun the same command to resume"


def test_a_second_search_in_the_same_folder_is_refused(inputs: Inputs, tmp_path: Path) -> None:
    with (
        run_folder.lock(tmp_path / "s"),
        pytest.raises(InputError, match=r"is being written by process \d+ on .*; wait for it, or choose another OUT"),
    ):
        search(inputs, tmp_path / "s")


def test_test_images_are_used_for_selected_models_only(inputs: Inputs, new_folder: Path, tmp_path: Path) -> None:
    images, out = tmp_path / "paints", tmp_path / "s"
    shutil.copytree(new_folder, images)
    write_folder(images / "test", NEW, 20, 9)
    best = search((inputs[0], images, inputs[2]), out).choices[0]
    assert best.candidate
    assert best.test
    assert best.test.n == 20
    assert best.optimism == pytest.approx(best.candidate.new.mean - best.test.mean)
    assert "on 20 test images" in (out / "table.md").read_text()
    assert not list((out / "trials").glob("*/predictions.npz"))


def test_another_search_in_the_same_folder_is_refused(undisturbed: tuple[SearchResult, Path], inputs: Inputs) -> None:
    with pytest.raises(InputError, match=r"belongs to another search: .*lr"):
        search(inputs, undisturbed[1], settings="lr=[0.02]")
    parent, _, old = inputs
    with pytest.raises(InputError, match="belongs to another search"):
        search((parent, old.parent, old), undisturbed[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": "cmaes"}, "one objective"),
        ({"sampler": "annealing"}, "does not exist"),
        ({"max_trials": 3}, r"4 points \(2 × 2\), more than --max-trials 3"),
        ({"storage": "mysql"}, "is not a URL"),
        ({"budget": "soon"}, "is not a duration"),
        ({"min_new": "much"}, "is not a fraction"),
        ({"worker_config": WorkerConfig(ray="127.0.0.1:1")}, "cannot connect"),
    ],
)
def test_invalid_settings_are_refused_in_one_line(
    settings: dict[str, Any], message: str, inputs: Inputs, tmp_path: Path
) -> None:
    with pytest.raises(TaskgraftError, match=message) as caught:
        search(inputs, tmp_path / "s", **settings)
    assert "\n" not in str(caught.value)


def test_other_files_in_out_are_left_alone(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="already holds other files"):
        search(inputs, tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_of_a_selected_model_trains_nearly_the_same(
    undisturbed: tuple[SearchResult, Path], tmp_path: Path
) -> None:
    """It computes the parent's logits in another order and stores them as float16."""
    model = undisturbed[0].choices[0]
    words = shlex.split(model.command)
    assert words[:2] == ["taskgraft", "extend"]
    words[4] = str(tmp_path / "again")
    run_cli(*words[1:], "--cache", "none", check=True)
    first, second = (open_parent(str(folder)).classifier.eval() for folder in (model.folder, tmp_path / "again"))
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for task, logits in first(images).items():
        assert torch.allclose(logits, second(images)[task], atol=0.05)


def test_views_that_no_epoch_reaches_are_not_computed(inputs: Inputs, tmp_path: Path) -> None:
    search(inputs, tmp_path / "s", "distill(strength=[1])", "views=64")
    shared = [load_file(file) for file in (tmp_path / "s" / "shared").glob("*.safetensors")]
    shapes = [tuple(tensors["shape"].shape) for tensors in shared if "shape" in tensors]
    assert shapes == [(40, 2, 3)]  # 8 steps of 8 images reach two views of 40 images
