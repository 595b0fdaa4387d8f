"""The search space: a method with ranges in place of values, and training settings. Imports no torch.

A setting may be a range, `strength=10..1000`, or a list of choices, `strength=[10, 30, 100]`. Where neither is given,
every setting that declares a searched range is a dimension, together with the learning rate and the head-only steps.
"""

from __future__ import annotations

import ast
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, NamedTuple

from taskgraft.config import Option, Range, TrainingConfig, options
from taskgraft.errors import InputError
from taskgraft.methods import notation
from taskgraft.methods.presets import EXAMPLE, RANGE_EXAMPLE
from taskgraft.methods.registry import ALIASES, METHODS

NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
RANGE = re.compile(rf"({NUMBER})\.\.({NUMBER})")
DEFAULT_SETTINGS = ("lr", "head_steps")  # of TrainingConfig, searched where nothing is named
METHOD = "method"  # the dimension of a portfolio
LIST_NODES = ast.Tuple | ast.List | ast.Set  # a range is read as a tuple
Params = dict[str, Any]


class ValueRange(NamedTuple):
    """A dimension of numbers from `low` to `high`, both included, sampled on a logarithmic scale if `log`."""

    low: float
    high: float
    log: bool
    integer: bool


class Choices(NamedTuple):
    """A dimension of listed values."""

    values: tuple[Any, ...]


class Space(NamedTuple):
    """A search space.

    Attributes:
        method: The method in the notation, without its searched settings.
        config: Training settings; searched ones have their defaults.
        dimensions: "method.setting" or training setting -> its values.
    """

    method: str
    config: TrainingConfig
    dimensions: dict[str, ValueRange | Choices]


def parse(method: str, settings: str, config: TrainingConfig) -> Space:
    """Read a search space.

    Args:
        method: A method in the notation, with ranges or lists as values.
        settings: Training settings such as 'lr=1e-4..1e-2, steps=300'; single values replace those of `config`.
        config: Training settings.

    Raises:
        InputError: it cannot be read, a value is not legal, or there is nothing to search.
    """
    plain_method, dimensions = _parse_method(method)
    config, config_dimensions = _parse_settings(settings, config)
    dimensions |= config_dimensions
    dimensions = dimensions or _default_dimensions(plain_method)
    return Space(plain_method, config, dimensions)


def build_portfolio(notations: Sequence[str], lrs: Sequence[float], config: TrainingConfig) -> Space:
    """Return the space of each of several methods at each of several learning rates."""
    return Space("", config, {METHOD: Choices(tuple(notations)), "lr": Choices(tuple(lrs))})


def apply(space: Space, params: Mapping[str, Any]) -> tuple[str, TrainingConfig]:
    """Return the method, in the notation, and the training settings that a point of the space stands for."""
    plan = notation.parse(params.get(METHOD, space.method))
    for key, value in params.items():
        name, _, setting = key.partition(".")
        if setting:
            plan[name] = replace(plan[name], **{setting: value})  # pyright: ignore[reportArgumentType]
    training = {key: value for key, value in params.items() if "." not in key and key != METHOD}
    return notation.show(plan), replace(space.config, **training)


def grid(space: Space, points: int) -> list[Params]:
    """Return every combination of values, with `points` equidistant values for each range."""
    axes = [[(key, value) for value in grid_values(dim, points)] for key, dim in space.dimensions.items()]
    return [dict(cell) for cell in itertools.product(*axes)]


def grid_values(dimension: ValueRange | Choices, points: int) -> list[Any]:
    """Return the values of one dimension on a grid."""
    if isinstance(dimension, Choices):
        return list(dimension.values)
    low, high, log, integer = dimension
    fractions = [index / max(1, points - 1) for index in range(points)]
    if log:
        values = [math.exp(math.log(low) * (1 - t) + math.log(high) * t) for t in fractions]
    else:
        values = [low * (1 - t) + high * t for t in fractions]
    return list(dict.fromkeys(round(value) if integer else float(f"{value:.6g}") for value in values))


def describe(space: Space) -> dict[str, str]:
    """Return each dimension as text, such as '0.1..10 (log)'."""
    texts = {}
    for key, dim in space.dimensions.items():
        if isinstance(dim, Choices):
            texts[key] = "[" + ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in dim.values) + "]"
        else:
            texts[key] = f"{dim.low:g}..{dim.high:g}{' (log)' if dim.log else ''}"
    return texts


