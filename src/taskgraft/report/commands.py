"""Shell commands: those that reproduce a run or a comparison, and those that a page proposes next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from taskgraft.config import TrainingConfig, options
from taskgraft.results.record import Comparison, Record, VariantResult

Flag = tuple[str, str | None]  # a name and its value; None for a switch

SWITCHES = ("--no-parent-check", "--deterministic")
ARGUMENTS = {
    "train": ("DATA", "OUT"),
    "extend": ("PARENT", "DATA", "OUT"),
    "refresh": ("MODEL", "DATA", "OUT"),
    "compress": ("MODEL", "DATA", "OUT"),
    "merge": ("MODEL", "OTHER", "OUT"),
    "compare": ("PARENT", "DATA", "OUT"),
}
EXTENDING = ("extend", "refresh", "compress", "merge")  # a model that there is
SEEDS = 3  # the minimum for a comparison


class Command(NamedTuple):
    """A taskgraft command: the verb, its positional arguments (the last one is OUT), its flags."""

    verb: str
    args: tuple[str, ...]
    flags: tuple[Flag, ...] = ()

    def __str__(self) -> str:
        """The command as typed into a shell."""
        words = [word for name, value in self.flags for word in ([name] if value is None else [name, value])]
        return _join(self.verb, *map(_as_argument, self.args), *words)

    @property
    def out(self) -> str:
        """The folder that it writes, without a trailing slash."""
        return _as_argument(self.args[-1].rstrip("/") or self.args[-1])

    def with_out(self, out: str) -> Command:
        """Return the same command writing to another folder."""
        return self._replace(args=(*self.args[:-1], out))

    def with_flags(self, *flags: Flag) -> Command:
        """Return the command with these flags, which replace those of the same name."""
        return self._replace(flags=(*self.without_flags(*dict(flags)).flags, *flags))

    def without_flags(self, *names: str) -> Command:
        """Return the command without these flags."""
        return self._replace(flags=tuple(flag for flag in self.flags if flag[0] not in names))


def _as_argument(text: str) -> str:
    """A path that cannot be taken for a flag."""
    return f"./{text}" if text.startswith("-") else text


def _join(*words: str) -> str:
    return shlex.join(["taskgraft", *words])


def parse_command(text: str, verbs: Collection[str]) -> Command | None:
    """Parse a command that `str(Command)` wrote; None where it is not one of `verbs`."""
    try:
        _, verb, *words = shlex.split(text)
    except ValueError:  # no command, or an unbalanced quote
        return None
    if verb not in verbs:
        return None
    count = len(ARGUMENTS[verb])
    rest = iter(words[count:])
    flags = tuple((name, None if name in SWITCHES else next(rest, "")) for name in rest)
    return Command(verb, tuple(words[:count]), flags) if len(words) >= count else None


def _flag_name(setting: str) -> str:
    return f"--{setting.replace('_', '-')}"


def config_flags(config: Mapping[str, Any], defaults: TrainingConfig = TrainingConfig()) -> list[Flag]:  # noqa: B008 - immutable
    """Return the flags of the settings in `config` that differ from `defaults`; steps only where no epochs are set."""
    return [
        (_flag_name(name), None if config[name] is True else str(config[name]))
        for name in options(TrainingConfig)
        if name in config and config[name] != getattr(defaults, name) and not (name == "steps" and config.get("epochs"))
    ]


def build_compare_command(extend: str, variants: Sequence[VariantResult], *flags: Flag) -> str:
    """Build the `compare` of all methods and learning rates of `variants`, under the settings that they share.

    Args:
        extend: The `extend` command of the request, whose method and settings the variants replace.
        variants: The configurations.
        flags: Further flags.
    """
    command = parse_command(extend, ("extend",))
    assert command
    command = command._replace(verb="compare").without_flags("--method", *map(_flag_name, options(TrainingConfig)))
    methods = dict.fromkeys(variant.method for variant in variants)
    lrs = dict.fromkeys(str(variant.config["lr"]) for variant in variants)
    shared = set.intersection(*({*variant.config.items()} for variant in variants))
    command = command.with_flags(("--methods", "; ".join(methods)), *config_flags(dict(shared)), *flags)
    return str(command.with_flags(("--lrs", ",".join(lrs))) if len(lrs) > 1 else command)


# ---- after a run -----------------------------------------------------------------------------------------------


def _extension(record: Record) -> Command:
    """The `extend` or `compress` of a record, with placeholders where it is not known."""
    command = parse_command(record.reproduce_command, EXTENDING)
    return command or Command("extend", ARGUMENTS["extend"], (("--task", "NAME"),))


def predict(model: str) -> str:
    """Propose to predict with a model."""
    return _join("predict", model, "IMAGES")


def use_model(record: Record) -> str:
    """Propose to predict with the model of a run."""
    return predict(_extension(record).out)


def measure_old_tasks(record: Record) -> str:
    """Propose the same extension with old validation images, in another folder."""
    return _with_old_images(_extension(record))


def _with_old_images(command: Command) -> str:
    flag = "--val" if command.verb == "merge" else "--old-val"
    return str(command.with_out(f"{command.out}-measured").with_flags((flag, "DIR")))


def compare_methods(record: Record) -> str:
    """Propose a comparison of methods on the same parent and data; `compare` cannot add classes."""
    command = _extension(record)._replace(verb="compare").without_flags("--method")
    return str(command.with_out(f"{command.out}-compared").with_flags(("--seeds", str(SEEDS))))


def extend_on_one_backbone(record: Record) -> str:
    """Propose the same extension by the default method, whose child is then compressed, in another folder."""
    command = _extension(record).without_flags("--method").with_flags(("--one-backbone", None))
    return str(command.with_out(f"{command.out}-plain"))


def try_method(record: Record, method: str) -> str:
    """Propose the same extension by another method, in another folder."""
    command = _extension(record).with_flags(("--method", method))
    return str(command.with_out(f"{command.out}-{method}"))


def teach_longer(record: Record) -> str:
    """Propose the same compression or merge with twice as many steps, or epochs, in another folder."""
    command = _extension(record)
    length = "epochs" if record.config.get("epochs") else "steps"
    return str(
        command.with_out(f"{command.out}-longer").with_flags((_flag_name(length), str(2 * record.config[length])))
    )


def refresh_gently(record: Record) -> str:
    """Propose the same refresh at a third of the learning rate, in another folder."""
    command = _extension(record)
    return str(command.with_out(f"{command.out}-gentle").with_flags(("--lr", f"{record.config['lr'] / 3:.2g}")))


def extend_further(record: Record) -> str:
    """Propose to teach the model of a run another task."""
    command = parse_command(record.reproduce_command, (*EXTENDING, "train"))
    return _extend_from(command.out if command else "OUT")


def _extend_from(model: str) -> str:
    return str(Command("extend", (model, "DATA", f"{model}-extended"), (("--task", "NAME"),)))


def list_follow_ups(record: Record) -> list[tuple[str, str]]:
    """List what can be done with a finished run: purpose and command; empty where its folder is not known."""
    command = parse_command(record.reproduce_command, (*EXTENDING, "train"))
    if command is None:
        return []
    out = command.out
    return [
        ("Rerun into a new folder", str(command.with_out(f"{out}-again"))),
        ("Verify model, record and stored predictions", _join("evaluate", out, "--verify")),
        ("Rebuild this page", _join("report", out)),
        ("Predict", predict(out)),
        ("Serve a web page and an API", _join("serve", out)),
        ("Add another task", _extend_from(out)),
        *([] if record.one_backbone else [("Teach one plain backbone all tasks", _compress(command))]),
    ]


def _compress(command: Command) -> str:
    """Propose to compress the model that a command writes, with the images that it learned from."""
    old_val = [flag for flag in command.flags if flag[0] == "--old-val"]
    return str(Command("compress", (command.out, command.args[-2], f"{command.out}-plain"), tuple(old_val)))


# ---- after a comparison ----------------------------------------------------------------------------------------


def _comparison(comparison: Comparison) -> Command:
    command = parse_command(comparison.reproduce_command, ("compare",))
    return command or Command("compare", ARGUMENTS["compare"], (("--task", "NAME"),))


def run_more_seeds(comparison: Comparison) -> str:
    """Propose the same comparison over more seeds, which reads the runs that are finished."""
    if comparison.command.startswith("taskgraft demo"):
        return re.sub(r" --seeds[ =]\d+", "", comparison.command) + f" --seeds {SEEDS}"
    return str(_comparison(comparison).with_flags(("--seeds", str(SEEDS))))


def use_best_model(comparison: Comparison, best: VariantResult) -> str:
    """Propose to predict with the first model of the best configuration."""
    return predict("/".join((_comparison(comparison).out, *best.folders[:1])))


def compare_with_old_images(comparison: Comparison) -> str:
    """Propose the same comparison with old validation images, in another folder."""
    return _with_old_images(_comparison(comparison))


def check_data(comparison: Comparison) -> str:
    """Propose to check the data of a comparison that gave no result."""
    command = _comparison(comparison)
    return _join("check", command.args[1], "--task", dict(command.flags).get("--task") or "NAME")
