"""Settings files: TOML and YAML, what wins over what, errors, the template and the schema."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from pathlib import Path

import pytest

from cli_parsing import flags_of, parse, values_of
from taskgraft.cli import main
from taskgraft.config import TrainingConfig

COMMANDS = ("train", "extend", "compare", "tune")
TOML = 'task = "paint"\nsteps = 3\nlr = 0.02\nold-val = ["a", "b"]\nno_parent_check = true\n'
YAML = "task: paint\nsteps: 3\nlr: 2e-2\nold-val: [a, b]\nno_parent_check: true\n"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["taskgraft", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, captured.out, captured.err

    return run


@pytest.mark.parametrize(("suffix", "text"), [("toml", TOML), ("yaml", YAML), ("yml", YAML)])
def test_flag_wins_over_file_and_file_over_default(suffix: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / f"run.{suffix}"
    file.write_text(text)
    given = values_of(parse(["extend", "alice", "paints", "out", "--config", str(file), "--lr", "0.5"]))
    assert (given["task"], given["steps"], given["lr"], given["batch_size"]) == ("paint", 3, 0.5, 32)
    assert given["old_val"] == [Path("a"), Path("b")]
    assert given["no_parent_check"] is True


def test_a_key_named_like_a_command_is_a_setting(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('task = "paint"\nmethods = "finetune"\n')
    assert values_of(parse(["compare", "a", "b", "c", "--config", str(file)]))["methods"] == "finetune"


@pytest.mark.parametrize("command", COMMANDS)
def test_template_is_toml_once_uncommented(command: str, run) -> None:
    code, template, _ = run("config", command)
    lines = [line.removeprefix("# ") for line in template.splitlines() if re.match(r"# [\w-]+ = ", line)]
    settings = tomllib.loads("\n".join(lines))
    names = {flag.removeprefix("--") for flag in flags_of(command)}
    assert code == 0
    assert names - {"config", "resume"} - settings.keys() <= {"arch", "processes"}  # second names of a flag
    assert settings["lr"] == 0.001
    assert "# Peak learning rate\n# lr = 0.001" in template
    assert "None" not in template


def test_check_shows_where_values_come_from(tmp_path: Path, run) -> None:
    file = tmp_path / "run.toml"
    file.write_text(TOML)
    code, out, _ = run("config", "extend", file)
    assert code == 0
    assert "steps = 3  # file" in out
    assert "batch-size = 32  # default" in out
    assert "# old: not set" in out
    assert tomllib.loads(out)["old-val"] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("run.toml", "stpes = 3", "unknown setting 'stpes'; did you mean 'steps'?"),
        ("run.toml", 'parent = "alice"', "unknown setting 'parent'"),
        ("run.toml", "steps = [", "invalid TOML"),
        ("run.toml", 'steps = "many"', 'run.toml: unable to convert "many" into int'),
        ("run.toml", "lr = -1.0", "lr -1.0: must be above 0"),
        ("run.toml", 'optimizer = "adam"', 'Did you mean "adamw"?'),
        ("run.yaml", "steps: [", "invalid YAML"),
        ("run.yaml", "steps", "invalid YAML"),
        ("gone.toml", None, "cannot be read"),
    ],
)
def test_errors_are_one_line(name: str, text: str | None, message: str, tmp_path: Path, run) -> None:
    file = tmp_path / name
    if text is not None:
        file.write_text(text)
    extend = ("extend", tmp_path / "alice", tmp_path / "data", tmp_path / "out", "--task", "paint", "--config", file)
    for words in (("config", "extend", file), extend):
        code, out, err = run(*words)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err


def test_steps_and_epochs_are_not_both_set(tmp_path: Path, run) -> None:
    file = tmp_path / "run.toml"
    file.write_text("steps = 1200\n")
    extend = ("extend", "alice", "data", "out", "--task", "paint")
    for words in ((*extend, "--steps", "1200", "--epochs", "2"), (*extend, "--epochs", "2", "--config", file)):
        code, _, err = run(*words)
        assert (code, err) == (2, "taskgraft: --steps and --epochs: give one of them\n")
    file.write_text("steps = 1200\nepochs = 0.0\n")
    assert run("config", "extend", file)[0] == 0, "the template names both"


@pytest.mark.parametrize(
    ("command", "more"), {"train": (), "extend": ("--task", "b"), "compress": (), "refresh": ()}.items()
)
def test_amp_is_another_word_for_bf16(command: str, more: tuple[str, ...], tmp_path: Path, run) -> None:
    paths = [tmp_path / name for name in ("data", "out")]
    models = () if command == "train" else (tmp_path / "model",)
    code, _, err = run(command, *models, *paths, *more, "--amp", "--precision", "fp32")
    assert (code, err.count("\n")) == (2, 1)
    assert "--amp is --precision bf16, but --precision fp32 was given" in err


def test_unknown_command_is_refused(run) -> None:
    code, _, err = run("config", "extnd")
    assert code == 2
    assert 'Did you mean "extend"?' in err


@pytest.mark.parametrize("command", COMMANDS)
def test_schema_describes_every_setting(command: str, run) -> None:
    schema = json.loads(run("config", command, "--schema")[1])
    settings = schema["properties"]
    assert {name.replace("_", "-") for name in TrainingConfig.__dataclass_fields__} <= settings.keys()
    assert settings["steps"] == {"description": "Number of training steps", "type": "integer", "minimum": 1}
    assert settings["lr"]["exclusiveMinimum"] == 0
    assert settings["momentum"]["maximum"] == 0.9999
    assert settings["optimizer"]["enum"] == ["sgd", "adamw"]
    assert all(setting["description"] for setting in settings.values())
    assert schema["additionalProperties"] is False
