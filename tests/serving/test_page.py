"""The web page at / in Chromium: images dropped, results of both tasks, totals, keyboard, token."""

from __future__ import annotations

import base64
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from servers import Running, running

CHROMIUM = shutil.which("chromium")
playwright = pytest.importorskip("playwright.sync_api")
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")]

DROP = """(files) => {
  const transfer = new DataTransfer();
  for (const [name, text] of files) {
    const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type: "image/png" }));
  }
  document.getElementById("drop").dispatchEvent(
    new DragEvent("drop", { dataTransfer: transfer, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser) -> Iterator:
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.errors.append(message.text))
    yield page
    context.close()


def encode(*files: Path) -> list[tuple[str, str]]:
    return [(file.name, base64.b64encode(file.read_bytes()).decode()) for file in files]


def test_dropped_images_are_predicted(server: Running, image_files: list[Path], page) -> None:
    expect = playwright.expect
    files = (image_files[0], image_files[-1])
    urls: list[str] = []
    page.on("request", lambda request: urls.append(request.url))
    page.goto(server.url)
    expect(page.get_by_role("heading", name="both", level=1)).to_be_visible()
    expect(page.locator("#lead")).to_contain_text("shape (3 classes) and paint (4 classes)")
    page.evaluate(DROP, encode(*files))
    expect(page.get_by_role("status")).to_have_text("2 of 2 images done.")
    responses = [server.client.post("/predict", content=file.read_bytes()).json() for file in files]
    for file, response in zip(files, responses, strict=True):
        entry = page.locator(".image", has=page.get_by_role("heading", name=file.name))
        expect(entry.get_by_text(re.compile(r"ms on the server"))).to_be_visible()
        for task, result in response["images"][0]["tasks"].items():
            block = entry.get_by_role("region", name=task)
            expect(block.locator(".label")).to_have_text(result["label"])
            expect(block.get_by_role("listitem").first).to_contain_text(f"{100 * result['probability']:.1f} %")
    for task in ("shape", "paint"):
        table = page.get_by_role("table", name=task, exact=True)
        labels = [response["images"][0]["tasks"][task]["label"] for response in responses]
        for label in set(labels):
            row = table.get_by_role("row").filter(has=page.get_by_role("rowheader", name=label, exact=True))
            expect(row).to_contain_text(f"{50 * labels.count(label)} %")
    expect(page.get_by_role("table", name="Accuracy")).to_contain_text("paint")
    expect(page.locator("#lineage")).to_contain_text("learned paint with branch")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == []
    assert all(url.startswith((server.url, "data:", "blob:")) for url in urls)


def test_keyboard_operates_the_page(server: Running, image_files: list[Path], page) -> None:
    page.goto(server.url)
    playwright.expect(page.locator("#model")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to results"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    choosers: list = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(60):  # Chromium drops keys, on a slow machine for seconds, until it has painted a page
        page.keyboard.press("Space")
        page.wait_for_timeout(500)
        if choosers:
            break
    assert choosers, "the key Space opened no file chooser within 30 seconds"
    choosers[0].set_files(image_files[:1])
    playwright.expect(page.get_by_role("status")).to_have_text("1 of 1 image done.")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "clear"
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#results")).to_be_hidden()
    playwright.expect(page.get_by_role("status")).to_have_text("Cleared.")
    assert page.evaluate("document.activeElement.id") == "files"


def test_unusable_file_shows_the_reason(server: Running, image_files: list[Path], page) -> None:
    expect = playwright.expect
    page.goto(server.url)
    name = "<img src=x onerror=alert(1)>.png"
    page.evaluate(DROP, [(name, base64.b64encode(b"text").decode()), *encode(image_files[0])])
    expect(page.get_by_role("status")).to_have_text("1 of 2 images done, 1 could not be used.")
    expect(page.get_by_role("heading", name=name)).to_be_visible()
    expect(page.get_by_text("not a usable image")).to_be_visible()
    expect(page.get_by_text("Predicted classes, 1 image", exact=True)).to_be_visible()


def test_token_is_requested(branched: Path, image_files: list[Path], page) -> None:
    with running(branched, token="open-sesame") as server:
        page.goto(server.url)
        field = page.get_by_label("Access token required")
        for token in ("wrong-token", "open-sesame"):
            playwright.expect(field).to_be_focused()
            field.fill(token)
            page.keyboard.press("Enter")
        playwright.expect(page.get_by_role("heading", name="both", level=1)).to_be_visible()
        page.evaluate(DROP, encode(image_files[0]))
        playwright.expect(page.get_by_role("status")).to_have_text("1 of 1 image done.")
