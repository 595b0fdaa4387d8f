"""Every command and code block of the documentation is run as it stands, on toy pictures and with few steps.

What cannot run here (a cluster, a server that never ends, a download) says so in the page; its commands are at least
read by the real command line, so that no page shows a flag that there is not.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import typer.main

from films import film, stills
from servers import running
from taskgraft import Task, cli
from taskgraft.bundle.parents import create
from taskgraft.data.drawn import write_cars
from taskgraft.jobs.extend import extend
from taskgraft.jobs.train import train
from taskgraft.settings import Run

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
COMMANDS = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LESS = ["--steps", "2", "--batch", "4", "--eval-every", "1", "--precision", "fp32", "--cache", "none"]
FEW = {"train": LESS, "extend": [*LESS, "--warmup", "2"], "compare": [*LESS, "--warmup", "2", "--seeds", "1"]}
FEW["tune"] = [*FEW["extend"], "--trials", "2"]
MAY_BE_1 = ("check", "doctor", "evaluate")  # their answer may be "no", and that is an answer
# Blocks that are not run, page by page; each says why in its marker.
LEFT_OUT = {"start.md": 3, "yours.md": 3, "contribute.md": 1, "using.md": 1, "searching.md": 4, "serving.md": 1,
            "clusters.md": 2}  # fmt: skip
RUN = ("", "python", "toml")  # languages of what is run, and files that it reads; all others are only looked at
ADDRESS = re.compile(r"(127\.0\.0\.1|server):8000")  # where the pages think that a server listens


class Block(NamedTuple):
    """A fenced block: its language, its text, and why it is not run, if so."""

    kind: str
    text: str
    why: str | None


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["kind"], match["text"], match["why"]) for match in found]


PAGES = sorted(page for page in DOCS.rglob("*.md") if any(block.kind in RUN for block in blocks(page)))


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, small: the demo's folders, a checkpoint of somebody else, a bundle, pictures."""
    home = tmp_path_factory.mktemp("start")
    run = Run(steps=2, batch=4, warmup=0, precision="fp32")
    wanted = "32 squash bilinear half"
    data = home / "demo-run/data"
    makes = write_cars(data / "makes", label="make", train=6, val=2, seed=1, size=32, camera="street")
    paints = write_cars(data / "paints", label="paint", train=6, val=2, seed=2, size=32, camera="factory")
    train(makes, home / "demo-run/alice", task="make", model="test_resnet", wanted=wanted, run=run)
    for name, source in (("cars", makes), ("colours", paints)):
        shutil.copytree(source, home / name)
    classes = sorted(folder.name for folder in (makes / "val").iterdir())
    (home / "cars_labels.txt").write_text("\n".join(classes), encoding="utf-8")
    torch.manual_seed(0)
    torch.save({"state_dict": create("resnet18", len(classes))[0].state_dict()}, home / "cars.pth.tar")
    rows = [f"{path.relative_to(home)},{path.parent.name}" for path in sorted((paints / "train").rglob("*.png"))]
    (home / "table.csv").write_text("\n".join(["path,colour", *rows]) + "\n", encoding="utf-8")
    for number, make in enumerate(("honda_civic_2006", "honda_civic_2007", "ford_focus_2010", "ford_ka_1999")):
        shutil.copytree(sorted((makes / "train").iterdir())[number], home / "VMMRdb" / make)
    return home


@pytest.fixture(scope="module")
def later(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with what the pages on using a model begin with: a child of two tasks, pictures, frames, a film."""
    home = tmp_path_factory.mktemp("later") / "home"
    shutil.copytree(start, home)
    run = Run(steps=2, batch=4, warmup=2, eval_every=1, precision="fp32")
    extend(home / "demo-run/alice", home / "colours", home / "both", task="colour", run=run, old_val=[home / "cars"])
    shutil.copytree(home / "colours", home / "pictures")
    pictures = sorted((home / "colours/val").rglob("*.png"))
    shutil.copytree(pictures[0].parent, home / "crops")
    for name in ("a.jpg", "b.png", "car.jpg", "b.jpg"):
        shutil.copy(pictures[1], home / name)
    rows = [f"{path.relative_to(home)},{number // 2}" for number, path in enumerate(pictures)]
    (home / "frames.csv").write_text("\n".join(["path,track", *rows]) + "\n", encoding="utf-8")
    film(home / "camera.mp4", stills(Task("paint", ("red", "blue")), [0, 1, 0], 5))
    return home


@pytest.fixture
def page_home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the page in question begins with, for it alone."""
    own = request.getfixturevalue("later" if request.param.name in ("using.md", "serving.md") else "start")
    home = tmp_path / "home"
    shutil.copytree(own, home)
    monkeypatch.chdir(home)
    return request.param


@pytest.fixture
def server(page_home: Path) -> Iterator[str]:
    """Where the model is served, on the page that asks one; nothing is started for the others."""
    if page_home.name != "serving.md":
        yield ""
        return
    with running(Path("both")) as found:
        yield found.url.removeprefix("http://")


@pytest.mark.parametrize("page_home", PAGES, indirect=True, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(page_home: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page_home):
        if block.why or block.kind not in RUN:
            continue
        text = ADDRESS.sub(server, block.text)
        if block.kind == "python":
            exec(compile(text, page_home.name, "exec"), names)
        elif block.kind == "toml":  # its first line is its name
            Path(text.partition("\n")[0].removeprefix("# ")).write_text(text, encoding="utf-8")
        else:
            for line in lines(text):
                obey(line, monkeypatch)


def lines(text: str) -> list[str]:
    """The commands of a block: lines that end in a backslash are joined, comments taken off."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*$", "", line).strip() for line in joined) if line]


def obey(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before, pipe, command = line.rpartition(" | ")
    words = shlex.split(command)
    if words[0] == "pip":
        installable(words)
        return
    if words[0] != "taskgraft":
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert words[0] != "curl" or '"tasks"' in done.stdout, done.stdout
        return
    if pipe:
        given = subprocess.run(["bash", "-c", before], capture_output=True, check=True).stdout
        assert given, line
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given)))
    monkeypatch.setattr(sys, "argv", [*words, *FEW.get(words[1], [])])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert (end.value.code or 0) in ((0, 1) if words[1] in MAY_BE_1 else (0,)), line


def installable(words: list[str]) -> None:
    """What a page tells to install: our extras exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra in re.findall(r"taskgraft\[([^\]]+)\]", " ".join(words)):
        assert extra in project["optional-dependencies"]


def test_what_is_not_run_says_why() -> None:
    found = {page.name: sum(block.why is not None for block in blocks(page)) for page in PAGES}
    assert {name: count for name, count in found.items() if count} == LEFT_OUT


def test_what_is_not_run_is_understood_by_the_command_line() -> None:
    read = 0
    for page in PAGES:
        for block in blocks(page):
            for line in lines(block.text) if block.why and block.kind in RUN else ():
                found = re.search(r"(?:^|\s)(?:-m taskgraft\.cli|taskgraft) ([a-z]+) (.*)$", f"{line} ")
                if line.startswith("pip "):
                    installable(shlex.split(line))
                elif found:
                    COMMANDS[found[1]].make_context(found[1], shlex.split(found[2])).close()
                    read += 1
                else:
                    assert line.split()[0] in ("ray", "make", "taskgraft"), line
    assert read > 12
