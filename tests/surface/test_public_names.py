"""The package as a notebook sees it: completion lists what there is, and what is shown is short."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import taskgraft


def test_completion_lists_every_public_name_before_it_is_imported() -> None:
    command = "import sys, taskgraft; names = dir(taskgraft); assert 'torch' not in sys.modules; print(*names)"
    done = subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True)
    assert set(taskgraft.__all__) <= set(done.stdout.split())


def test_what_a_notebook_shows_fits_a_line(plain: Path) -> None:
    bundle, run = taskgraft.open_parent(plain), taskgraft.load(plain)
    assert repr(bundle) == f"Bundle(test_resnet, tasks: shape (3), paint (4); from {plain})"
    assert repr(run).startswith("Extension(shape ")
    assert repr(run).endswith(f"%; {plain})")
    assert len(repr(run)) < 200


def test_finished_run_predicts_and_is_a_path(plain: Path, old_folder: Path) -> None:
    run = taskgraft.load(plain)
    image = next(old_folder.rglob("*.png"))
    assert [task.name for task in run.tasks] == list(run.predict(image).labels) == ["shape", "paint"]
    assert taskgraft.open_parent(run).source == str(plain)
    shown = run._repr_html_()
    assert shown.count("<tr>") == 3
    assert "report.html" in shown
