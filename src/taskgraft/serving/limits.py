"""What a request may cost, and how one that costs more is turned away. No torch in here, for the help texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from taskgraft.config import Range, options
from taskgraft.errors import InputError


class Refusal(Exception):
    """An answer to the client: a status from 400 to 503 and what was wrong, without paths or traces."""

    def __init__(self, status: int, message: str, retry: int = 0) -> None:
        """`retry` > 0: seconds after which it may be tried again."""
        super().__init__(message)
        self.status, self.message, self.retry = status, message, retry


@dataclass(frozen=True)
class Limits:
    """Settings of a server; each with its legal values and what it means."""

    max_batch: Annotated[int, Range(1, 256, at_least=1, at_most=4096), "images of one request and of one batch"] = 32
    max_delay: Annotated[
        float, Range(0, 100, at_least=0, at_most=10_000), "milliseconds to wait for more images of a batch"
    ] = 5.0
    max_queue: Annotated[
        int, Range(1, 10_000, at_least=1), "images that may wait or be worked on; more get status 429"
    ] = 256
    wait_seconds: Annotated[
        float, Range(0.01, 30, above=0), "seconds a request may be expected to wait for others; more get status 429"
    ] = 10.0
    max_body: Annotated[int, Range(1, 256, at_least=1, at_most=1024), "MiB of a request's body"] = 32
    max_pixels: Annotated[float, Range(1, 89, above=0, at_most=89), "millions of pixels of one image"] = 25.0
    decode_seconds: Annotated[float, Range(1, 60, above=0), "seconds that decoding one image may take"] = 10.0
    request_seconds: Annotated[float, Range(1, 300, above=0), "seconds to receive a body, and again to answer it"] = (
        30.0
    )
    workers: Annotated[int, Range(1, 64, at_least=1, at_most=256), "processes that decode images"] = 2


def checked(limits: Limits) -> Limits:
    """The limits themselves when all are legal and fit together; raises TaskgraftError otherwise."""
    for name, option in options(Limits).items():
        reason = option.refusal(getattr(limits, name))
        if reason:
            raise InputError(f"--{name.replace('_', '-')} {getattr(limits, name)!r}: {reason}")
    if limits.max_queue < limits.max_batch:
        raise InputError(
            f"--max-queue {limits.max_queue} is below --max-batch {limits.max_batch} and would let no full request in; "
            "raise it"
        )
    return limits
