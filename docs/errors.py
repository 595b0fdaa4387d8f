"""Every error message that a user can see, read from the source: where the package creates a `TaskgraftError`."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

from taskgraft import errors as tree

PACKAGE = Path(__file__).parents[1] / "src" / "taskgraft"
# Room of the package -> section of the page.
SECTIONS = {
    "bundle": "Opening a checkpoint or a bundle",
    "models": "Opening a checkpoint or a bundle",
    "data": "Reading images",
    "methods": "Choosing and combining methods",
    "config": "Choosing and combining methods",
    "training": "Training, interrupting, resuming",
    "distributed": "Training, interrupting, resuming",
    "tuning": "Searching",
    "exports": "Exporting",
    "serving": "Serving",
    "cli": "The command line",
    "regularizers": "Penalties in your own training loop",
}
OTHERS = "Running a command"
EXIT_CODES = {
    name: kind.exit_code
    for name, kind in vars(tree).items()
    if isinstance(kind, type) and issubclass(kind, tree.TaskgraftError)
}
# What begins the part of a message that says what to do.
TO_DO = re.compile(r"; |: (?=(?:give|write|use|add|list)\b|‹reason›$)")
# Functions that only shape a value; what they are given names it.
HELPERS = {
    "as_posix", "bool", "decode", "get_args", "join", "len", "map", "max", "min", "repr", "replace", "shown", "sorted",
    "splitlines", "str", "strip", "unparse", "ast",
}  # fmt: skip


class Message(NamedTuple):
    """One message: where it is raised, its text with ‹values› in their places, its exit code."""

    path: str
    text: str
    code: int


def messages() -> list[Message]:
    """All messages of the package, in the order of files and lines; a text met twice counts once."""
    found: dict[str, Message] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in EXIT_CODES and node.args:
                text = " ".join(written(node.args[0]).split())
                found.setdefault(text, Message(own, text, EXIT_CODES[ast.unparse(node.func)]))
    return [message for message in found.values() if not _bare(message.text)]


def written(node: ast.expr) -> str:
    """A message as it will read: what is filled in stands between ‹ and ›, alternatives are divided by |."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(written(part) for part in parts)
        case ast.FormattedValue(value=ast.IfExp() as choice):
            return written(choice)
        case ast.FormattedValue(value=value):
            return f"‹{_short(value)}›"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return written(left) + written(right)
        case ast.IfExp(body=body, orelse=orelse):
            both = [text for text in (written(body), written(orelse)) if text]
            return f"[{' | '.join(both)}]" if len(both) > 1 else f"[{both[0]}]"
        case _:
            return f"‹{_short(node)}›"


def page() -> str:
    """The messages as Markdown, one table per section: the message and the remedy."""
    groups: dict[str, list[Message]] = {}
    for message in messages():
        top = message.path.partition("/")[0].removesuffix(".py")
        groups.setdefault(SECTIONS.get(top, OTHERS), []).append(message)
    lines: list[str] = []
    for title in dict.fromkeys([*SECTIONS.values(), OTHERS]):
        lines += [f"## {title}", "", "| message | remedy | exit code |", "|---|---|---:|"]
        for message in groups.get(title, []):
            said, remedy = parted(message.text)
            lines.append(f"| {_literal(said)} | {_literal(remedy)} | {message.code} |")
        lines.append("")
    return "\n".join(lines)


def parted(text: str) -> tuple[str, str]:
    """A message as what was wrong and what to do; the second is empty where it does not say that."""
    begins = [found for found in TO_DO.finditer(text) if not _filled(text, found.start())]
    return (text[: begins[-1].start()], text[begins[-1].end() :]) if begins else (text, "")


def _bare(text: str) -> bool:
    """A message that is values alone, made elsewhere: it says nothing here."""
    return not re.sub(r"‹[^›]*›", "", text).strip()


def _filled(text: str, place: int) -> bool:
    """Whether a place of a message is inside a value that is filled in."""
    return text.count("‹", 0, place) > text.count("›", 0, place)


def _short(node: ast.expr) -> str:
    """The name of a value, without how it is written out."""
    names = [part.attr if isinstance(part, ast.Attribute) else part.id
             for part in ast.walk(node) if isinstance(part, ast.Attribute | ast.Name)]  # fmt: skip
    known = [name for name in names if name not in HELPERS]
    return (known or ["value"])[0].replace("_", " ").strip()


def _literal(text: str) -> str:
    """Markdown that shows a text as it is, whatever signs it holds."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"
