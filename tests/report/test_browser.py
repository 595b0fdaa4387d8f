"""Pages in Chromium: drawn without errors, accessible, no wider than a phone, printable."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from taskgraft.commands.check import check
from taskgraft.report import theme

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

SIZES = {"phone": {"width": 390, "height": 844}, "wide": {"width": 1280, "height": 900}}
MAX_HEIGHT = {"phone": 6000, "wide": 4000}  # of a page as it opens, in pixels
AXE_RULES = ["wcag2a", "wcag2aa", "wcag21aa", "wcag22aa", "best-practice"]
AXE_PAGES = {("run", "dark"), ("comparison", "light"), ("check", "light"), ("search", "dark")}  # seconds per page
FOLDS = "[...document.querySelectorAll('.folded')]"
PAGES = ("run", "blind", "comparison", "search", "check")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, forgetful: Path, new_folder: Path, pages: dict[str, str]) -> Path:
    """A page of each kind."""
    root = tmp_path_factory.mktemp("pages")
    shutil.copy(forgetful / "report.html", root / "run.html")
    check(new_folder, html=root / "check.html")
    for name in ("blind", "comparison", "search"):
        (root / f"{name}.html").write_text(pages[name], encoding="utf-8")
    return root


@pytest.mark.parametrize(("size", "scheme"), [("phone", "dark"), ("wide", "light")])
@pytest.mark.parametrize("name", PAGES)
def test_page_is_drawn_and_accessible(browser: Any, folder: Path, name: str, size: str, scheme: str) -> None:
    context = browser.new_context(viewport=SIZES[size], color_scheme=scheme)
    page, errors, requests = context.new_page(), [], []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: requests.append(request.url))
    page.goto((folder / f"{name}.html").as_uri())
    assert page.evaluate("document.documentElement.scrollHeight") <= MAX_HEIGHT[size]
    page.evaluate("document.querySelectorAll('.folded').forEach((fold) => (fold.open = true))")
    visible = (
        "[...document.querySelectorAll('.plot')].map((p) => [...p.children].filter((c) => c.checkVisibility()).length)"
    )
    assert set(page.evaluate(visible)) == {1}  # the drawing for wide screens or the one for phones
    texts = (
        "[...document.querySelectorAll('.plot text')].filter((t) => t.checkVisibility())"
        ".map((t) => t.getBoundingClientRect())"
    )
    assert page.evaluate(f"{texts}.every((box) => Math.max(box.width, box.height) >= 10.9)")  # fonts of 9.5 pixels
    assert page.evaluate(f"{texts}.every((box) => box.left >= 0 && box.right <= innerWidth)")
    assert errors == []  # a violated content policy would be one
    assert {url.split(":")[0] for url in requests} <= {"file", "data", "blob"}
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")
    if (name, scheme) in AXE_PAGES:
        results = axe.Axe().run(page, options={"runOnly": AXE_RULES})
        assert results.violations_count == 0, results.generate_report()
    context.close()


def test_printed_page(browser: Any, folder: Path) -> None:
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto((folder / "run.html").as_uri())
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for hidden in ("nav", "details:not(.folded)", ".copy", ".slim"):
        assert not page.evaluate(f"[...document.querySelectorAll('{hidden}')].some((one) => one.checkVisibility())")
    assert page.evaluate(f"{FOLDS}.every((fold) => !fold.open && fold.querySelector('section').checkVisibility())")
    inks = page.evaluate("[...document.querySelectorAll('.plot text')].map((one) => getComputedStyle(one).fill)")
    colors = theme.PRINT
    channels = [[int(colors[name][at : at + 2], 16) for at in (1, 3, 5)] for name in ("ink", "muted")]
    assert set(inks) == {f"rgb({red}, {green}, {blue})" for red, green, blue in channels}
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]
    context.close()


@pytest.mark.parametrize("scripted", [True, False], ids=["script", "no script"])
def test_folded_sections_open_for_links(browser: Any, folder: Path, scripted: bool) -> None:
    context = browser.new_context(java_script_enabled=scripted)
    page = context.new_page()
    page.goto(f"{(folder / 'run.html').as_uri()}#calibration")
    playwright.expect(page.locator("#calibration")).to_be_visible()
    playwright.expect(page.locator("#errors")).to_be_hidden()
    page.locator("nav a[href='#errors']").click()
    playwright.expect(page.locator("#errors")).to_be_visible()
    context.close()


def test_copy_button(browser: Any, folder: Path) -> None:
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.goto((folder / "run.html").as_uri())
    command = page.locator(".card pre code").first.inner_text()
    page.get_by_role("button", name="Copy").first.click()
    playwright.expect(page.get_by_role("button", name="Copied")).to_be_visible()
    assert page.evaluate("navigator.clipboard.readText()") == command
    context.close()
