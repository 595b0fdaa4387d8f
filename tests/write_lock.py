"""Write requirements.lock: every pin of constraints.txt with the SHA-256 of its archive. Run by `make lock`.

pip reports which archive it would install for each pin on this Python and this platform, which the lock's first line
names; nothing is installed.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
OUT = ROOT / "requirements.lock"


def main() -> None:
    result = reported()
    OUT.write_text(written(result), encoding="utf-8")
    print(f"{OUT.name}: {len(result)} packages")


def reported() -> list[dict[str, Any]]:
    """What pip would install: for each package its metadata and its archive."""
    with tempfile.TemporaryDirectory() as place:
        report = Path(place) / "report.json"
        words = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
        words += ["--report", str(report), "-r", str(ROOT / "constraints.txt")]
        subprocess.run(words, check=True)
        return json.loads(report.read_text(encoding="utf-8"))["install"]


def written(result: list[dict[str, Any]]) -> str:
    """The lock as text: names, versions and digests, and no place that they come from."""
    made_on = f"{platform.system()} {platform.machine()}, Python {sys.version_info.major}.{sys.version_info.minor}"
    lines = [f"# Made by 'make lock' on {made_on}. Use: pip install --require-hashes --no-deps -r {OUT.name}"]
    for entry in sorted(result, key=lambda entry: entry["metadata"]["name"].lower()):
        mark = entry["download_info"]["archive_info"]["hashes"]["sha256"]
        lines += [f"{entry['metadata']['name']}=={entry['metadata']['version']} \\", f"    --hash=sha256:{mark}"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
