"""The method of docs/contribute.md, added to a copy of the repository as the page says, passes the laws."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def after(text: str, mark: str, line: str) -> str:
    """`line` put in at the beginning of the dictionary that `mark` opens."""
    place = text.index("{", text.index(mark)) + 1
    return f"{text[:place]}\n    {line},{text[place:]}"


def test_the_method_of_the_page_passes_the_laws(tmp_path: Path) -> None:
    for name in ("src", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    page = (ROOT / "docs" / "contribute.md").read_text(encoding="utf-8")
    package = tmp_path / "src" / "taskgraft" / "methods"
    (package / "match.py").write_text(re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0], encoding="utf-8")
    registry, laws = package / "registry.py", tmp_path / "tests" / "laws" / "test_laws.py"
    text = registry.read_text(encoding="utf-8")
    first = "from taskgraft.methods.branch import"
    assert first in text
    text = text.replace(first, f"from taskgraft.methods.match import Match\n{first}", 1)
    registry.write_text(after(text, "METHODS", '"match": Match'), encoding="utf-8")
    laws.write_text(after(laws.read_text(encoding="utf-8"), "VARIANTS", '"match": ["match"]'), encoding="utf-8")
    words = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", "tests/laws", "-k", "match"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert re.search(r"(\d+) passed", done.stdout)
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) >= 8