def _parse_method(text: str) -> tuple[str, dict[str, ValueRange | Choices]]:
    tree = _parse_expression(text, f"method {text!r}", repr(RANGE_EXAMPLE))
    dimensions: dict[str, ValueRange | Choices] = {}
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            continue
        name = ALIASES.get(call.func.id, call.func.id)
        settings = options(METHODS[name]) if name in METHODS else {}
        for keyword in list(call.keywords):
            if isinstance(keyword.value, LIST_NODES) and keyword.arg in settings:
                key = f"{name}.{keyword.arg}"
                dimensions[key] = _read_dimension(keyword.value, settings[keyword.arg], key)
                call.keywords.remove(keyword)
    try:
        rest = ast.unparse(tree)
    except RecursionError as error:
        raise InputError(f"method {text[:60]!r}… is nested too deeply; write for example {EXAMPLE!r}") from error
    return notation.show(notation.parse(rest)), dimensions


def _parse_settings(text: str, config: TrainingConfig) -> tuple[TrainingConfig, dict[str, ValueRange | Choices]]:
    call = _parse_expression(f"space({text})", f"--space {text!r}", "'lr=1e-4..1e-2, head_steps=[0, 200]'").body
    if not isinstance(call, ast.Call) or call.args:
        raise InputError(f"--space {text!r}: write name=values, for example lr=1e-4..1e-2")
    settings, dimensions, fixed = options(TrainingConfig), {}, {}
    for keyword in call.keywords:
        if keyword.arg not in settings:
            raise InputError(f"--space: unknown setting {keyword.arg!r}; available: {', '.join(settings)}")
        option = settings[keyword.arg]
        if isinstance(keyword.value, LIST_NODES):
            dimensions[keyword.arg] = _read_dimension(keyword.value, option, keyword.arg)
        else:
            fixed[keyword.arg] = _check(notation.read_value(keyword.value), option, keyword.arg)
    return replace(config, **fixed), dimensions


def _parse_expression(text: str, what: str, example: str) -> ast.Expression:
    if len(text) > notation.MAX_LENGTH:
        raise InputError(f"{what[:60]}… is longer than {notation.MAX_LENGTH} characters; write for example {example}")
    try:
        return ast.parse(RANGE.sub(r"(\1, \2)", text.strip()), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{what} cannot be parsed; write for example {example}") from error


def _read_dimension(node: ast.Tuple | ast.List | ast.Set, option: Option, name: str) -> ValueRange | Choices:
    values = [_check(notation.read_value(item), option, name) for item in node.elts]
    if not isinstance(node, ast.Tuple):
        if not values or len(set(values)) != len(values):
            raise InputError(f"{name}: list at least one value, each only once")
        return Choices(tuple(values))
    if option.kind not in (int, float) or len(values) != 2:
        raise InputError(f"{name} cannot be a range; list its values, for example [{option.default}]")
    low, high = values
    if not low < high:
        raise InputError(f"{name}={low:g}..{high:g} is an empty range; write the smaller value first")
    log = bool(option.range and option.range.log) and low > 0
    return ValueRange(float(low), float(high), log, option.kind is int)


def _check(value: Any, option: Option, name: str) -> Any:
    reason = option.violation(value)
    if reason:
        raise InputError(f"{name}={value}: {reason}")
    return option.kind(value) if option.kind in (int, float) else value


def _default_dimensions(method: str) -> dict[str, ValueRange | Choices]:
    """Return the declared ranges of all method settings at their defaults, and those of DEFAULT_SETTINGS."""
    dimensions: dict[str, ValueRange | Choices] = {}
    for name, settings in notation.parse(method).items():
        changed = {f.name for f in fields(settings) if getattr(settings, f.name) != f.default}  # pyright: ignore
        for key, option in options(type(settings)).items():
            if option.range and option.range.searched and key not in changed:
                dimensions[f"{name}.{key}"] = _full_range(option.range, option.kind)
    training = options(TrainingConfig)
    return dimensions | {
        key: _full_range(training[key].range or Range(0, 1), training[key].kind) for key in DEFAULT_SETTINGS
    }


def _full_range(bounds: Range, kind: type) -> ValueRange:
    return ValueRange(float(bounds.low), float(bounds.high), bounds.log and bounds.low > 0, kind is int)
