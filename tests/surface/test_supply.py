"""What the package rests on: lower bounds above known defects, a lock with digests, and no extra imported unasked."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "taskgraft"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# What the modules of an extra may import when they are imported, since nothing else imports them unasked.
TUNING = ("tuning.study", "tuning.sampler", "tuning.coordinator", "tuning.outcome", "commands.tune", "commands.auto")
HOMES = {"taskgraft.serving": "serve", **{f"taskgraft.{name}": "tune" for name in TUNING}}
# Extras of those who change taskgraft, not of those who use it.
DEVELOPERS = {"docs", "test", "coverage", "lint", "fuzz", "sbom", "dev"}
# Where the commands begin that need the program alone.
BASE = (
    "cli.training",
    "pipeline.train",
    "pipeline.extend",
    "commands.compare",
    "report",
    "report.comparison_page",
)
# What those modules import of extras, each where a user asks for it.
ASKED = {
    "taskgraft.bundle.prediction": {"pandas"},
    "taskgraft.data.tables": {"pyarrow"},
    "taskgraft.data.streaming": {"av"},
    "taskgraft.pipeline.tracking": {"accelerate"},
    "taskgraft.methods.lora": {"peft"},
}
FRAMES = {"pandas"}  # of no extra: who asks for a DataFrame has it, and else is told its name
# Where the name that is imported is not the name that is installed.
IMPORTED = {
    "python-multipart": ("multipart", "python_multipart"), "optuna": ("optuna", "sqlalchemy"),
    "prometheus-client": ("prometheus_client",), "fastapi": ("fastapi", "starlette"), "pillow": ("PIL",),
    "pyyaml": ("yaml",),
}  # fmt: skip


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=name(path))


def requirements() -> dict[str, list[Requirement]]:
    """All requirements, by the extra that asks for them; "" asks always."""
    project = PYPROJECT["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    return {extra: [Requirement(line) for line in lines] for extra, lines in groups.items()}


class Advisory(NamedTuple):
    """A row of the table in docs/security.md."""

    package: str
    identifier: str
    affected: SpecifierSet


def advisories() -> list[Advisory]:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    section = text.partition("## Known defects of libraries\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("| ").split("|")] for line in section.splitlines() if line[:2] == "| "]
    return [Advisory(row[0].strip("`"), row[1], SpecifierSet(row[2])) for row in rows[1:]]


def test_no_version_with_a_known_defect_is_admitted() -> None:
    """A bound that is lowered, or an advisory added to the table without raising the bound, fails here."""
    known = advisories()
    assert len(known) > 15
    for advisory in known:
        assert re.match(r"(CVE-\d{4}-\d{4,}|GHSA(-\w{4}){3}|PYSEC-\d{4}-\d+)", advisory.identifier), advisory
        found = [(extra, line) for extra, lines in requirements().items() for line in lines]
        bounds = [
            (extra, next(part.version for part in line.specifier if part.operator == ">="))
            for extra, line in found
            if line.name == advisory.package
        ]
        assert bounds, f"{advisory.package} is not required any more: take its rows out of docs/security.md"
        for extra, bound in bounds:
            place = f"[{extra}] {advisory.package}>={bound} admits {advisory.identifier} ({advisory.affected})"
            assert Version(bound) not in advisory.affected, place
            assert all(part.operator != "<" or Version(bound) >= Version(part.version) for part in advisory.affected)
        assert Version(pins()[canonicalize_name(advisory.package)]) not in advisory.affected


def test_no_requirement_is_an_address() -> None:
    assert [line for lines in requirements().values() for line in lines if line.url is not None] == []


def test_every_requirement_has_a_lower_bound() -> None:
    for lines in requirements().values():
        for line in lines:
            own = line.name == "taskgraft"
            assert own or any(part.operator == ">=" for part in line.specifier), f"{line} may be of any age"


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if "==" in line}


def test_the_lock_is_the_pins_with_digests() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    first, *lines = text.splitlines()
    assert first.startswith("# Made by 'make lock' on Linux x86_64, Python 3.")
    result = re.findall(r"^([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+) \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.M)
    assert 2 * len(result) == len(lines)
    locked = {canonicalize_name(name): version for name, version in result}
    known = pins()
    assert {name: version for name, version in locked.items() if known.get(name) != version} == {}
    requested = {canonicalize_name(line.name) for lines in requirements().values() for line in lines} - {"taskgraft"}
    assert requested <= set(locked)


def modules_of(extra: str) -> set[str]:
    """The top names that the packages of an extra are imported by."""
    result: set[str] = set()
    for line in requirements()[extra]:
        result |= set(IMPORTED.get(line.name, (line.name.replace("-", "_"),)))
    return result


def optional() -> set[str]:
    """The top names of all extras' packages that users may not have: not those that a requirement brings along."""
    always = set[str]()
    pending = [line.name for line in requirements()[""]]
    while pending:
        if (name := canonicalize_name(pending.pop())) not in always:
            always.add(name)
            lines = map(Requirement, importlib.metadata.requires(name) or ())
            pending += [line.name for line in lines if line.marker is None or line.marker.evaluate({"extra": ""})]
    return {
        name for extra in requirements() if extra not in {"", *DEVELOPERS} for name in modules_of(extra)
    } - always - {"taskgraft"}  # fmt: skip


