"""What is searched: a method in the notation, with values left open, and settings of the run. No torch in here.

`ewc(strength=10..1000)` leaves an interval open, `ewc(strength=[10, 30, 100])` some values. Where nothing is left open,
everything is that declares a searched range, with the learning rate and the warm-up.
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
from taskgraft.methods import notation, registry

NUMBER = r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?"
SPAN = re.compile(rf"({NUMBER})\.\.({NUMBER})")
ALWAYS = ("lr", "head_steps")  # of Run, where nothing is named
METHOD = "method"  # the dimension of a portfolio
Params = dict[str, Any]


class Between(NamedTuple):
    """An open interval of numbers, both ends included."""

    low: float
    high: float
    log: bool
    whole: bool


class Among(NamedTuple):
    """Some values."""

    values: tuple[Any, ...]


class Space(NamedTuple):
    """`fixed` is the notation without its open values; `open` the dimensions, by "method.setting" or setting of Run."""

    fixed: str
    config: TrainingConfig
    open: dict[str, Between | Among]


def parse(method: str, settings: str, config: TrainingConfig) -> Space:
    """Read a method and a list such as 'lr=1e-4..1e-2, steps=300', with open values in both.

    Raises TaskgraftError for what cannot be read, is not legal, or leaves nothing to search.
    """
    fixed, found = _of_method(method)
    config, own = _of_run(settings, config)
    found |= own
    if not found:
        found = _everything(fixed, config)
    if not found:
        raise InputError(f"nothing is open in {method!r}; write for example 'ewc(strength=10..1000)' or --space lr=…")
    return Space(fixed, config, found)


def portfolio(notations: Sequence[str], lrs: Sequence[float], config: TrainingConfig) -> Space:
    """Whole methods beside each other, each at several rates."""
    return Space("", config, {METHOD: Among(tuple(notations)), "lr": Among(tuple(lrs))})


def applied(space: Space, params: Mapping[str, Any]) -> tuple[str, TrainingConfig]:
    """The notation and the run that values of the open dimensions stand for."""
    plan = notation.parse(params.get(METHOD, space.fixed))
    for key, value in params.items():
        name, _, setting = key.partition(".")
        if setting:
            plan[name] = replace(plan[name], **{setting: value})  # pyright: ignore[reportArgumentType]
    own = {key: value for key, value in params.items() if "." not in key and key != METHOD}
    return notation.show(plan), replace(space.config, **own)


def grid(space: Space, points: int) -> list[Params]:
    """Every combination; of an interval `points` values, equally far apart on its scale."""
    axes = [[(key, value) for value in values(extent, points)] for key, extent in space.open.items()]
    return [dict(cell) for cell in itertools.product(*axes)]


def values(extent: Between | Among, points: int) -> list[Any]:
    """The values of one dimension on a grid."""
    if isinstance(extent, Among):
        return list(extent.values)
    shares = [place / max(1, points - 1) for place in range(points)]
    if extent.log:
        found = [math.exp(math.log(extent.low) * (1 - s) + math.log(extent.high) * s) for s in shares]
    else:
        found = [extent.low * (1 - s) + extent.high * s for s in shares]
    return list(dict.fromkeys(round(value) if extent.whole else float(f"{value:.6g}") for value in found))


def show(space: Space) -> dict[str, str]:
    """Each open dimension in words."""
    words = {}
    for key, extent in space.open.items():
        if isinstance(extent, Among):
            words[key] = "[" + ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in extent.values) + "]"
        else:
            words[key] = f"{extent.low:g}..{extent.high:g}{' (log)' if extent.log else ''}"
    return words


def _of_method(text: str) -> tuple[str, dict[str, Between | Among]]:
    tree = _read(text, f"method {text!r}", "'distill + ewc(strength=10..1000)'")
    found: dict[str, Between | Among] = {}
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]:
        assert isinstance(call.func, ast.Name)
        name = registry.ALIASES.get(call.func.id, call.func.id)
        known = options(registry.METHODS[name]) if name in registry.METHODS else {}
        for keyword in list(call.keywords):
            if isinstance(keyword.value, ast.Tuple | ast.List | ast.Set) and keyword.arg in known:
                found[f"{name}.{keyword.arg}"] = _extent(keyword.value, known[keyword.arg], f"{name}.{keyword.arg}")
                call.keywords.remove(keyword)
    try:
        rest = ast.unparse(tree)
    except RecursionError as error:
        raise InputError(f"method {text[:60]!r}… is nested too deeply; write for example 'ewc(strength=30)'") from error
    return notation.show(notation.parse(rest)), found


def _of_run(text: str, config: TrainingConfig) -> tuple[TrainingConfig, dict[str, Between | Among]]:
    call = _read(f"space({text})", f"--space {text!r}", "'lr=1e-4..1e-2, head_steps=[0, 200]'").body
    known, found, fixed = options(TrainingConfig), {}, {}
    if not isinstance(call, ast.Call) or call.args:
        raise InputError(f"--space {text!r}: write name=values, such as lr=1e-4..1e-2")
    for keyword in call.keywords:
        if keyword.arg not in known:
            raise InputError(f"--space has no setting {keyword.arg!r}; there are {', '.join(known)}")
        if isinstance(keyword.value, ast.Tuple | ast.List | ast.Set):
            found[keyword.arg] = _extent(keyword.value, known[keyword.arg], keyword.arg)
        else:
            fixed[keyword.arg] = _legal(notation.read_value(keyword.value), known[keyword.arg], keyword.arg)
    return replace(config, **fixed), found


def _read(text: str, what: str, example: str) -> ast.Expression:
    if len(text) > notation.LONGEST:
        raise InputError(f"{what[:60]}… is longer than {notation.LONGEST} letters; write for example {example}")
    try:
        return ast.parse(SPAN.sub(r"(\1, \2)", text.strip()), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InputError(f"{what} cannot be read; write for example {example}") from error


def _extent(node: ast.Tuple | ast.List | ast.Set, option: Option, name: str) -> Between | Among:
    found = [_legal(notation.read_value(part), option, name) for part in node.elts]
    if not isinstance(node, ast.Tuple):
        if not found or len(set(found)) != len(found):
            raise InputError(f"{name}: list some values, each once")
        return Among(tuple(found))
    if option.kind not in (int, float) or len(found) != 2:
        raise InputError(f"{name} has no interval; list its values, such as [{option.default}]")
    low, high = found
    if not low < high:
        raise InputError(f"{name}={low:g}..{high:g} is empty; write the smaller value first")
    log = bool(option.extent and option.extent.log) and low > 0
    return Between(float(low), float(high), log, option.kind is int)


def _legal(value: Any, option: Option, name: str) -> Any:
    reason = option.refusal(value)
    if reason:
        raise InputError(f"{name}={value}: {reason}")
    return option.kind(value) if option.kind in (int, float) else value


def _everything(fixed: str, config: TrainingConfig) -> dict[str, Between | Among]:
    found: dict[str, Between | Among] = {}
    for name, settings in notation.parse(fixed).items():
        written = {f.name for f in fields(settings) if getattr(settings, f.name) != f.default}  # pyright: ignore
        for key, option in options(type(settings)).items():
            if option.extent and option.extent.searched and key not in written:
                found[f"{name}.{key}"] = _whole(option.extent, option.kind)
    return found | {
        key: _whole(options(TrainingConfig)[key].extent or Range(0, 1), options(TrainingConfig)[key].kind)
        for key in ALWAYS
    }


def _whole(extent: Range, kind: type) -> Between:
    return Between(float(extent.low), float(extent.high), extent.log and extent.low > 0, kind is int)
