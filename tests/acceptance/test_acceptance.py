"""The table of forty promised behaviors: each is checked with real commands, or by the tests that its row names.

`pytest -s tests/acceptance` prints it: number, promise, what happened.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance import inputs, results, runs
from acceptance.behavior import Behavior, Workspace, run_process

ROOT = Path(__file__).parents[2]
BEHAVIORS = [*inputs.BEHAVIORS, *runs.BEHAVIORS, *results.BEHAVIORS]
CHECKED = [behavior for behavior in BEHAVIORS if behavior.check]
TESTS = sorted({name for behavior in BEHAVIORS for name in behavior.tests})
OUTCOMES: dict[int, str] = {}
FLAGS = (
    "--task", "paint", "--method", "distill", "--steps", "20", "--batch-size", "8", "--head-steps", "10",
    "--eval-every", "5", "--log-every", "5", "--lr", "0.01", "--precision", "fp32",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def print_table(pytestconfig: pytest.Config) -> Iterator[None]:
    yield
    if pytestconfig.getoption("capture") == "no":
        for behavior in BEHAVIORS:
            note = f" [{behavior.note}]" if behavior.note else ""
            outcome = "; ".join(filter(None, (OUTCOMES.get(behavior.number), *behavior.tests)))
            print(f"\n{behavior.number:>2} | {behavior.promise}{note} | {outcome}", file=sys.__stdout__)


@pytest.fixture(scope="module")
def shared(
    alice: Path, plain: Path, new_folder: Path, old_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Workspace:
    """One run as a user starts it, with a home of its own, which many rows look at."""
    root = tmp_path_factory.mktemp("shared")
    command = ("extend", alice, new_folder, root / "both", "--old-val", old_folder / "val", *FLAGS)
    output = run_process(root / "home", *command)
    assert output.code == 0, output.stderr
    return Workspace(
        root, alice, plain, new_folder, old_folder, command, root / "both", output, root / "home"
    )  # fmt: skip


def test_numbers_are_complete() -> None:
    assert [behavior.number for behavior in BEHAVIORS] == list(range(1, 41))
    assert [behavior.number for behavior in BEHAVIORS if not behavior.check and not behavior.tests] == []


@pytest.mark.usefixtures("no_charts")
@pytest.mark.parametrize("behavior", CHECKED, ids=lambda behavior: f"{behavior.number:02}")
def test_behavior(behavior: Behavior, shared: Workspace, tmp_path: Path) -> None:
    assert behavior.check
    OUTCOMES[behavior.number] = behavior.check(shared._replace(tmp_path=tmp_path)).replace(str(tmp_path), "…")


@pytest.mark.parametrize("name", TESTS)
def test_named_tests_exist(name: str) -> None:
    file, _, function = name.partition("::")
    if not (ROOT / file).exists():
        assert not (ROOT / "tests" / "pipeline").exists(), f"{file} is gone"
        pytest.skip("only the tests of the surface are here")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
