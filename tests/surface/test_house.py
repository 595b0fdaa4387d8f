"""The rules of CONTRIBUTING.md that neither ruff nor import-linter checks."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "taskgraft"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
METHODS = {path.stem for path in (PACKAGE / "methods").glob("*.py")} - {
    "__init__", "anchored", "compatibility", "composition", "notation", "presets", "protocol", "registry",
}  # fmt: skip
HEAVY = ("torch", "torchvision", "timm", "matplotlib", "jinja2", "huggingface_hub")


def layers() -> list[str]:
    """The modules in the order of import-linter's contract, bottom first."""
    (contract,) = (one for one in PYPROJECT["tool"]["importlinter"]["contracts"] if one["type"] == "layers")
    return [layer.removeprefix("taskgraft.") for layer in reversed(contract["layers"])]


def calls() -> Iterator[tuple[str, str]]:
    """Each call in the package: where, and the name of what is called."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", ast.unparse(node.func)


def test_no_hasattr() -> None:
    assert [place for place, name in calls() if name == "hasattr"] == []


def test_only_cli_prints_or_exits() -> None:
    loud = {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write", "SystemExit"}
    assert [place for place, name in calls() if name in loud and not place.startswith("cli/")] == []


def test_layers_are_the_modules() -> None:
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    modules |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert modules - {"__init__", "__main__"} == set(layers())


def test_architecture_lists_the_layers_in_order() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\|([^|]*`[^|]*)\|", text, flags=re.MULTILINE)
    names = [name for cell in cells for name in re.findall(r"`([a-z_]+)`", cell)]
    assert [name for name in names if name in layers()] == layers()


def test_methods_are_independent_of_each_other() -> None:
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    (contract,) = (one for one in contracts if one["type"] == "independence")
    assert {name.rpartition(".")[2] for name in contract["modules"]} == METHODS


def test_no_method_is_named_outside_methods() -> None:
    """A method declares its traits; a word of prose such as "frozen" or "replay" is no name."""
    names = "|".join(sorted(METHODS - {"frozen", "taps", "branch", "replay"}))
    written = re.compile(rf"""["'](?:{names}|frozen|taps|branch|replay)["'(]|(?<![\w.])(?:{names})\(""")
    named = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.parent.name != "methods"
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if written.search(line) and "norm" not in line  # BatchNorm may be "frozen"
    ]
    assert named == []


@pytest.mark.parametrize("module", ["taskgraft", "taskgraft.cli"])
def test_importing_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted({set(HEAVY)} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_constraints_are_plain_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", pin)] == []
