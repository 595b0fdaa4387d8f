"""Fuzz the package by coverage: `make fuzz ARGS='--minutes 10 notations framing'`.

Each part runs in a process of its own under Atheris (libFuzzer), from the seeds and from what an earlier run found
(build/fuzz/NAME). An input that crashes is left beside it, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

HOME = Path(__file__).parents[2] / "build" / "fuzz"
SECONDS = 20  # that one input may take
LIBRARIES = {"images": ["PIL"], "archives": ["tarfile"]}  # whole packages: of torch it would take minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="parts [default: all]")
    parser.add_argument("--minutes", type=float, default=2.0, help="for each part")
    if sys.argv[1:2] == ["--inside"]:
        inside(sys.argv[2], sys.argv[3:])
        return
    expected = parser.parse_args()
    from fuzz.targets import TARGETS

    total, failed = 0, []
    for name in expected.names or TARGETS:
        count, code = fuzzed(name, expected.minutes)
        total += count
        failed += [name] if code else []
        print(
            f"{name:12} {count:>12,} executions  {'CRASH: see ' + str(HOME / name) if code else 'no crash'}", flush=True
        )
    print(f"{'all':12} {total:>12,} executions")
    sys.exit(bool(failed))


def fuzzed(name: str, minutes: float) -> tuple[int, int]:
    """How often a part was run in so many minutes, and the exit code."""
    corpus = HOME / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, "-m", "fuzz.run", "--inside", name, str(corpus), f"-max_total_time={round(60 * minutes)}"]
    words += [f"-artifact_prefix={HOME / name}/", f"-timeout={SECONDS}", "-rss_limit_mb=3000", "-print_final_stats=1"]
    done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False)
    (HOME / name / "log.txt").write_text(done.stderr + done.stdout, encoding="utf-8")
    counted = re.search(r"stat::number_of_executed_units:\s+(\d+)", done.stderr) or re.search(
        r"Done (\d+)", done.stderr
    )
    return int(counted[1]) if counted else 0, done.returncode


def inside(name: str, flags: list[str]) -> None:
    """Fuzz one part in this process; it ends with it."""
    import atheris

    with atheris.instrument_imports(  # pyright: ignore[reportAttributeAccessIssue] - not there on every system
        include=["taskgraft", *LIBRARIES.get(name, [])]
    ):
        from fuzz.targets import TARGETS
    warnings.simplefilter("ignore")
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as place:
        target = TARGETS[name](Path(place))
        corpus, words = Path(flags[0]), Path(place) / "words"
        for number, seed in enumerate(target.seeds):
            (corpus / f"seed-{number}").write_bytes(seed)
        entries = (f'"{"".join(f"{chr(92)}x{byte:02x}" for byte in word)}"\n' for word in target.words)
        words.write_text("".join(entries), encoding="ascii")
        limits = [f"-max_len={target.longest}", f"-dict={words}"]
        atheris.Setup([sys.argv[0], *flags, *limits], target.one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
