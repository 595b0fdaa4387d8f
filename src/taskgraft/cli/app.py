"""The application: its commands, and how an error becomes one line and an exit code."""

from __future__ import annotations

import io
import signal
import sys
from typing import Any, NoReturn

from cyclopts import (
    App,
    CycloptsError,
    Group,
    MissingArgumentError,
    Parameter,
    UnknownCommandError,
    UnusedCliTokensError,
)

from taskgraft.cli import config_file, console, flags, inference, inspection, launch, training
from taskgraft.errors import TaskgraftError
from taskgraft.methods import presets
from taskgraft.version import __version__

STOPPED, TERMINATED = 130, 143  # exit codes after SIGINT and SIGTERM, as in shells
RESUMABLE = ("train", "extend", "refresh", "compress", "merge")  # with --resume
RERUN_RESUMES = ("tune", "compare", "demo")  # without --resume


def _format_default(value: Any) -> str | None:
    return None if value is None or value is False or value == "" else str(value)


app = App(
    name="taskgraft",
    help="Teach a trained image classifier a new task without the old data, and without losing the old one.",
    help_epilogue="Start with: taskgraft demo\nTo see the traceback of an error: taskgraft --debug COMMAND",
    help_format="plaintext",
    version=f"taskgraft {__version__}",
    version_flags=["--version"],
    group_parameters=flags.OPTIONS,
    default_parameter=Parameter(negative=(), allow_repeating=True, show_default=_format_default),
    config=config_file.apply,
    suppress_keyboard_interrupt=False,
)

# Each command with an example, by panel. The examples run where `taskgraft demo` has been run.
COMMANDS = {
    "Train": {
        training.demo: "demo demo-run",
        training.train: "train demo-run/data/makes makes --task make --preprocessing '64 squash bilinear half'",
        training.extend: "extend demo-run/alice demo-run/data/paints both --task paint --old-val demo-run/data/makes",
        training.compress: "compress both demo-run/data/paints one --old-val demo-run/data/makes",
        training.merge: "merge demo-run/alice one merged --images demo-run/data/paints --val demo-run/data/makes",
        training.refresh: "refresh demo-run/alice demo-run/data/makes again --old-val demo-run/data/makes",
        training.remove: "remove demo-run/alice fewer --task make --classes bus cabrio",
        training.compare: "compare demo-run/alice demo-run/data/paints table --task paint "
        f"--old-val demo-run/data/makes --methods '{presets.BASELINE}; {presets.SINGLE_BACKBONE}'",
        training.tune: "tune demo-run/alice demo-run/data/paints search --task paint "
        f"--old-val demo-run/data/makes --method '{presets.VALUES_EXAMPLE}' --sampler grid",
    },
    "Use": {
        inference.predict: "predict demo-run/alice demo-run/data/makes --top 3 --out answers.csv",
        inference.distribution: "distribution demo-run/alice demo-run/data/makes --out prevalence",
        inference.evaluate: "evaluate demo-run/alice demo-run/data/makes",
        inference.calibrate: "calibrate demo-run/alice demo-run/data/makes",
        inference.export: "export demo-run/alice demo-run/alice-onnx --format onnx",
        inference.serve: "serve demo-run/alice --port 0 --trial",
    },
    "Inspect": {
        inspection.check: "check demo-run/data/makes --group '^(.)' --write-manifest demo-run/data/initials.csv",
        inspection.report: "report demo-run/alice",
        inspection.sign: "sign demo-run/alice --key alice.key --new-key",
        inspection.verify: "verify demo-run/alice --key alice.key.pub",
        inspection.methods: f"methods {presets.EXAMPLE_METHOD}",
        inspection.doctor: "doctor",
        config_file.config: "config extend",
    },
}
for index, (panel, functions) in enumerate(COMMANDS.items()):
    group = Group(panel, sort_key=index - len(COMMANDS))
    for order, (function, example) in enumerate(functions.items()):
        app.command(function, group=group, sort_key=order, help_epilogue=f"Example: taskgraft {example}")


for name in ("--help", "--version"):
    app[name].group = flags.OPTIONS


class Terminated(BaseException):
    """SIGTERM as an exception, so that it closes files and ends child processes as KeyboardInterrupt does."""


def _raise_terminated(number: int, frame: object) -> NoReturn:
    raise Terminated


def _run(arguments: list[str]) -> int:
    """Run a command and return its exit code. SIGTERM raises meanwhile, and has its default effect afterwards."""
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        code = app(arguments, exit_on_error=False, print_error=False, verbose=False, result_action="return_value")
        return code or 0
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)


def _report_stop() -> None:
    """Say how to continue after a signal. Further signals are ignored from here on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if launch.is_main_process():
        console.print_message(f"taskgraft: stopped; {how_to_continue(sys.argv[1:])}")


def how_to_continue(arguments: list[str]) -> str:
    """Return how to continue a command that was stopped."""
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    if command in RERUN_RESUMES or "auto" in arguments or "--method=auto" in arguments:
        return "rerun the same command to resume"
    resumable = command in RESUMABLE or any(argument.startswith("--out") for argument in arguments)
    return "rerun with --resume to continue" if resumable else "nothing was saved"


def usage_message(error: CycloptsError) -> str:
    """Return a usage error as one line: what is wrong, and where to look."""
    error.verbose = False
    match error:
        case MissingArgumentError(argument=argument) if argument:
            kind = "argument" if argument.index is not None else "option" if argument.required else "value for"
            text = f"missing {kind} {argument.name}"
        case UnknownCommandError(unused_tokens=[token, *_]):
            hint = config_file.did_you_mean(token, list(app))
            text = f"unknown command {token!r}; {hint}" if hint else f"unknown command {token!r}"
        case UnusedCliTokensError(unused_tokens=[token, *_]):
            text = f"unexpected argument {token!r}"
        case _:
            text = str(error)
    text = " ".join("".join(char if char.isprintable() else " " for char in text).split()).rstrip(".")
    command = " ".join(["taskgraft", *(error.command_chain or ())])
    return f"{text[:1].lower()}{text[1:]} (see {command} --help)"


def main() -> None:
    """Run the command line. Every error that a user can fix becomes one line on stderr and an exit code."""
    debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # escape what the terminal cannot encode
    try:
        sys.exit(_run([argument for argument in sys.argv[1:] if argument != "--debug"]))
    except CycloptsError as error:
        console.print_message(f"taskgraft: {usage_message(error)}")
        sys.exit(2)
    except TaskgraftError as error:
        if debug:
            raise
        console.print_message(f"taskgraft: {error}")
        sys.exit(launch.report_exit_code(error.exit_code))
    except KeyboardInterrupt:
        _report_stop()
        sys.exit(STOPPED)
    except Terminated:
        if not launch.is_worker():  # the launcher ends its workers, perhaps to restart them
            _report_stop()
        sys.exit(TERMINATED)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        text = f"{type(error).__name__}: {error}"
        if launch.is_lost_peer(error):
            text = "another process of this run has died"
        console.print_message(f"taskgraft: {text} (taskgraft --debug shows the traceback)")
        sys.exit(1)
