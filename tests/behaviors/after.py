"""Rows 31 to 40: results, use, errors."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import timm

from behaviors.trying import FEW, Behavior, Place
from taskgraft import errors
from taskgraft.cli.app import STOPPED, TERMINATED
from typed import arguments_of

ERRORS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.TaskgraftError)]
WRONG = Path(__file__).parents[2] / "docs" / "wrong.md"


def reported(place: Place) -> str:
    page = (place.both / "report.html").read_text(encoding="utf-8")
    for part in ("Result", "Validation accuracy with 95 % confidence intervals", "Training curves", "Calibration",
                 "Reproduce, verify, continue", "<span>taskgraft</span> <span>extend</span>"):  # fmt: skip
        assert part.lower() in page.lower(), part
    assert not re.search(r"""(src|href)=["'](https?:)?//""", page)
    return f"report.html, {len(page) / 2**20:.1f} MB, nothing from elsewhere"


def verdict(place: Place) -> str:
    lines = place.told.out.splitlines()
    assert len(lines) == 6  # five lines, and where everything lies
    assert re.match(r"shape [\d.]+ → [\d.]+ \(.+, 95 % CI .+\); paint [\d.]+; Score [\d.]+ at step \d+", lines[0])
    assert lines[-2].startswith("next, ")
    assert lines[-1] == f"model and report: {place.both}/report.html"
    return lines[0]


def unmeasured(place: Place) -> str:
    told = place.extend("--method", "branch")
    assert told.code == 0, told.err
    assert "shape not measured" in told.out
    assert "needs old validation images (--old-val DIR)" in told.out
    assert "bit-identical" in told.out
    page = (place.root / "out" / "report.html").read_text(encoding="utf-8")
    assert "Forgetting on shape is unknown" in page
    return told.out.splitlines()[1]


def predicted(place: Place) -> str:
    """Rows on stdout and nothing else; a damaged image keeps its place."""
    pictures = Path(shutil.copytree(place.new / "val" / "red", place.root / "images"))
    (pictures / "0.png").write_bytes(b"no image")
    told = place.run("predict", place.plain, pictures)
    rows = [json.loads(line) for line in told.out.splitlines()]
    assert told.code == 0
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    assert rows[0]["error"]
    assert all(row["tasks"].keys() == {"shape", "paint"} for row in rows[1:])
    assert "could not be read" in told.err
    return f"{len(rows)} rows, both tasks in each, one with its error"


def shares(place: Place) -> str:
    told = place.run("distribution", place.plain, place.new / "val", "--json")
    assert told.code == 0, told.err
    found = json.loads(told.out)
    text = place.run("distribution", place.plain, place.new / "val").out
    for part in ("counted %", "95 % interval", "effective size"):
        assert part in text.lower(), text
    return f"{', '.join(found)[:80]}"


def exported(place: Place) -> str:
    out = place.root / "timm"
    told = place.run("export", place.plain, out, "--format", "safetensors", "--check", place.new / "val",
                     "--check", place.old / "val", "--cache", "none")  # fmt: skip
    assert told.code == 0, told.err
    assert "same prediction on 100.00%" in told.out
    assert timm.create_model(f"local-dir:{out}", pretrained=True).num_classes == 7
    return told.out.splitlines()[0]


def served(place: Place) -> str:
    assert arguments_of("serve").get("--host").field_info.default == "127.0.0.1"
    told = place.run("serve", place.plain, "--port", "0", "--trial")
    assert told.code == 0, told.err
    return told.out.strip()


