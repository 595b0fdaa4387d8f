"""What /metrics tells Prometheus. Every server has a registry of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Gauges(NamedTuple):
    """The instruments of one server."""

    registry: CollectorRegistry
    requests: Counter
    seconds: Histogram
    batches: Histogram
    rejected: Counter


def gauges(waiting: Callable[[], int], replaced: Callable[[], int], ready: Callable[[], bool]) -> Gauges:
    """New instruments; `waiting`, `replaced` and `ready` are asked whenever somebody looks."""
    registry = CollectorRegistry()
    for name, meaning, ask in (
        ("taskgraft_waiting_images", "Images let in and not answered yet", waiting),
        ("taskgraft_replaced_workers", "Decoding workers that hung or died and were replaced", replaced),
        ("taskgraft_ready", "1 while requests are taken", ready),
    ):
        Gauge(name, meaning, registry=registry).set_function(ask)
    return Gauges(
        registry,
        Counter("taskgraft_requests", "Requests answered", ("route", "status"), registry=registry),
        Histogram("taskgraft_request_seconds", "Time to answer", ("route",), buckets=SECONDS, registry=registry),
        Histogram("taskgraft_batch_images", "Images in one pass of the model", buckets=SIZES, registry=registry),
        Counter("taskgraft_rejected", "Requests turned away by a limit", ("reason",), registry=registry),
    )


def page(found: Gauges) -> bytes:
    """The text that Prometheus reads."""
    return generate_latest(found.registry)
