"""The next command to try. It is made from what a run was asked for, by the flags that the next command knows."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from taskgraft.config import TrainingConfig, options
from taskgraft.methods.presets import alternative
from taskgraft.results.record import Comparison, Record, VariantResult

# Which flags a command knows, and whether each takes a value; a test compares this with the command line itself.
_VALUE, _SWITCH = True, False
_RUN = {"--" + name.replace("_", "-"): _VALUE for name in options(TrainingConfig)}
_PARENT = {
    **dict.fromkeys(("--old", "--old-val", "--arch", "--labels", "--preprocessing", "--parent-task"), _VALUE),
    "--no-parent-check": _SWITCH,
}
_MACHINE = dict.fromkeys(("--gpus", "--processes", "--max-restarts", "--patience", "--cache", "--track"), _VALUE)
FLAGS = {
    "train": {
        **dict.fromkeys(("--task", "--model", "--arch", "--weights", "--preprocessing", "--keep", "--config"), _VALUE),
        "--resume": _SWITCH, **_MACHINE, **_RUN,
    },
    "extend": {
        **dict.fromkeys(("--task", "--into", "--method", "--budget", "--max-forgetting", "--jobs", "--config"), _VALUE),
        "--dry-run": _SWITCH, "--resume": _SWITCH, **_PARENT, **_MACHINE, **_RUN,
    },
    "compare": {
        **dict.fromkeys(("--task", "--methods", "--rates", "--seeds", "--separate", "--cache", "--config"), _VALUE),
        **_PARENT, **_RUN,
    },
    "demo": {"--seeds": _VALUE, "--cache": _VALUE},
}  # fmt: skip
PLACES = {"train": ("DATA", "OUT"), "extend": ("PARENT", "DATA", "OUT"), "compare": ("PARENT", "DATA", "OUT"),
          "demo": ("demo-run",)}  # fmt: skip
_ONCE = ("--resume", "--dry-run")  # of one start, not of the run


class Call(NamedTuple):
    """A command in its parts: the verb, its arguments, its flags with their values (None: a switch)."""

    verb: str
    places: tuple[str, ...]
    flags: tuple[tuple[str, str | None], ...] = ()

    def out(self) -> str:
        """The folder that it writes, without the slash that a shell's completion puts behind it."""
        out = self.places[-1].rstrip("/") or self.places[-1]
        return f"./{out}" if out.startswith("-") else out

    def into(self, out: str) -> Call:
        """The same, written elsewhere: a run folder refuses to go on under other settings."""
        return self._replace(places=(*self.places[:-1], out))

    def value(self, flag: str) -> str | None:
        """What a flag was given last."""
        return next((value for name, value in reversed(self.flags) if name == flag), None)

    def having(self, *flags: tuple[str, str | None]) -> Call:
        """The same with these flags beside its own."""
        return self._replace(flags=(*self.flags, *flags))

    def lacking(self, *names: str) -> Call:
        """The same without these flags."""
        return self._replace(flags=tuple(pair for pair in self.flags if pair[0] not in names))

    def only(self, names: Collection[str]) -> Call:
        """The same without all other flags."""
        return self._replace(flags=tuple(pair for pair in self.flags if pair[0] in names))

    def text(self) -> str:
        """The command as it is typed."""
        places = [f"./{place}" if place.startswith("-") else place for place in self.places]
        flags = [word for name, value in self.flags for word in ([name] if value is None else [name, value])]
        return shlex.join(["taskgraft", self.verb, *places, *flags])


def read(command: str, verbs: Collection[str] = tuple(FLAGS)) -> Call | None:
    """A command line in its parts; None where it is none of these commands, or a call from Python."""
    try:
        words = shlex.split(command)
    except ValueError:  # an unbalanced quote: no command line
        return None
    words = [word for place, word in enumerate(words) if word != "--debug" or place > 1]
    if len(words) < 2 or words[0] != "taskgraft" or words[1] not in verbs:
        return None
    verb, places, flags = words[1], list[str](), list[tuple[str, str | None]]()
    rest = iter(words[2:])
    for word in rest:
        name, equals, given = word.partition("=")
        if word == "--":
            places += rest
        elif not word.startswith("-") or word == "-":
            places.append(word)
        elif name not in FLAGS[verb]:
            return None
        elif FLAGS[verb][name] == _SWITCH:
            flags.append((name, None))
        else:
            flags.append((name, given if equals else next(rest, "")))
    whole = tuple(places) if places or verb != "demo" else PLACES[verb]
    return Call(verb, whole, tuple(flags)) if len(whole) == len(PLACES[verb]) else None


def predicted(model: str) -> str:
    """A model asked about other images."""
    return shlex.join(["taskgraft", "predict", model, "IMAGES"])


def asked(record: Record) -> Call | None:
    """What a run was asked for, with what its first start was given beside; None where neither can be told."""
    typed, whole = read(record.command), read(record.reproduce_command)
    if whole is None or typed is None or typed.verb != whole.verb:
        return whole or typed
    beside = [pair for pair in typed.flags if pair[0] in _MACHINE and pair[0] not in dict(whole.flags)]
    return whole.having(*beside)


def _extension(record: Record) -> Call:
    """The extension that a record is of; names stand for what is not told."""
    own = asked(record)
    found = own.lacking(*_ONCE) if own and own.verb == "extend" else Call("extend", PLACES["extend"])
    if found.value("--task") or found.value("--into") or found.value("--config"):
        return found
    return found.having(_task(record))


def _task(record: Record) -> tuple[str, str]:
    """The flag that names what is learnt."""
    new = next((task for task in record.tasks if task.new), None)
    if new is None:
        return "--task", "NAME"
    return ("--into", new.added_to) if new.added_to else ("--task", new.name)


