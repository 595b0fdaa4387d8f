"""Every command and code block of the documentation is run as it stands, on toy pictures and with few steps."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from taskgraft import cli
from taskgraft.bundle.parents import create
from taskgraft.data.drawn import write_cars
from taskgraft.jobs.train import train
from taskgraft.settings import Run

DOCS = Path(__file__).parents[2] / "docs"
TESTED = ("start.md", "yours.md", "contribute.md")
FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LESS = ["--steps", "2", "--batch", "4", "--eval-every", "1", "--precision", "fp32", "--cache", "none"]
FEW = {"train": LESS, "extend": [*LESS, "--warmup", "2"], "compare": [*LESS, "--warmup", "2", "--seeds", "1"]}
FEW["tune"] = [*FEW["extend"], "--trials", "2"]
MAY_BE_1 = ("check", "doctor", "evaluate")  # their answer may be "no", and that is an answer
# Pages whose commands need servers, films, clusters or hours; tests/surface, tests/jobs, tests/serving run the like.
OTHERS = ("clusters.md", "searching.md", "serving.md", "using.md")
# Blocks that are not run, page by page; each says why in its marker.
LEFT_OUT = {"start.md": 3, "yours.md": 3, "contribute.md": 1}


class Block(NamedTuple):
    """A fenced block: its language, its text, and why it is not run, if so."""

    kind: str
    text: str
    why: str | None


def blocks(page: Path) -> list[Block]:
    found = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["kind"], match["text"], match["why"]) for match in found]


PAGES = [DOCS / name for name in TESTED]


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(
    page: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    shutil.copytree(start, home)
    monkeypatch.chdir(home)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.why or block.kind in ("text", "json"):
            continue
        if block.kind == "python":
            exec(compile(block.text, page.name, "exec"), names)
        else:
            for line in lines(block.text):
                obey(line, monkeypatch)


def lines(text: str) -> list[str]:
    """The commands of a block: lines that end in a backslash are joined, comments taken off."""
    joined = text.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)# .*$", "", line).strip() for line in joined) if line]


def obey(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line)
    if words[0] != "taskgraft" or "|" in words:
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        return
    monkeypatch.setattr(sys, "argv", [*words, *FEW.get(words[1], [])])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    assert code in ((0, 1) if words[1] in MAY_BE_1 else (0,)), line


def test_what_is_not_run_says_why() -> None:
    found = {page.name: sum(block.why is not None for block in blocks(page)) for page in PAGES}
    assert {name: count for name, count in found.items() if count} == LEFT_OUT


def test_no_page_with_commands_is_forgotten() -> None:
    written = [page.name for page in DOCS.rglob("*.md") if any(block.kind != "text" for block in blocks(page))]
    assert sorted(written) == sorted([*TESTED, *OTHERS])
