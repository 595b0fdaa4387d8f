"""What a run comes to, in five lines for the terminal and the top of its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from taskgraft import metrics
from taskgraft.methods.presets import alternative
from taskgraft.report import commands
from taskgraft.report import formatting as fmt
from taskgraft.results.record import Interval, Record, TaskResult

Status = Literal["good", "mixed", "poor", "unknown"]

SMALL_LOSS = 0.02  # of accuracy, which most users accept
LARGE_LOSS = 0.10  # from which another method is called for
MAX_NAMED = 3  # tasks named in a line
PLAIN_PRICE = "1 to 2 points of a task lost where it was measured"  # docs/choosing.md, of the task that loses most


class Roles(NamedTuple):
    """What a page calls the models before and after a run."""

    before: str
    after: str


PARENT_AND_CHILD = Roles("parent", "child")
TEACHER_AND_STUDENT = Roles("teacher", "student")  # of a compression or a merge


class Summary(NamedTuple):
    """Five lines on a run or a comparison: `next_step` says what `command` is for; the status colors the page."""

    status: Status
    result: str
    judgement: str
    cost: str
    baseline: str
    next_step: str
    command: str

    def to_lines(self) -> list[str]:
        """Return the five lines for the terminal, without control characters."""
        lines = (self.result, self.judgement, self.cost, self.baseline, f"next, {self.next_step}: {self.command}")
        return ["".join(char if char.isprintable() else " " for char in line) for line in lines]


def old_tasks(record: Record) -> tuple[TaskResult, ...]:
    """Return the tasks that the parent had."""
    return tuple(task for task in record.tasks if not task.new)


def new_task(record: Record) -> TaskResult:
    """Return the task learned in this run; of a merge, where all tasks are old, the last one."""
    return record.tasks[-1]


def learned_name(record: Record) -> str:
    """Return what a run learned: the name of its new task, or those of all where models were merged."""
    new = new_task(record)
    return new.name if new.new else " and ".join(task.name for task in record.tasks)


def is_taught(record: Record) -> bool:
    """Return whether the parent already had all tasks, so that the run was a compression or a merge."""
    new = new_task(record)
    return not new.new or (new.parent is not None and not new.refreshes)


def roles(record: Record) -> Roles:
    """Return what a page calls the models before and after a run."""
    return TEACHER_AND_STUDENT if is_taught(record) else PARENT_AND_CHILD


def old_name(record: Record) -> str:
    """Return the name of the old task, or how many there are."""
    names = [task.name for task in old_tasks(record)]
    return names[0] if len(names) == 1 else f"{len(names)} old tasks"


def loss_of(task: TaskResult) -> float:
    """Return the accuracy that a task lost; 0 where that is unknown."""
    return task.forgetting.mean if task.forgetting else 0.0


def is_at_chance(task: TaskResult) -> bool:
    """Return whether a task's accuracy is indistinguishable from always predicting its most frequent class."""
    return task.child is not None and task.child.low <= _chance_of(task)


def _chance_of(task: TaskResult) -> float:
    return 1 / max(2, len(task.classes)) if task.chance is None else task.chance


def describe_balance(task: TaskResult) -> str:
    """Describe what accuracy hides of a task: balanced accuracy where classes are uneven, classes never predicted."""
    texts = []
    if task.balanced is not None:
        texts.append(f"balanced accuracy {fmt.percent(task.balanced)}")
    if task.never_predicted:
        more = f" and {len(task.never_predicted) - MAX_NAMED} more" if len(task.never_predicted) > MAX_NAMED else ""
        texts.append(f"never predicted: {', '.join(task.never_predicted[:MAX_NAMED])}{more}")
    return "; ".join(texts)


def describe_flops(record: Record) -> str:
    """Describe the cost of inference where it differs from the parent's by more than 10 %, else ""."""
    ratio = ratio_to_parent(record.flops) or 1.0
    return f"inference needs {ratio:.2g}x the FLOPs" if abs(ratio - 1) > 0.1 else ""


def ratio_to_parent(counts: Mapping[str, int]) -> float | None:
    """Return the child's count as a multiple of the parent's; None where that is 0 or unknown."""
    return counts["child"] / counts["parent"] if counts.get("parent") else None


def gap_to_separate(record: Record, single_task: float | None) -> float | None:
    """Return the mean accuracy of two separate models, the parent and a single-task one, minus the Score."""
    if record.score is None or single_task is None:
        return None
    separate = {task.name: task.parent.mean for task in old_tasks(record) if task.parent}
    return metrics.gap(record.score, {**separate, new_task(record).name: single_task})


