"""The state of a search in a journal file and in a real PostgreSQL database."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from taskgraft import InputError, TaskgraftError, TrainingConfig
from taskgraft.results.search import RungResult
from taskgraft.tuning import space
from taskgraft.tuning.sampler import Suggestion
from taskgraft.tuning.study import StudyStore, open_storage, rung_results
from tuning.databases import postgresql

IDENTITY = {"parent": "abc", "space": {"lr": "[0.1, 0.2]"}}
SPACE = space.parse("distill", "lr=0.1..0.2", TrainingConfig())
RESULT = RungResult(method="distill", reached=10, step=10, old=0.5, new=0.6, score=0.55, path=({"weight": 0.5},))


@pytest.fixture(params=["", pytest.param("postgresql", marks=pytest.mark.cluster)])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if not request.param:
        yield ""
        return
    with postgresql() as url:
        yield url


def open_study(url: str, out: Path, **changes: str) -> StudyStore:
    return StudyStore(open_storage(url, out), "search", {**IDENTITY, **changes})


def test_results_survive_reopening(url: str, tmp_path: Path) -> None:
    store = open_study(url, tmp_path)
    for lr in (0.1, 0.15, 0.2):
        store.add(SPACE, Suggestion({"lr": lr}, {"note": 1}))
    store.record(1, 10, RESULT)
    store.finish(1, RESULT)
    store.finish(2, RungResult(reason="the loss is not finite"))
    trials = open_study(url, tmp_path).trials()
    assert [trial.params["lr"] for trial in trials] == [0.1, 0.15, 0.2]
    assert [trial.state.name for trial in trials] == ["RUNNING", "COMPLETE", "FAIL"]
    assert [trial.values for trial in trials] == [None, [0.5, 0.6], None]
    assert rung_results(trials[1], (5, 10, 20)) == {10: RESULT}
    assert trials[0].system_attrs == {"note": 1}


def test_another_search_is_rejected(url: str, tmp_path: Path) -> None:
    open_study(url, tmp_path)
    with pytest.raises(InputError, match="parent was 'abc', is 'xyz'"):
        open_study(url, tmp_path, parent="xyz")


def test_a_half_written_line_of_the_journal_is_cut(tmp_path: Path) -> None:
    open_study("", tmp_path).add(SPACE, Suggestion({"lr": 0.1}, {}))
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "work')
    open_study("", tmp_path).add(SPACE, Suggestion({"lr": 0.11}, {}))
    assert len(open_study("", tmp_path).trials()) == 2


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://nobody:secret@127.0.0.1:1/nothing", "127.0.0.1:1/nothing cannot be used"),
        ("study.db", "is not a URL"),
    ],
)
def test_unusable_storage_is_one_line_without_the_password(url: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TaskgraftError, match=message) as caught:
        open_storage(url, tmp_path)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
