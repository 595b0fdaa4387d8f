"""The limits of what strangers may send, with the numbers that stand in the code."""

from __future__ import annotations

from typing import NamedTuple

from taskgraft.bundle import architecture, format, unpickle
from taskgraft.config import options
from taskgraft.data import decode, tar_shards, transforms
from taskgraft.methods.notation import MAX_LENGTH
from taskgraft.serving import app, decoding, middleware, server, service
from taskgraft.serving.limits import Limits

MIB = 2**20


class Row(NamedTuple):
    """One limit: what it is of, the number, what happens beyond it."""

    what: str
    number: str
    beyond: str


def page() -> str:
    """Tables by who sends what."""
    groups = {
        "Images, everywhere": PICTURES, "Checkpoints and bundles": MODELS, "Requests to the server": _server(),
        "Text": TEXT,
    }  # fmt: skip
    lines: list[str] = []
    for title, rows in groups.items():
        lines += [f"### {title}", "", "| what | limit | beyond it |", "|---|---|---|"]
        lines += [f"| {row.what} | {row.number} | {row.beyond} |" for row in rows] + [""]
    return "\n".join(lines)


PICTURES = [
    Row("formats, by content", ", ".join(decode.FORMATS), "excluded with a reason"),
    Row("bytes of a file", f"{decode.MAX_BYTES // MIB} MiB", "excluded, not read"),
    Row("pixels", f"{decode.MAX_PIXELS:,}, also of what it is resized to", "excluded before it is decoded"),
    Row("smallest side", f"{decode.MIN_SIDE} pixels", "excluded"),
    Row("longer side over shorter", f"{decode.MAX_ASPECT:g}", "excluded"),
    Row("bytes of a label in a tar archive", f"{tar_shards.MAX_LABEL_BYTES // MIB} MiB", "the image is excluded"),
]
MODELS = [
    Row("bytes of a JSON file", f"{format.MAX_JSON_BYTES // MIB} MiB", "refused"),
    Row("a number among a network's arguments", f"{architecture.MAX_ARGUMENT:,}", "refused"),
    Row("side of a model's input", f"{transforms.MAX_SIZE:,} pixels", "refused"),
    Row("memory of what opens a pickle",
        f"{unpickle.MEMORY_FACTOR} times the file and {unpickle.MEMORY_SPARE // MIB:,} MiB", "refused"),
    Row("its processor time",
        f"{unpickle.CPU_SECONDS} s, and 1 s for each {unpickle.BYTES_PER_SECOND // MIB} MiB", "refused"),
]  # fmt: skip
TEXT = [Row("characters of a method's notation", f"{MAX_LENGTH:,}", "refused")]


def _server() -> list[Row]:
    """The flags of `serve` with their defaults, and what cannot be set."""
    rows = [
        Row(f"`--{name.replace('_', '-')}`: {option.help}", f"{option.default:g}", "")
        for name, option in options(Limits).items()
    ]
    answers = {"max_batch": "422", "max_queue": "429", "wait_seconds": "429", "max_body": "413, while it is coming",
               "max_pixels": "422, before it is decoded", "decode_seconds": "422; the process is replaced",
               "request_seconds": "408, 503"}  # fmt: skip
    rows = [row._replace(beyond=answers.get(name, "")) for name, row in zip(options(Limits), rows, strict=True)]
    pixels = Limits().max_pixels
    spare = (pixels * 1e6 * decoding.BYTES_PER_PIXEL + decoding.BASE_MEMORY) / MIB
    return [
        *rows,
        Row("request line and headers together", f"{server.MAX_HEADERS // 2**10} KiB", "400"),
        Row("bodies in memory together", f"{service.MAX_BODIES} of the largest size", "429"),
        Row("text fields of a form", str(app.MAX_FORM_FIELDS), "400"),
        Row("memory of a decoding process", f"{spare:,.0f} MiB at {pixels:g} million pixels", "422; it is replaced"),
        Row("characters of a token", f"at least {server.MIN_TOKEN}", "the server does not start"),
        Row(
            "what a client may go on sending after a refusal",
            f"{middleware.LINGER_SECONDS:g} s",
            "the connection is closed",
        ),
        Row("time for requests in progress after SIGTERM", f"{server.DRAIN_SECONDS:g} s", "they are dropped"),
    ]
