"""Limits on the cost of a request. Imports no torch and no web framework: the command line reads its help here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from taskgraft.config import Range, options
from taskgraft.errors import InputError


@dataclass(frozen=True)
class Limits:
    """Limits of a server. `help` in each field's metadata describes it."""

    max_batch: Annotated[int, Range(1, 256, at_least=1, at_most=4096)] = field(
        default=32, metadata={"help": "Images per request and per batch"}
    )
    max_delay: Annotated[float, Range(0, 100, at_least=0, at_most=10_000)] = field(
        default=5.0, metadata={"help": "Time to wait for more images of a batch (ms)"}
    )
    max_queue: Annotated[int, Range(1, 10_000, at_least=1)] = field(
        default=256, metadata={"help": "Images queued or in progress; further requests get status 429"}
    )
    wait_seconds: Annotated[float, Range(0.01, 30, above=0)] = field(
        default=10.0, metadata={"help": "Longest expected queueing time (s); further requests get status 429"}
    )
    max_body: Annotated[int, Range(1, 256, at_least=1, at_most=1024)] = field(
        default=32, metadata={"help": "Size of a request body (MiB)"}
    )
    max_pixels: Annotated[float, Range(1, 89, above=0, at_most=89)] = field(
        default=25.0, metadata={"help": "Size of an image (megapixels)"}
    )
    decode_seconds: Annotated[float, Range(1, 60, above=0)] = field(
        default=10.0, metadata={"help": "Time to decode an image (s)"}
    )
    request_seconds: Annotated[float, Range(1, 300, above=0)] = field(
        default=30.0, metadata={"help": "Time to receive a request body, and again to answer it (s)"}
    )
    workers: Annotated[int, Range(1, 64, at_least=1, at_most=256)] = field(
        default=2, metadata={"help": "Processes that decode images"}
    )


def validate_limits(limits: Limits) -> None:
    """Check that all limits are legal and consistent.

    Raises:
        InputError: a value is out of range, or two contradict each other.
    """
    for name, option in options(Limits).items():
        reason = option.violation(getattr(limits, name))
        if reason:
            raise InputError(f"--{name.replace('_', '-')} {getattr(limits, name)!r}: {reason}")
    if limits.max_queue < limits.max_batch:
        raise InputError(
            f"--max-queue {limits.max_queue} is smaller than --max-batch {limits.max_batch}, so a full request would "
            "never be accepted; increase --max-queue"
        )
