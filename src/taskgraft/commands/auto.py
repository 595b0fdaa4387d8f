"""`extend --method auto`: a search over methods and learning rates whose selected model becomes an ordinary child."""

from __future__ import annotations

from pathlib import Path

from taskgraft.commands.tune import tune
from taskgraft.errors import InputError
from taskgraft.methods import notation
from taskgraft.methods.presets import AUTO_LRS, AUTO_PORTFOLIO
from taskgraft.pipeline.request import Request
from taskgraft.pipeline.run import Extension, load
from taskgraft.training import run_folder
from taskgraft.tuning import outcome, space
from taskgraft.tuning.search_config import SearchConfig, WorkerConfig
from taskgraft.types import Callbacks


def auto(
    request: Request,
    out: Path,
    *,
    budget: str = "",
    max_forgetting: str = "",
    worker_config: WorkerConfig = WorkerConfig(),  # noqa: B008 - immutable
    cache: Path | None = None,
    command: str = "taskgraft.extend(…)",
    callbacks: Callbacks = Callbacks(),  # noqa: B008 - immutable
) -> Extension:
    """Search methods and learning rates in OUT/search, and write the selected child to OUT.

    Args:
        request: The extension; its method is ignored.
        out: Run folder of the child.
        budget: Time limit such as 30m; empty = none.
        max_forgetting: Select the best new accuracy with at most this forgetting, such as 1%; empty = the best Score.
        worker_config: Where and by how many workers trials are trained.
        cache: Cache of decoded pixels; None = in memory only.
        command: The command or function that was called, for the report.
        callbacks: Progress callbacks.

    Raises:
        InputError: no trial forgets as little as `max_forgetting`.
        TaskgraftError: as `extend` and `tune` raise it.
    """
    folder = out / "search"
    if (out / "run.json").exists() and folder.exists():
        return load(out)
    run_folder.inspect(out, {}, resume=False)
    portfolio = [notation.show(notation.parse(method)) for method in AUTO_PORTFOLIO]
    limit = max_forgetting or SearchConfig.max_forgetting
    result = tune(
        request,
        space.build_portfolio(portfolio, AUTO_LRS, request.config),
        folder,
        search_config=SearchConfig(sampler="grid", prune="yes", budget=budget, max_forgetting=limit),
        worker_config=worker_config,
        cache=cache,
        command=command,
        callbacks=callbacks,
    )
    goal = "new" if max_forgetting else "score"
    selected = next(model for model in result.choices if model.goal == goal)
    if selected.candidate is None:
        least = min(result.before - candidate.old.mean for candidate in result.frontier)
        raise InputError(
            f"no trial forgets at most {limit}; the least forgetting is {least:.1%}: see {folder}/report.html, "
            "or raise --max-forgetting"
        )
    with run_folder.lock(out):
        files = [file for file in Path(selected.folder).iterdir() if not file.name.startswith(".")]
        for file in sorted(files, key=lambda file: file.name == "run.json"):  # last: it marks the run as complete
            outcome.copy_atomically(file, out / file.name)
    return load(out)