def plainly(place: Place) -> str:
    """Wrong uses of many kinds: each one line on stderr, with what was probably meant; stdout stays empty."""
    shutil.copytree(place.new, place.root / "data")
    (place.root / "data" / "val" / "red").rename(place.root / "data" / "val" / "redd")
    words = ("extend", place.alice, place.new, place.root / "out")
    kinds = {
        "a command": (("extnd",), "did you mean 'extend'"),
        "an option": ((*words, "--tsk", "paint"), "Did you mean --task?"),
        "a value": ((*words, "--task", "paint", "--batch-size", "many"), "--batch-size"),
        "an argument too few": (("extend", place.alice), "missing argument DATA"),
        "an argument too many": ((*words, "more", "--task", "x"), "unexpected argument 'more'"),
        "a method": ((*words, "--task", "paint", "--method", "destill"), "did you mean 'distill'"),
        "a method's setting": ((*words, "--task", "paint", "--method", "ewc(strenght=1)"), "did you mean 'strength'"),
        "a model": (("train", place.new, place.root / "out", "--model", "resnet_18"), "did you mean 'resnet"),
        "a class": (("train", place.root / "data", place.root / "out", *FEW), "'red'"),
    }
    said = []
    for kind, (given, part) in kinds.items():
        told = place.run(*given)
        assert (told.code, told.out) == (2, ""), f"{kind}: {told}"
        own = [line for line in told.err.splitlines() if not line.startswith(("parent: ", "preprocessing '"))]
        assert len(own) == 1, f"{kind}: {told.err}"
        assert own[0].startswith("taskgraft: ")
        assert part in own[0], f"{kind}: {own[0]}"
        assert own[0].isprintable()
        said.append(kind)
    return f"{len(said)} kinds, one line each"


def codes(place: Place) -> str:
    """Every exit code that the program can give is explained in docs/wrong.md, where the documentation is at hand."""
    given = {0, 1, STOPPED, TERMINATED, *(kind.exit_code for kind in ERRORS)}
    if WRONG.exists():
        written = {int(found) for found in re.findall(r"^\| (\d+) \|", WRONG.read_text(encoding="utf-8"), re.M)}
        assert written == given
    return f"{plainly(place)}; exit codes {', '.join(map(str, sorted(given)))}"


ROWS = [
    Behavior(31, "report.html is one offline file with accuracies, intervals, curves, mistakes, calibration, commands",
              reported, ("tests/report/test_pages.py::test_page_is_self_contained",)),
    Behavior(32, "a verdict of five lines: before and after, Score, cost, what next", verdict),
    Behavior(33, "without old images the report says that old accuracy is unknown and what measures it", unmeasured),
    Behavior(34, "compare and tune show the frontier, go on after a kill, show failed trials with the reason", None,
              ("tests/commands/test_tune.py::test_a_search_that_was_killed_is_resumed_with_the_same_result",
               "tests/commands/test_tune.py::test_a_diverging_trial_is_reported_and_the_others_continue",
               "tests/pipeline/test_extend.py::test_compare_resumes_and_reports")),
    Behavior(35, "predict answers all tasks in one pass, in order; stdout is for pipes", predicted,
              ("tests/commands/test_predict.py::test_a_run_that_was_stopped_goes_on_to_the_same_file",
               "tests/commands/test_predict.py::test_tables_hold_what_lines_hold")),
    Behavior(36, "distribution gives shares with intervals, the naive count, the effective size", shares,
              ("tests/commands/test_distribution.py::test_numbered_frames_without_tracks_are_noticed",)),
    Behavior(37, "export compares the file with the model and prints the difference; plain timm loads safetensors",
              exported, ("tests/exports/test_export.py::test_refused_export_is_removed",)),
    Behavior(38, "serve binds this machine alone, prints its address and a curl line once it has answered", served,
              ("tests/serving/test_drain.py::test_sigterm_loses_no_request",
               "tests/serving/test_v2.py::test_health_and_server_metadata",
               "tests/serving/test_v2.py::test_model_metadata")),
    Behavior(39, "every error is one line with a remedy; typos are answered; exit codes are documented", codes,
              ("tests/surface/test_errors.py::test_an_unexpected_error_is_one_line_too",)),
    Behavior(40, "config files: unknown keys are errors with a suggestion; template, show, check, schema", None,
              ("tests/surface/test_config_file.py::test_flag_wins_over_file_and_file_over_default",
               "tests/surface/test_config_file.py::test_errors_are_one_line",
               "tests/surface/test_config_file.py::test_template_is_toml_once_uncommented",
               "tests/surface/test_config_file.py::test_check_shows_where_values_come_from",
               "tests/surface/test_config_file.py::test_schema_describes_every_setting"),
              "no variables of the environment: a record's command would not show them; nothing is deprecated yet"),
]  # fmt: skip
