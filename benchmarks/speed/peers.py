"""The peers' own environment: it sees this project's torch and timm, and holds what only the peers need.

benchmarks/.peers/    git-ignored; made and mended by `prepared`, removed with `rm -r`
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".peers"
# Exact versions and no dependencies: torch must stay this project's, and a peer's pins must not move anything.
PEERS = {
    "avalanche": (
        "avalanche-lib==0.6.0", "dill==0.4.1", "gdown==6.5.1", "beautifulsoup4==4.15.0", "soupsieve==4.1.2",
        "GPUtil==1.4.0", "pytorchcv==0.0.74", "qpsolvers==4.13.0", "wandb==0.31.0", "xxhash==4.1.0",
    ),
    "backpack": ("backpack-for-pytorch==1.7.1", "einops==0.8.2", "unfoldNd==0.2.3"),
    "nngeometry": ("nngeometry==0.4",),
    "curvlinops": (
        "curvlinops-for-pytorch==3.0.1", "backpack-for-pytorch==1.7.1", "einops==0.8.2", "unfoldNd==0.2.3",
        "einconv==0.1.0", "linear_operator==0.6.1", "jaxtyping==0.3.11", "wadler_lindig==0.1.8", "opt_einsum==3.4.0",
    ),
}  # fmt: skip


def python() -> str:
    """The interpreter that sees both this project and the peers."""
    return str(FOLDER / "bin" / "python")


def prepared(say: Callable[[str], None]) -> dict[str, str]:
    """Make the environment where it is missing; peer -> its version, or "absent: reason" where it cannot be had."""
    marker = FOLDER / "installed.json"
    preprocessing = {name: list(parts) for name, parts in PEERS.items()}
    stored = json.loads(marker.read_text()) if marker.exists() else {}
    if stored.get("wanted") != preprocessing or stored.get("python") != sys.version:
        say(f"installing the peers below {FOLDER}")
        venv.create(FOLDER, with_pip=False, clear=True)
        _show_project()
        reasons = {name: _install(parts) for name, parts in PEERS.items()}
        stored = {"wanted": preprocessing, "python": sys.version, "reasons": reasons}
        marker.write_text(json.dumps(stored, indent=1))
    return {name: _version(name, stored["reasons"][name]) for name in PEERS}


def _show_project() -> None:
    """Let the new environment import this one's packages, behind its own."""
    inner = FOLDER / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    outer = sysconfig.get_paths()["purelib"]
    (inner / "project.pth").write_text(f"import site; site.addsitedir({outer!r})\n")


def _install(parts: tuple[str, ...]) -> str:
    command = [sys.executable, "-m", "pip", "--python", python(), "install", "--quiet", "--no-deps", *parts]
    done = subprocess.run(
        [*command, "--disable-pip-version-check"], capture_output=True, text=True, timeout=600, check=False
    )
    return "" if done.returncode == 0 else done.stderr.strip().split("\n")[-1][:160]


def _version(name: str, reason: str) -> str:
    """What importing it says; a peer that is installed may still not run beside today's torch."""
    if reason:
        return f"absent: {reason}"
    told = f"import {name}; from importlib.metadata import version; print(version({PEERS[name][0].split('=')[0]!r}))"
    done = subprocess.run([python(), "-W", "ignore", "-c", told], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"absent: {done.stderr.strip().split(chr(10))[-1][:160]}"
    return done.stdout.strip().split("\n")[-1]
