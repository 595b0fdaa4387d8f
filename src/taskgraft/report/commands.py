"""Shell commands that a page proposes next, derived from the command that made the run."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from taskgraft.config import TrainingConfig, options
from taskgraft.results.record import Comparison, Record, VariantResult

Flag = tuple[str, str | None]  # a name and its value; None for a switch


def _flag_name(setting: str) -> str:
    return "--" + setting.replace("_", "-")


# The flags of each command; tests/report/test_commands.py compares them with the command line itself.
_TRAINING = frozenset(map(_flag_name, options(TrainingConfig)))
_PARENT = frozenset(
    {"--old", "--old-val", "--arch", "--labels", "--preprocessing", "--parent-task", "--no-parent-check"}
)
_MACHINE = frozenset({"--gpus", "--processes", "--max-restarts", "--patience", "--cache", "--track"})
FLAGS = {
    "train": _TRAINING | _MACHINE
    | {"--task", "--model", "--arch", "--weights", "--preprocessing", "--keep", "--config", "--resume"},
    "extend": _TRAINING | _MACHINE | _PARENT
    | {"--task", "--into", "--method", "--budget", "--max-forgetting", "--jobs", "--config", "--dry-run", "--resume"},
    "compare": _TRAINING | _PARENT
    | {"--task", "--methods", "--lrs", "--seeds", "--separate", "--cache", "--config"},
    "demo": frozenset({"--seeds", "--cache"}),
}  # fmt: skip
SWITCHES = frozenset({"--resume", "--dry-run", "--no-parent-check"})  # flags without a value
ARGUMENTS = {
    "train": ("DATA", "OUT"),
    "extend": ("PARENT", "DATA", "OUT"),
    "compare": ("PARENT", "DATA", "OUT"),
    "demo": ("demo-run",),
}


class Command(NamedTuple):
    """A taskgraft command in parts: the verb, its positional arguments (the last one is OUT), its flags."""

    verb: str
    args: tuple[str, ...]
    flags: tuple[Flag, ...] = ()

    @property
    def out(self) -> str:
        """The folder that it writes, without a trailing slash."""
        return _as_argument(self.args[-1].rstrip("/") or self.args[-1])

    def get(self, flag: str) -> str | None:
        """Return the last value of a flag; None where it is not given."""
        return next((value for name, value in reversed(self.flags) if name == flag), None)

    def with_out(self, out: str) -> Command:
        """Return the same command writing to another folder."""
        return self._replace(args=(*self.args[:-1], out))

    def with_flags(self, *flags: Flag) -> Command:
        """Return the command with further flags."""
        return self._replace(flags=(*self.flags, *flags))

    def without_flags(self, *names: str) -> Command:
        """Return the command without these flags."""
        return self._replace(flags=tuple(flag for flag in self.flags if flag[0] not in names))

    def only_flags(self, names: Collection[str]) -> Command:
        """Return the command with no flags but these."""
        return self._replace(flags=tuple(flag for flag in self.flags if flag[0] in names))

    def to_text(self) -> str:
        """Return the command as typed into a shell."""
        words = [word for name, value in self.flags for word in ([name] if value is None else [name, value])]
        return _join(self.verb, *map(_as_argument, self.args), *words)


def _as_argument(text: str) -> str:
    """A path that cannot be taken for a flag."""
    return f"./{text}" if text.startswith("-") else text


def _join(*words: str) -> str:
    return shlex.join(["taskgraft", *words])


def parse_command(text: str, verbs: Collection[str] = tuple(FLAGS)) -> Command | None:
    """Parse a command line; None where it is none of these commands, such as a call from Python."""
    try:
        words = shlex.split(text)
    except ValueError:  # an unbalanced quote
        return None
    if words[1:2] == ["--debug"]:
        del words[1]
    if len(words) < 2 or words[0] != "taskgraft" or words[1] not in verbs:
        return None
    verb, args, flags = words[1], list[str](), list[Flag]()
    rest = iter(words[2:])
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--":
            args += rest
        elif not word.startswith("-") or word == "-":
            args.append(word)
        elif name not in FLAGS[verb]:
            return None
        elif name in SWITCHES:
            flags.append((name, None))
        else:
            flags.append((name, value if equals else next(rest, "")))
    if verb == "demo" and not args:
        args = list(ARGUMENTS[verb])
    return Command(verb, tuple(args), tuple(flags)) if len(args) == len(ARGUMENTS[verb]) else None


def config_flags(config: Mapping[str, Any], defaults: TrainingConfig = TrainingConfig()) -> list[Flag]:  # noqa: B008 - immutable
    """Return the flags of the settings in `config` that differ from `defaults`."""
    return [
        (_flag_name(name), str(config[name]))
        for name in options(TrainingConfig)
        if name in config and config[name] != getattr(defaults, name)
    ]


# ---- after a run -----------------------------------------------------------------------------------------------


def parse_run(record: Record) -> Command | None:
    """Return the command that reproduces a run, on the same machine; None where it is not known."""
    typed, reproduce = parse_command(record.command), parse_command(record.reproduce_command)
    if reproduce is None:
        return typed
    if typed is None or typed.verb != reproduce.verb:
        return reproduce
    return reproduce.with_flags(*typed.only_flags(_MACHINE).without_flags(*dict(reproduce.flags)).flags)


def _extension(record: Record) -> Command:
    """The `extend` of a record, with placeholders for what is not known."""
    command = parse_run(record)
    if command is None or command.verb != "extend":
        command = Command("extend", ARGUMENTS["extend"])
    command = command.without_flags("--resume", "--dry-run")
    named = command.get("--task") or command.get("--into") or command.get("--config")
    return command if named else command.with_flags(_task_flag(record))


def _task_flag(record: Record) -> Flag:
    new = next((task for task in record.tasks if task.new), None)
    if new is None:
        return "--task", "NAME"
    return ("--into", new.added_to) if new.added_to else ("--task", new.name)


def predict(model: str) -> str:
    """Propose to predict with a model."""
    return _join("predict", model, "IMAGES")


def use_model(record: Record) -> str:
    """Propose to predict with the model of a run."""
    return predict(_extension(record).out)


def measure_old_tasks(record: Record) -> str:
    """Propose the same extension with old validation images, in another folder."""
    command = _extension(record)
    return command.with_out(f"{command.out}-measured").with_flags(("--old-val", "DIR")).to_text()


def compare_methods(record: Record, seeds: int = 3) -> str:
    """Propose a comparison of methods on the same parent and data; `compare` cannot add classes."""
    command = _extension(record)
    comparison = Command("compare", command.args, command.flags).only_flags(FLAGS["compare"]).without_flags("--config")
    if not comparison.get("--task"):
        comparison = comparison.with_flags(_task_flag(record))
    return comparison.with_out(f"{command.out}-compared").with_flags(("--seeds", str(seeds))).to_text()


def try_method(record: Record, method: str) -> str:
    """Propose the same extension by another method, in another folder."""
    command = _extension(record).without_flags("--method").with_flags(("--method", method))
    return command.with_out(f"{command.out}-{method}").to_text()


def extend_further(record: Record) -> str:
    """Propose to teach the model of a run another task."""
    command = parse_run(record)
    return _extend_from(command.out if command else "OUT")


def _extend_from(model: str) -> str:
    return Command("extend", (model, "DATA", f"{model}-extended"), (("--task", "NAME"),)).to_text()


def list_follow_ups(record: Record) -> list[tuple[str, str]]:
    """List what can be done with a finished run: purpose and command; empty where its folder is not known."""
    command = parse_run(record)
    if command is None or command.verb not in ("extend", "train"):
        return []
    out = command.out
    return [
        ("Rerun into a new folder", command.without_flags("--resume", "--dry-run").with_out(f"{out}-again").to_text()),
        ("Verify model, record and stored predictions", _join("evaluate", out, "--verify")),
        ("Rebuild this page", _join("report", out)),
        ("Predict", predict(out)),
        ("Serve a web page and an API", _join("serve", out)),
        ("Add another task", _extend_from(out)),
    ]


# ---- after a comparison ----------------------------------------------------------------------------------------


def _parse_comparison(comparison: Comparison) -> Command:
    """The `compare` of a comparison, from its command or, where that is unknown, from its runs."""
    command = parse_command(comparison.command, ("compare",))
    if command is not None:
        named = command.get("--task") or command.get("--config")
        return command if named else command.with_flags(_compared_task(comparison))
    for variant in comparison.variants:
        for record, folder in zip(variant.records[:1], variant.folders[:1], strict=False):
            run = parse_command(record.reproduce_command or record.command, ("extend",))
            if run is not None and run.out.endswith(f"/{folder}"):
                command = Command("compare", (*run.args[:2], run.out.removesuffix(f"/{folder}")), run.flags)
                return command.only_flags({"--task", *_PARENT}).with_flags(*_variant_flags(comparison.variants))
    flags = (_compared_task(comparison), *_variant_flags(comparison.variants))
    return Command("compare", ARGUMENTS["compare"], flags)


def _variant_flags(variants: Sequence[VariantResult]) -> list[Flag]:
    """Methods, learning rates where there are several, and the settings that all configurations share."""
    if not variants:
        return []
    methods = dict.fromkeys(variant.method for variant in variants)
    lrs = dict.fromkeys(variant.config["lr"] for variant in variants if "lr" in variant.config)
    flags: list[Flag] = [("--methods", "; ".join(methods))]
    flags += [("--lrs", ",".join(map(str, lrs)))] if len(lrs) > 1 else []
    return flags + config_flags(dict(set.intersection(*({*variant.config.items()} for variant in variants))))


def _compared_task(comparison: Comparison) -> Flag:
    records = [record for variant in comparison.variants for record in variant.records]
    return ("--task", _task_flag(records[0])[1]) if records else ("--task", "NAME")


def run_more_seeds(comparison: Comparison, seeds: int = 3) -> str:
    """Propose the same comparison over more seeds: in another folder, or resumed in the demo's."""
    command = parse_command(comparison.command, ("demo",))
    if command is None:
        command = _parse_comparison(comparison)
        command = command.with_out(f"{command.out}-{seeds}-seeds")
    return command.without_flags("--seeds").with_flags(("--seeds", str(seeds))).to_text()


