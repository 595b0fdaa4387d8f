"""The model card of a bundle that is shared: README.md with the metadata that the Hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData

from taskgraft.results.record import Interval, Record

if TYPE_CHECKING:
    from taskgraft.bundle.format import Bundle

MAX_CLASSES = 50  # that the card names of a task
MISSING = "not measured"


def format_card(bundle: Bundle, record: Record | None, repo: str, memory: bool) -> str:
    """Format the model card: the tasks with what they reach, how the model is loaded; the license is left to the user.

    Args:
        bundle: The model.
        record: The record of the run that made it; None where there is none.
        repo: What the model is loaded by: its repository or folder.
        memory: Whether what methods need at the next extension is stored beside it.
    """
    is_plain = not len(bundle.classifier.extras)
    measured = {task.name: task for task in record.tasks} if record else {}
    rows = []
    for task in bundle.tasks:
        found = measured.get(task.name)
        values = (found.parent, found.child, found.forgetting) if found else (None, None, None)
        cells = [_escape(task.name), str(len(task.classes)), *map(_percent, values)]
        rows.append(f"| {' | '.join(cells)} |")
    title = " + ".join(task.name for task in bundle.tasks)
    made = f", made with the method `{record.method}`" if record else ""
    return "\n".join([
        "---",
        _format_metadata(bundle, record, is_plain, title),
        "---",
        "",
        f"# {_escape(title)}",
        "",
        f"An image classifier ({bundle.arch}) that answers {len(bundle.tasks)} task(s) in one pass{made}. "
        "Written by [taskgraft](https://pypi.org/project/taskgraft/).",
        "",
        "| Task | Classes | Accuracy before | Accuracy | Forgetting |",
        "|---|---|---|---|---|",
        *rows,
        "",
        "Accuracy is that on validation images, with its 95 % interval; \"before\" is that of the model this one was "
        "extended from, and forgetting the difference.",
        "",
        "## Use",
        "",
        "```python",
        "import taskgraft",
        "",
        f"bundle = taskgraft.from_pretrained({repo!r})",
        'print(bundle.predict("image.jpg"))',
        "```",
        "",
        *_describe_timm(bundle, repo, is_plain),
        f"Images are preprocessed as `{bundle.preprocessing.to_text()}`: {bundle.preprocessing.describe()}.",
        "",
        "What methods need to extend it again is stored with it." if memory else
        "It can be extended by `taskgraft extend`; what some methods would keep for that is not stored with it.",
        "",
        "## Classes",
        "",
        *(f"- **{_escape(task.name)}**: {_list_classes(task.classes)}" for task in bundle.tasks),
        "",
        "No license is stated here: choose one, in the metadata above, that the images and the model before it allow.",
        "",
    ])  # fmt: skip


def _format_metadata(bundle: Bundle, record: Record | None, is_plain: bool, title: str) -> str:
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="".join(c if c.isascii() and c.isalnum() else "_" for c in task.name),
            dataset_name=f"validation images of {task.name}",
            metric_type="accuracy",
            metric_name="accuracy",
            metric_value=round(task.child.mean, 6),
        )
        for task in (record.tasks if record else ())
        if task.child
    ]
    metadata = ModelCardData(
        library_name="timm" if is_plain else "taskgraft",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "taskgraft"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    return metadata.to_yaml()


def _describe_timm(bundle: Bundle, repo: str, is_plain: bool) -> list[str]:
    if not is_plain:
        return ["It is more than one backbone with linear layers, so timm alone cannot rebuild it.", ""]
    source = f"hf-hub:{repo}" if not Path(repo).is_absolute() else f"local-dir:{repo}"
    start, rows = 0, []
    for task in bundle.tasks:
        rows.append(f"{start} to {start + len(task.classes) - 1} {_escape(task.name)}")
        start += len(task.classes)
    return [
        f"Without taskgraft: `timm.create_model({source!r}, pretrained=True)` gives the logits of all tasks, "
        f"{'; '.join(rows)}.",
        "",
    ]


def _percent(value: Interval | None) -> str:
    return f"{value.mean:.1%} ({value.low:.1%} to {value.high:.1%})" if value else MISSING


def _list_classes(classes: tuple[str, ...]) -> str:
    more = f" and {len(classes) - MAX_CLASSES} more" if len(classes) > MAX_CLASSES else ""
    return ", ".join(map(_escape, classes[:MAX_CLASSES])) + more


def _escape(text: str) -> str:
    return "".join(f"\\{c}" if c in "\\|*_`<>[]#" else c for c in text.replace("\n", " "))


def strip_paths(parent: dict[str, Any]) -> dict[str, Any]:
    """Return what config.json says of a parent without the folders that it lay in, which are nobody's business."""
    places = {key: Path(value).name for key in ("source", "other") if isinstance(value := parent.get(key), str)}
    return {**parent, **places}
