"""What MkDocs asks for while it builds: the parts of pages that are made from the code, and the figures."""

from __future__ import annotations

import errors
import figures
import limits
import names
import programs
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import commands

PARTS = {
    "recipes.md": programs.page,
    "security.md": limits.page,
    "wrong.md": errors.page,
    "reference/commands.md": commands.page,
    "reference/python.md": names.page,
}
MARK = "<!-- generated -->"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add each figure, drawn for a light and for a dark page."""
    for name, content in figures.drawn().items():
        files.append(File.generated(config, f"figures/{name}.svg", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put what the code says in the place of the mark; a page without its mark is an error."""
    make = PARTS.get(page.file.src_uri)
    if make is None:
        return markdown
    before, mark, after = markdown.partition(MARK)
    if not mark:
        raise ValueError(f"{page.file.src_uri} has no line {MARK}")
    return f"{before}{make()}{after}"
