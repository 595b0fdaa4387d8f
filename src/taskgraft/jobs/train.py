"""A classifier of one task, trained on its own pictures: the parent of later extensions."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from taskgraft import methods, metrics, parallel, seeds
from taskgraft.bundle import Bundle, open_parent
from taskgraft.bundle.parents import create, pictures_line, sized, told_by
from taskgraft.classifier import Classifier, wrap
from taskgraft.data import preprocess
from taskgraft.data.sets import changes, write_lists
from taskgraft.data.sources import Inputs, gather
from taskgraft.inference import predict
from taskgraft.jobs import evidence, measuring
from taskgraft.jobs.extend import Extension, finished
from taskgraft.loop import folder, steps
from taskgraft.loop.session import Measured, fit_in, resolve
from taskgraft.method import Method
from taskgraft.problem import Problem
from taskgraft.record import Clock, Predictions, Record, fingerprint, versions
from taskgraft.report import commands
from taskgraft.settings import LEARN, Run, validate
from taskgraft.types import Memory, PathLike, Sources, Watch, as_path

RECORDERS = ("ewc", "mas", "si")


def train(
    data: PathLike,
    out: PathLike,
    *,
    task: str = "label",
    model: str | None = None,
    weights: PathLike | None = None,
    wanted: str | None = None,
    run: Run = LEARN,
    keep: str = "",
    cache: PathLike | None = None,
    resume: bool = False,
    command: str = "taskgraft.train",
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Extension:
    """Train a classifier of one task into the run folder and bundle `out`.

    `model` is a timm name (resnet18 where neither it nor `weights` is given), trained from random weights drawn from
    the seed; `weights` starts from the backbone of a parent that `open_parent` opens, and `model` then tells the
    architecture of a file that does not name its own. `keep` names methods (ewc, mas, si) whose memory the bundle
    carries for its first extension. Raises Problem for bad input before anything is written.
    """
    clock, run = Clock.start(), validate(run)
    data, out, cache = Path(data), Path(out), as_path(cache)
    folder.suited(out, [data])
    recorder = _recorder(keep)
    backbone = _backbone(weights, model, wanted, watch) if weights else None
    given = {"--model": model, "--weights": weights, "--input": wanted, "--keep": keep or None}
    flags = [("--task", task), *((flag, str(value)) for flag, value in given.items() if value is not None)]
    asked = commands.Call("train", (str(data), str(out)), (*flags, *commands.settings(asdict(run), LEARN))).text()
    model = model or "resnet18"
    start = backbone.preprocess if backbone else create(model, 2)[2]
    chosen = preprocess.parse(wanted, start) if wanted else start
    found = parallel.chief_first(
        lambda: gather(data, task, (), chosen, old=None, old_val=(), seed=run.seed, cache=cache, watch=watch)
    )
    settings: dict[str, Any] = {
        "task": task,
        "model": backbone.digest if backbone else model,
        "run": asdict(run),
        "preprocess": chosen.show(),
        "data": found.described["new"]["fingerprint"],
        **({"keep": keep} if keep else {}),
    }
    if parallel.told(lambda: folder.examine(out, settings, resume, lambda: changes(out, found.new))) == "done":
        return finished(out, found, watch)
    if not backbone:  # of which `open_parent` has told it
        watch.say(pictures_line(chosen, told_by(wanted, f"timm's default for {model}")))
    with folder.held(out):
        bundle = _begin(model, backbone, found, chosen, run)
        bundle.classifier.to(parallel.device())
        return _carry_out(
            bundle, found, run, recorder, settings, out, cache, (command, asked), watch, clock.lap("reading")
        )


def _backbone(weights: PathLike, model: str | None, wanted: str | None, watch: Watch) -> Bundle:
    """The model whose backbone is trained on; raises Problem where it is not of the architecture that was given."""
    opened = open_parent(weights, arch=model, wanted=wanted, unnamed=True)
    if model and model.partition(".")[0] != opened.arch.partition(".")[0]:
        raise Problem(f"--weights {weights} is a {opened.arch}, not a {model}; leave --model out")
    for line in opened.found:
        watch.say(f"weights: {line}")
    return opened


def _recorder(keep: str) -> Method:
    """The methods whose memory is kept for the first extension; raises Problem for those that keep nothing."""
    plan = methods.parse(keep) if keep else {}
    idle = [name for name in plan if name not in RECORDERS]
    if idle:
        raise Problem(f"--keep {keep!r}: {idle[0]} records nothing in training; of use are {', '.join(RECORDERS)}")
    return methods.build(plan)


def _begin(model: str, backbone: Bundle | None, found: Inputs, chosen: preprocess.Preprocess, run: Run) -> Bundle:
    task = found.new.tasks[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds.derive(run.seed, "weights"))
        if backbone:
            width = backbone.classifier.linears()[0].in_features
            head = torch.nn.Linear(width, len(task.classes))
            classifier = Classifier(backbone.classifier.backbone, [head], [task], run.softmax)
            return backbone._replace(classifier=classifier, preprocess=chosen, memory={}, cards={}, home=None)
        options = sized(model, chosen)
        net, name, _ = create(model, len(task.classes), **options)
    mark = fingerprint([model, str(run.seed)])
    return Bundle(wrap(net, name, [task], run.softmax), chosen, {}, model, mark, model, name, options=options)


def _carry_out(
    bundle: Bundle,
    found: Inputs,
    run: Run,
    recorder: Method,
    settings: dict[str, Any],
    out: Path,
    cache: Path | None,
    told: tuple[str, str],
    watch: Watch,
    clock: Clock,
) -> Extension:
    if found.new.train is None or found.new.val is None:
        raise Problem("both training and validation pictures are needed; add what is missing")
    command, asked = told
    sources = Sources(found.new.train, None, run.views, run.augment, run.seed)
    val, task = found.new.val, found.new.tasks[0].name
    run, reason = resolve(out, bundle.classifier, sources, run, cache, settings, command, watch)
    parallel.told(lambda: write_lists(out, found.new))

    def measure(classifier: Classifier) -> Measured:
        return Measured({task: metrics.accuracy(predict(classifier, val), task)}, {})

    empty: Memory = {}
    fitted = fit_in(
        out,
        lambda: steps.start(bundle.classifier, recorder, sources, empty, run),
        lambda: steps.prepare(bundle.classifier, recorder, sources, run),
        recorder, sources, run, measure, [task], watch,
    )  # fmt: skip
    run = fitted.run
    kept = recorder.finish(fitted.state.classifier, fitted.state.memory, sources)[1] if recorder.finish else {}
    sets: dict[str, Predictions] = {"new": predict(fitted.state.classifier, val)}
    sets |= measuring.tested(fitted.state.classifier, found)
    clock = clock.lap("training and validation")
    tasks = evidence.task_results(sets, task)
    size = sum(value.numel() for value in fitted.state.classifier.parameters())
    chosen = metrics.score(fitted.history, [task])
    record = Record(
        command=command,
        seed=run.seed,
        method="train",
        run=asdict(run),
        parent={"source": bundle.source, "digest": bundle.digest, "architecture": bundle.arch, "tasks": []},
        data=found.described,
        choices=evidence.choices(run, LEARN, {"precision": reason}),
        tasks=tasks,
        score=chosen[0] if chosen else None,
        step=fitted.step,
        history=fitted.history,
        parameters={"child": size, "parent": 0, "added": size},
        seconds=clock.seconds(),
        versions=versions(),
        notes=(*evidence.warnings_of(tasks, found.described), *evidence.surroundings(out)),
        asked=asked,
    )
    card = evidence.card(sets["new"], task, found.described["new"]["counts"], "validation images, when it was learnt")
    trained = bundle._replace(
        classifier=fitted.state.classifier, memory=kept, source=str(out), home=out, cards={task: card}
    )
    parallel.told(lambda: evidence.publish(out, trained, record, sets, found))
    return Extension(trained, record, sets, out)
