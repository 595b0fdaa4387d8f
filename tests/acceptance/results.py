"""Rows 31 to 40: results, use, errors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import timm

from acceptance.behavior import FEW_STEPS, Behavior, Workspace
from cli_parsing import arguments_of
from taskgraft import errors
from taskgraft.cli.app import STOPPED, TERMINATED

ERRORS = [
    mistake
    for mistake in vars(errors).values()
    if isinstance(mistake, type) and issubclass(mistake, errors.TaskgraftError)
]
TROUBLESHOOTING = Path(__file__).parents[2] / "docs" / "wrong.md"


def check_report(workspace: Workspace) -> str:
    page = (workspace.out / "report.html").read_text(encoding="utf-8")
    for expected in ("Result", "Validation accuracy with 95 % confidence intervals", "Training curves", "Calibration",
                 "Reproduce, verify, continue", "<span>taskgraft</span> <span>extend</span>"):  # fmt: skip
        assert expected.lower() in page.lower(), expected
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    return f"report.html, {len(page) / 2**20:.1f} MB, nothing from elsewhere"


def check_summary(workspace: Workspace) -> str:
    lines = workspace.output.stdout.splitlines()
    assert len(lines) == 6  # five lines, and where everything lies
    assert re.match(r"shape [\d.]+ → [\d.]+ \(.+, 95 % CI .+\); paint [\d.]+; Score [\d.]+ at step \d+", lines[0])
    assert lines[-2].startswith("next, ")
    assert lines[-1] == f"model and report: {workspace.out}/report.html"
    return lines[0]


def check_without_old_images(workspace: Workspace) -> str:
    output = workspace.extend("--method", "branch")
    assert output.code == 0, output.stderr
    assert "shape not measured" in output.stdout
    assert "needs old validation images (--old-val DIR)" in output.stdout
    assert "bit-identical" in output.stdout
    page = (workspace.tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "Forgetting on shape is unknown" in page
    return output.stdout.splitlines()[1]


def check_predict(workspace: Workspace) -> str:
    """Rows on stdout and nothing else; a damaged image keeps its place."""
    images = Path(shutil.copytree(workspace.images / "val" / "red", workspace.tmp_path / "images"))
    (images / "0.png").write_bytes(b"no image")
    output = workspace.run("predict", workspace.child, images)
    rows = [json.loads(line) for line in output.stdout.splitlines()]
    assert output.code == 0
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert rows[0]["error"]
    assert all(row["tasks"].keys() == {"shape", "paint"} for row in rows[1:])
    assert "could not be read" in output.stderr
    return f"{len(rows)} rows, both tasks in each, one with its error"


def check_distribution(workspace: Workspace) -> str:
    output = workspace.run("distribution", workspace.child, workspace.images / "val", "--json")
    assert output.code == 0, output.stderr
    result = json.loads(output.stdout)
    text = workspace.run("distribution", workspace.child, workspace.images / "val").stdout
    for expected in ("counted %", "95 % interval", "effective size"):
        assert expected in text.lower(), text
    return f"{', '.join(result)[:80]}"


def check_export(workspace: Workspace) -> str:
    out = workspace.tmp_path / "timm"
    output = workspace.run(
        "export",
        workspace.child,
        out,
        "--format",
        "safetensors",
        "--check",
        workspace.images / "val",
        "--check",
        workspace.old_images / "val",
        "--cache",
        "none",
    )
    assert output.code == 0, output.stderr
    assert "same prediction on 100.00%" in output.stdout
    assert timm.create_model(f"local-dir:{out}", pretrained=True).num_classes == 7
    return output.stdout.splitlines()[0]


def check_serve(workspace: Workspace) -> str:
    assert arguments_of("serve").get("--host").field_info.default == "127.0.0.1"
    output = workspace.run("serve", workspace.child, "--port", "0", "--trial")
    assert output.code == 0, output.stderr
    return output.stdout.strip()


def check_error_messages(workspace: Workspace) -> str:
    """Wrong uses of many kinds: each one line on stderr, with what was probably meant; stdout stays empty."""
    shutil.copytree(workspace.images, workspace.tmp_path / "data")
    (workspace.tmp_path / "data" / "val" / "red").rename(workspace.tmp_path / "data" / "val" / "redd")
    words = ("extend", workspace.parent, workspace.images, workspace.tmp_path / "out")
    mistakes = {
        "a command": (("extnd",), "did you mean 'extend'"),
        "an option": ((*words, "--tsk", "paint"), "Did you mean --task?"),
        "a value": ((*words, "--task", "paint", "--batch-size", "many"), "--batch-size"),
        "an argument too few": (("extend", workspace.parent), "missing argument DATA"),
        "an argument too many": ((*words, "more", "--task", "x"), "unexpected argument 'more'"),
        "a method": ((*words, "--task", "paint", "--method", "destill"), "did you mean 'distill'"),
        "a method's setting": ((*words, "--task", "paint", "--method", "ewc(strenght=1)"), "did you mean 'strength'"),
        "a model": (
            ("train", workspace.images, workspace.tmp_path / "out", "--model", "resnet_18"),
            "did you mean 'resnet",
        ),
        "a class": (("train", workspace.tmp_path / "data", workspace.tmp_path / "out", *FEW_STEPS), "'red'"),
    }
    checked = []
    for mistake, (arguments, expected) in mistakes.items():
        output = workspace.run(*arguments)
        assert (output.code, output.stdout) == (2, ""), f"{mistake}: {output}"
        messages = [line for line in output.stderr.splitlines() if not line.startswith(("parent: ", "preprocessing '"))]
        assert len(messages) == 1, f"{mistake}: {output.stderr}"
        assert messages[0].startswith("taskgraft: ")
        assert expected in messages[0], f"{mistake}: {messages[0]}"
        assert messages[0].isprintable()
        checked.append(mistake)
    return f"{len(checked)} kinds, one line each"


def check_exit_codes(workspace: Workspace) -> str:
    """Every exit code that the program can give is explained in docs/wrong.md, where the documentation is at hand."""
    arguments = {0, 1, STOPPED, TERMINATED, *(mistake.exit_code for mistake in ERRORS)}
    if TROUBLESHOOTING.exists():
        documented = {
            int(result) for result in re.findall(r"^\| (\d+) \|", TROUBLESHOOTING.read_text(encoding="utf-8"), re.M)
        }
        assert documented == arguments
    return f"{check_error_messages(workspace)}; exit codes {', '.join(map(str, sorted(arguments)))}"


BEHAVIORS = [
    Behavior(
        31,
        "report.html is one offline file with accuracies, intervals, curves, mistakes, calibration, commands",
        check_report,
        ("tests/report/test_pages.py::test_page_is_self_contained",),
    ),
    Behavior(32, "a verdict of five lines: before and after, Score, cost, what next", check_summary),
    Behavior(
        33,
        "without old images the report says that old accuracy is unknown and what measures it",
        check_without_old_images,
    ),
    Behavior(
        34,
        "compare and tune show the frontier, go on after a kill, show failed trials with the reason",
        None,
        (
            "tests/commands/test_tune.py::test_a_search_that_was_killed_is_resumed_with_the_same_result",
            "tests/commands/test_tune.py::test_a_diverging_trial_is_reported_and_the_others_continue",
            "tests/pipeline/test_extend.py::test_compare_resumes_and_reports",
        ),
    ),
    Behavior(
        35,
        "predict answers all tasks in one pass, in order; stdout is for pipes",
        check_predict,
        (
            "tests/commands/test_predict.py::test_a_run_that_was_stopped_goes_on_to_the_same_file",
            "tests/commands/test_predict.py::test_tables_hold_what_lines_hold",
        ),
    ),
    Behavior(
        36,
        "distribution gives shares with intervals, the naive count, the effective size",
        check_distribution,
        ("tests/commands/test_distribution.py::test_numbered_frames_without_tracks_are_noticed",),
    ),
    Behavior(
        37,
        "export compares the file with the model and prints the difference; plain timm loads safetensors",
        check_export,
        ("tests/exports/test_export.py::test_refused_export_is_removed",),
    ),
    Behavior(
        38,
        "serve binds this machine alone, prints its address and a curl line once it has answered",
        check_serve,
        (
            "tests/serving/test_drain.py::test_sigterm_loses_no_request",
            "tests/serving/test_v2.py::test_health_and_server_metadata",
            "tests/serving/test_v2.py::test_model_metadata",
        ),
    ),
    Behavior(
        39,
        "every error is one line with a remedy; typos are answered; exit codes are documented",
        check_exit_codes,
        ("tests/surface/test_errors.py::test_an_unexpected_error_is_one_line_too",),
    ),
    Behavior(
        40,
        "config files: unknown keys are errors with a suggestion; template, show, check, schema",
        None,
        (
            "tests/surface/test_config_file.py::test_flag_wins_over_file_and_file_over_default",
            "tests/surface/test_config_file.py::test_errors_are_one_line",
            "tests/surface/test_config_file.py::test_template_is_toml_once_uncommented",
            "tests/surface/test_config_file.py::test_check_shows_where_values_come_from",
            "tests/surface/test_config_file.py::test_schema_describes_every_setting",
        ),
        "no variables of the environment: a record's command would not show them; nothing is deprecated yet",
    ),
]
