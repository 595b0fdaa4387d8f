"""A training session in a run folder: evaluation, metrics, checkpoints, the best step, resume."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
from taskgraft.training.compilation import choose_compilation
from taskgraft.types import Callbacks, Memory, TrainingData


class Evaluation(NamedTuple):
    """Validation accuracy of each task that has images, and agreement with the parent on each old task."""

    accuracy: dict[str, float]
    agreement: dict[str, float]


@dataclass(frozen=True)
class Fitted:
    """A finished training session."""

    state: TrainState  # after the last step, with the weights of the best one
    history: tuple[StepMetrics, ...]
    step: int  # the best one
    config: TrainingConfig  # with as many micro-batches as memory required
    sources: TrainingData

    @property
    def stopped_early(self) -> str:
        """Describe where and why training ended before its last step; "" where it did not."""
        if self.state.step >= self.config.steps or not self.config.patience:
            return ""
        return (
            f"stopped early at step {self.state.step} of {self.config.steps}: no evaluation since step {self.step} was "
            f"better (--patience {self.config.patience})"
        )


def resolve_config(
    out: Path,
    classifier: Classifier,
    sources: TrainingData,
    config: TrainingConfig,
    cache: Path | None,
    settings: Mapping[str, Any],
    command: str,
    callbacks: Callbacks,
) -> TrainingConfig:
    """Replace "auto" in precision and compile: measured on the first start, which creates the run; later it is read.

    Args:
        out: The run folder.
        classifier: The classifier to train.
        sources: Training images.
        config: Training settings.
        cache: Folder in which choices are stored for other runs.
        settings: What must be equal for a run to be the same.
        command: The command that was typed.
        callbacks: `info` is called where a run is resumed with other versions or hardware.
    """
    environment = {**versions(), **precision.describe_hardware(next(classifier.parameters()).device)}

    def resolve() -> dict[str, Any]:
        if (out / "run.json").exists():
            changed = run_folder.compare_environment(out, environment)
            if changed:
                callbacks.info(
                    f"the run was begun in another environment ({'; '.join(changed)}): the last bits of results may "
                    "differ"
                )
            return run_folder.read(out)["resolved"]["config"]
        chosen, reason = precision.choose_precision(classifier, sources, config, cache)
        chosen, compiled = choose_compilation(classifier, sources, chosen)
        resolved = {"config": asdict(chosen), "reason": reason, "compile_reason": compiled}
        run_folder.create(out, settings, resolved, command, environment)
        return asdict(chosen)

    return TrainingConfig(**distributed.broadcast(resolve))


class Trainer:
    """Trains a classifier in a run folder, from its newest intact checkpoint if it has one."""

    def __init__(
        self,
        out: Path,
        classifier: Classifier,
        method: Method,
        sources: TrainingData,
        config: TrainingConfig,
        evaluate: Callable[[Classifier], Evaluation],
        *,
        past: Memory,
        selection_tasks: Sequence[str],
        callbacks: Callbacks,
        until: int | None = None,
        evaluate_start: Callable[[Classifier], Evaluation] | None = None,
    ) -> None:
        """Prepare a session; nothing is computed or written.

        Args:
            out: The run folder, locked.
            classifier: The classifier to train; it is copied.
            method: How forgetting is prevented.
            sources: Training images.
            config: Training settings, without "auto".
            evaluate: Measures a classifier on the validation images.
            past: Memory that the parent's bundle stored for its next extension.
            selection_tasks: Tasks whose mean accuracy selects the best step; empty = the last step is the best.
            callbacks: Callbacks of the run.
            until: Stop after this step instead of the last one.
            evaluate_start: Replaces `evaluate` before the first step.
        """
        self.out, self.classifier, self.method, self.sources = out, classifier, method, sources
        self.config, self.until, self.callbacks = config, until, callbacks
        self.past, self.selection_tasks = past, selection_tasks
        self.evaluate, self.evaluate_start = evaluate, evaluate_start or evaluate
        self.lines: list[StepMetrics] = []
        self._best_file = out / "state" / checkpoints.BEST
        self._mark = (time.perf_counter(), 0)  # when the speed was last measured, and at which step
        self._rates = ""

    def fit(self) -> Fitted:
        """Train to the last step, and restore the weights of the best one.

        Raises:
            TrainingError: Loss or gradient is not finite, or memory ran out and micro-batches cannot help.
        """
        state = self._resume() or self._start()
        while True:
            self._mark = (time.perf_counter(), state.step)
            try:
                if not self._stops_early():
                    state = loop.fit(state, self.method, self.sources, self.config, self._on_step, self.until)
                break
            except RuntimeError as error:
                self._use_more_micro_batches(error)
            restored = self._resume()  # the step stopped half-way: BatchNorm's statistics may have moved already
            assert restored, "a run has a checkpoint from its start on"
            state = restored
        best = self._score()
        step = best[1] if best else state.step
        distributed.broadcast(lambda: None)  # the main process has written the last file by now
        if step != state.step:
            weights = {name: value.clone() for name, value in load_file(self._best_file).items()}
            state.classifier.load_state_dict(weights)
        else:
            loop.keep_average(state)
        fitted = Fitted(state, tuple(self.lines), step, self.config, self.sources)
        if self.until is None and fitted.stopped_early:
            self.callbacks.info(fitted.stopped_early)
        return fitted

    def _stops_early(self) -> bool:
        """Whether too many evaluations brought nothing better; a search's trial stops where the search says so."""
        best = self._score()
        if not self.config.patience or self.until is not None or best is None:
            return False
        since = sum(bool(line.accuracy or line.agreement) for line in self.lines if line.step > best[1])
        return since >= self.config.patience

    def _start(self) -> TrainState:
        """Build the state before the first step, equal in all processes; evaluate and save it."""
        state = loop.start(self.classifier, self.method, self.sources, self.past, self.config)
        distributed.broadcast(lambda: run_folder.truncate_metrics(self.out, -1))
        distributed.broadcast_tensors(state.tensors())
        line = StepMetrics(step=0, **self.evaluate_start(state.classifier)._asdict())
        self.lines = [line]
        if distributed.is_main_process():
            run_folder.append_metrics(self.out, line)
            checkpoints.save(self.out / "state", state)
        self.callbacks.on_metrics(line)
        return state

    def _resume(self) -> TrainState | None:
        """Restore the newest intact checkpoint and the metrics up to it; None where there is none."""
        checkpoint, damaged = distributed.broadcast(lambda: checkpoints.find_newest(self.out / "state"))
        for line in damaged:
            self.callbacks.info(line)
        if not checkpoint:
            if damaged:
                self.callbacks.info("no checkpoint is intact: starting from the beginning")
            return None
        distributed.broadcast(lambda: checkpoints.restore_best(checkpoint, self._best_file))
        blank = loop.prepare(self.classifier, self.method, self.sources, self.config)
        state = checkpoints.restore(checkpoint, blank)
        self.callbacks.info(f"resuming at step {state.step}")
        self.lines = distributed.broadcast(lambda: run_folder.truncate_metrics(self.out, state.step))
        return state

    def _on_step(self, state: TrainState, terms: dict[str, float]) -> bool:
        """Evaluate, log and save where a step is due for it; return whether to stop."""
        last = state.step in (self.config.steps, self.until)
        evaluated = state.step % self.config.eval_every == 0 or last
        if terms or evaluated:
            speed = self._measure_speed(state.step)
            evaluation = self.evaluate(state.kept) if evaluated else Evaluation({}, {})
            lr = lr_at(self.config, state.step - 1)
            line = StepMetrics(step=state.step, lr=lr, terms=terms, **evaluation._asdict())
            best = self._score()
            self.lines.append(line)
            if distributed.is_main_process():
                run_folder.append_metrics(self.out, line)
                if self._score() != best:
                    with atomic(self._best_file) as partial:
                        weights = pytree.state(state.kept)
                        save_file({name: value.contiguous() for name, value in weights.items()}, partial)
            self.callbacks.on_metrics(line)
            self._rates = _format_accuracies(line) or self._rates
            self.callbacks.info(_format_metrics(line, self.config.steps, speed))
            self.callbacks.status("  ".join(filter(None, (f"lr {lr:.2g}", f"{speed:.0f} images/s", self._rates))))
            self._mark = (time.perf_counter(), state.step)
        if distributed.is_main_process() and (state.step % self.config.save_every == 0 or last):
            checkpoints.save(self.out / "state", state, self._best_file)
        self.callbacks.progress("training", state.step, self.config.steps)
        return evaluated and self._stops_early()

    def _measure_speed(self, step: int) -> float:
        """Return the images trained on per second since the last logged step, without evaluations."""
        start, first = self._mark
        return (step - first) * self.config.batch_size / max(time.perf_counter() - start, 1e-9)

    def _score(self) -> tuple[float, int] | None:
        """Return the best mean accuracy so far and its step."""
        return metrics.score(self.lines, self.selection_tasks, with_agreement=True)

    def _use_more_micro_batches(self, error: RuntimeError) -> None:
        """Double the micro-batches after memory ran out, for the run folder too; any other error is raised again."""
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise error
        config, count = self.config, 2 * self.config.micro_batches
        if count > config.batch_size or distributed.world_size() > 1:  # one process of several cannot go back alone
            raise TrainingError(
                f"out of memory with a batch of {config.batch_size} in {config.micro_batches} micro-batch(es); use "
                f"--micro-batches {count} or a smaller --batch-size"
            ) from error
        torch.cuda.empty_cache()
        self.config = replace(config, micro_batches=count)
        resolved = run_folder.read(self.out)["resolved"]
        run_folder.update(self.out, resolved={**resolved, "config": asdict(self.config)})
        self.callbacks.info(f"out of memory: batches of {config.batch_size} now run in {count} micro-batches")


def _format_accuracies(line: StepMetrics) -> str:
    return " ".join(f"{task} {value:.1%}" for task, value in line.accuracy.items())


def _format_metrics(line: StepMetrics, steps: int, speed: float) -> str:
    """Format a step's metrics as one line, such as 'step 1/40  lr 0.001  150 images/s  loss 0.486  paint 81.2%'."""
    rates = f"lr {line.lr:.2g}  {speed:.0f} images/s"
    terms = " ".join(f"{'loss' if name == 'data' else name} {value:.3f}" for name, value in line.terms.items())
    agreement = " ".join(f"{task} agreement {value:.1%}" for task, value in line.agreement.items())
    return "  ".join(filter(None, (f"step {line.step}/{steps}", rates, terms, _format_accuracies(line), agreement)))
