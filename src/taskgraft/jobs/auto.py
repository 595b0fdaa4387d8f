"""`extend --method auto`: a search over methods and rates, and its choice as an ordinary child."""

from __future__ import annotations

from pathlib import Path

from taskgraft import methods
from taskgraft.jobs import outcome
from taskgraft.jobs.extend import Extension, load
from taskgraft.jobs.request import Request
from taskgraft.jobs.tune import tune
from taskgraft.loop import folder
from taskgraft.problem import Problem
from taskgraft.search import space
from taskgraft.search.wish import Crew, Wish
from taskgraft.types import Watch

# Each way of keeping the old task that needs no old image.
PORTFOLIO = (
    "branch",
    "ladder",
    "taps",
    "distill(strength=4) + wise",
    "taps(backbone=trained) + distill(strength=4) + wise",
    "distill + ewc",
)
RATES = (3e-4, 1e-3, 3e-3)


def auto(
    request: Request,
    out: Path,
    *,
    budget: str = "",
    max_forgetting: str = "",
    crew: Crew = Crew(),  # noqa: B008 - immutable
    cache: Path | None = None,
    command: str = "taskgraft.extend(…)",
    watch: Watch = Watch(),  # noqa: B008 - immutable
) -> Extension:
    """Search methods and rates in OUT/search and leave the chosen child in OUT.

    Chosen is the best Score, or the best new task with at most `max_forgetting` forgotten. Raises Problem where no
    trial fulfils that.
    """
    place = out / "search"
    if (out / "run.json").exists() and place.exists():
        return load(out)
    folder.examine(out, {}, resume=False)
    wish = Wish(sampler="grid", prune="yes", budget=budget, max_forgetting=max_forgetting or Wish.max_forgetting)
    searched = space.portfolio([methods.show(methods.parse(name)) for name in PORTFOLIO], RATES, request.run)
    found = tune(request, searched, place, wish=wish, crew=crew, cache=cache, command=command, watch=watch)
    chosen = found.choices[1 if max_forgetting else 0]
    if chosen.candidate is None:
        least = min(found.before - one.old.mean for one in found.frontier)
        raise Problem(
            f"no trial forgets at most {wish.max_forgetting}; the least is {least:.1%}: see {place}/report.html, "
            "or raise --max-forgetting"
        )
    with folder.held(out):
        # run.json last: with it the run counts as whole
        for item in sorted(Path(chosen.folder).iterdir(), key=lambda item: item.name == "run.json"):
            if not item.name.startswith("."):
                outcome.copied(item, out / item.name)
    return load(out)
