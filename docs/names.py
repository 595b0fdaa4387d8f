"""The reference of the Python names, read from the docstrings and signatures of what `taskgraft` exports."""

from __future__ import annotations

import inspect
import re
from typing import Any

import taskgraft


def page() -> str:
    """Each name: signature, docstring, and for values their fields; functions first, then classes."""
    found = [(name, getattr(taskgraft, name)) for name in taskgraft.__all__]
    functions = [pair for pair in found if not inspect.isclass(pair[1])]
    classes = [pair for pair in found if inspect.isclass(pair[1])]
    lines = ["## Functions", "", *_all(functions), "## Classes", "", *_all(classes)]
    return "\n".join(lines)


def _all(pairs: list[tuple[str, Any]]) -> list[str]:
    return [line for name, value in pairs for line in _entry(name, value)]


def _entry(name: str, value: Any) -> list[str]:
    text = inspect.cleandoc(value.__doc__ or "")
    if not text:
        raise ValueError(f"taskgraft.{name} has no docstring")
    return [f"### {name}", "", "```python", _signature(name, value), "```", "", _plain(text), ""]


def _signature(name: str, value: Any) -> str:
    """One parameter a line where a single line would be long."""
    if isinstance(value, type) and issubclass(value, Exception):
        return f"class {name}({value.__bases__[0].__name__})"
    given = inspect.signature(value)
    short = _typed(f"{name}{given}")
    if len(short) <= 100:
        return short
    parts, star = [], False
    for parameter in given.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not star:
            parts, star = [*parts, "*"], True
        parts.append(_typed(str(parameter)))
    returns = "" if given.return_annotation is given.empty else _typed(f" -> {given.return_annotation}")
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){returns}"


def _typed(text: str) -> str:
    """A signature as one would write it: annotations without quotes, defaults that are made on the spot by name."""
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    text = re.sub(r"(= (?:Limits|TrainingConfig|Callbacks|SearchConfig|WorkerConfig))\([^()]*\)", r"\1()", text)
    return re.sub(r"<(?:function|object|factory)[^,)]*>", "…", text)


def _plain(text: str) -> str:
    """A docstring in Google's style as Markdown: sections become bold lines, their entries a list."""
    lines = []
    inside = False
    for line in text.splitlines():
        section = re.fullmatch(r"(Args|Returns|Raises|Yields):", line)
        if section:
            inside = True
            lines += ["", f"**{section[1]}**", ""]
        elif inside and line.startswith("    ") and not line.startswith("     "):
            lines.append("- " + line.strip())
        else:
            lines.append(line.strip() if inside else line)
    return "\n".join(lines).replace("<", "&lt;")
