"""The model card: README.md of a bundle, with the metadata that model hubs read."""

from __future__ import annotations

import json

from taskgraft.results.record import Record


def model_card(record: Record) -> str:
    """Markdown with YAML metadata: what the model answers, how well, before and after."""
    names = [task.name for task in record.tasks]
    head = [
        "---",
        f"library_name: {'timm' if record.one_backbone else 'taskgraft'}",
        "pipeline_tag: image-classification",
        "tags: [image-classification, timm, taskgraft]",
        "---",
        "",
        f"# {' + '.join(names)}",
        "",
        f"One {record.parent.get('architecture', 'classifier')} that answers {len(names)} task(s), made by "
        f"taskgraft with the method `{record.method}`.",
        "",
        "| task | classes | before | now | forgetting |",
        "|---|---|---|---|---|",
    ]
    for task in record.tasks:
        before = f"{task.parent.mean:.1%}" if task.parent else "–"
        now = f"{task.child.mean:.1%} ({task.child.n} images)" if task.child else "not measured"
        lost = f"{task.forgetting.mean:+.1%}" if task.forgetting else "–"
        head.append(f"| {_plain(task.name)} | {len(task.classes)} | {before} | {now} | {lost} |")
    head += [
        "",
        _how_to_load(record),
        "",
    ]
    head += [f"- {_plain(note)}" for note in record.notes]
    head += [
        "",
        "Made with:",
        "",
        "```",
        record.command,
        "```",
        "",
        "Settings: " + json.dumps(record.config),
        "",
    ]
    return "\n".join(head)


def _how_to_load(record: Record) -> str:
    if record.one_backbone:
        return "Its last layer joins all tasks; the rows of each are in `config.json` under `taskgraft.tasks`."
    return (
        "It is more than one linear layer on one backbone, so plain timm cannot rebuild it. `taskgraft.open_parent` "
        "can; `config.json` describes it under `taskgraft.heads` and `taskgraft.models.side_networks`."
    )


def _plain(text: str) -> str:
    """Text that cannot break a Markdown table or open an HTML element."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
