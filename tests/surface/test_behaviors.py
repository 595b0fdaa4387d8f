"""The table of forty behaviors: each is tried with real commands, and must be as promised.

`pytest -s tests/surface/test_behaviors.py` prints it: number, promise, what happened. Where other tests show a
behavior, or more of it, the row names them; where it is promised otherwise than in the list, the row says why.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from behaviors import after, before, training
from behaviors.trying import Behavior, Place, started

ROOT = Path(__file__).parents[2]
ROWS = [*before.ROWS, *training.ROWS, *after.ROWS]
ACTED = [row for row in ROWS if row.act]
NAMED = sorted({name for row in ROWS for name in row.shown})
HAPPENED: dict[int, str] = {}
RUN = (
    "--task",
    "paint",
    "--method",
    "distill",
    "--steps",
    "20",
    "--batch-size",
    "8",
    "--head-steps",
    "10",
    "--eval-every",
    "5",
    "--log-every",
    "5",
    "--lr",
    "0.01",
    "--precision",
    "fp32",
)


@pytest.fixture(scope="module", autouse=True)
def printed(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    if pytestconfig.getoption("capture") == "no" and capture:
        for row in ROWS:
            changed = f" [changed: {row.changed}]" if row.changed else ""
            seen = "; ".join(filter(None, (HAPPENED.get(row.number), *row.shown)))
            print(f"\n{row.number:>2} | {row.promise}{changed} | {seen}", file=sys.__stdout__)


@pytest.fixture(scope="module")
def whole(
    alice: Path, plain: Path, new_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    """One run as a user starts it, with a home of its own, which many rows look at."""
    root = tmp_path_factory.mktemp("whole")
    both = root / "both"
    words = ("extend", alice, new_folder, both, "--old-val", old_folder / "val", *RUN)
    told = started(root / "home", *words)
    assert told.code == 0, told.err
    return Place(root, alice, plain, new_folder, old_folder, words, both, told, root / "home")


def test_every_number_has_its_row() -> None:
    assert [row.number for row in ROWS] == list(range(1, 41))
    assert [row.number for row in ROWS if not row.act and not row.shown] == []


@pytest.mark.parametrize("row", ACTED, ids=lambda row: f"{row.number:02}")
def test_a_behavior(row: Behavior, whole: Place, tmp_path: Path) -> None:
    assert row.act
    HAPPENED[row.number] = row.act(whole._replace(root=tmp_path)).replace(str(tmp_path), "…")


@pytest.mark.parametrize("name", NAMED)
def test_what_a_row_names_is_a_test(name: str) -> None:
    file, _, function = name.partition("::")
    if not (ROOT / file).exists():
        assert not (ROOT / "tests" / "pipeline").exists(), f"{file} is gone"
        pytest.skip("only the tests of the surface are here")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
