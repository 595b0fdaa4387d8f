"""The page at / in a real browser: two images dropped, both tasks answered, the distribution counted."""

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
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium to drive: the page is not tried")

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
        found = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def page(browser) -> Iterator:
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme="dark")
    found = context.new_page()
    found.errors = []
    found.on("pageerror", lambda error: found.errors.append(str(error)))
    found.on("console", lambda message: message.type == "error" and found.errors.append(message.text))
    yield found
    context.close()


def packed(*files: Path) -> list[tuple[str, str]]:
    return [(file.name, base64.b64encode(file.read_bytes()).decode()) for file in files]


def test_two_pictures_are_dropped(server: Running, pictures: list[Path], page) -> None:
    expect = playwright.expect
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(server.url)
    expect(page.get_by_role("heading", name="both", level=1)).to_be_visible()
    expect(page.locator("#lead")).to_contain_text("shape (3 classes) and paint (4 classes)")
    page.evaluate(DROP, packed(pictures[0], pictures[-1]))
    expect(page.get_by_role("status")).to_have_text("2 of 2 images answered.")
    wanted = [server.client.post("/predict", content=file.read_bytes()).json() for file in (pictures[0], pictures[-1])]
    for file, answer in zip((pictures[0], pictures[-1]), wanted, strict=True):
        entry = page.locator(".image", has=page.get_by_role("heading", name=file.name))
        expect(entry.get_by_text(re.compile(r"ms on the server"))).to_be_visible()
        for task, found in answer["images"][0]["tasks"].items():
            block = entry.get_by_role("region", name=task)
            expect(block.locator(".answer")).to_have_text(found["label"])
            expect(block.get_by_role("listitem").first).to_contain_text(f"{100 * found['probability']:.1f} %")
    for task in ("shape", "paint"):
        table = page.get_by_role("table", name=task, exact=True)
        labels = [answer["images"][0]["tasks"][task]["label"] for answer in wanted]
        for label in set(labels):
            row = table.get_by_role("row").filter(has=page.get_by_role("rowheader", name=label, exact=True))
            expect(row).to_contain_text(f"{50 * labels.count(label)} %")
    expect(page.get_by_role("table", name="Accuracy")).to_contain_text("paint")
    expect(page.locator("#lineage")).to_contain_text("learnt paint by branch")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.errors == []
    assert all(url.startswith((server.url, "data:", "blob:")) for url in asked)


def test_the_keyboard_is_enough(server: Running, pictures: list[Path], page) -> None:
    page.goto(server.url)
    playwright.expect(page.locator("#model")).to_be_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the answers"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Space")  # Enter does so too, but not within the first moments of a page
    chooser.value.set_files(pictures[:1])
    playwright.expect(page.get_by_role("status")).to_have_text("1 of 1 image answered.")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "clear"
    page.keyboard.press("Enter")
    playwright.expect(page.locator("#answers")).to_be_hidden()
    assert page.evaluate("document.activeElement.id") == "files"


def test_a_file_that_is_no_picture_is_told(server: Running, pictures: list[Path], page) -> None:
    page.goto(server.url)
    name = "<img src=x onerror=alert(1)>.png"
    page.evaluate(DROP, [(name, base64.b64encode(b"text").decode()), *packed(pictures[0])])
    status = page.get_by_role("status")
    playwright.expect(status).to_have_text("1 of 2 images answered, 1 could not be used.")
    playwright.expect(page.get_by_role("heading", name=name)).to_be_visible()
    playwright.expect(page.get_by_text("not a usable image")).to_be_visible()
    playwright.expect(page.get_by_text("1 image, by what the model answered.")).to_be_visible()


def test_the_token_is_asked_for(branched: Path, pictures: list[Path], page) -> None:
    with running(branched, token="open-sesame") as found:
        page.goto(found.url)
        field = page.get_by_label("This server asks for its token")
        for token in ("wrong-token", "open-sesame"):
            playwright.expect(field).to_be_focused()
            field.fill(token)
            page.keyboard.press("Enter")
        playwright.expect(page.get_by_role("heading", name="both", level=1)).to_be_visible()
        page.evaluate(DROP, packed(pictures[0]))
        playwright.expect(page.get_by_role("status")).to_have_text("1 of 1 image answered.")
