"""The loop inside a run folder: evaluation, metrics, checkpoints, the best step, resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from taskgraft import distributed, metrics, pytree
from taskgraft.config import TrainingConfig, lr_at
from taskgraft.errors import TrainingError
from taskgraft.methods.protocol import Method
from taskgraft.models.classifier import Classifier
from taskgraft.results.files import atomic
from taskgraft.results.record import StepMetrics, versions
from taskgraft.training import checkpoints, loop, precision, run_folder
from taskgraft.training.checkpoints import TrainState
from taskgraft.types import Callbacks, TrainingData


class Measured(NamedTuple):
    """Validation accuracy of each task that has images, and agreement with the parent on each old one."""

    accuracy: dict[str, float]
    agreement: dict[str, float]


class Fitted(NamedTuple):
    """A finished run: its last state with the kept step's weights in place, and its lines."""

    state: TrainState
    history: tuple[StepMetrics, ...]
    step: int  # whose weights were kept
    config: TrainingConfig  # with the pieces that memory allowed


def resolve(
    out: Path,
    classifier: Classifier,
    sources: TrainingData,
    config: TrainingConfig,
    cache: Path | None,
    settings: Mapping[str, Any],
    command: str,
    callbacks: Callbacks,
) -> tuple[TrainingConfig, str]:
    """What "auto" becomes and why: chosen on the first start, which opens the run, and kept for every resume.

    A resume with other versions, or on another processor, is warned of.
    """
    place = {**versions(), **precision.place(next(classifier.parameters()).device)}

    def chosen() -> tuple[dict[str, Any], str]:
        if (out / "run.json").exists():
            stored, moved = run_folder.resolved(out), run_folder.moved(out, place)
            if moved:
                callbacks.info(f"the run was begun elsewhere ({'; '.join(moved)}): equal bits are not promised")
            return stored["config"], stored["reason"]
        found, reason = precision.choose(classifier, sources, config, cache)
        run_folder.open_run(out, settings, {"config": asdict(found), "reason": reason}, command, place)
        return asdict(found), reason

    found, reason = distributed.broadcast(chosen)
    return TrainingConfig(**found), reason


def fit_in(
    out: Path,
    begin: Callable[[], TrainState],
    blank: Callable[[], TrainState],
    method: Method,
    sources: TrainingData,
    config: TrainingConfig,
    measure: Callable[[Classifier], Measured],
    choosing: Sequence[str],
    callbacks: Callbacks,
    until: int | None = None,
    measure_begun: Callable[[Classifier], Measured] | None = None,
) -> Fitted:
    """Run to the last step or the step `until`, from the newest sound checkpoint in `out` if there is one.

    `begin` makes a started state, `blank` one to restore into. Of the evaluated steps the one with the best mean
    accuracy over the tasks `choosing` is kept; the last one where `choosing` is empty. `measure_begun` measures in the
    place of `measure` before the first step.
    """
    store, best_file = out / "state", out / "state" / checkpoints.BEST
    current, lines = _newest(out, blank, callbacks) or _first(out, begin(), measure_begun or measure, callbacks)

    def on_step(now: TrainState, terms: dict[str, float]) -> None:
        last = now.step in (config.steps, until)
        evaluated = now.step % config.eval_every == 0 or last
        if terms or evaluated:
            measured = measure(now.classifier) if evaluated else Measured({}, {})
            lr = lr_at(config, now.step - 1)
            line = StepMetrics(step=now.step, lr=lr, terms=terms, **measured._asdict())
            before = metrics.score(lines, choosing)
            lines.append(line)
            if distributed.is_main_process():
                run_folder.append(out, line)
                if metrics.score(lines, choosing) != before:
                    _keep(best_file, now.classifier)
            callbacks.on_metrics(line)
            callbacks.info(describe(line, config))
        if distributed.is_main_process() and (now.step % config.save_every == 0 or last):
            checkpoints.save(store, now, best_file)
        callbacks.progress("training", now.step, config.steps)

    while True:
        try:
            current = loop.fit(current, method, sources, config, on_step, until)
            break
        except RuntimeError as error:
            config = _smaller(out, config, error, callbacks)
        # the step broke off somewhere in its middle: BatchNorm's statistics may have moved already
        found = _newest(out, blank, callbacks)
        assert found, "a run has a checkpoint from its start on"
        current, lines[:] = found
    best = metrics.score(lines, choosing) if choosing else None
    step = best[1] if best else current.step
    distributed.broadcast(lambda: None)  # the chief has written the last file by now
    if step != current.step:
        current.classifier.load_state_dict({name: value.clone() for name, value in load_file(best_file).items()})
    return Fitted(current, tuple(lines), step, config)


def _first(
    out: Path, current: TrainState, measure: Callable[[Classifier], Measured], callbacks: Callbacks
) -> tuple[TrainState, list[StepMetrics]]:
    """A state before its first step, made the same in all processes, measured and saved."""
    distributed.broadcast(lambda: run_folder.rewind(out, -1))
    distributed.broadcast_tensors(checkpoints.tensors(current))
    line = StepMetrics(step=0, **measure(current.classifier)._asdict())
    if distributed.is_main_process():
        run_folder.append(out, line)
        checkpoints.save(out / "state", current)
    callbacks.on_metrics(line)
    return current, [line]


def _newest(
    out: Path, blank: Callable[[], TrainState], callbacks: Callbacks
) -> tuple[TrainState, list[StepMetrics]] | None:
    """The newest sound checkpoint with the lines up to it; None where there is no checkpoint."""
    checkpoint, damaged = distributed.broadcast(lambda: checkpoints.newest(out / "state"))
    for line in damaged:
        callbacks.info(line)
    if not checkpoint:
        if damaged:
            callbacks.info("no checkpoint is whole: the run begins again")
        return None
    distributed.broadcast(lambda: checkpoints.put_back(checkpoint, out / "state" / checkpoints.BEST))
    current = checkpoints.restore(checkpoint, blank())
    callbacks.info(f"going on from step {current.step}")
    return current, distributed.broadcast(lambda: run_folder.rewind(out, current.step))


def _smaller(out: Path, config: TrainingConfig, error: RuntimeError, callbacks: Callbacks) -> TrainingConfig:
    """The run in twice as many pieces after memory ran out, for the run folder too; any other error goes on its way."""
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        raise error
    micro_batches = 2 * config.micro_batches
    if (
        micro_batches > config.batch_size or distributed.world_size() > 1
    ):  # one process of several cannot turn back alone
        raise TrainingError(
            f"memory is exhausted by a batch of {config.batch_size} in {config.micro_batches} piece(s); give --micro-batches {micro_batches} or a "
            "smaller --batch-size"
        ) from error  # fmt: skip
    torch.cuda.empty_cache()
    config = replace(config, micro_batches=micro_batches)
    run_folder.resolve_anew(out, {"config": asdict(config)})
    callbacks.info(f"memory ran out: batches of {config.batch_size} now go through in {micro_batches} pieces")
    return config


def _keep(file: Path, classifier: Classifier) -> None:
    with atomic(file) as aside:
        save_file({name: value.contiguous() for name, value in pytree.state(classifier).items()}, aside)


def describe(line: StepMetrics, config: TrainingConfig) -> str:
    """One plain line of progress."""
    terms = " ".join(f"{name} {value:.3f}" for name, value in line.terms.items())
    shares = " ".join(f"{task} {value:.1%}" for task, value in line.accuracy.items())
    agreed = " ".join(f"{task} agreement {value:.1%}" for task, value in line.agreement.items())
    return "  ".join(part for part in (f"step {line.step}/{config.steps}", terms, shares, agreed) if part)
