"""Every command and code block of README.md and of the documentation is run as it stands, in a folder of stand-ins.

The folder holds small things under the very names that the pages use: images, a bundle, a file of weights whose
network answers its validation images. Commands that train get a few flags more (`FEW`), so that they take seconds; a
server gets --trial, so that it ends; from Python, a run that is not given is a short one. What cannot run here (a
cluster, a download) says so in the page and stands in `LEFT_OUT`; its commands are at least read by the real command
line, and so is every command in the middle of a text.
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
import timm
import torch
from torch import nn

import taskgraft
from cli_parsing import COMMANDS, flags_of, parse_line
from servers import running
from taskgraft import Task, TrainingConfig, cli
from taskgraft.bundle import Bundle, write_bundle
from taskgraft.bundle.architecture import create_network
from taskgraft.commands.extend import extend
from taskgraft.data import open_images, transforms
from taskgraft.models.classifier import wrap
from taskgraft.synthetic import write_cars
from videos import make_frames, write_video

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCE = re.compile(r"(?:<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.M | re.S)
LESS = ["--steps", "2", "--batch-size", "4", "--eval-every", "1", "--precision", "fp32", "--cache", "none"]
FEW = {"train": LESS, "extend": [*LESS, "--head-steps", "2"], "compare": [*LESS, "--head-steps", "2", "--seeds", "1"]}
FEW |= {
    "compress": FEW["extend"],
    "refresh": FEW["extend"],
    "merge": LESS,
    "tune": [*FEW["extend"], "--trials", "2"],
    "serve": ["--trial", "--port", "0"],
}
SHORT = TrainingConfig(
    steps=2, batch_size=4, head_steps=2, eval_every=1, precision="fp32"
)  # from Python, where a page gives none
MAY_BE_1 = ("check", "doctor", "evaluate")  # their answer may be "no", and that is an answer
# What is not run, by page: the first line of the block, and why.
LEFT_OUT = {
    "README.md": {
        "make demo": "minutes; the blocks below are run",
        "make test       # all tests": "the whole project's own",
    },
    "start.md": {
        "pip install .": "installs a package",
        "taskgraft demo": "takes minutes; what it leaves is drawn small for the commands below, and "
        "`make demo` runs it",
        "taskgraft serve both": "serves until it is stopped; the next line is the same without waiting",
    },
    "yours.md": {
        "taskgraft extend resnet18.a1_in1k colours/ both-imagenet/ --task colour --labels imagenet_labels.txt":
        "fetches weights from the network",
        "taskgraft train VMMRdb/models.csv vmmr/ --task label --model resnet18 --steps 10000": "hours on a GPU",
        "taskgraft compare vmmr/ color/ six/ --task colour --methods 'finetune; ewc(strength=1e4); distill' "
        "--lrs 0.001,0.0001 \\": "hours on a GPU",
    },
    "contribute.md": {
        "make test ARGS='tests/laws -k match'":
        "changes the repository; tests/docs/test_contribute.py does so in a copy",
    },
    "using.md": {
        "torchrun --nproc-per-node 4 -m taskgraft.cli predict both images/ --out predictions.parquet":
        "starts four processes and a Ray cluster; tests/commands/test_predict.py shares the parts as they do",
    },
    "searching.md": {
        "taskgraft tune demo-run/alice demo-run/data/paints search --task paint --old-val demo-run/data/makes \\":
        "starts processes; tests/commands/test_tune.py does",
        "taskgraft tune cars.pth.tar colors/ search --task color --arch tf_efficientnet_lite0 "
        "--labels cars.txt \\": "needs a database; tests/commands/test_tune.py has one",
        "#!/bin/bash": "needs Slurm",
        "ray start --head                                # on the others: ray start --address=HEAD:6379":
        "starts a cluster; tests/commands/test_tune.py has a small one",
    },
    "serving.md": {
        "pip install 'taskgraft[serve]'":
        "serves until it is stopped; the client below is run against the same server",
    },
    "clusters.md": {
        "taskgraft extend model.pth images both --task colour --gpus 4":
        "needs GPUs; tests/distributed runs two processes",
        "torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint first-machine:29400 \\":
        "needs two machines",
    },
}  # fmt: skip
RUN = ("", "python", "toml")  # languages of what is run, and files that it reads; all others are only looked at
ADDRESS = re.compile(r"(127\.0\.0\.1|server):8000")  # where the pages think that a server listens


pytestmark = pytest.mark.usefixtures("no_charts")


class Block(NamedTuple):
    """A fenced block: its language, its text, and why it is not run, if so."""

    kind: str
    text: str
    why: str | None


def blocks(page: Path) -> list[Block]:
    result = FENCE.finditer(page.read_text(encoding="utf-8"))
    return [Block(match["kind"], match["text"], match["why"]) for match in result]


WRITTEN = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
PAGES = [page for page in WRITTEN if page.name != "CONTRIBUTING.md" and any(b.kind in RUN for b in blocks(page))]


def answering(arch: str, line: str, pictures: Path, name: str = "make") -> Bundle:
    """A network of random weights whose last layer is fitted to answer the validation images of a folder."""
    torch.manual_seed(0)
    plain = open_images(pictures, "label", transforms.parse_preprocessing(line, transforms.Preprocessing()), seed=0)
    task, images = plain.tasks[0], plain.val
    assert images
    net, head, start = create_network(arch, len(task.classes))
    shown = images.pixels.permute(0, 3, 1, 2).float() / 255
    shown = (shown - torch.tensor(images.mean)[:, None, None]) / torch.tensor(images.std)[:, None, None]
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the statistics of these very images
    with torch.no_grad():
        net.train()(shown)
        features = net.eval().forward_head(net.forward_features(shown), pre_logits=True)  # pyright: ignore[reportCallIssue]
        last = net.get_submodule(head)
        assert isinstance(last, nn.Linear)
        last.bias.zero_()
        last.weight.copy_(
            torch.linalg.lstsq(features, nn.functional.one_hot(images.labels["label"]).float()).solution.T
        )
    classifier = wrap(net, head, [Task(name, task.classes)]).eval()
    return Bundle(classifier, transforms.parse_preprocessing(line, start), {}, "drawn", "0", arch, head)


def weights_file(bundle: Bundle, file: Path) -> None:
    """The file of weights of a one-task bundle, as its training would have left it."""
    with torch.no_grad():
        net = timm.create_model(bundle.arch, num_classes=len(bundle.classifier.tasks[0].classes))
        own = bundle.classifier.backbone.state_dict()
        last = bundle.classifier.linears()[0]
        net.load_state_dict({**own, f"{bundle.head}.weight": last.weight, f"{bundle.head}.bias": last.bias})
    torch.save({"state_dict": net.state_dict()}, file)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the pages take for granted, small: the demo's folders, a checkpoint of somebody else, a bundle, images."""
    home = tmp_path_factory.mktemp("start")
    data = home / "demo-run/data"
    makes = write_cars(data / "makes", label="make", train=6, val=2, seed=1, size=32, camera="street")
    paints = write_cars(data / "paints", label="paint", train=6, val=2, seed=2, size=32, camera="factory")
    alice = answering("test_resnet", "32 squash bilinear half", makes)
    painter = answering("test_resnet", "32 squash bilinear half", paints, name="paint")
    bundles = {"demo-run/alice": alice, "cars_bundle": alice, "CHECKPOINT": alice, "OTHER": painter, "painter": painter}
    for name, bundle in bundles.items():
        (home / name).mkdir()
        write_bundle(home / name, bundle, method="train", parent={"source": "drawn"})
    for name, source in (
        ("cars", makes),
        ("colours", paints),
        ("IMAGES", paints),
        ("OLD_VALIDATION_IMAGES", makes),
        ("MORE_IMAGES", makes),
    ):
        shutil.copytree(source, home / name)
    (home / "cars_labels.txt").write_text("\n".join(alice.classifier.tasks[0].classes), encoding="utf-8")
    weights_file(answering("resnet18", "32 squash bilinear imagenet", makes), home / "cars.pth.tar")
    rows = [f"{path.relative_to(home)},{path.parent.name}" for path in sorted((paints / "train").rglob("*.png"))]
    (home / "table.csv").write_text("\n".join(["path,colour", *rows]) + "\n", encoding="utf-8")
    for number, make in enumerate(("honda_civic_2006", "honda_civic_2007", "ford_focus_2010", "ford_ka_1999")):
        shutil.copytree(sorted((makes / "train").iterdir())[number], home / "VMMRdb" / make)
    return home


