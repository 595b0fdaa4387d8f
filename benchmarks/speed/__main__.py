"""Run the parts, keep their figures as JSON, write them into benchmarks/README.md.

python -m benchmarks.speed                       everything, in at most the minutes it prints (an idle machine)
python -m benchmarks.speed --only steps fisher   some parts; the others keep their earlier figures
python -m benchmarks.speed --quick               toy sizes: whether it runs, not how fast
python -m benchmarks.speed --render              the README and the plots again, from the JSON
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.speed import answering, fisher, growth, houses, machine, memory, searching, start, steps, whole
from benchmarks.speed.turns import Plan
from benchmarks.speed.worker import House, Refused, ask
from benchmarks.speed.worker import start as open_house
from benchmarks.speed.worker import stop as close_house

HOME = Path(__file__).parents[1]
PARTS = ("steps", "fisher", "start", "answering", "memory", "growth", "sharing", "whole")
# Minutes on two cores: the rounds of each case are bounded by seconds, the rest is preparation and first calls.
MINUTES = {"steps": 10.0, "fisher": 8.0, "start": 3.0, "answering": 2.0, "memory": 1.5, "growth": 1.5, "sharing": 1.5,
           "whole": 6.0}  # fmt: skip
LARGE = 25.0  # more minutes for the start of 50,000 images
PICTURES, MANY, TOY = 3_000, 50_000, 40


class Setting(NamedTuple):
    """What all parts are given."""

    houses: dict[str, House]
    absent: dict[str, str]
    plan: Plan
    peaks: dict[str, Any]
    pictures: int
    say: Callable[[str], None]


def measured(name: str, its: Setting) -> list[dict[str, Any]]:
    """The tables of one part."""
    if name == "steps":
        return steps.part(its.houses, its.plan, its.peaks, its.absent, its.say)
    if name == "fisher":
        return fisher.part(its.houses, its.plan, its.peaks, its.absent, its.say)
    if name == "start":
        return start.part(its.houses, its.plan, its.pictures, its.absent, its.say)
    if name == "answering":
        return answering.part(its.houses, its.plan, its.absent, its.say)
    if name == "memory":
        return memory.part(its.houses, its.plan, its.say)
    if name == "growth":
        return growth.part(its.houses, its.plan, its.say)
    if name == "whole":
        return whole.part(its.houses, its.plan, its.say)
    return searching.part(its.houses, its.plan, its.say)


def run(given: argparse.Namespace, say: Callable[[str], None]) -> list[str]:
    """Measure the chosen parts; each is written once it is done. Gives the parts that failed."""
    found, versions, absent = houses.known(not given.no_peers, say)
    for peer, reason in absent.items():
        say(f"{peer}: {reason}")
    plan = Plan(0.0, 0.0 if given.quick else 1.0, given.quick)
    worker = open_house(found["pytorch"], here=given.quick)
    peaks = ask(worker, do="once", function="machine:peaks", case={"quick": given.quick})["value"]
    close_house(worker)
    pictures = MANY if given.large else TOY if given.quick else PICTURES
    its = Setting(found, absent, plan, peaks, pictures, say)
    failed = []
    for name in given.only:
        say(f"== {name}")
        described, begin = machine.describe(), time.monotonic()
        try:
            cases = measured(name, its)
        except (Refused, RuntimeError, OSError) as reason:
            failed.append(name)
            say(f"{name} failed: {reason}")
            continue
        report = {
            "part": name,
            "command": "python -m benchmarks.speed " + shlex.join(sys.argv[1:]),
            "day": time.strftime("%Y-%m-%d"),
            "quick": given.quick,
            "machine": {**described, **peaks},
            "versions": machine.versions(),
            "peers": versions,
            "cases": cases,
            "seconds": round(time.monotonic() - begin, 1),
        }
        file = given.out / f"{name}{'-large' if name == 'start' and given.large else ''}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_name(f".{os.getpid()}.json")
        aside.write_text(json.dumps(report, indent=1) + "\n")
        aside.replace(file)
        say(f"{name}: {report['seconds']:.0f} s, {file}")
    return failed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--quick", action="store_true", help="toy sizes; the README is left alone")
    parser.add_argument("--large", action="store_true", help=f"the start of {MANY:,} images instead of {PICTURES:,}")
    parser.add_argument("--no-peers", action="store_true", help="install nothing; only loops that need no library")
    parser.add_argument("--render", action="store_true", help="measure nothing; write README and plots from the JSON")
    parser.add_argument("--out", type=Path, default=None, help="folder for the JSON [default: benchmarks/results]")
    given = parser.parse_args()
    own = HOME / ("results" if not given.quick else ".work/quick")
    given.out = given.out or own
    return given


def main() -> int:
    """Measure, write, render; 1 where a part failed."""
    given, failed = arguments(), []
    if not given.render:
        minutes = sum(MINUTES[name] for name in given.only) + LARGE * (given.large and "start" in given.only)
        load = os.getloadavg()[0]
        print(
            "toy sizes: seconds a part" if given.quick else f"about {minutes:.0f} minutes on two idle cores", flush=True
        )
        if load > 0.5 and not given.quick:
            print(f"the machine is not idle (load {load:.1f}): figures will be too low and spread", flush=True)
        failed = run(given, lambda line: print(line, flush=True))
    if given.render or (given.out == HOME / "results"):
        from benchmarks.speed import page

        print(page.written(given.out, HOME / "README.md"), flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
