"""A classifier of one task, trained on its own images: the parent of later extensions."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from taskgraft import distributed, metrics, seeding
from taskgraft.bundle import Bundle, open_parent
from taskgraft.bundle.architecture import create_network, image_size_args
from taskgraft.bundle.loaders import describe_origin, describe_preprocessing
from taskgraft.config import TRAIN_DEFAULTS, TrainingConfig, validate
from taskgraft.data import transforms
from taskgraft.data.dataset import describe_changes, write_split_lists
from taskgraft.data.task_images import TaskData, load_task_data
from taskgraft.errors import InputError
from taskgraft.methods import composition, notation
from taskgraft.methods.presets import RECORDERS
from taskgraft.methods.protocol import Method
from taskgraft.models.classifier import Classifier, wrap
from taskgraft.models.inference import predict
from taskgraft.pipeline import evidence, measuring
from taskgraft.pipeline.extend import Extension, finished
from taskgraft.report import commands
from taskgraft.results.files import fingerprint
from taskgraft.results.predictions import Predictions
from taskgraft.results.record import Clock, Record, versions
from taskgraft.training import loop, run_folder
from taskgraft.training.trainer import Measured, fit_in, resolve
from taskgraft.types import Callbacks, Memory, PathLike, TrainingData, as_path


def train(
    data: PathLike,
    out: PathLike,
    *,
    task: str = "label",
    model: str | None = None,
    weights: PathLike | None = None,
    preprocessing: str | None = None,
    config: TrainingConfig = TRAIN_DEFAULTS,
    keep: str = "",
    cache: PathLike | None = None,
    resume: bool = False,
    command: str = "taskgraft.train",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Train a classifier of one task into the run folder and bundle `out`.

    `model` is a timm name (resnet18 where neither it nor `weights` is given), trained from random weights drawn from
    the seed; `weights` starts from the backbone of a parent that `open_parent` opens, and `model` then tells the
    architecture of a file that does not name its own. `keep` names methods whose memory the bundle
    carries for its first extension. Raises TaskgraftError for bad input before anything is written.
    """
    clock, config = Clock.start(), validate(config)
    data, out, cache = Path(data), Path(out), as_path(cache)
    run_folder.suited(out, [data])
    recorder = _recorder(keep)
    backbone = _backbone(weights, model, preprocessing, callbacks) if weights else None
    given = {"--model": model, "--weights": weights, "--preprocessing": preprocessing, "--keep": keep or None}
    flags = [("--task", task), *((flag, str(value)) for flag, value in given.items() if value is not None)]
    asked = commands.Command(
        "train", (str(data), str(out)), (*flags, *commands.config_flags(asdict(config), TRAIN_DEFAULTS))
    ).to_text()
    model = model or "resnet18"
    start = backbone.preprocessing if backbone else create_network(model, 2)[2]
    chosen = transforms.parse_preprocessing(preprocessing, start) if preprocessing else start
    found = distributed.main_process_first(
        lambda: load_task_data(
            data, task, (), chosen, old=None, old_val=(), seed=config.seed, cache=cache, callbacks=callbacks
        )
    )
    settings: dict[str, Any] = {
        "task": task,
        "model": backbone.digest if backbone else model,
        "config": asdict(config),
        "preprocessing": chosen.to_text(),
        "data": found.described["new"]["fingerprint"],
        **({"keep": keep} if keep else {}),
    }
    if (
        distributed.broadcast(
            lambda: run_folder.examine(out, settings, resume, lambda: describe_changes(out, found.new))
        )
        == "done"
    ):
        return finished(out, found, callbacks)
    if not backbone:  # of which `open_parent` has told it
        callbacks.info(describe_preprocessing(chosen, describe_origin(preprocessing, f"timm's default for {model}")))
    with run_folder.held(out):
        bundle = _begin(model, backbone, found, chosen, config)
        bundle.classifier.to(distributed.device())
        return _carry_out(
            bundle, found, config, recorder, settings, out, cache, (command, asked), callbacks, clock.lap("reading")
        )


def _backbone(weights: PathLike, model: str | None, preprocessing: str | None, callbacks: Callbacks) -> Bundle:
    """The model whose backbone is trained on; raises TaskgraftError where it is not of the architecture that was given."""
    opened = open_parent(weights, arch=model, preprocessing=preprocessing, unnamed=True)
    if model and model.partition(".")[0] != opened.arch.partition(".")[0]:
        raise InputError(f"--weights {weights} is a {opened.arch}, not a {model}; leave --model out")
    for line in opened.notes:
        callbacks.info(f"weights: {line}")
    return opened


