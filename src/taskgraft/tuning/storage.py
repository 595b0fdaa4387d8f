"""Where the studies of a search lie: a journal file that processes share, or a database that machines share."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import IntegrityError, ProgrammingError
from sqlalchemy.pool import NullPool

from taskgraft.errors import InputError, require

TRIES, PAUSE = 5, 0.5  # seconds between two tries


def open_storage(storage: str, out: Path) -> BaseStorage:
    """The database at a URL, or the journal file in OUT; raises TaskgraftError for one that is damaged or does not answer."""
    if not storage:
        # Optuna's own locks outlive a process that is killed, and are waited for half a minute; this one dies with it
        file, lock = out / "study.journal", FileLock(out / ".study.lock")
        _mend(file, lock)
        return JournalStorage(JournalFileBackend(str(file), lock))  # pyright: ignore[reportArgumentType]
    if "://" not in storage:
        raise InputError(f"--storage {storage!r}: give a URL such as postgresql://user:password@host/database")
    require("tune", "psycopg" if storage.startswith("postgresql") else "sqlalchemy", what="--storage")
    url = storage.replace("postgresql://", "postgresql+psycopg://", 1)
    engine = {"poolclass": NullPool}  # nothing is left open between two looks
    try:
        for _ in range(TRIES):
            # one of these where another process makes the tables at the same moment: soon they are all there
            with suppress(IntegrityError, ProgrammingError):
                return RDBStorage(url, engine_kwargs=engine)
            time.sleep(PAUSE)
        return RDBStorage(url, engine_kwargs=engine)
    except Exception as error:  # SQLAlchemy and the driver raise many kinds; each means that it cannot be used
        where = storage.rsplit("@", 1)[-1]  # without the password
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0][:160]
        raise InputError(f"--storage {where} cannot be used: {reason}; check server, user and database") from error


def _mend(file: Path, lock: FileLock) -> None:
    """Cut a last line that a lost machine left half-written; raises TaskgraftError for a damaged line before it."""
    if not file.exists():
        return
    content = file.read_bytes()
    if content[-1:] not in (b"", b"\n"):
        with lock, file.open("r+b") as handle:
            content = handle.read()
            handle.truncate(content.rfind(b"\n") + 1)
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        try:
            json.loads(line)
        except ValueError as error:
            raise InputError(
                f"{file}, line {number} is damaged; remove the file: the same command then begins anew, and takes what "
                f"is trained already from {file.parent / 'trials'}"
            ) from error
