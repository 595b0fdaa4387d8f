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

from faults import disks, environment, killing, runs, server
from faults.scenario import Fault, Workspace
from forks import last_line, run_cli

pytestmark = [
    pytest.mark.usefixtures("no_charts"),
    pytest.mark.skipif(sys.platform == "win32", reason="processes are forked"),
]
ROOT = Path(__file__).parents[2]
FAULTS = sorted([*disks.FAULTS, *runs.FAULTS, *environment.FAULTS, *server.FAULTS], key=lambda fault: fault.number)
CAUSED = [fault for fault in FAULTS if fault.cause]
OUTCOMES: dict[int, str] = {}


@pytest.fixture(scope="module", autouse=True)
def print_table(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    if pytestconfig.getoption("capture") == "no":
        for fault in FAULTS:
            note = f" [{fault.note}]" if fault.note else ""
            outcome = [OUTCOMES.get(fault.number, ""), *(name.removeprefix("tests/") for name in fault.tests)]
            line = f"{fault.number:>2} | {fault.name} | {fault.promise}{note} | {'; '.join(filter(None, outcome))}"
            print(f"\n{line}", file=sys.__stdout__)


@pytest.fixture(scope="module")
def shared(
    alice: Path, plain: Path, new_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    for name in killing.IMPORTED_LATE:
        importlib.import_module(name)
    root = tmp_path_factory.mktemp("shared")
    workspace = Workspace(root, alice, plain, new_folder, old_folder / "val", root / "expected")
    workspace.extend(workspace.expected)
    return workspace


def test_fault_numbers_are_complete() -> None:
    assert [fault.number for fault in FAULTS] == list(range(1, 26))
    assert [fault.number for fault in FAULTS if not fault.cause and not fault.tests] == []


@pytest.mark.parametrize("fault", CAUSED, ids=lambda fault: f"{fault.number:02}-{fault.name}")
def test_fault(fault: Fault, shared: Workspace, tmp_path: Path) -> None:
    assert fault.cause
    OUTCOMES[fault.number] = fault.cause(shared._replace(tmp_path=tmp_path)).replace(str(tmp_path), "…")


@pytest.mark.parametrize("name", sorted({name for fault in FAULTS for name in fault.tests}))
def test_named_tests_exist(name: str) -> None:
    file, _, function = name.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def test_non_finite_loss_keeps_checkpoints(shared: Workspace, tmp_path: Path) -> None:
    """A loss that is not finite at some step: the run stops before the update, and its checkpoints are sound."""
    out = tmp_path / "both"
    done = run_cli(*shared.command(out, "--lr", "1e30", "--clip-grad", "0", "--optimizer", "sgd"))
    assert done.returncode == 4
    assert "is not finite at learning rate" in last_line(done)
    assert "the weights were not updated" in last_line(done)
