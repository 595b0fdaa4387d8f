"""The house rules of CONTRIBUTING.md, checked on the source itself. There is no list of exemptions."""

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
SOURCES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=name(path))


def walk(*kinds: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
    """Give each node of the package of one of the kinds, with the place to report."""
    for path in SOURCES:
        for node in ast.walk(tree(path)):
            if isinstance(node, kinds):
                yield f"{name(path)}:{getattr(node, 'lineno', 1)}", node


def dotted(node: ast.AST) -> str:
    """Spell an expression such as `torch.nn.Module`, without arguments or subscripts."""
    if isinstance(node, ast.Call):
        return dotted(node.func)
    if isinstance(node, ast.Subscript):
        return dotted(node.value)
    return ast.unparse(node)


def is_cli(place: str) -> bool:
    return place.startswith(("src/taskgraft/cli.py", "src/taskgraft/cli/"))


def layers() -> list[str]:
    """Give the modules in the order of import-linter's contract, bottom first."""
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    (contract,) = (contract for contract in contracts if contract["type"] == "layers")
    return [layer.strip("()").removeprefix("taskgraft.") for layer in reversed(contract["layers"])]


def test_there_is_something_to_check():
    assert len(SOURCES) > 10
    assert Path(__file__) in TESTS


def test_nothing_asks_what_an_object_happens_to_have():
    assert not [place for place, node in walk(ast.Call) if dotted(node) == "hasattr"]


def test_only_the_command_line_prints_or_exits():
    loud = {"print", "exit", "quit", "sys.exit", "os._exit", "sys.stdout.write", "sys.stderr.write"}
    found = [f"{place} {dotted(node)}" for place, node in walk(ast.Call) if dotted(node) in loud]
    raised = [place for place, node in walk(ast.Raise) if "SystemExit" in ast.unparse(node)]
    assert not [place for place in found + raised if not is_cli(place)]


def test_what_is_to_be_done_is_an_issue_and_not_a_comment():
    later = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX)\b")
    files = [*SOURCES, *TESTS, ROOT / "Makefile", ROOT / "pyproject.toml"]
    assert not [name(path) for path in files if later.search(path.read_text(encoding="utf-8"))]


def test_the_layers_are_the_modules():
    found = {path.stem for path in PACKAGE.glob("*.py")}
    found |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert found - {"__init__", "__main__"} == set(layers()), "list each module in pyproject.toml's layers"


def test_the_map_shows_the_layers_in_their_order():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    cells = re.findall(r"^\|([^|]*`[^|]*)\|", text, flags=re.MULTILINE)
    order = [module for cell in cells for module in re.findall(r"`(?:taskgraft\.)?([a-z_]+)/?`", cell)]
    assert [module for module in order if module in layers()] == layers()


@pytest.mark.parametrize("module", ["taskgraft", "taskgraft.cli"])
def test_starting_up_loads_nothing_heavy(module):
    heavy = "{'torch', 'torchvision', 'timm', 'matplotlib', 'jinja2', 'huggingface_hub'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")


def test_the_version_is_told_once():
    assert "version" not in PYPROJECT["project"]
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"] == {"path": "src/taskgraft/version.py"}


def test_pins_name_no_place():
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert pins
    assert not [pin for pin in pins if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", pin)]