def describe_gap(gap: float) -> str:
    """Describe what one model lacks of two."""
    if fmt.percent(gap) == "0.0":
        return "one model matches two separate models"
    return f"one model is {fmt.percent(abs(gap))} points {'below' if gap > 0 else 'above'} two separate models"


def summarize_run(record: Record) -> Summary:
    """Summarize a run: accuracies, what they mean, cost, comparison with separate models, what to do next."""
    status = _judge(record)
    return Summary(
        status,
        _describe_result(record),
        _describe_judgement(record),
        _describe_cost(record),
        _describe_baseline(record),
        *_propose_next(record, status),
    )


def _compared_tasks(record: Record) -> list[TaskResult]:
    """The tasks that the parent has too: the old ones, and in a compression the new one."""
    new = new_task(record)
    return [*old_tasks(record), *([new] if new.new and new.parent else [])]


def _judge(record: Record) -> Status:
    losses = [task.forgetting for task in _compared_tasks(record)]
    if is_at_chance(new_task(record)) or any(loss.mean > LARGE_LOSS for loss in losses if loss):
        return "poor"
    if None in losses:
        return "unknown"
    new = new_task(record)
    if new.refreshes and new.forgetting and new.forgetting.high >= 0:
        return "mixed"
    return "mixed" if any(loss.mean > SMALL_LOSS and loss.low > 0 for loss in losses if loss) else "good"


def _describe_result(record: Record) -> str:
    measured = sorted((task for task in old_tasks(record) if task.child), key=loss_of, reverse=True)
    unknown = [task for task in old_tasks(record) if not task.child]
    texts = []
    texts += [_describe_change(task) for task in measured[:MAX_NAMED]]
    if len(measured) > MAX_NAMED:
        texts.append(f"{fmt.pluralize(len(measured) - MAX_NAMED, 'other old task')} lost less")
    new = new_task(record)
    if new.new:
        text = _describe_change(new) if new.parent else f"{new.name} {_percent(new.child)}"
        balance = describe_balance(new)
        texts.append(f"{text} ({balance})" if balance else text)
    if unknown:
        texts.append(f"{_name_some(unknown)} not measured (no old validation images)")
    texts.append("no Score" if record.score is None else f"Score {fmt.percent(record.score)} at step {record.step}")
    return "; ".join(texts)


def _name_some(tasks: Sequence[TaskResult]) -> str:
    more = f" and {len(tasks) - MAX_NAMED} more" if len(tasks) > MAX_NAMED else ""
    return ", ".join(task.name for task in tasks[:MAX_NAMED]) + more


def _describe_change(task: TaskResult) -> str:
    change = fmt.change(task.forgetting).replace(" (", ", 95 % CI ")
    return f"{task.name} {_percent(task.parent)} → {_percent(task.child)} ({change}"


def _percent(accuracy: Interval | None) -> str:
    return fmt.percent(accuracy and accuracy.mean)


def _describe_judgement(record: Record) -> str:
    old, new = _compared_tasks(record), new_task(record)
    if is_at_chance(new):
        return f"{new.name} not learned: accuracy is indistinguishable from {_describe_chance(new)}"
    if not old:
        return f"learned: {new.name} {fmt.estimate(new.child)}"
    if new.refreshes:
        old = list(old_tasks(record))
    unknown = [task for task in old if task.forgetting is None]
    flag, before = "--old-val" if new.new else "--val", roles(record).before
    agreement = [_describe_agreement(unknown, flag, before)] if unknown else []
    measured = [_describe_loss([task for task in old if task.forgetting], before)] if len(unknown) < len(old) else []
    return "; ".join(measured + agreement + ([_describe_gain(new)] if new.refreshes else []))


def _describe_gain(new: TaskResult) -> str:
    """What a refresh changed on the new images."""
    loss = new.forgetting
    assert loss is not None
    if loss.high < 0:
        return f"the new images gained {fmt.percent(-loss.mean)} points"
    return "the new images lost accuracy" if loss.low > 0 else "no significant gain on the new images"


def _describe_loss(old: Sequence[TaskResult], before: str) -> str:
    significant = [task for task in old if task.forgetting and task.forgetting.low > 0]
    worst = max(significant or old, key=loss_of)
    loss = worst.forgetting
    assert loss is not None
    images = fmt.pluralize(loss.n, "image")
    if all(task.identical for task in old):
        return f"no forgetting: predictions on the old tasks are bit-identical to the {before}'s ({images})"
    if loss.low > 0:
        return f"significant forgetting: {worst.name} lost {fmt.percent(loss.mean)} points"
    if loss.high < 0:
        return f"no forgetting: {worst.name} gained {fmt.percent(-loss.mean)} points"
    return (
        f"no significant forgetting on {worst.name} (95 % CI rules out a loss of more than "
        f"{fmt.percent(loss.high)} points; {images})"
    )


