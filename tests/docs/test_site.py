"""The documentation as built: no warning, no dead link, nothing from the network; what is generated is complete."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import taskgraft
from taskgraft import errors

ROOT = Path(__file__).parents[2]
LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}


class Page(HTMLParser):
    """What a page loads, where it leads, and the places in it that one can lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.places: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if values.get("id"):
            self.places.add(str(values["id"]))
        if values.get(LOADING.get(tag, "")) and values.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(str(values[LOADING[tag]]))
        if tag == "a" and values.get("href"):
            self.links.append(str(values["href"]))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it; the build is strict, so a warning is a failure."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    result = {}
    for path in sorted(site.rglob("*.html")):
        result[path] = Page()
        result[path].feed(path.read_text(encoding="utf-8"))
    return result


def test_every_page_is_there(pages: dict[Path, Page]) -> None:
    written = {path.stem for path in (ROOT / "docs").rglob("*.md")}
    assert written == {path.stem for path in pages} - {"404"}


def test_nothing_is_loaded_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert page.loads
        assert not [address for address in page.loads if urlsplit(address).netloc], path
        assert page.links
    styles = [file.read_text(encoding="utf-8") for file in site.rglob("*.css")]
    assert styles
    assert not [text for text in styles if re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", text)]


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Page]) -> None:
    dead = []
    for path, page in pages.items():
        if path.name == "404.html":  # its links are for the root of a server
            continue
        for address in page.links + page.loads:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if target.is_dir():
                target /= "index.html"
            missing = not target.is_file() or (
                parts.fragment and target in pages and parts.fragment not in pages[target].places
            )
            if missing:
                dead.append(f"{path.relative_to(site)}: {address}")
    assert not dead


RAISED = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}


def said(node: ast.expr) -> list[str]:
    """The fixed parts of a message, without what is filled in."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.FormattedValue():
            return []
        case _:
            return [text for part in ast.iter_child_nodes(node) if isinstance(part, ast.expr) for text in said(part)]


def test_every_message_of_the_code_is_on_the_page(site: Path) -> None:
    """Messages that are one value alone were made elsewhere; all the others stand on the page."""
    shown = (site / "wrong.html").read_text(encoding="utf-8")
    calls = 0
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in RAISED and node.args:
                words = re.findall(r"[a-z]{5,}", " ".join(said(node.args[0])))
                calls += 1
                assert not [word for word in words if word not in shown], f"{path}:{node.lineno}"
    assert calls > 150


def test_every_message_says_what_to_do(site: Path) -> None:
    shown = (site / "wrong.html").read_text(encoding="utf-8")
    rows = re.findall(r"<tr>(.*?)</tr>", shown.partition('id="all-messages"')[2], re.DOTALL)
    columns = [re.findall(r"<td.*?>(.*?)</td>", row, re.DOTALL) for row in rows]
    wanting = [cells[0] for cells in columns if cells and not re.sub("<.*?>", "", cells[1]).strip()]
    assert sum(map(bool, columns)) > 200
    assert not wanting


def test_every_public_name_and_command_is_in_the_reference(pages: dict[Path, Page]) -> None:
    places = {path.stem: page.places for path, page in pages.items()}
    assert {name.lower() for name in taskgraft.__all__} <= places["python"]
    assert {f"taskgraft-{name}" for name in ("extend", "train", "tune", "serve", "doctor")} <= places["commands"]


def test_the_functions_that_explain_the_formulas_exist() -> None:
    text = (ROOT / "docs" / "how.md").read_text(encoding="utf-8")
    named = set(re.findall(r"taskgraft(?:\.\w+)+", text))
    assert len(named) > 20
    for name in named:
        module, _, last = name.rpartition(".")
        assert getattr(importlib.import_module(module), last)
