"""The notation of methods: `ewc(strength=30) + distill(temperature=2)`."""

from __future__ import annotations

import ast
import difflib
from typing import Any

from taskgraft.config import options
from taskgraft.errors import InputError
from taskgraft.methods.compatibility import conflict
from taskgraft.methods.presets import EXAMPLE
from taskgraft.methods.protocol import MethodLike, Plan, Settings, Sum
from taskgraft.methods.registry import ALIASES, METHODS

MAX_LENGTH = 2000  # characters of a notation: every method with every setting takes half of it


def parse(method: MethodLike) -> Plan:
    """Parse a notation such as `ewc(strength=30) + distill`, or the same as objects.

    Returns:
        Method name -> settings, in the order in which the methods act.

    Raises:
        InputError: A wrong name, setting or value, or methods that cannot be combined; the message says what to write.
    """
    text = as_text(method)
    if len(text) > MAX_LENGTH:  # also bounds how deep expressions are nested, which readers follow by recursion
        raise InputError(f"method {text[:60]!r}… is longer than {MAX_LENGTH} characters; write for example {EXAMPLE!r}")
    text = text.strip()
    try:
        expression = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"method {text!r} cannot be read; write for example {EXAMPLE!r}") from error
    plan: Plan = {}
    for term in _split_sum(expression, text):
        name, settings = _parse_settings(term, text)
        if name in plan:
            raise InputError(f"method {text!r} names {name!r} twice; write it once")
        plan[name] = settings
    reason = conflict(plan)
    if reason:
        raise InputError(f"method {text!r}: {reason}")
    return plan


def show(plan: Plan) -> str:
    """Return the notation that `parse` reads back; settings at their defaults are left out."""
    return str(Sum(tuple(plan.values())))


def as_text(method: MethodLike) -> str:
    """Return the notation of a method, which may be given as objects: `Ewc(strength=30) + Distill()`.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(method, str | Settings | Sum):
        raise InputError(
            f"method is a {type(method).__name__}; give its notation, for example {EXAMPLE!r}, or the same as objects "
            "of taskgraft.methods"
        )
    return str(method)


def _split_sum(node: ast.expr, text: str) -> list[ast.expr]:
    terms: list[ast.expr] = []
    while isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        terms.append(node.right)
        node = node.left
    if isinstance(node, ast.BinOp):
        raise InputError(f"method {text!r} is not a sum; combine methods with +")
    return [node, *reversed(terms)]


def _parse_settings(node: ast.expr, text: str) -> tuple[str, Settings]:
    arguments: list[tuple[str | None, ast.expr]] = []
    if isinstance(node, ast.Call):
        if node.args:
            raise InputError(f"method {text!r} gives a value without a name; write settings as name=value")
        arguments, node = [(keyword.arg, keyword.value) for keyword in node.keywords], node.func
    if not isinstance(node, ast.Name):
        raise InputError(f"method {text!r} cannot be read; write for example {EXAMPLE!r}")
    name = ALIASES.get(node.id, node.id)
    if name not in METHODS:
        close = difflib.get_close_matches(name, [*METHODS, *ALIASES], n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise InputError(f"method {node.id!r} does not exist; {hint}available: {', '.join(METHODS)}")
    declared = options(METHODS[name])
    values = {}
    for key, value in arguments:
        if key not in declared:
            close = difflib.get_close_matches(str(key), declared, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise InputError(f"{name} has no setting {key!r}; {hint}it has {', '.join(declared) or 'none'}")
        if key in values:
            raise InputError(f"method {text!r} names {key!r} twice; write it once")
        values[key] = read_value(value)
        reason = declared[key].violation(values[key])
        if reason:
            source = ast.get_source_segment(text, value) or ""  # as written: unparse() may recurse too deeply
            raise InputError(f"{name}({key}={source[:60]}): {reason}")
        if declared[key].kind in (int, float):
            values[key] = declared[key].kind(values[key])
    return name, METHODS[name](**values)


def read_value(node: ast.expr) -> Any:
    """Return the value of an expression in the notation; None where it has none."""
    if isinstance(node, ast.Name):  # words need no quotes: labels=exact
        return {"true": True, "false": False}.get(node.id.lower(), node.id)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