def _describe_chance(task: TaskResult) -> str:
    """What a task that is not learned is no better than: the most frequent class, or any where all are as frequent."""
    chance = _chance_of(task)
    if not task.majority or chance <= 1 / max(2, len(task.classes)) + 0.005:
        return "chance"
    return f"always predicting {task.majority!r} ({fmt.percent(chance)} %)"


def _describe_agreement(tasks: Sequence[TaskResult], flag: str, before: str) -> str:
    text = f"forgetting of {_name_some(tasks)} unknown: measuring it needs old validation images ({flag} DIR)"
    if all(task.identical for task in tasks):
        return f"{text}; predictions on the new images are bit-identical to the {before}'s"
    agreements = [(task.agreement.mean, task.name) for task in tasks if task.agreement]
    if not agreements:
        return f"{text}; the new images say nothing about it"
    agreement, name = min(agreements)
    return f"{text}; agreement with the {before} on {name} is {fmt.percent(agreement)} %, which is only a proxy"


def _describe_cost(record: Record) -> str:
    added, parent = record.parameters["added"], record.parameters["parent"]
    text = f"cost: {fmt.duration(record.seconds['total'])}{_describe_stop(record)}"
    text += f", {fmt.pluralize(abs(added), 'parameter')}"
    if not parent:
        return text
    flops, change = describe_flops(record), "fewer" if added < 0 else "added"
    text += f" {change} ({fmt.fraction(abs(added), parent)} of the {roles(record).before}'s){flops and f'; {flops}'}"
    plain = f"one plain backbone instead, {PLAIN_PRICE}: taskgraft compress"
    return text if record.one_backbone else f"{text}; {plain}"


def _describe_stop(record: Record) -> str:
    """Where a run stopped early, with a leading space."""
    last, steps = record.history[-1].step if record.history else 0, record.config.get("steps", 0)
    stopped = record.config.get("patience") and last < steps
    return f" (stopped early at step {last:,} of {steps:,})" if stopped else ""


def _describe_baseline(record: Record) -> str:
    new = new_task(record)
    if record.baselines:
        name, values = max(record.baselines.items(), key=lambda item: sum(item[1].values()))
        return f"merging the weights alone, without images: {_join_values(values)} (the best: {name})"
    flips = {task.name: task.negative_flips.mean for task in record.tasks if task.negative_flips}
    if is_taught(record) and flips:
        return f"right in the teacher and wrong in the student: {_join_values(flips)} of the images"
    if not old_tasks(record):
        return "first task of this model, so there was nothing to forget"
    if new.separate is None:
        return "no single-task baseline was trained"
    text = (
        f"a single-task model reaches {fmt.percent(new.separate)} % on {new.name}, this model {_percent(new.child)} %"
    )
    gap = gap_to_separate(record, new.separate)
    return text if gap is None else f"{text}; {describe_gap(gap)}"


def _join_values(values: Mapping[str, float]) -> str:
    return ", ".join(f"{task} {fmt.percent(value)} %" for task, value in values.items())


def _propose_next(record: Record, status: Status) -> tuple[str, str]:
    if status == "unknown":
        return "measure the old tasks", commands.measure_old_tasks(record)
    if not old_tasks(record) and not is_taught(record):
        return "add another task", commands.extend_further(record)
    if status == "good":
        return "use the model", commands.use_model(record)
    if new_task(record).refreshes:
        loses = any(loss_of(task) > SMALL_LOSS for task in old_tasks(record))
        if loses:
            return "lose less, at a lower rate", commands.refresh_gently(record)
        return "teach it longer", commands.teach_longer(record)
    if is_taught(record):  # which `compare` does not repeat
        return "teach it longer", commands.teach_longer(record)
    if new_task(record).added_to:  # `compare` cannot add classes to an old task
        return "try another method", commands.try_method(record, alternative(record.method))
    loses = any(loss_of(task) > SMALL_LOSS for task in old_tasks(record))
    if loses and record.one_backbone and record.config.get("softmax", "per-task") == "per-task":
        return "keep one backbone and lose less", commands.extend_on_one_backbone(record)
    return "compare methods", commands.compare_methods(record)
