"""Writing a finished run into its folder: the evidence, the model, the report; deleting what only training needs."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from taskgraft import report
from taskgraft.bundle import Bundle, digests, write_bundle
from taskgraft.data.task_images import TaskData
from taskgraft.errors import ResultError
from taskgraft.results.files import write_text
from taskgraft.results.predictions import Predictions, save_predictions
from taskgraft.results.record import Record
from taskgraft.training import run_folder


def write_run(out: Path, bundle: Bundle, record: Record, sets: Mapping[str, Predictions]) -> None:
    """Write everything but the report.

    Args:
        out: The run folder.
        bundle: The child.
        record: The run's record.
        sets: Predictions by set.
    """
    save_predictions(out / "predictions.npz", sets)
    write_text(out / "record.json", record.model_dump_json(indent=1))
    write_text(out / "README.md", report.format_model_card(record))
    write_bundle(out, bundle, method=record.method, parent=record.parent)
    digests.write(out, list_inputs(record))


def publish(out: Path) -> None:
    """Declare a run finished: from here on the same command reads it, and nothing is trained again.

    Args:
        out: The run folder, with everything that `write_run` writes.
    """
    run_folder.mark_done(out)


def delete_state(out: Path) -> None:
    """Delete the checkpoints of a finished run, which may hold old images.

    Args:
        out: The run folder.
    """
    shutil.rmtree(out / "state", ignore_errors=True)


def write_report(out: Path, record: Record, sets: Mapping[str, Predictions], images: TaskData) -> None:
    """Write the report of a finished run.

    Args:
        out: The run folder.
        record: The run's record.
        sets: Predictions by set.
        images: Images of the run, for thumbnails.

    Raises:
        ResultError: The report cannot be written; the model is complete.
    """
    try:
        thumbnails = report.ThumbnailMaker({"new": images.new.val, "old": images.old_val})
        page = report.render_run(record, sets, thumbnails)
        thumbnails.save(out)
        write_text(out / "report.html", page)
    except Exception as error:  # whatever a page stumbles over, the model is there
        reason = (str(error).splitlines() or [""])[0][:160]
        raise ResultError(
            f"the model in {out} is complete, but its report could not be written ({type(error).__name__}: {reason}); "
            "rerun the command to write it (train and extend with --resume)"
        ) from error


def list_inputs(record: Record) -> dict[str, str]:
    """List the digest of everything that a run was made from.

    Args:
        record: The run's record.

    Returns:
        SHA-256 by name.
    """
    parent = record.parent
    inputs = {"parent": str(parent["digest"])}
    inputs |= {f"parent/{name}": digest for name, digest in parent.get("files", {}).items()}
    inputs |= {"labels": parent["labels"]} if "labels" in parent else {}
    return inputs | {f"images/{name}": str(part["fingerprint"]) for name, part in record.data.items()}
