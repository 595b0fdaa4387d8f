"""The state of a search in Optuna's storage: its trials, with the result of each completed rung. Needs `optuna`."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.pool import NullPool

from taskgraft.errors import InputError, SetupError, require
from taskgraft.results.search import RungResult
from taskgraft.training.run_folder import differences
from taskgraft.tuning.sampler import Suggestion, to_distributions
from taskgraft.tuning.space import Space

RUNG = "step {}"  # user attribute of a trial: the result of a rung


class StudyStore:
    """An Optuna study that holds all trials of a search, in the order in which they were sampled.

    A trial is running from when it is sampled, gets the result of each rung as a user attribute, and is reported to
    Optuna once it is over. Only the process that holds the lock of OUT writes.
    """

    def __init__(self, storage: BaseStorage, name: str, identity: Mapping[str, Any]) -> None:
        """Open or create the study.

        Raises:
            InputError: it belongs to a search with another `identity`.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._storage = storage
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.study = optuna.create_study(
                storage=storage, study_name=name, load_if_exists=True, directions=["maximize", "maximize"]
            )
            self.study.set_metric_names(["old", "new"])
        self._study_id = storage.get_study_id_from_name(name)
        identity = json.loads(json.dumps(identity))
        stored = self.study.user_attrs.get("identity")
        if stored is None:
            self.study.set_user_attr("identity", identity)
        elif changed := differences(stored, identity):
            raise InputError(
                f"study {name!r} belongs to another search: {', '.join(changed[:6])}; "
                "choose another OUT (or tune --study), or repeat its settings"
            )

    def trials(self) -> list[FrozenTrial]:
        """Return all trials by number."""
        return self.study.get_trials(deepcopy=False)

    def add(self, space: Space, suggestion: Suggestion) -> None:
        """Append a trial."""
        self.study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=suggestion.params,
                distributions=to_distributions(space),
                system_attrs=suggestion.system_attrs,
            )
        )

    def record(self, number: int, until: int, result: RungResult) -> None:
        """Store the result of a trial's rung."""
        trial_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        self._storage.set_trial_user_attr(trial_id, RUNG.format(until), result.model_dump(mode="json"))

    def finish(self, number: int, last: RungResult) -> None:
        """Report to Optuna that a trial is over, with the result of its last rung."""
        if last.reason is not None:
            self.study.tell(number, state=TrialState.FAIL)
        else:
            assert last.old is not None
            assert last.new is not None
            self.study.tell(number, [last.old, last.new])


def rung_results(trial: FrozenTrial, rungs: Sequence[int]) -> dict[int, RungResult]:
    """Return the stored results of a trial by rung, ascending."""
    stored = {until: trial.user_attrs.get(RUNG.format(until)) for until in rungs}
    return {until: RungResult.model_validate(result) for until, result in stored.items() if result}


def open_storage(url: str, out: Path) -> BaseStorage:
    """Open the database at a URL or, where it is empty, the journal file in OUT.

    Raises:
        InputError: the URL is malformed or the journal is damaged.
        SetupError: the database cannot be used.
        MissingDependency: its driver is not installed.
    """
    if not url:
        file = out / "study.journal"
        _repair_journal(file)
        # Optuna's own lock outlives a process that is killed, and then blocks for half a minute
        lock: Any = FileLock(out / ".study.lock")
        return JournalStorage(JournalFileBackend(str(file), lock))
    if "://" not in url:
        raise InputError(f"--storage {url!r} is not a URL; write postgresql://user:password@host/database")
    require("tune", "psycopg" if url.startswith("postgresql") else "sqlalchemy", what="--storage")
    driver_url = url.replace("postgresql://", "postgresql+psycopg://", 1)
    try:
        return RDBStorage(driver_url, engine_kwargs={"poolclass": NullPool})  # hours pass between two queries
    except Exception as error:  # SQLAlchemy and the driver raise many classes
        address = url.rsplit("@", 1)[-1]  # without the password
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0][:160]
        raise SetupError(f"--storage {address} cannot be used: {reason}; check server, user and database") from error


def _repair_journal(file: Path) -> None:
    """Remove a half-written last line, as a power failure leaves it.

    Raises:
        InputError: another line is damaged.
    """
    if not file.exists():
        return
    content = file.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if complete != content:
        with file.open("r+b") as handle:
            handle.truncate(len(complete))
    for number, line in enumerate(complete.split(b"\n")[:-1], 1):
        try:
            json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{file}, line {number} is damaged; remove the file and run the same command again: it reuses what has "
                f"been trained in {file.parent / 'trials'}"
            ) from error