@pytest.fixture(scope="module")
def front(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the checkpoint of the README, which is of another architecture than the one of the pages."""
    home = tmp_path_factory.mktemp("front") / "home"
    shutil.copytree(start, home, ignore=shutil.ignore_patterns("cars", "cars_bundle", "cars_labels.txt"))
    cars = write_cars(home / "cars", label="make", train=9, val=2, seed=1, size=32, camera="street")
    for part in (cars / "train", cars / "val"):
        for number, folder in enumerate(sorted(part.iterdir())):  # names as those of the README have them
            folder.rename(part / f"{'Audi' if number < 6 else 'BMW'}_{folder.name}_2012")
    bundle = answering("test_resnet", "32 squash bilinear half", cars)
    (home / "cars_bundle").mkdir()
    write_bundle(home / "cars_bundle", bundle, method="train", parent={"source": "drawn"})
    (home / "cars_labels.txt").write_text("\n".join(bundle.classifier.tasks[0].classes), encoding="utf-8")
    weights_file(answering("tf_efficientnet_lite0", "96 squash bilinear imagenet", cars), home / "cars.pth.tar")
    return home


@pytest.fixture(scope="module")
def later(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with what the pages on using a model begin with: a child of two tasks, images, frames, a film."""
    home = tmp_path_factory.mktemp("later") / "home"
    shutil.copytree(start, home)
    extend(home / "demo-run/alice", home / "colours", home / "both", task="colour", config=SHORT, old_val=home / "cars")
    shutil.copytree(home / "colours", home / "images")
    pictures = sorted((home / "colours/val").rglob("*.png"))
    shutil.copytree(pictures[0].parent, home / "crops")
    for name in ("a.jpg", "b.png", "car.jpg", "b.jpg"):
        shutil.copy(pictures[1], home / name)
    rows = [f"{path.relative_to(home)},{number // 2}" for number, path in enumerate(pictures)]
    (home / "frames.csv").write_text("\n".join(["path,track", *rows]) + "\n", encoding="utf-8")
    write_video(home / "camera.mp4", make_frames(Task("paint", ("red", "blue")), [0, 1, 0], 5))
    return home


@pytest.fixture
def page_home(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what the page in question begins with, for it alone."""
    kind = {"using.md": "later", "serving.md": "later", "README.md": "front"}.get(request.param.name, "start")
    own = request.getfixturevalue(kind)
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
    with running(Path("both")) as result:
        yield result.url.removeprefix("http://")


@pytest.mark.parametrize("page_home", PAGES, indirect=True, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run_in_order(page_home: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for function in (taskgraft.extend, taskgraft.train, taskgraft.learn):
        assert function.__kwdefaults__
        monkeypatch.setitem(function.__kwdefaults__, "config", SHORT)
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
    result = {page.name: {b.text.splitlines()[0]: b.why for b in blocks(page) if b.why is not None} for page in PAGES}
    assert {name: own for name, own in result.items() if own} == LEFT_OUT


def test_what_is_not_run_is_understood_by_the_command_line() -> None:
    read = 0
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    for page in WRITTEN:
        for block in blocks(page):
            for line in lines(block.text) if (block.why or page not in PAGES) and block.kind in RUN else ():
                result = re.search(r"(?:^|\s)(?:-m taskgraft\.cli|taskgraft) ([a-z]+.*)$", line)
                words = shlex.split(line)
                if words[0] == "pip":
                    installable(words)
                elif words[0] == "make":
                    assert words[1] in targets, line
                elif result:
                    parse_line(f"taskgraft {result[1]}")
                    read += 1
                else:
                    assert line in ("ray start --head",), line
    assert read > 11


FOREIGN = ("--initial-checkpoint",)  # timm's
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


def spans(page: Path) -> list[str]:
    """The code in the middle of a page's text."""
    return [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8")))]


def test_the_commands_in_the_middle_of_a_text_are_understood() -> None:
    whole = parts = 0
    for page in WRITTEN:
        for span in spans(page):
            words = shlex.split(span) if span.count("'") % 2 == 0 and span.count('"') % 2 == 0 else span.split()
            words = words[1:] if words[0] == "taskgraft" else words
            verb = words[0] if words and words[0] in COMMANDS else None
            named = [word.partition("=")[0] for word in words if re.match(r"--[a-z]", word)]
            if verb is None and (not (span.startswith("--") and named) or span in FOREIGN):
                assert not span.startswith("taskgraft ") or words[0].startswith("-") or words[0].isupper(), (
                    f"{page.name}: {span}"
                )
                continue
            for flag in named:
                own = [verb] if verb else list(COMMANDS)
                known = {"--version", "--help", "--debug"}.union(*(flags_of(name) for name in own))
                assert flag in known, f"{page.name}: {span}: {flag} is no flag of {' or '.join(own)}"
                parts += 1
            has_arguments = len(words) > 1 and not words[1].startswith("-")
            if verb and span.startswith("taskgraft ") and has_arguments and "…" not in span:
                parse_line(span)
                whole += 1
    assert whole > 10
    assert parts > 60
