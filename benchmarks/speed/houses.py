"""The processes that rivals live in, and which of them cannot be had here."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.speed import peers
from benchmarks.speed.worker import House

# What PyTorch's tuning guide asks of the allocator, by glibc's own variables; taskgraft sets the same for itself.
KEPT = (
    ("MALLOC_MMAP_THRESHOLD_", str(2**31 - 1)),
    ("MALLOC_TRIM_THRESHOLD_", str(2**31 - 1)),
    ("MALLOC_TOP_PAD_", str(2**26)),
)
OWN = (House("taskgraft"), House("pytorch"), House("careful", env=KEPT))


def known(with_peers: bool, say: Callable[[str], None]) -> tuple[dict[str, House], dict[str, str], dict[str, str]]:
    """Houses by name; peers' versions; and for each house that is missing the reason."""
    houses = {house.name: house for house in OWN}
    if not with_peers:
        return houses, {}, dict.fromkeys(peers.PEERS, "left out by --no-peers")
    versions = peers.prepared(say)
    absent = {name: text for name, text in versions.items() if text.startswith("absent")}
    for name in peers.PEERS.keys() - absent.keys():
        houses[name] = House(name, peers.python())
    return houses, versions, absent
