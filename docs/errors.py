"""Every error message that a user can meet, read from the source: the `Problem(...)` calls of the package."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[1] / "src" / "taskgraft"
# Where in the package -> what somebody was doing. The first that fits counts.
PLACES = {
    "bundle": "Opening a checkpoint or a bundle",
    "classifier": "Opening a checkpoint or a bundle",
    "stages": "Opening a checkpoint or a bundle",
    "data": "Reading pictures",
    "methods": "Naming and joining methods",
    "method": "Naming and joining methods",
    "settings": "Naming and joining methods",
    "loop": "Training, stopping, going on",
    "parallel": "Training, stopping, going on",
    "search": "Searching",
    "exports": "Exporting",
    "serving": "Serving",
    "cli": "The command line",
}
OTHERS = "Running a command"
# What to do where a message says no more than what was wrong: by its words, then by what somebody was doing.
WORDS = {
    r"damaged|no sound|not finite": "Copy or fetch the file again, or make it anew.",
    r"does not exist|cannot be (read|written|used)|no cluster|is no path": "Check the name and its rights.",
    r"‹(reason|ans|text|rows|given|present)›|must (be|have)|needs? a|none of|at least": "Give what it says.",
    r"pictures?\b|label": "[Layouts](pictures.md) shows what is read; `taskgraft check` looks at all of it.",
}
REMEDIES = {
    "Opening a checkpoint or a bundle": "Give another model: [each kind](yours.md#the-checkpoint).",
    "Reading pictures": "Mend what is named; `taskgraft check` looks at all pictures at once.",
    "Naming and joining methods": "`taskgraft methods NAME` shows a method's settings and values.",
    "Training, stopping, going on": "Mend what is named; the same command with `--resume` goes on.",
    "Searching": "Write it as [Searching](searching.md) shows.",
    "Exporting": "Choose what [Export](serving.md#export) lists.",
    "Serving": "Choose what [Serve](serving.md#serve) lists.",
    "The command line": "`taskgraft COMMAND --help` shows what there is.",
    OTHERS: "`taskgraft COMMAND --help` shows what it takes.",
}
# Where the part of a message begins that says what to do, or what there is to choose from.
TO_DO = re.compile(
    r"(?:\[?[;.?]|: (?=add|give|use|train|write|list|choose|name|methods|settings|its suffix)"
    r"|, (?=or give))(?: ‹hint›| |(?<= ))"
    r"(?=(?:and )?(?:give|choose|add|remove|rename|mend|make|install|take|leave|lower|set|fetch|free|write|use|update"
    r"|upgrade|save|wait|repeat|lists?|there are|there is|it has|it can|it knows|did you mean|must be|join|name|start"
    r"|try|send|run|stop|close|delete|copy|train|pip|drop|keep|put|open|raise|show|turn|fill|pack|check|expected"
    r"|of use are|the same command|its|these do|without|export|decode|convert|fix|reduce|or|pictures must"
    r"|methods are|settings are|taskgraft|--task|Where it was made|What was saved|For bare|Give|Choose|Lower)\b)"
)
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
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "Problem" and node.args:
                text = " ".join(written(node.args[0]).split())
                found.setdefault(text, Message(own, text, _code(node)))
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
    """The messages as Markdown, one table for each thing that somebody was doing: what is said, and what to do."""
    groups: dict[str, list[Message]] = {}
    for message in messages():
        top = message.path.partition("/")[0].removesuffix(".py")
        groups.setdefault(PLACES.get(top, OTHERS), []).append(message)
    lines: list[str] = []
    for title in dict.fromkeys([*PLACES.values(), OTHERS]):
        lines += [f"## {title}", "", "| the message | what to do | exit code |", "|---|---|---:|"]
        for message in groups.get(title, []):
            said, remedy = parted(message.text)
            lines.append(
                f"| {_literal(said)} | {_literal(remedy) if remedy else advised(said, title)} | {message.code} |"
            )
        lines.append("")
    return "\n".join(lines)


def parted(text: str) -> tuple[str, str]:
    """A message as what was wrong and what to do; the second is empty where the message names no remedy of its own."""
    known = any(re.search(words, text) for words in WORDS)
    for found in (*TO_DO.finditer(text), *(() if known else re.finditer("; ", text))):
        before = text[: found.start()]
        if before.count("‹") == before.count("›"):
            hint = "‹hint›" if "‹hint›" in found[0] else ""
            return before, ("[" if found[0].startswith("[") else "") + hint + text[found.end() :]
    return text, ""


def advised(text: str, title: str) -> str:
    """What to do about a message that does not say it, as Markdown."""
    return next((remedy for words, remedy in WORDS.items() if re.search(words, text)), REMEDIES[title])


def _code(call: ast.Call) -> int:
    given = [keyword.value for keyword in call.keywords if keyword.arg == "code"] + call.args[1:]
    return given[0].value if given and isinstance(given[0], ast.Constant) and isinstance(given[0].value, int) else 2


def _bare(text: str) -> bool:
    """A message that is one value alone, made elsewhere: it says nothing here."""
    return text.startswith("‹") and text.endswith("›") and text.count("‹") == 1


def _short(node: ast.expr) -> str:
    """The name of a value, without how it is written out."""
    names = [part.attr if isinstance(part, ast.Attribute) else part.id
             for part in ast.walk(node) if isinstance(part, ast.Attribute | ast.Name)]  # fmt: skip
    known = [name for name in names if name not in HELPERS]
    return (known or ["value"])[0].replace("_", " ").strip()


def _literal(text: str) -> str:
    """Markdown that shows a text as it is, whatever signs it holds."""
    return f"`` {text} ``" if "`" in text else f"`{text}`"
