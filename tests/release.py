"""`make release-check`: is what would be published whole?

Builds the source archive, and the wheel out of that archive; installs the wheel with its pinned dependencies in an
empty environment; runs the tests of the surface against it in a folder that holds nothing of the repository but those
tests. Exit 0 if everything is as it should be. Takes minutes and 7 GB, most of them torch, in build/release; the
environment is removed at the end, unless `--keep` is given; `--again` then changes nothing in it but the wheel.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
HOME = ROOT / "build" / "release"
EXTRAS = "export,parquet,ray,serve,track,tune,video"
TOOLS = ("pytest", "pytest-xdist", "httpx", "tritonclient[http]", "mkdocs-material")
SUPPORT = ("conftest.py", "forks.py", "toys.py", "cli_parsing.py", "opened_files.py", "videos.py", "servers.py")
TESTS = ("acceptance", "surface/test_errors.py", "surface/test_examples.py",
         "surface/test_help.py")  # fmt: skip
BUILDER = "build>=1.3"
IN_WHEEL = ("py.typed", "report/templates/page.html.j2", "serving/page/page.html", "cli/app.py")
IN_ARCHIVE = ("LICENSE", "CHANGELOG.md", "CITATION.cff", "constraints.txt", "Makefile", "mkdocs.yml",
              "tests/conftest.py", "recipes/chain.py", "docs/start.md")  # fmt: skip
INI = """\
[pytest]
markers = slow
    browser
    cluster
pythonpath = tests
addopts = --import-mode=importlib --strict-markers -ra -p no:cacheprovider
"""


def main() -> int:
    """Build, look, install, test; the first thing that is wrong ends it."""
    dist, env, away = HOME / "dist", HOME / "env", HOME / "away"
    known = "--again" in sys.argv and env.exists()
    for folder in (dist, away, HOME / "builder", *(() if known else (env,))):
        shutil.rmtree(folder, ignore_errors=True)
    told("building the source archive, and the wheel out of it")
    run(sys.executable, "-m", "venv", HOME / "builder")
    run(HOME / "builder" / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", BUILDER)
    run(HOME / "builder" / "bin" / "python", "-m", "build", "--outdir", dist, ROOT)
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    wrong = [*faults_of_names(wheel, archive), *faults_of_contents(wheel, archive)]
    for fault in wrong:
        told(f"WRONG: {fault}")
    if wrong:
        return 1
    told(f"installing {wheel.name} in {'the environment that was kept' if known else 'an empty environment'}")
    if known:
        run(env / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    else:
        run(sys.executable, "-m", "venv", env)
        install(env / "bin" / "python", wheel)
    run(env / "bin" / "python", "-m", "pip", "check")
    away.mkdir()
    copy_tests(away)
    told("testing the surface of what was installed")
    code = test(env, away)
    if not {"--keep", "--again"} & set(sys.argv):
        shutil.rmtree(env)
    told(f"{wheel.name} {'passes' if code == 0 else 'FAILS'} the tests of the surface; both archives are in {dist}")
    return code


def faults_of_names(wheel: Path, archive: Path) -> list[str]:
    """Where the version of the archives is not that of the changelog and the citation."""
    code = (ROOT / "src" / "taskgraft" / "version.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.+)"$', code, re.M)[0]
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    said = [
        (f"-{version}-" not in wheel.name or f"-{version}." not in archive.name, f"the archives are not of {version}"),
        (not cited or cited[1].strip("\"'") != version, f"CITATION.cff does not say version {version}"),
        (f"## [{version}]" not in changes and "## [Unreleased]" not in changes, f"CHANGELOG.md knows no {version}"),
    ]
    return [fault for is_wrong, fault in said if is_wrong]


def faults_of_contents(wheel: Path, archive: Path) -> list[str]:
    """What is missing in the archives, or has no business there."""
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
    with tarfile.open(archive) as file:
        sources = {name.partition("/")[2] for name in file.getnames()}
    result = [f"the wheel lacks {name}" for name in IN_WHEEL if f"taskgraft/{name}" not in packed]
    result += [f"the source archive lacks {name}" for name in IN_ARCHIVE if name not in sources]
    result += [f"the wheel holds {name}" for name in packed if not re.match(r"taskgraft(/|-[^/]+\.dist-info/)", name)]
    return result + [f"an archive holds {name}" for name in packed | sources if "__pycache__" in name]


def install(python: Path, wheel: Path) -> None:
    """The wheel with what its commands can use, as pinned; torch first, as in the Makefile."""
    pins = ROOT / "constraints.txt"
    pair = re.findall(r"^(?:torch|torchvision)==.*$", pins.read_text(encoding="utf-8"), re.M)
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", pins)
    run(*pip, *pair)
    run(*pip, f"{wheel}[{EXTRAS}]", *TOOLS)


def copy_tests(away: Path) -> None:
    """The tests of the surface and what they lean on, nothing else."""
    (away / "tests").mkdir()
    for name in SUPPORT:
        shutil.copy(ROOT / "tests" / name, away / "tests")
    (away / "tests" / "surface").mkdir()
    for name in TESTS:
        place, to = ROOT / "tests" / name, away / "tests" / name
        if place.is_dir():
            shutil.copytree(place, to, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(place, to)
    (away / "pytest.ini").write_text(INI, encoding="utf-8")


def test(env: Path, away: Path) -> int:
    """Run the tests where the repository cannot be imported; the exit code of pytest."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean["PATH"] = f"{env / 'bin'}{os.pathsep}{clean['PATH']}"
    place = "import taskgraft; print(taskgraft.__file__)"
    where = subprocess.run([env / "bin" / "python", "-c", place], cwd=away, env=clean, capture_output=True, text=True,
                           check=True).stdout.strip()  # fmt: skip
    assert Path(where).is_relative_to(env), where
    told(f"taskgraft is {where}")
    command = [env / "bin" / "python", "-m", "pytest", "-q", "tests"]
    return subprocess.run(command, cwd=away, env=clean, check=False).returncode


def run(*words: object) -> None:
    """A command that must succeed."""
    subprocess.run([str(word) for word in words], check=True)


def told(line: str) -> None:
    """Say what is done."""
    print(f"release: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
