"""A server in this process that all tests here may ask."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import Running, running


@pytest.fixture(scope="session")
def server(branched: Path) -> Iterator[Running]:
    with running(branched) as found:
        yield found


@pytest.fixture(scope="session")
def pictures(new_folder: Path) -> list[Path]:
    return sorted((new_folder / "val").rglob("*.png"))
