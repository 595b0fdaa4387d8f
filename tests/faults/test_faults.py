"""The table of 25 faults: each is brought about in real runs, and must end as promised.

`pytest -s tests/faults` prints it: number, fault, promise, what happened. Where another test brings the fault about,
the row names it.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults import disks, killing, runs, surroundings, web
from faults.trying import Fault, Place, command

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")]
ROOT = Path(__file__).parents[2]
FAULTS = sorted([*disks.FAULTS, *runs.FAULTS, *surroundings.FAULTS, *web.FAULTS], key=lambda fault: fault.number)
MADE = [fault for fault in FAULTS if fault.make]
HAPPENED: dict[int, str] = {}


@pytest.fixture(scope="module", autouse=True)
def printed(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    if pytestconfig.getoption("capture") == "no" and capture:
        for fault in FAULTS:
            changed = f" [promise changed: {fault.changed}]" if fault.changed else ""
            happened = [HAPPENED.get(fault.number, ""), *(name.removeprefix("tests/") for name in fault.tested)]
            line = f"{fault.number:>2} | {fault.what} | {fault.promise}{changed} | {'; '.join(filter(None, happened))}"
            print(f"\n{line}", file=sys.__stdout__)


@pytest.fixture(scope="module")
def calm(
    alice: Path, plain: Path, new_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    for name in killing.LATE:
        importlib.import_module(name)
    root = tmp_path_factory.mktemp("calm")
    found = Place(root, alice, plain, new_folder, old_folder / "val", root / "both")
    found.extend(found.calm)
    return found


def test_fault_numbers_are_complete() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, 26))
    assert [fault.number for fault in FAULTS if not fault.make and not fault.tested] == []


@pytest.mark.parametrize("fault", MADE, ids=lambda fault: f"{fault.number:02}-{fault.what}")
def test_fault(fault: Fault, calm: Place, tmp_path: Path) -> None:
    assert fault.make
    HAPPENED[fault.number] = fault.make(calm._replace(root=tmp_path)).replace(str(tmp_path), "…")


@pytest.mark.parametrize("name", sorted({name for fault in FAULTS for name in fault.tested}))
def test_named_tests_exist(name: str) -> None:
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_non_finite_loss_keeps_checkpoints(calm: Place, tmp_path: Path) -> None:
    """A loss that is not finite at some step: the run stops before the update, and its checkpoints are sound."""
    out = tmp_path / "both"
    told = command(calm.words(out, "--lr", "1e30", "--clip-grad", "0", "--optimizer", "sgd"), tmp_path)
    assert told.code == 4
    assert "is not finite at learning rate" in told.last
    assert "the weights were not updated" in told.last
