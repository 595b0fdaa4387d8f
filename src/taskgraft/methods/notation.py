"""The notation of methods: `ewc(strength=30) + distill(temperature=2)`."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import re
from typing import Any

from taskgraft.config import options
from taskgraft.errors import InputError
from taskgraft.methods.compatibility import conflict
from taskgraft.methods.presets import EXAMPLE
from taskgraft.methods.protocol import Plan, Settings
from taskgraft.methods.registry import ALIASES, METHODS

LONGEST = 2000  # characters of a notation: every method with every setting takes half of it


def parse(text: str) -> Plan:
    """Read the notation. Raises TaskgraftError for a wrong name, setting or value, naming the right ones."""
    if len(text) > LONGEST:  # also bounds how deep expressions are nested, which readers follow by recursion
        raise InputError(f"method {text[:60]!r}… is longer than {LONGEST} letters; write for example {EXAMPLE!r}")
    text = text.strip()
    try:
        expression = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"method {text!r} cannot be read; write for example {EXAMPLE!r}") from error
    plan: Plan = {}
    for part in _summands(expression, text):
        name, settings = _settings(part, text)
        if name in plan:
            raise InputError(f"method {text!r} names {name!r} twice; write it once")
        plan[name] = settings
    reason = conflict(plan)
    if reason:
        raise InputError(f"method {text!r}: {reason}")
    return plan


def show(plan: Plan) -> str:
    """Write the notation that `parse` reads; settings at their defaults are left out."""
    parts = []
    for name, settings in plan.items():
        changed = [
            f"{field.name}={_literal(getattr(settings, field.name))}"
            for field in dataclasses.fields(settings)  # pyright: ignore[reportArgumentType]
            if getattr(settings, field.name) != field.default
        ]
        parts.append(f"{name}({', '.join(changed)})" if changed else name)
    return " + ".join(parts)


def _summands(node: ast.expr, text: str) -> list[ast.expr]:
    parts: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts.append(node.right)
        node = node.left
    if isinstance(node, ast.BinOp):
        raise InputError(f"method {text!r} is no sum; join methods by +")
    return [node, *reversed(parts)]


def _settings(node: ast.expr, text: str) -> tuple[str, Settings]:
    arguments: list[tuple[str | None, ast.expr]] = []
    if isinstance(node, ast.Call):
        if node.args:
            raise InputError(f"method {text!r} gives a value without a name; write settings as name=value")
        arguments, node = [(keyword.arg, keyword.value) for keyword in node.keywords], node.func
    if not isinstance(node, ast.Name):
        raise InputError(f"method {text!r} cannot be read; write for example {EXAMPLE!r}")
    name = ALIASES.get(node.id, node.id)
    if name not in METHODS:
        near = difflib.get_close_matches(name, [*METHODS, *ALIASES], n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"method {node.id!r} does not exist; {hint}there are {', '.join(METHODS)}")
    known = options(METHODS[name])
    values = {}
    for key, value in arguments:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(f"{name} has no setting {key!r}; {hint}it has {', '.join(known) or 'none'}")
        if key in values:
            raise InputError(f"method {text!r} names {key!r} twice; write it once")
        values[key] = constant(value)
        reason = known[key].refusal(values[key])
        if reason:
            given = ast.get_source_segment(text, value) or ""  # as written: unparse() may recurse too deeply
            raise InputError(f"{name}({key}={given[:60]}): {reason}")
        if known[key].kind in (int, float):
            values[key] = known[key].kind(values[key])
    return name, METHODS[name](**values)


def constant(node: ast.expr) -> Any:
    """A value as the notation writes it; words need no quotes."""
    if isinstance(node, ast.Name):  # words need no quotes: labels=exact
        return {"true": True, "false": False}.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None


def _literal(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    short = f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return re.sub(r"e\+?(-?)0*", r"e\1", short)  # 1e6, not 1e+06
