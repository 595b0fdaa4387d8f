"""The pages in a real browser: drawn without an error, readable by a screen reader, nothing wider than a phone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from made_up import made_up_comparison, made_up_record, made_up_sets
from taskgraft import report
from taskgraft.commands.check import check
from taskgraft.report import theme

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium to look at the pages with")

SIZES = {"phone": {"width": 390, "height": 844}, "wide": {"width": 1280, "height": 900}}
EVERY = "[...document.querySelectorAll"
RULES = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]
READ = {("config", "dark"), ("comparison", "light"), ("check", "light")}  # axe takes seconds a page
PAGES = ("config", "blind", "comparison", "check")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, forgetful: Path, new_folder: Path) -> Path:
    """A page of each kind."""
    root = tmp_path_factory.mktemp("pages")
    shutil.copy(forgetful / "report.html", root / "run.html")
    blind = report.render_run(made_up_record(with_old=False), made_up_sets(with_old=False))
    (root / "blind.html").write_text(blind, encoding="utf-8")
    (root / "comparison.html").write_text(report.render_comparison(made_up_comparison(2)), encoding="utf-8")
    check(new_folder, html=root / "check.html")
    return root


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("wide", "light")])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_drawn_and_can_be_read(browser: Any, folder: Path, name: str, size: str, scheme: str) -> None:
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    page, errors, asked = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: asked.append(request.url))
    page.goto((folder / f"{name}.html").as_uri())
    drawn = f"{EVERY}('.plot')].map((one) => [...one.children].filter((own) => own.checkVisibility()).length)"
    assert set(page.evaluate(drawn)) == {1}  # of the drawings for wide screens and for phones
    letters = f"{EVERY}('.plot text')].filter((one) => one.checkVisibility()).map((one) => one.getBoundingClientRect())"
    assert page.evaluate(
        f"{letters}.every((box) => Math.max(box.width, box.height) >= 10.9)"
    )  # characters of 9.5 pixels
    assert page.evaluate(f"{letters}.every((box) => box.left >= 0 && box.right <= innerWidth)")
    assert errors == []  # a broken content policy would be one
    assert {url.split(":")[0] for url in asked} <= {"file", "data", "blob"}
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert page.evaluate("[...document.images].every((one) => one.complete && one.naturalWidth > 0)")
    if (name, scheme) in READ:
        found = axe.Axe().run(page, options={"runOnly": RULES})
        assert found.violations_count == 0, found.generate_report()
    context.close()


def test_on_paper_everything_that_can_be_shown_is(browser: Any, folder: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto((folder / "run.html").as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for hidden in ("nav", "details", ".copy", ".slim"):
        assert page.evaluate(f"[...document.querySelectorAll('{hidden}')].every((one) => !one.checkVisibility())"), (
            hidden
        )
    inks = page.evaluate("[...document.querySelectorAll('.plot text')].map((one) => getComputedStyle(one).fill)")
    paper = theme.LIGHT | theme.PRINT
    expected = [[int(paper[name][at : at + 2], 16) for at in (1, 3, 5)] for name in ("ink", "muted")]
    assert set(inks) == {f"rgb({red}, {green}, {blue})" for red, green, blue in expected}
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    context.close()


def test_a_command_is_copied(browser: Any, folder: Path) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto((folder / "run.html").as_uri())
    command = page.locator(".card pre code").first.inner_text()
    page.get_by_role("button", name="Copy").first.click()
    playwright.expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == command
    context.close()