def measured(record: Record) -> str:
    """The same extension once more into another folder, with old validation images."""
    found = _extension(record)
    return found.into(f"{found.out()}-measured").having(("--old-val", "DIR")).text()


def compared(record: Record, seeds: int = 3) -> str:
    """A comparison of methods from the same parent and data; added classes, which it cannot, by another method."""
    found = _extension(record)
    if _task(record)[0] == "--into":
        other = alternative(record.method)
        return found.into(f"{found.out()}-{other}").lacking("--method").having(("--method", other)).text()
    call = Call("compare", found.places, found.flags).only(FLAGS["compare"]).lacking("--config")
    call = call if call.value("--task") else call.having(_task(record))
    return call.into(f"{found.out()}-compared").having(("--seeds", str(seeds))).text()


def used(record: Record) -> str:
    """The extended model asked about other images."""
    return predicted(_extension(record).out())


def extended(record: Record) -> str:
    """The next task for a model that was trained from scratch."""
    found = asked(record)
    return _another(found.out() if found else "OUT")


def following(record: Record) -> list[tuple[str, str]]:
    """What can be done with a finished run, and the command for each; nothing where its folder is not told."""
    found = asked(record)
    if found is None or found.verb not in ("extend", "train"):
        return []
    out = found.out()
    return [
        ("Once more, into another folder:", found.lacking(*_ONCE).into(f"{out}-again").text()),
        (
            "Are model, record and stored answers still what they were?",
            shlex.join(["taskgraft", "evaluate", out, "--verify"]),
        ),
        ("This page again:", shlex.join(["taskgraft", "report", out])),
        ("Other images:", predicted(out)),
        ("A page and an interface for programs:", shlex.join(["taskgraft", "serve", out])),
        ("Another task:", _another(out)),
    ]


def _another(out: str) -> str:
    return Call("extend", (out, "DATA", f"{out}-extended"), (("--task", "NAME"),)).text()


def _comparison(comparison: Comparison) -> Call:
    """The comparison that this is of; what cannot be read from its command is taken from its runs."""
    found = read(comparison.command, ("compare",))
    if found is not None:
        return found if found.value("--task") or found.value("--config") else found.having(_named(comparison))
    runs = [(one, one.records[0], place) for one in comparison.variants for place in one.folders[:1] if one.records]
    for _, record, place in runs:
        own = read(record.reproduce_command or record.command, ("extend",))
        if own is not None and own.out().endswith(f"/{place}"):
            call = Call("compare", (*own.places[:2], own.out().removesuffix(f"/{place}")), own.flags)
            return call.only({"--task", *_PARENT}).having(*_arms(comparison.variants))
    return Call("compare", PLACES["compare"]).having(_named(comparison), *_arms(comparison.variants))


def _arms(variants: Sequence[VariantResult]) -> list[tuple[str, str | None]]:
    """The methods, the rates where there are several, and the other settings that all arrangements share."""
    methods = list(dict.fromkeys(one.method for one in variants))
    lrs = list(dict.fromkeys(one.config["lr"] for one in variants if "lr" in one.config))
    flags: list[tuple[str, str | None]] = [("--methods", "; ".join(methods))] if methods else []
    flags += [("--rates", ",".join(map(str, lrs)))] if len(lrs) > 1 else []
    shared = dict(set.intersection(*({*one.config.items()} for one in variants))) if variants else {}
    return flags + settings(shared)


def settings(config: Mapping[str, Any], base: TrainingConfig = TrainingConfig()) -> list[tuple[str, str | None]]:  # noqa: B008 - immutable
    """The flags of a run's settings that are not those of `base`."""
    usual = {name: getattr(base, name) for name in options(TrainingConfig) if name in config}
    return [
        ("--" + name.replace("_", "-"), str(config[name])) for name, value in usual.items() if config[name] != value
    ]


def _named(comparison: Comparison) -> tuple[str, str]:
    records = [record for one in comparison.variants for record in one.records]
    return ("--task", _task(records[0])[1]) if records else ("--task", "NAME")


def more_seeds(comparison: Comparison) -> str:
    """The same comparison over three seeds: into another folder, or on in the demo's own."""
    call = read(comparison.command, ("demo",))
    if call is None:
        call = _comparison(comparison)
        call = call.into(f"{call.out()}-3-seeds")
    return call.lacking("--seeds").having(("--seeds", "3")).text()


def used_from(comparison: Comparison, folder: str) -> str:
    """A model that a comparison left in a folder below its own, asked about other images."""
    drawn = read(comparison.command, ("demo",))
    own = f"{drawn.out()}/comparison" if drawn else _comparison(comparison).out()
    return predicted(f"{own}/{folder}")


def compared_with_old(comparison: Comparison) -> str:
    """The same comparison once more into another folder, with old validation images."""
    call = _comparison(comparison)
    return call.into(f"{call.out()}-measured").having(("--old-val", "DIR")).text()


def chosen(comparison: Comparison, one: VariantResult) -> str:
    """The extension of the best arrangement."""
    whole = _comparison(comparison)
    call = Call("extend", whole.places, whole.flags).only({"--task", *_PARENT})
    call = call if call.value("--task") else call.having(_named(comparison))
    return call.into(f"{whole.out()}-best").having(("--method", one.method), *settings(one.config)).text()


def looked_at(comparison: Comparison) -> str:
    """The images of a comparison from which nothing came, looked at."""
    whole = _comparison(comparison)
    task = whole.value("--task") or _named(comparison)[1]
    return shlex.join(["taskgraft", "check", whole.places[1], "--task", task])
