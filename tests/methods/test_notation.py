"""The notation of methods: what is shown reads back, and what is wrong is answered with what is right."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from taskgraft import methods
from taskgraft.config import Option, TrainingConfig, options
from taskgraft.errors import InputError, TaskgraftError
from taskgraft.methods import presets
from taskgraft.methods.compatibility import conflict
from taskgraft.methods.composition import acting, build, interpolations, notes, requires
from taskgraft.methods.notation import parse, show
from taskgraft.methods.protocol import Plan
from taskgraft.methods.registry import ALIASES, METHODS
from taskgraft.models.classifier import grow, inherited_parameters
from toys import NEW, make_data, parent


def values(option: Option) -> st.SearchStrategy[Any]:
    if get_origin(option.kind) is Literal:
        return st.sampled_from(get_args(option.kind))
    if option.kind is bool:
        return st.booleans()
    assert option.range is not None
    extent = option.range
    low = next(bound for bound in (extent.at_least, extent.above, extent.low) if bound is not None)
    high = 1e300 if extent.at_most is None else extent.at_most
    if option.kind is int:
        return st.integers(int(low), int(min(high, 10**9)))
    return st.floats(low, high, exclude_min=extent.above is not None)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    chosen = draw(st.lists(st.sampled_from(sorted(METHODS.keys() - {"finetune"})), unique=True, max_size=3))
    plan = {}
    for name in chosen or ["finetune"]:
        given = {key: draw(values(option)) for key, option in options(METHODS[name]).items()}
        plan[name] = METHODS[name](**given)
    assume(conflict(plan) is None)
    return plan


@given(plan=plans())
@settings(deadline=None, max_examples=300)
def test_notation_round_trips(plan: Plan) -> None:
    again = parse(show(plan))
    assert again == plan
    assert list(again) == list(plan)  # in the order in which they act


@pytest.mark.parametrize("name", METHODS)
def test_bare_name_means_defaults(name: str) -> None:
    assert parse(name) == {name: METHODS[name]()} == parse(f" {name}( ) ")
    assert show(parse(name)) == name
    assert all(field.default is not dataclasses.MISSING for field in dataclasses.fields(parse(name)[name]))  # pyright: ignore


def test_defaults_are_not_shown() -> None:
    assert show(parse("ewc(strength=30.0,labels='exact')+distill( temperature = 2 )")) == (
        "ewc(strength=30, labels=exact) + distill"
    )
    assert parse("ewc(implicit=false)") == parse("ewc(implicit=False)") != parse("ewc")
    assert type(parse("distill(strength=3)")["distill"].strength) is float  # pyright: ignore
    assert type(parse("ewc(draws=3.0)")["ewc"].draws) is int  # pyright: ignore


def test_alias() -> None:
    assert ALIASES.keys().isdisjoint(METHODS)
    for alias, name in ALIASES.items():
        assert parse(alias) == parse(name)
    assert show(parse("baseline")) == "finetune"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("destil", "method 'destil' does not exist; did you mean 'distill'. available: finetune, frozen, taps"),
        ("ewc + qqq", "method 'qqq' does not exist; available: finetune"),
        ("ewc(strenght=3)", "ewc has no setting 'strenght'; did you mean 'strength'. it has strength, labels"),
        ("finetune(strength=3)", "finetune has no setting 'strength'; it has none"),
        ("ewc(strength=-1)", r"ewc\(strength=-1\): must be at least 0 \(usual values: 1 to 1e\+06\)"),
        ("ewc(strength=" + "-" * 1500 + "1)", r"ewc\(strength=-{60}\): give a number such as"),
        ("distill(strength=-0.1)", r"distill\(strength=-0.1\): must be at least 0"),
        ("distill(temperature=0)", r"distill\(temperature=0\): must be above 0 \(usual values: 1 to 8\)"),
        ("distill(temperature=-2)", r"temperature=-2\): must be above 0"),
        ("distill(temperature=hot)", "give a number such as 2.0"),
        ("distill(temperature=1e999)", "give a number such as 2.0"),
        ("distill(strength=" + "9" * 400 + ")", "give a number such as 1.0"),
        ("distill(strength=True)", "give a number such as 1.0"),
        ("ewc(draws=1.5)", "give a whole number"),
        ("ewc(draws=0)", "must be at least 1"),
        ("ewc(labels=true)", "give one of sampled, exact, empirical"),
        ("ewc(implicit=1)", "give one of auto, True, False"),
        ("distill(scale=None)", "give one of T2, none"),
        ("ewc + ewc(strength=3)", "names 'ewc' twice; write it once"),
        ("lwf + distill", "lwf and distill are both distillation; name one of the two"),
        ("frozen + ewc", "frozen freezes everything old, so there is nothing for ewc to do; leave frozen or ewc out"),
        ("taps + distill", r"taps freezes everything old, .* write taps\(backbone=trained\)"),
        ("branch + wise", "nothing for wise to do"),
        ("frozen + taps", "taps freezes the backbone already; leave frozen out"),
        ("branch + taps(backbone=trained)", r"branch freezes the backbone .* write branch \+ taps"),
        ("lora + ewc", "ewc acts on the weights that lora freezes"),
        ("lora + wise", "wise acts on the weights that lora freezes"),
        ("branch(shared=2)", "must be at least 0 and at most 1"),
        ("ewc(strength=1, strength=2)", "names 'strength' twice|cannot be read"),
        ("ewc + finetune", "finetune protects nothing"),
        ("ewc - distill", r"is not a sum; combine methods with \+"),
        ("ewc * 2 + distill", r"is not a sum; combine methods with \+"),
        ("ewc(30)", "write settings as name=value"),
        ("ewc(**x)", "has no setting"),
        ("", "cannot be read; write for example"),
        ("ewc distill", "cannot be read"),
        ("ewc +", "cannot be read"),
        ("3", "cannot be read"),
        ("__import__('os').system('true')", "write settings as|cannot be read"),
        ("ewc(strength=__import__('os'))", "give a number such as 1000.0"),
        ("(" * 300 + "ewc" + ")" * 300, "cannot be read"),
        ("ewc\0", "cannot be read"),
    ],
)
def test_error_messages(text: str, message: str) -> None:
    with pytest.raises(TaskgraftError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@given(text=st.text(alphabet="ewcdistill(=+,)1.0 '*", max_size=30))
@settings(deadline=None, max_examples=300)
def test_arbitrary_text_is_parsed_or_refused(text: str) -> None:
    try:
        plan = parse(text)
    except TaskgraftError:
        return
    assert parse(show(plan)) == plan


@pytest.mark.parametrize(
    "text",
    ["taps(backbone=trained) + distill + wise", "distill + ewc", "branch + taps", "lora + distill", "ewc + mas + si"],
)
def test_combinations(text: str) -> None:
    assert show(parse(text)) == text


def test_strength_0_is_legal() -> None:
    for name, kind in METHODS.items():
        if "strength" in options(kind):
            assert parse(f"{name}(strength=0)")[name].strength == 0  # pyright: ignore


def test_functions_used_by_each_method() -> None:
    used = {name: {k for k, v in build(parse(name))._asdict().items() if v} for name in METHODS}
    assert used == {
        "finetune": set(),
        "frozen": {"adapt"},
        "taps": {"adapt"},
        "branch": {"adapt"},
        "ladder": {"adapt"},
        "distill": {"remember", "response"},
        "lwf": {"remember", "response"},
        "l2sp": {"remember", "weight"},
        "ewc": {"remember", "weight", "finish"},
        "mas": {"remember", "weight", "finish"},
        "si": {"remember", "weight", "observe", "finish"},
        "gpm": {"remember", "project", "finish"},
        "lora": {"adapt", "finish"},
        "wise": {"remember", "finish"},
        "replay": {"remember", "mix", "finish"},
    }


def test_import_contract_lists_every_method() -> None:
    contracts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["tool"]["importlinter"]
    independent = next(one["modules"] for one in contracts["contracts"] if one["type"] == "independence")
    assert set(independent) == {kind.__module__ for kind in METHODS.values()}


def test_presets_are_legal_notations() -> None:
    for text in (presets.DEFAULT_METHOD, presets.BASELINE, presets.SEARCHED, presets.EXAMPLE, *presets.AUTO_PORTFOLIO):
        assert show(parse(text)) == text
    assert {name for name, kind in METHODS.items() if kind().traits.records} == set(presets.RECORDERS)
    assert not [text for text in presets.AUTO_PORTFOLIO if any(m.traits.needs_old_images for m in parse(text).values())]
    assert not any(own.traits.attaches for own in parse(presets.SINGLE_BACKBONE).values())


def test_traits_depend_on_settings() -> None:
    assert parse("taps")["taps"].traits.freezes_old
    assert not parse("taps(backbone=trained)")["taps"].traits.freezes_old


@pytest.mark.slow
def test_freezing_methods_leave_old_parameters_without_gradients() -> None:
    for name, kind in METHODS.items():
        child, images = grow(parent(), NEW, 0), make_data()
        adapt = kind().build().adapt
        frozen = adapt and not any(v.requires_grad for v in inherited_parameters(adapt(child, images)).values())
        assert bool(frozen) == kind().traits.freezes_old, name


def test_plan_helpers() -> None:
    assert acting(parse("ewc(strength=0) + distill")) == "distill"
    assert acting(parse("ewc(strength=0)")) == acting(parse("finetune")) == "baseline"
    assert requires(parse("lwf"), TrainingConfig(head_steps=0)) is not None
    assert requires(parse("lwf"), TrainingConfig(head_steps=1)) is None
    assert [show(plan) for plan in interpolations(parse("distill + wise(points=2)")).values()] == [
        "distill + wise(weight=0.5)", "distill + wise(weight=1)",
    ]  # fmt: skip
    assert interpolations(parse("wise(weight=0.5)")) == {}
    assert notes(parse("ewc"), {}, {}, has_old=False) != notes(parse("ewc"), {}, {}, has_old=True) == []


def test_objects_are_their_notation() -> None:
    several = methods.Ewc(strength=30) + methods.Distill(temperature=4, teacher="live") + methods.Wise()
    assert str(several) == "ewc(strength=30) + distill(temperature=4, teacher=live) + wise"
    assert parse(several) == parse(str(several))
    assert show(parse(several)) == str(several)
    ewc, distill, wise = methods.Ewc(), methods.Distill(), methods.Wise()
    assert ewc + (distill + wise) == (ewc + distill) + wise
    assert parse(methods.Branch()) == parse("branch")
    assert {kind.name(): kind for kind in METHODS.values()} == METHODS
    assert {kind.__name__ for kind in METHODS.values()} == set(methods.__all__) <= set(dir(methods))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (methods.Ewc(strength=-1), "strength"),
        (methods.Ewc() + methods.Ewc(), "names 'ewc' twice"),
        (3, "method is a int; give its notation"),
        (methods.Ewc, "method is a type; give its notation"),
    ],
)
def test_objects_are_checked_as_their_notation_is(method: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        parse(method)
