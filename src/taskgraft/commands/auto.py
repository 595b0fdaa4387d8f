"""`extend --method auto`: a search over methods and rates, and its choice as an ordinary child."""

from __future__ import annotations

from pathlib import Path

from taskgraft.commands.tune import tune
from taskgraft.errors import InputError
from taskgraft.methods import notation
from taskgraft.methods.presets import AUTO_LRS, AUTO_PORTFOLIO
from taskgraft.pipeline.extend import Extension, load
from taskgraft.pipeline.request import Request
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
    """Search methods and rates in OUT/search and leave the chosen child in OUT.

    Chosen is the best Score, or the best new task with at most `max_forgetting` forgotten. Raises TaskgraftError where no
    trial fulfils that.
    """
    place = out / "search"
    if (out / "run.json").exists() and place.exists():
        return load(out)
    run_folder.examine(out, {}, resume=False)
    search_config = SearchConfig(
        sampler="grid", prune="yes", budget=budget, max_forgetting=max_forgetting or SearchConfig.max_forgetting
    )
    searched = space.portfolio(
        [notation.show(notation.parse(name)) for name in AUTO_PORTFOLIO], AUTO_LRS, request.config
    )
    found = tune(
        request,
        searched,
        place,
        search_config=search_config,
        worker_config=worker_config,
        cache=cache,
        command=command,
        callbacks=callbacks,
    )
    chosen = found.choices[1 if max_forgetting else 0]
    if chosen.candidate is None:
        least = min(found.before - one.old.mean for one in found.frontier)
        raise InputError(
            f"no trial forgets at most {search_config.max_forgetting}; the least is {least:.1%}: see {place}/report.html, "
            "or raise --max-forgetting"
        )
    with run_folder.held(out):
        # run.json last: with it the run counts as whole
        for item in sorted(Path(chosen.folder).iterdir(), key=lambda item: item.name == "run.json"):
            if not item.name.startswith("."):
                outcome.copied(item, out / item.name)
    return load(out)
