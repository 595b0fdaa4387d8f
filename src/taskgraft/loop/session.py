"""The loop inside a run folder: evaluation, metrics, checkpoints, the best step, resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file, save_file

from taskgraft import metrics, parallel, tree
from taskgraft.classifier import Classifier
from taskgraft.loop import folder, precision, state, steps
from taskgraft.loop.state import TrainState
from taskgraft.method import Method
from taskgraft.problem import Problem
from taskgraft.record import Line, atomic, versions
from taskgraft.settings import Run, rate_at
from taskgraft.types import Sources, Watch


class Measured(NamedTuple):
    """Validation accuracy of each task that has images, and agreement with the parent on each old one."""

    accuracy: dict[str, float]
    agreement: dict[str, float]


class Fitted(NamedTuple):
    """A finished run: its last state with the kept step's weights in place, and its lines."""

    state: TrainState
    history: tuple[Line, ...]
    step: int  # whose weights were kept
    run: Run  # with the pieces that memory allowed


def resolve(
    out: Path,
    classifier: Classifier,
    sources: Sources,
    run: Run,
    cache: Path | None,
    settings: Mapping[str, Any],
    command: str,
    watch: Watch,
) -> tuple[Run, str]:
    """What "auto" becomes and why: chosen on the first start, which opens the run, and kept for every resume.

    A resume with other versions, or on another processor, is warned of.
    """
    place = {**versions(), **precision.place(next(classifier.parameters()).device)}

    def chosen() -> tuple[dict[str, Any], str]:
        if (out / "run.json").exists():
            stored, moved = folder.resolved(out), folder.moved(out, place)
            if moved:
                watch.say(f"the run was begun elsewhere ({'; '.join(moved)}): equal bits are not promised")
            return stored["run"], stored["reason"]
        found, reason = precision.choose(classifier, sources, run, cache)
        folder.open_run(out, settings, {"run": asdict(found), "reason": reason}, command, place)
        return asdict(found), reason

    found, reason = parallel.told(chosen)
    return Run(**found), reason


def fit_in(
    out: Path,
    begin: Callable[[], TrainState],
    blank: Callable[[], TrainState],
    method: Method,
    sources: Sources,
    run: Run,
    measure: Callable[[Classifier], Measured],
    choosing: Sequence[str],
    watch: Watch,
    until: int | None = None,
    measure_begun: Callable[[Classifier], Measured] | None = None,
) -> Fitted:
    """Run to the last step or the step `until`, from the newest sound checkpoint in `out` if there is one.

    `begin` makes a started state, `blank` one to restore into. Of the evaluated steps the one with the best mean
    accuracy over the tasks `choosing` is kept; the last one where `choosing` is empty. `measure_begun` measures in the
    place of `measure` before the first step.
    """
    store, best_file = out / "state", out / "state" / state.BEST
    current, lines = _newest(out, blank, watch) or _first(out, begin(), measure_begun or measure, watch)

    def on_step(now: TrainState, terms: dict[str, float]) -> None:
        last = now.step in (run.steps, until)
        evaluated = now.step % run.eval_every == 0 or last
        if terms or evaluated:
            measured = measure(now.classifier) if evaluated else Measured({}, {})
            rate = rate_at(run, now.step - 1)
            line = Line(step=now.step, rate=rate, terms=terms, **measured._asdict())
            before = metrics.score(lines, choosing)
            lines.append(line)
            if parallel.chief():
                folder.append(out, line)
                if metrics.score(lines, choosing) != before:
                    _keep(best_file, now.classifier)
            watch.logged(line)
            watch.say(describe(line, run))
        if parallel.chief() and (now.step % run.save_every == 0 or last):
            state.save(store, now, best_file)
        watch.progress("training", now.step, run.steps)

    while True:
        try:
            current = steps.fit(current, method, sources, run, on_step, until)
            break
        except RuntimeError as error:
            run = _smaller(out, run, error, watch)
        # the step broke off somewhere in its middle: BatchNorm's statistics may have moved already
        found = _newest(out, blank, watch)
        assert found, "a run has a checkpoint from its start on"
        current, lines[:] = found
    best = metrics.score(lines, choosing) if choosing else None
    step = best[1] if best else current.step
    parallel.told(lambda: None)  # the chief has written the last file by now
    if step != current.step:
        current.classifier.load_state_dict({name: value.clone() for name, value in load_file(best_file).items()})
    return Fitted(current, tuple(lines), step, run)


def _first(
    out: Path, current: TrainState, measure: Callable[[Classifier], Measured], watch: Watch
) -> tuple[TrainState, list[Line]]:
    """A state before its first step, made the same in all processes, measured and saved."""
    parallel.told(lambda: folder.rewind(out, -1))
    parallel.same(state.tensors(current))
    line = Line(step=0, **measure(current.classifier)._asdict())
    if parallel.chief():
        folder.append(out, line)
        state.save(out / "state", current)
    watch.logged(line)
    return current, [line]


def _newest(out: Path, blank: Callable[[], TrainState], watch: Watch) -> tuple[TrainState, list[Line]] | None:
    """The newest sound checkpoint with the lines up to it; None where there is no checkpoint."""
    checkpoint, damaged = parallel.told(lambda: state.newest(out / "state"))
    for line in damaged:
        watch.say(line)
    if not checkpoint:
        if damaged:
            watch.say("no checkpoint is whole: the run begins again")
        return None
    parallel.told(lambda: state.put_back(checkpoint, out / "state" / state.BEST))
    current = state.restore(checkpoint, blank())
    watch.say(f"going on from step {current.step}")
    return current, parallel.told(lambda: folder.rewind(out, current.step))


def _smaller(out: Path, run: Run, error: RuntimeError, watch: Watch) -> Run:
    """The run in twice as many pieces after memory ran out, for the run folder too; any other error goes on its way."""
    if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
        raise error
    pieces = 2 * run.pieces
    if pieces > run.batch or parallel.size() > 1:  # one process of several cannot turn back alone
        raise Problem(
            f"memory is exhausted by a batch of {run.batch} in {run.pieces} piece(s); give --pieces {pieces} or a "
            "smaller --batch", code=4,
        ) from error  # fmt: skip
    torch.cuda.empty_cache()
    run = replace(run, pieces=pieces)
    folder.resolve_anew(out, {"run": asdict(run)})
    watch.say(f"memory ran out: batches of {run.batch} now go through in {pieces} pieces")
    return run


def _keep(file: Path, classifier: Classifier) -> None:
    with atomic(file) as aside:
        save_file({name: value.contiguous() for name, value in tree.state(classifier).items()}, aside)


def describe(line: Line, run: Run) -> str:
    """One plain line of progress."""
    terms = " ".join(f"{name} {value:.3f}" for name, value in line.terms.items())
    shares = " ".join(f"{task} {value:.1%}" for task, value in line.accuracy.items())
    agreed = " ".join(f"{task} agreement {value:.1%}" for task, value in line.agreement.items())
    return "  ".join(part for part in (f"step {line.step}/{run.steps}", terms, shares, agreed) if part)
