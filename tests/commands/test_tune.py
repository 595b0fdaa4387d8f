"""A search end to end at toy size: every trial once, stopped ones continued, the choice handed over, whoever works."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from taskgraft import Callbacks, TaskgraftError, TrainingConfig, open_parent
from taskgraft.commands.tune import tune
from taskgraft.pipeline.request import Request
from taskgraft.results.search import SearchResult
from taskgraft.tuning import space
from taskgraft.tuning.search_config import SearchConfig, WorkerConfig
from toys import NEW, folder_of
from tuning.databases import postgresql

RUN = TrainingConfig(
    steps=8, batch_size=8, head_steps=5, eval_every=2, save_every=2, views=2, precision="fp32", lr=0.01
)
METHOD, LRS = "distill(strength=[0.1, 10]) + wise(points=2)", "lr=[0.01, 0.1]"
Place = tuple[Path, Path, Path]


@pytest.fixture
def place(alice: Path, new_folder: Path, old_folder: Path) -> Place:
    return alice, new_folder, old_folder / "val"


def searched(place: Place, out: Path, method: str = METHOD, settings: str = LRS, **more: Any) -> SearchResult:
    parent, new, old = place
    request = Request(str(parent), new, "paint", "finetune", RUN, old_val=more.pop("old_val", (old,)))
    worker_config, callbacks = more.pop("crew", WorkerConfig()), more.pop("watch", Callbacks())
    search_config = SearchConfig(**{"sampler": "grid", **more})
    return tune(
        request,
        space.parse(method, settings, RUN),
        out,
        search_config=search_config,
        worker_config=worker_config,
        callbacks=callbacks,
    )


def results(found: SearchResult) -> list[tuple[Any, ...]]:
    """What must not depend on who worked, or on how often the search was stopped."""
    return [
        (one.number, one.state, one.method, one.reached, one.step, one.old, one.new, one.path) for one in found.trials
    ]


@pytest.fixture(scope="module")
def whole(
    alice: Path, new_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[SearchResult, Path]:
    """An undisturbed search of the grid."""
    out = tmp_path_factory.mktemp("whole") / "search"
    return searched((alice, new_folder, old_folder / "val"), out), out


def test_a_grid_tries_every_cell_and_hands_over_the_best(whole: tuple[SearchResult, Path], place: Place) -> None:
    found, out = whole
    assert [one.state for one in found.trials] == ["complete"] * 4
    assert {(one.params["distill.strength"], one.config["lr"]) for one in found.trials} == {
        (strength, lr) for strength in (0.1, 10.0) for lr in (0.01, 0.1)
    }
    best = found.choices[0].candidate
    assert best
    assert best.score == max(point["old"] + point["new"] for one in found.trials for point in one.path) / 2
    child = open_parent(found.choices[0].folder)
    assert [task.name for task in child.classifier.tasks] == ["shape", "paint"]
    record = json.loads((Path(found.choices[0].folder) / "record.json").read_text())
    assert record["score"] == pytest.approx(best.score)  # at the weight of wise that was chosen, without training again
    assert SearchResult.model_validate_json((out / "search.json").read_text()) == found
    for name in ("report.html", "table.md"):
        assert (out / name).is_file()
    assert "distill + wise (low rate)" in (out / "table.md").read_text()


def test_the_same_command_again_trains_nothing(whole: tuple[SearchResult, Path], place: Place) -> None:
    found, out = whole
    said: list[str] = []
    again = searched(place, out, callbacks=Callbacks(info=said.append))
    assert results(again) == results(found)
    assert not [line for line in said if "to step" in line]


def test_what_trials_share_is_computed_once_and_changes_nothing(
    whole: tuple[SearchResult, Path], place: Place, tmp_path: Path
) -> None:
    found, out = whole
    assert not found.trials[0].saved
    assert all(set(one.saved) == {"features", "answers"} for one in found.trials[1:])
    assert len(list((out / "shared").glob("*.safetensors"))) == 2
    apart = searched(place, tmp_path / "apart", no_share=True)
    assert not (tmp_path / "apart" / "shared").exists()
    for one, other in zip(found.trials, apart.trials, strict=True):
        assert one.score == pytest.approx(other.score, abs=0.05)  # answers are kept as float16


def test_stopped_trials_spend_less_and_the_last_goes_on_from_where_it_stood(place: Place, tmp_path: Path) -> None:
    said: list[str] = []
    found = searched(place, tmp_path / "s", prune="yes", callbacks=Callbacks(info=said.append))
    assert found.rungs == (2, 4, 8)
    assert sorted(one.state for one in found.trials) == ["complete", "stopped", "stopped", "stopped"]
    assert found.cost["steps"] == 2 * 2 + 4 + 8
    best = next(one for one in found.trials if one.state == "complete")
    looked = [line for line in best.history if line.accuracy]
    assert [line.step for line in looked] == [0, 2, 4, 6, 8]
    assert best.score == pytest.approx(
        max((line.accuracy["shape"] + line.accuracy["paint"]) / 2 for line in looked[1:])
    )


def test_two_processes_find_what_one_finds(whole: tuple[SearchResult, Path], place: Place, tmp_path: Path) -> None:
    assert results(searched(place, tmp_path / "s", worker_config=WorkerConfig(jobs=2, threads=1))) == results(whole[0])


def test_a_ray_cluster_finds_what_one_process_finds(
    whole: tuple[SearchResult, Path], place: Place, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (taskgraft[ray])")
    assert results(
        searched(place, tmp_path / "s", worker_config=WorkerConfig(jobs=2, threads=1, ray="local"))
    ) == results(whole[0])


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_samplers_ask_wave_by_wave_and_go_on_where_they_stopped(sampler: str, place: Place, tmp_path: Path) -> None:
    settings = {"sampler": sampler, "trials": 6, "wave": 3}
    found = searched(place, tmp_path / "s", "distill(strength=0.1..10)", "lr=0.001..0.1", **settings)
    assert [one.wave for one in found.trials] == [0, 0, 0, 1, 1, 1]
    assert len({tuple(one.params.values()) for one in found.trials}) == 6
    part = searched(place, tmp_path / "t", "distill(strength=0.1..10)", "lr=0.001..0.1", **{**settings, "trials": 3})
    assert results(part) == results(found)[:3]
    more = searched(place, tmp_path / "t", "distill(strength=0.1..10)", "lr=0.001..0.1", **settings)
    assert results(more) == results(found)


def test_a_trial_that_diverges_is_reported_and_the_others_go_on(place: Place, tmp_path: Path) -> None:
    found = searched(place, tmp_path / "s", "finetune", "lr=[0.01, 1e30], clip_grad=0, optimizer=sgd")
    good, bad = found.trials
    assert (good.state, bad.state) == ("complete", "failed")
    assert "not finite" in (bad.reason or "")
    assert "not finite" in (tmp_path / "s" / "report.html").read_text()


def test_without_old_pictures_agreement_stands_in(place: Place, tmp_path: Path) -> None:
    found = searched(place, tmp_path / "s", "distill(strength=[0.1, 10])", "", old_val=())
    assert found.proxy
    assert found.before == 1.0
    assert all(one.old is not None and one.history[0].agreement for one in found.trials)


def test_a_spent_budget_stops_and_the_same_command_goes_on(
    whole: tuple[SearchResult, Path], place: Place, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    with pytest.raises(TaskgraftError, match="longer --budget"):
        searched(place, out, budget="0.01s")
    assert results(searched(place, out, budget="1h")) == results(whole[0])


def command(place: Place, out: Path, *more: str) -> list[str]:
    parent, new, old = place
    flags = {"--steps": 8, "--batch-size": 8, "--head-steps": 5, "--eval-every": 2, "--save-every": 2, "--views": 2,
             "--precision": "fp32", "--lr": 0.01, "--cache": "none"}  # fmt: skip
    return [
        sys.executable, "-m", "taskgraft.cli", "tune", str(parent), str(new), str(out), "--task", "paint",
        "--old-val", str(old), "--method", METHOD, "--space", LRS, "--sampler", "grid", "--threads", "1",
        *(str(part) for pair in flags.items() for part in pair), *more,
    ]  # fmt: skip


def test_killed_with_all_its_workers_it_goes_on_to_the_same_choice(
    whole: tuple[SearchResult, Path], place: Place, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    started = subprocess.Popen(command(place, out, "--jobs", "2"), start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(out.glob("trials/*/state/step-*"))) < 6 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    done = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/state/step-000000008/manifest.json")}
    ended = subprocess.run(command(place, out, "--jobs", "2"), capture_output=True, text=True, check=True)
    found = SearchResult.model_validate_json((out / "search.json").read_text())
    assert results(found) == results(whole[0])
    assert [c.candidate for c in found.choices] == [c.candidate for c in whole[0].choices]
    assert {path: path.stat().st_mtime_ns for path in done} == done  # no finished trial ran again
    assert "best Score" in ended.stdout


def test_workers_end_with_the_search_that_began_them(place: Place, tmp_path: Path) -> None:
    out = tmp_path / "s"
    started = subprocess.Popen(command(place, out, "--jobs", "2"), start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(out.glob("trials/*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    started.kill()
    started.wait()
    while time.monotonic() < deadline and running(started.pid):
        time.sleep(0.1)
    assert not running(started.pid)


def running(group: int) -> bool:
    """Whether a process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_machines_on_one_database_share_the_work(
    whole: tuple[SearchResult, Path], place: Place, tmp_path: Path
) -> None:
    out = tmp_path / "s"
    with postgresql() as url:
        both = [
            subprocess.Popen(command(place, out, "--storage", url), stderr=subprocess.PIPE, text=True) for _ in range(2)
        ]
        deadline = time.monotonic() + 120
        while not list(out.glob("trials/*/state/step-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        both[0].kill()
        said = [process.communicate()[1] for process in both]
        assert both[1].returncode == 0, said[1]
    assert results(SearchResult.model_validate_json((out / "search.json").read_text())) == results(whole[0])
    finished = [line for text in said for line in text.splitlines() if "Score" in line and line.startswith("trial")]
    assert len(finished) == len(set(finished)) <= 4


def test_test_pictures_are_asked_for_the_choices_alone(place: Place, new_folder: Path, tmp_path: Path) -> None:
    parts = tmp_path / "paints"
    shutil.copytree(new_folder, parts)
    folder_of(parts / "test", NEW, 20, 9)
    found = searched((place[0], parts, place[2]), tmp_path / "s")
    best = found.choices[0]
    assert best.candidate
    assert best.test
    assert best.test.n == 20
    assert best.optimism == pytest.approx(best.candidate.new.mean - best.test.mean)
    assert "on 20 test images" in (tmp_path / "s" / "table.md").read_text()
    assert not list((tmp_path / "s" / "trials").glob("*/predictions.npz"))


def test_another_parent_or_space_is_refused_in_the_same_folder(whole: tuple[SearchResult, Path], place: Place) -> None:
    _, out = whole
    with pytest.raises(TaskgraftError, match=r"belongs to another search: .*rate"):
        searched(place, out, settings="lr=[0.02]")
    parent, _, old = place
    with pytest.raises(TaskgraftError, match="belongs to another search"):
        searched((parent, old.parent, old), out)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"sampler": "cmaes"}, "one objective"),
        ({"sampler": "annealing"}, "does not exist"),
        ({"max_trials": 3}, r"4 cells \(2 × 2\), more than --max-trials 3"),
        ({"storage": "mysql"}, "give a URL"),
        ({"crew": WorkerConfig(ray="127.0.0.1:1")}, "no cluster answers"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_a_line(
    more: dict[str, Any], said: str, place: Place, tmp_path: Path
) -> None:
    with pytest.raises(TaskgraftError, match=said) as caught:
        searched(place, tmp_path / "s", **more)
    assert "\n" not in str(caught.value)


def test_a_folder_with_other_files_is_left_alone(place: Place, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(TaskgraftError, match="already holds other files"):
        searched(place, tmp_path)
    assert [item.name for item in tmp_path.iterdir()] == ["notes.txt"]


def test_the_command_of_a_choice_trains_nearly_the_same_model(
    whole: tuple[SearchResult, Path], place: Place, tmp_path: Path
) -> None:
    """It records the parent's answers in another order, and they are kept as float16: no more than that differs."""
    choice = whole[0].choices[0]
    words = shlex.split(choice.command)
    assert words[:2] == ["taskgraft", "extend"]
    words[4] = str(tmp_path / "anew")
    subprocess.run(
        [sys.executable, "-m", "taskgraft.cli", *words[1:], "--cache", "none"], check=True, capture_output=True
    )
    one, two = open_parent(choice.folder), open_parent(str(tmp_path / "anew"))
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for task, logits in one.classifier.eval()(images).items():
        assert torch.allclose(logits, two.classifier.eval()(images)[task], atol=0.05)


def test_views_that_no_epoch_reaches_are_not_answered(place: Place, tmp_path: Path) -> None:
    searched(place, tmp_path / "s", "distill(strength=[1])", "views=64")
    answers = [load_file(file) for file in (tmp_path / "s" / "shared").glob("*.safetensors")]
    shapes = [tuple(found["shape"].shape) for found in answers if "shape" in found]
    assert shapes == [(40, 2, 3)]  # 8 steps of 8 images show 40 images in two epochs