def use_best_model(comparison: Comparison, folder: str) -> str:
    """Propose to predict with a model that the comparison left in `folder` below its own."""
    demo = parse_command(comparison.command, ("demo",))
    root = f"{demo.out}/comparison" if demo else _parse_comparison(comparison).out
    return predict(f"{root}/{folder}")


def compare_with_old_images(comparison: Comparison) -> str:
    """Propose the same comparison with old validation images, in another folder."""
    command = _parse_comparison(comparison)
    return command.with_out(f"{command.out}-measured").with_flags(("--old-val", "DIR")).to_text()


def extend_with_best(comparison: Comparison, best: VariantResult) -> str:
    """Propose the extension by the best configuration."""
    compared = _parse_comparison(comparison)
    command = Command("extend", compared.args, compared.flags).only_flags({"--task", *_PARENT})
    if not command.get("--task"):
        command = command.with_flags(_compared_task(comparison))
    command = command.with_out(f"{compared.out}-best")
    return command.with_flags(("--method", best.method), *config_flags(best.config)).to_text()


def check_data(comparison: Comparison) -> str:
    """Propose to check the data of a comparison that gave no result."""
    command = _parse_comparison(comparison)
    task = command.get("--task") or _compared_task(comparison)[1] or "NAME"
    return _join("check", command.args[1], "--task", task)