def third_party(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The top names of the packages that an import needs, the standard library's and our own left out."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)]
    return {result.partition(".")[0] for result in names} - sys.stdlib_module_names - {"taskgraft"}


def reached(starts: Iterable[str]) -> set[str]:
    """Our modules that some import, wherever it stands in them, except those that are an extra's own."""
    files = {dotted(path): path for path in SOURCES}
    result, waiting = set(), [f"taskgraft.{start}" for start in starts]
    while waiting:
        module = waiting.pop()
        if module not in files or module in result or home_of(module) or module in ("taskgraft", "taskgraft.cli"):
            continue  # those two lead everywhere
        result.add(module)
        waiting += [module.rpartition(".")[0]]
        for node in ast.walk(tree(files[module])):
            if isinstance(node, ast.Import | ast.ImportFrom):
                waiting += names_of(node)
    return result


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def home_of(module: str) -> str | None:
    """The extra whose own module this is."""
    if module == "taskgraft.serving" or module.startswith("taskgraft.serving.limits"):  # read by help texts
        return None
    return next((extra for root, extra in HOMES.items() if module == root or module.startswith(root + ".")), None)


def at_import(body: list[ast.stmt]) -> list[ast.Import | ast.ImportFrom]:
    """The imports that run when a module is imported; those under TYPE_CHECKING do not."""
    result: list[ast.Import | ast.ImportFrom] = []
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            result.append(node)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            result += at_import(node.orelse)
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
            result += at_import(inner)
    return result


def names_of(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]


def test_no_module_imports_an_extra_when_it_is_imported() -> None:
    """Extras are imported inside functions; only the extra's own modules may import it, and only they each other."""
    extras, checked = optional(), 0
    assert {"fastapi", "optuna", "onnx", "av", "peft", "ray", "pyarrow"} <= extras
    for path in SOURCES:
        own = home_of(dotted(path))
        for node in at_import(tree(path).body):
            for result in names_of(node):
                checked += 1
                place, top = f"{name(path)}:{node.lineno} imports {result}", result.partition(".")[0]
                if top in extras:
                    assert own is not None, place
                    assert top in modules_of(own), place
                assert home_of(result) in (None, own), place
    assert checked > 500


def test_the_base_is_what_training_extending_and_comparing_import() -> None:
    """Both ways: nothing is required that they do not import, and they import nothing that is not required."""
    base, modules = modules_of(""), reached(BASE)
    imported: dict[str, set[str]] = {}
    for path in SOURCES:
        if dotted(path) in modules:
            nodes = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Import | ast.ImportFrom)]
            imported[dotted(path)] = set().union(*map(third_party, nodes))
    assert len(imported) > 80
    assert {module: result - base for module, result in imported.items() if result - base} == ASKED
    assert set().union(*ASKED.values()) - FRAMES <= optional()
    assert base <= set().union(*imported.values())


MAKES = {"demo": "'.'", "bench": "'.[tune]'", "test": "'.[test]'", "lint": "'.[test,lint]'", "docs": "'.[docs]'"}


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("target", "installed"), MAKES.items())
def test_a_target_installs_what_it_needs(target: str, installed: str, tmp_path: Path) -> None:
    """And what came along is not installed again: the program with everything, tests with what checks their types."""
    for file in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / file, tmp_path)

    def told(target: str) -> str:
        words = ["make", "--dry-run", f"PYTHON={sys.executable}", target]
        return subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    (pip,) = re.findall(r"pip install (?:.*\\\n)*.*", told(target))
    assert pip.endswith(f"-e {installed}")
    assert "torch|torchvision" in pip
    (stamps,) = re.findall(r"^touch (.*)", told(target), re.M)
    (tmp_path / ".venv").mkdir()
    for stamp in stamps.split():
        (tmp_path / stamp).touch()
    for other in (target, "demo", *(["test"] if target == "lint" else [])):
        assert "pip install" not in told(other)


def test_every_extra_of_the_makefile_exists() -> None:
    lines = re.findall(r"^EXTRAS_\w+ := *(.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    requested = {name for line in lines for name in line.split(",") if name}
    assert requested <= requirements().keys()
    assert len(lines) > 6


def test_every_module_can_be_imported_without_the_extras() -> None:
    """In a process where they do not exist."""
    preprocessing = [dotted(path) for path in SOURCES if home_of(dotted(path)) is None and path.stem != "__main__"]
    assert len(preprocessing) > 100
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({sorted(optional())!r}))  # None: it does not exist
for name in {preprocessing!r}:
    importlib.import_module(name)
print(len(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
