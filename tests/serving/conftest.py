"""A server in this process, shared by all tests here, and what they send to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import Running, running


@pytest.fixture(scope="session")
def server(branched: Path) -> Iterator[Running]:
    with running(branched) as result:
        yield result


@pytest.fixture(scope="session")
def image_files(new_folder: Path) -> list[Path]:
    return sorted((new_folder / "val").rglob("*.png"))


@pytest.fixture(scope="session")
def image(image_files: list[Path]) -> bytes:
    return image_files[0].read_bytes()
