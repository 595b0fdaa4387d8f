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
BUILD = ROOT / "build" / "release"
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
    """Build, check the archives, install, test; the first failure ends it."""
    dist, env, test_dir = BUILD / "dist", BUILD / "env", BUILD / "tests"
    reuse = "--again" in sys.argv and env.exists()
    for folder in (dist, test_dir, BUILD / "builder", *(() if reuse else (env,))):
        shutil.rmtree(folder, ignore_errors=True)
    log("building the source archive, and the wheel out of it")
    run(sys.executable, "-m", "venv", BUILD / "builder")
    run(BUILD / "builder" / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", BUILDER)
    run(BUILD / "builder" / "bin" / "python", "-m", "build", "--outdir", dist, ROOT)
    (wheel,), (archive,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    errors = [*version_errors(wheel, archive), *content_errors(wheel, archive)]
    for error in errors:
        log(f"WRONG: {error}")
    if errors:
        return 1
    log(f"installing {wheel.name} in {'the environment that was kept' if reuse else 'an empty environment'}")
    if reuse:
        run(env / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--force-reinstall", wheel)
    else:
        run(sys.executable, "-m", "venv", env)
        install(env / "bin" / "python", wheel)
    run(env / "bin" / "python", "-m", "pip", "check")
    test_dir.mkdir()
    copy_tests(test_dir)
    log("testing the surface of what was installed")
    code = test(env, test_dir)
    if not {"--keep", "--again"} & set(sys.argv):
        shutil.rmtree(env)
    log(f"{wheel.name} {'passes' if code == 0 else 'FAILS'} the tests of the surface; both archives are in {dist}")
    return code


def version_errors(wheel: Path, archive: Path) -> list[str]:
    """Where the version of the archives is not that of the changelog and the citation."""
    code = (ROOT / "src" / "taskgraft" / "version.py").read_text(encoding="utf-8")
    version = re.findall(r'^__version__ = "(.+)"$', code, re.M)[0]
    citation = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    checks = [
        (f"-{version}-" not in wheel.name or f"-{version}." not in archive.name, f"the archives are not of {version}"),
        (not citation or citation[1].strip("\"'") != version, f"CITATION.cff does not say version {version}"),
        (f"## [{version}]" not in changes and "## [Unreleased]" not in changes, f"CHANGELOG.md knows no {version}"),
    ]
    return [error for is_wrong, error in checks if is_wrong]


def content_errors(wheel: Path, archive: Path) -> list[str]:
    """What is missing in the archives, or has no business there."""
    with zipfile.ZipFile(wheel) as file:
        wheel_files = set(file.namelist())
    with tarfile.open(archive) as file:
        archive_files = {name.partition("/")[2] for name in file.getnames()}
    result = [f"the wheel lacks {name}" for name in IN_WHEEL if f"taskgraft/{name}" not in wheel_files]
    result += [f"the source archive lacks {name}" for name in IN_ARCHIVE if name not in archive_files]
    expected = re.compile(r"taskgraft(/|-[^/]+\.dist-info/)")
    result += [f"the wheel holds {name}" for name in wheel_files if not expected.match(name)]
    return result + [f"an archive holds {name}" for name in wheel_files | archive_files if "__pycache__" in name]


def install(python: Path, wheel: Path) -> None:
    """The wheel with what its commands can use, as pinned; torch first, as in the Makefile."""
    pins = ROOT / "constraints.txt"
    pair = re.findall(r"^(?:torch|torchvision)==.*$", pins.read_text(encoding="utf-8"), re.M)
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", pins)
    run(*pip, *pair)
    run(*pip, f"{wheel}[{EXTRAS}]", *TOOLS)


def copy_tests(test_dir: Path) -> None:
    """The tests of the surface and the modules they import, nothing else."""
    (test_dir / "tests").mkdir()
    for name in SUPPORT:
        shutil.copy(ROOT / "tests" / name, test_dir / "tests")
    (test_dir / "tests" / "surface").mkdir()
    for name in TESTS:
        source, target = ROOT / "tests" / name, test_dir / "tests" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    (test_dir / "pytest.ini").write_text(INI, encoding="utf-8")


def test(env: Path, test_dir: Path) -> int:
    """Run the tests where the repository cannot be imported; the exit code of pytest."""
    env_vars = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env_vars["PATH"] = f"{env / 'bin'}{os.pathsep}{env_vars['PATH']}"
    command = [env / "bin" / "python", "-c", "import taskgraft; print(taskgraft.__file__)"]
    done = subprocess.run(command, cwd=test_dir, env=env_vars, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).is_relative_to(env), done.stdout
    log(f"taskgraft is {done.stdout.strip()}")
    command = [env / "bin" / "python", "-m", "pytest", "-q", "tests"]
    return subprocess.run(command, cwd=test_dir, env=env_vars, check=False).returncode


def run(*words: object) -> None:
    """A command that must succeed."""
    subprocess.run([str(word) for word in words], check=True)


def log(line: str) -> None:
    """Say what is done."""
    print(f"release: {line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
