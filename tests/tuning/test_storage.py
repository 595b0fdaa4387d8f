"""Where studies lie: a database whose tables two processes make at the same moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.storages import RDBStorage
from sqlalchemy.exc import ProgrammingError

from taskgraft.errors import TaskgraftError
from taskgraft.tuning import storage


@pytest.mark.parametrize("often", [1, 3, 99])
def test_tables_that_another_process_is_making_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, often: int
) -> None:
    tried: list[str] = []

    def made(url: str, **rest: Any) -> RDBStorage:
        tried.append(url)
        if len(tried) <= often:
            raise ProgrammingError("CREATE TABLE", None, Exception('relation "alembic_version" already exists'))
        return RDBStorage(url, **rest)

    monkeypatch.setattr(storage, "RDBStorage", made)
    monkeypatch.setattr(storage, "PAUSE", 0.0)
    url = f"sqlite:///{tmp_path / 'study.db'}"
    if often < storage.TRIES:
        assert storage.open_storage(url, tmp_path)
        assert len(tried) == often + 1
    else:
        with pytest.raises(TaskgraftError, match=r"cannot be used: relation .* already exists"):
            storage.open_storage(url, tmp_path)