def _recorder(keep: str) -> Method:
    """The methods whose memory is kept for the first extension; raises TaskgraftError for those that keep nothing."""
    plan = notation.parse(keep) if keep else {}
    idle = [name for name, settings in plan.items() if not settings.traits.records]
    if idle:
        raise InputError(f"--keep {keep!r}: {idle[0]} records nothing in training; of use are {', '.join(RECORDERS)}")
    return composition.build(plan)


def _begin(
    model: str, backbone: Bundle | None, found: TaskData, chosen: transforms.Preprocessing, config: TrainingConfig
) -> Bundle:
    task = found.new.tasks[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeding.derive(config.seed, "weights"))
        if backbone:
            width = backbone.classifier.linears()[0].in_features
            head = torch.nn.Linear(width, len(task.classes))
            classifier = Classifier(backbone.classifier.backbone, [head], [task], config.softmax)
            return replace(backbone, classifier=classifier, preprocessing=chosen, memory={}, cards={}, folder=None)
        options = image_size_args(model, chosen)
        net, name, _ = create_network(model, len(task.classes), **options)
    mark = fingerprint([model, str(config.seed)])
    return Bundle(wrap(net, name, [task], config.softmax), chosen, {}, model, mark, model, name, model_args=options)


def _carry_out(
    bundle: Bundle,
    found: TaskData,
    config: TrainingConfig,
    recorder: Method,
    settings: dict[str, Any],
    out: Path,
    cache: Path | None,
    told: tuple[str, str],
    callbacks: Callbacks,
    clock: Clock,
) -> Extension:
    if found.new.train is None or found.new.val is None:
        raise InputError("both training and validation images are needed; add what is missing")
    command, asked = told
    sources = TrainingData(found.new.train, None, config.views, config.augment, config.seed)
    val, task = found.new.val, found.new.tasks[0].name
    config, reason = resolve(out, bundle.classifier, sources, config, cache, settings, command, callbacks)
    distributed.broadcast(lambda: write_split_lists(out, found.new))

    def measure(classifier: Classifier) -> Measured:
        return Measured({task: metrics.accuracy(predict(classifier, val), task)}, {})

    empty: Memory = {}
    fitted = fit_in(
        out,
        lambda: loop.start(bundle.classifier, recorder, sources, empty, config),
        lambda: loop.prepare(bundle.classifier, recorder, sources, config),
        recorder, sources, config, measure, [task], callbacks,
    )  # fmt: skip
    config = fitted.config
    kept = recorder.finish(fitted.state.classifier, fitted.state.memory, sources)[1] if recorder.finish else {}
    sets: dict[str, Predictions] = {"new": predict(fitted.state.classifier, val)}
    sets |= measuring.tested(fitted.state.classifier, found)
    clock = clock.lap("training and validation")
    tasks = evidence.task_results(sets, task)
    size = sum(value.numel() for value in fitted.state.classifier.parameters())
    chosen = metrics.score(fitted.history, [task])
    record = Record(
        command=command,
        seed=config.seed,
        method="train",
        config=asdict(config),
        parent={"source": bundle.source, "digest": bundle.digest, "architecture": bundle.arch, "tasks": []},
        data=found.described,
        settings=evidence.settings_with_reasons(config, TRAIN_DEFAULTS, {"precision": reason}),
        tasks=tasks,
        score=chosen[0] if chosen else None,
        step=fitted.step,
        history=fitted.history,
        parameters={"child": size, "parent": 0, "added": size},
        seconds=clock.seconds(),
        versions=versions(),
        notes=(*evidence.warnings_of(tasks, found.described), *evidence.surroundings(out)),
        reproduce_command=asked,
    )
    card = evidence.card(sets["new"], task, found.described["new"]["counts"], "validation images, when it was learnt")
    trained = replace(
        bundle,
        classifier=fitted.state.classifier, memory=kept, source=str(out), folder=out, cards={task: card}
    )
    distributed.broadcast(lambda: evidence.publish(out, trained, record, sets, found))
    return Extension(trained, record, sets, out)
